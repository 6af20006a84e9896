"""Sphinx extension: numbers figures, equations and exercises from 1 on each page.

A chapter is also read alone, as a page or as a notebook: its first figure is Fig. 1, and stays so when the book grows.
A reference from another page links there, so that the number alone need not say where.
"""

from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment


def count_within_pages(app: Sphinx, env: BuildEnvironment) -> None:
    """Replaces the numbers that Sphinx counted through the whole book."""
    for kinds in env.toc_fignumbers.values():
        for numbers in kinds.values():
            in_order = sorted(numbers, key=lambda name: numbers[name])
            numbers.update({name: (place,) for place, name in enumerate(in_order, start=1)})


def setup(app: Sphinx) -> dict:
    # After the environment is stored: Sphinx compares stored numbers with new ones, and would write every page again.
    app.connect("env-check-consistency", count_within_pages)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
