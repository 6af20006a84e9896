"""What `python -m book` runs."""
