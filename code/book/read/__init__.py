"""What the book is made of: chapters, the plan, materials, and where the repository is."""
