"""Chapters in other forms: notebooks for Colab, and the EPUB."""
