"""What the outputs of a chapter depend on, as one hash: its cells, the package modules they reach, versions.

jupyter-cache looks at cells and kernel only: a page would keep old numbers after the package has changed.
"""

import ast
import hashlib
import re
import sys
from collections.abc import Iterable
from functools import cache, cached_property
from importlib.metadata import packages_distributions, version
from pathlib import Path

from IPython.core.inputtransformer2 import TransformerManager

PACKAGE = "llm_learn"


def imported_names(source: str, package: str = "") -> set[str]:
    """Dotted names that a module's source imports, absolute; `from a.b import c` gives `a.b` and `a.b.c`.

    Args:
        source: Python source.
        package: The package that relative imports start from.
    """
    names: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parents = (
                package.split(".")[: len(package.split(".")) - node.level + 1]
                if node.level
                else []
            )
            base = ".".join([*parents, *([node.module] if node.module else [])])
            names.add(base)
            names.update(f"{base}.{alias.name}" for alias in node.names)
    return names


def cell_names(source: str) -> set[str]:
    """Like `imported_names`, for a cell, which may hold magics, run a module by name, or not be Python."""
    try:
        plain = TransformerManager().transform_cell(source)
        names = imported_names(plain)
        texts = [
            node.value
            for node in ast.walk(ast.parse(plain))
            if isinstance(node, ast.Constant)
        ]
    except SyntaxError:
        names, texts = set(), [source]
    for text in texts:
        if isinstance(text, str):
            names.update(re.findall(rf"\b{PACKAGE}(?:\.\w+)+", text))
    return names


@cache
def distributions() -> dict[str, list[str]]:
    """top-level module -> the installed distributions that bring it."""
    return dict(packages_distributions())


class Package:
    """The modules of the package and what each of them imports.

    Args:
        folder: The folder of the package, which need not exist.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @cached_property
    def modules(self) -> dict[str, Path]:
        """Every module's dotted name and file."""
        found = {}
        for path in sorted(self.folder.rglob("*.py")):
            parts = path.relative_to(self.folder.parent).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
        return found

    @cached_property
    def _imports(self) -> dict[str, set[str]]:
        imports = {}
        for name, path in self.modules.items():
            parent = name if path.name == "__init__.py" else name.rpartition(".")[0]
            imports[name] = imported_names(path.read_text(encoding="utf-8"), parent)
        return imports

    def reached(self, names: Iterable[str]) -> tuple[set[str], set[str]]:
        """The package's modules that the names lead to, through others too, and every name met on the way."""
        modules: set[str] = set()
        met = set(names)
        pending = list(met)
        while pending:
            parts = pending.pop().split(".")
            # Importing a.b.c runs a, a.b and, where it is a module, a.b.c.
            for length in range(1, len(parts) + 1):
                module = ".".join(parts[:length])
                if module in self.modules and module not in modules:
                    modules.add(module)
                    pending.extend(self._imports[module] - met)
                    met |= self._imports[module]
        return modules, met

    def fingerprint(
        self, cells_hash: str, cells: Iterable[str], record: Path | None = None
    ) -> str:
        """The hash of everything that a chapter's outputs depend on.

        Args:
            cells_hash: jupyter-cache's hash of the notebook.
            cells: Sources of the code cells.
            record: The chapter's recorded experiment, which need not exist.
        """
        modules, met = self.reached(set().union(*map(cell_names, cells)))
        lines = [cells_hash, "python {}.{}".format(*sys.version_info)]
        for module in sorted(modules):
            lines.append(
                f"{module} {hashlib.sha256(self.modules[module].read_bytes()).hexdigest()}"
            )
        tops = (
            {name.partition(".")[0] for name in met}
            - set(sys.stdlib_module_names)
            - {PACKAGE, ""}
        )
        found = {dist for top in tops for dist in distributions().get(top, ())}
        lines.extend(f"{dist}=={version(dist)}" for dist in sorted(found))
        if record is not None and record.is_file():
            lines.append(f"{record.name} {hashlib.sha256(record.read_bytes()).hexdigest()}")
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()
