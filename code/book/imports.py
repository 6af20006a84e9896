"""What a chapter imports must come with the package, or with the extras that its front matter names."""

import ast
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from book.checks import at, check, tree
from book.fingerprint import closure, distribution_name, distributions
from book.source import ROOT, project

# The package itself, and what every notebook has by being one.
ALWAYS = {"llm_learn", "IPython"}


@check
def imports(chapter, book):
    """Every imported library is a dependency of the package, or of an extra that the chapter names."""
    allowed = brought(tuple(chapter.meta.get("extras") or ()))
    for cell in chapter.cells:
        for node, name in imported(tree(cell)):
            if name in sys.stdlib_module_names or name in ALWAYS:
                continue
            owners = {distribution_name(owner) for owner in distributions().get(name, ())}
            if not owners & allowed:
                yield (
                    at(cell, node),
                    f"`{name}` comes with none of the extras that the chapter names: the notebook could not "
                    "import it in Colab; add the library to an extra of pyproject.toml, and name the extra",
                )


def imported(module: ast.Module) -> Iterator[tuple[ast.AST, str]]:
    """(statement, top-level module) for every import."""
    for node in ast.walk(module):
        if isinstance(node, ast.Import):
            yield from ((node, alias.name.split(".")[0]) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node, node.module.split(".")[0]


@cache
def brought(extras: tuple[str, ...], root: Path = ROOT) -> frozenset[str]:
    """The distributions that installing the package with these extras brings, by what is installed here."""
    table = project(root)
    optional = table.get("optional-dependencies", {})
    needed = [*table["dependencies"], *(r for e in extras for r in optional.get(e, ()))]
    return frozenset(closure(needed))
