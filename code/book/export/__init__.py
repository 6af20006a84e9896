"""Exports the chapters as notebooks for Colab, and the book as an EPUB."""
