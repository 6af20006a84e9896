"""Executes chapters in kernels, within budgets, and records what was measured."""
