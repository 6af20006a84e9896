"""Reads what the book is made of: chapters, the plan, materials, and the repository's addresses."""
