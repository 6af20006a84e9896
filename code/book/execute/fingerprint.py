"""Hashes what a chapter's outputs depend on: its cells, package modules, records and versions.

jupyter-cache looks at cells and kernel only: a page would keep old numbers after the package has changed.
"""

import ast
import hashlib
import re
import sys
from collections.abc import Iterable, Mapping
from functools import cache, cached_property
from importlib import metadata
from importlib.metadata import packages_distributions, version
from pathlib import Path
from platform import python_version

from IPython.core.inputtransformer2 import TransformerManager
from packaging.requirements import Requirement

PACKAGE = "llm_learn"
# What every kernel imports: it runs the cells and makes their outputs.
KERNEL = ("IPython", "ipykernel")


def imported_names(nodes: Iterable[ast.AST], package: str = "") -> set[str]:
    """Dotted names that a module's nodes import, absolute; `from a.b import c` gives `a.b` and `a.b.c`.

    Args:
        nodes: All nodes of the module's syntax tree.
        package: The package that relative imports start from.
    """
    names: set[str] = set()
    for node in nodes:
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


@cache
def _nodes(source: str) -> list[ast.AST]:
    """All of a cell's syntax tree, its magics as calls; a SyntaxError where it is not Python."""
    try:
        return list(ast.walk(ast.parse(source)))
    except SyntaxError:
        return list(ast.walk(ast.parse(TransformerManager().transform_cell(source))))


def cell_names(source: str) -> set[str]:
    """Like `imported_names`, for a cell, which may hold magics, run a module by name, or not be Python."""
    # Most cells hold neither, and need not be parsed.
    if "import" not in source and PACKAGE not in source:
        return set()
    try:
        nodes = _nodes(source)
        names = imported_names(nodes)
        texts = [node.value for node in nodes if isinstance(node, ast.Constant)]
    except SyntaxError:
        names, texts = set(), [source]
    for text in texts:
        if isinstance(text, str):
            run = re.findall(rf"\b{PACKAGE}(?:\.\w+)+", text)
            names.update(run, (f"{name}.__main__" for name in run))
    return names


def records_read(source: str, folder: Path) -> list[Path]:
    """The records of experiments that a cell reads by `recorded(…)`: all in `folder` where it computes a name."""
    if "recorded" not in source:
        return []
    try:
        nodes = _nodes(source)
    except SyntaxError:
        return sorted(folder.glob("*.json"))
    found: set[Path] = set()
    for node in nodes:
        if not isinstance(node, ast.Call):
            continue
        if getattr(node.func, "attr", getattr(node.func, "id", "")) != "recorded":
            continue
        name = next(iter([*node.args, *(word.value for word in node.keywords)]), None)
        if isinstance(name, ast.Constant):
            found.add(folder / f"{name.value}.json")
        else:
            found.update(folder.glob("*.json"))
    return sorted(found)


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
            imports[name] = imported_names(
                ast.walk(ast.parse(path.read_text(encoding="utf-8"))), parent
            )
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
        self,
        cells_hash: str,
        cells: Iterable[str],
        experiments: Path | None = None,
        settings: Mapping[str, str] | None = None,
    ) -> str:
        """The hash of `inputs`."""
        lines = self.inputs(cells_hash, cells, experiments, settings)
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()

    def inputs(
        self,
        cells_hash: str,
        cells: Iterable[str],
        experiments: Path | None = None,
        settings: Mapping[str, str] | None = None,
    ) -> list[str]:
        """Everything that a chapter's outputs depend on, one line each.

        Args:
            cells_hash: jupyter-cache's hash of the notebook.
            cells: Sources of the code cells.
            experiments: The folder of the records that cells read by `recorded(…)`.
            settings: What every kernel's environment sets.
        """
        cells = list(cells)
        modules, met = self.reached(set().union(*map(cell_names, cells)))
        lines = [cells_hash, f"python {python_version()}"]
        lines += [f"{name}={value}" for name, value in sorted((settings or {}).items())]
        for module in sorted(modules):
            lines.append(
                f"{module} {hashlib.sha256(self.modules[module].read_bytes()).hexdigest()}"
            )
        tops = (
            {*KERNEL, *(name.partition(".")[0] for name in met)}
            - set(sys.stdlib_module_names)
            - {PACKAGE, ""}
        )
        found = {dist for top in tops for dist in distributions().get(top, ())}
        lines.extend(_versions(frozenset(found)))
        read = (records_read(cell, experiments) for cell in cells if experiments)
        for record in sorted(set().union(*read)):
            if record.is_file():
                digest = hashlib.sha256(record.read_bytes()).hexdigest()
                lines.append(f"{record.name} {digest}")
        return lines


@cache
def _versions(names: frozenset[str]) -> list[str]:
    """`name==version` of distributions and of all that they need, sorted."""
    return sorted(f"{each}=={_version(each)}" for each in closure(names))


@cache
def _version(name: str) -> str:
    return version(name)


def closure(requirements: Iterable[str]) -> set[str]:
    """The distributions that these requirements need, directly or through others."""
    found: set[str] = set()
    left = [Requirement(text) for text in requirements]
    while left:
        requirement = left.pop()
        name = distribution_name(requirement.name)
        try:
            needs = _needs(name)
        except metadata.PackageNotFoundError:
            continue  # for another system, or another Python
        new = name not in found
        found.add(name)
        wanted = {"", *requirement.extras} if new else requirement.extras
        left += [need for need in needs if any(_applies(need, extra) for extra in wanted)]
    return found


@cache
def _needs(name: str) -> list[Requirement]:
    return [Requirement(text) for text in metadata.requires(name) or []]


@cache
def _applies(requirement: Requirement, extra: str) -> bool:
    return requirement.marker is None or requirement.marker.evaluate({"extra": extra})


def distribution_name(text: str) -> str:
    """A distribution's name as others spell it too: in lower case, with hyphens."""
    return re.sub(r"[-_.]+", "-", text).lower()
