"""Builds, executes and proves the book. `python -m book --help` lists the commands."""
