"""Executes chapters: kernels, what their outputs depend on, budgets, and records of what was measured."""
