"""What a web process tells monitoring."""
