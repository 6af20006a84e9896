"""The commands of `python -m book`."""
