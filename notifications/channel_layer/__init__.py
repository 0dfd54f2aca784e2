"""What ``layers.py`` is made of."""
