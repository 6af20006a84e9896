"""Checks of every chapter: what its source and its outputs must and must not contain."""
