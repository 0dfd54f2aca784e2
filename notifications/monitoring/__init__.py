"""Health checks and metrics of web processes."""
