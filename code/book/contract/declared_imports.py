"""Checks that the package, or the extras in the front matter, install what a chapter imports."""

import sys
from functools import cache
from pathlib import Path

from book.contract.registry import Book, Found, at, check, imported, tree
from book.execute.fingerprint import closure, distribution_name, distributions
from book.read.chapters import ROOT, Source, project

# The package itself, and what every notebook has by being one.
ALWAYS = {"llm_learn", "IPython"}


@check
def imports(chapter: Source, book: Book) -> Found:
    """Every imported library is a dependency of the package, or of an extra that the chapter names."""
    allowed = brought(tuple(chapter.meta.get("extras") or ()))
    for cell in chapter.cells:
        for node, _, target in imported(tree(cell)):
            name = target.split(".")[0]
            if name in sys.stdlib_module_names or name in ALWAYS:
                continue
            owners = {distribution_name(owner) for owner in distributions().get(name, ())}
            if not owners & allowed:
                yield (
                    at(cell, node),
                    f"`{name}` comes with none of the extras that the chapter names: the notebook could not "
                    "import it in Colab; add the library to an extra of pyproject.toml, and name the extra",
                )


@cache
def brought(extras: tuple[str, ...], root: Path = ROOT) -> frozenset[str]:
    """The distributions that installing the package with these extras brings, by what is installed here."""
    table = project(root)
    optional = table.get("optional-dependencies", {})
    needed = [*table["dependencies"], *(r for e in extras for r in optional.get(e, ()))]
    return frozenset(closure(needed))
