"""Packaged cells: copies the package's text into them, and checks that each definition is taught once.

A cell tagged `packaged` begins with `# llm_learn.<module>` and holds definitions only. The package is the
source of truth: `python -m book sync` writes its text into the cells, `--check` reports the differences. In
a new cell the names of the definitions are enough.
"""

import argparse
import ast
import difflib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from book.atomic_files import write_atomically
from book.read.chapters import ROOT, Cell, Source, find_sources, load_plan, planned_chapters

HEADER = re.compile(r"^# llm_learn\.(?P<module>\w+(?:\.\w+)*)\s*$")
CONSTANT = re.compile(r"^_?[A-Z][A-Z0-9_]*$")
DIFF_LINES = 12


@dataclass(frozen=True, kw_only=True)
class Definition:
    """A top-level definition of a module and the lines that are its text (from 0, end exclusive)."""

    name: str
    start: int
    end: int
    text: str
    block: bool  # a function or class, which two blank lines set apart

    @property
    def teachable(self) -> bool:
        """Whether a chapter teaches it: a function, a class or a constant."""
        return self.block or bool(CONSTANT.match(self.name))


def _names(node: ast.stmt) -> list[str]:
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return [node.name]
    if isinstance(node, ast.Assign):
        return [target.id for target in node.targets if isinstance(target, ast.Name)]
    return (
        [node.target.id]
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)
        else []
    )


def _bare_names(node: ast.stmt) -> list[str]:
    """The names of a line `name` or `name, name`, as an author writes before the first sync."""
    value = node.value if isinstance(node, ast.Expr) else None
    elements = value.elts if isinstance(value, ast.Tuple) else [value]
    names = [e.id for e in elements if isinstance(e, ast.Name)]
    return names if len(names) == len(elements) else []


def definitions(source: str) -> list[Definition]:
    """The top-level definitions of `source`, with decorators and the comment lines directly above them."""
    lines, found = source.split("\n"), []
    for node in ast.parse(source).body:
        decorators = getattr(node, "decorator_list", [])
        start = min(each.lineno for each in (node, *decorators)) - 1
        while start > 0 and lines[start - 1].startswith("#"):
            start -= 1
        end = node.end_lineno or len(lines)
        text = "\n".join(lines[start:end])
        for name in _names(node)[:1]:
            block = not isinstance(node, ast.Assign | ast.AnnAssign)
            found.append(
                Definition(name=name, start=start, end=end, text=text, block=block)
            )
    return found


def _join(wanted: Sequence[Definition], lines: Sequence[str]) -> str:
    """The definitions' texts, apart as the package has them, or as ruff would set them if reordered."""
    text = ""
    for before, definition in zip([None, *wanted], wanted, strict=False):
        if before is not None:
            between = lines[before.end : definition.start]
            adjacent = definition.start >= before.end and not any(
                line.strip() for line in between
            )
            apart = 2 if before.block or definition.block else 1
            text += "\n" * (1 + (len(between) if adjacent else apart))
        text += definition.text
    return text


def module_path(package: Path, module: str) -> Path:
    """The file of a module of the package, as `tasks.geography`; a sub-package's text is in its `__init__.py`."""
    path = package.joinpath(*module.split("."))
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def module_names(package: Path) -> dict[str, Path]:
    """All modules of the package and of its sub-packages, each by its name inside the package."""
    paths = {
        path.relative_to(package).with_suffix(""): path for path in package.rglob("*.py")
    }
    return {
        ".".join(name.parts).removesuffix(".__init__"): paths[name]
        for name in sorted(paths)
    }


def expected_source(cell: Cell, package: Path) -> tuple[str, str, list[str]]:
    """The source a packaged cell must have, its module, and the names that it teaches.

    Raises:
        ValueError: the cell has no header, holds something else than definitions, or names what is not there.
    """
    header = HEADER.match(cell.source.split("\n", 1)[0])
    if not header:
        raise ValueError("a packaged cell begins with the line `# llm_learn.<module>`")
    module = header["module"]
    path = module_path(package, module)
    if not path.is_file():
        raise ValueError(
            f"llm_learn has no module `{module}`: correct the cell's first line"
        )
    try:
        body = ast.parse(cell.source).body
    except SyntaxError as error:
        raise ValueError(
            f"the packaged cell of llm_learn.{module} is not Python: {error.msg}"
        ) from error
    if not body:
        raise ValueError(
            f"write the names that this cell of llm_learn.{module} teaches below its first line"
        )
    named = [_names(node)[:1] or _bare_names(node) for node in body]
    if not all(named):
        raise ValueError(
            f"a packaged cell of llm_learn.{module} holds definitions only: move the rest away"
        )
    source = path.read_text(encoding="utf-8")
    known = {definition.name: definition for definition in definitions(source)}
    names = [name for several in named for name in several]
    if missing := [name for name in names if name not in known]:
        raise ValueError(f"llm_learn.{module} does not define {', '.join(missing)}")
    text = _join([known[name] for name in names], source.split("\n"))
    # Keeps the header apart from a definition's own comment.
    gap = "\n\n" if text.startswith("#") else "\n"
    return f"# llm_learn.{module}{gap}{text}", module, names


def packaged_cells(chapter: Source) -> list[Cell]:
    return [cell for cell in chapter.cells if "packaged" in cell.tags]


def differences(chapter: Source, package: Path) -> list[str]:
    """One message for each packaged cell of `chapter` whose text is not the package's."""
    messages = []
    for cell in packaged_cells(chapter):
        at = f"{chapter.where}:{cell.line}"
        try:
            wanted, module, names = expected_source(cell, package)
        except ValueError as error:
            messages.append(f"{at}: {error}")
            continue
        if cell.source != wanted:
            diff = list(
                difflib.unified_diff(
                    cell.source.splitlines(), wanted.splitlines(), "chapter", "package", n=1
                )
            )
            shown = "\n    ".join(
                diff[2 : 2 + DIFF_LINES] + (["…"] if len(diff) > 2 + DIFF_LINES else [])
            )
            taught = ", ".join(f"llm_learn.{module}.{name}" for name in names)
            messages.append(
                f"{at}: {taught} differs from the package; run `make sync`\n    {shown}"
            )
    return messages


def rewrite(chapter: Source, package: Path) -> list[str]:
    """Writes the package's text into the packaged cells of `chapter`; returns the names that changed."""
    lines, changed = list(chapter.lines), []
    # From the end, so that earlier line numbers stay true.
    for cell in reversed(packaged_cells(chapter)):
        wanted, module, names = expected_source(cell, package)
        if cell.source != wanted:
            first = cell.line - 1
            lines[first : first + cell.source.count("\n") + 1] = wanted.split("\n")
            changed = [f"llm_learn.{module}.{name}" for name in names] + changed
    if changed:
        write_atomically(chapter.path, "\n".join(lines) + "\n")
    return changed


def taught_problems(root: Path = ROOT, plan: dict | None = None) -> list[str]:
    """What breaks "taught exactly once, or listed as pending or plumbing" (code/book/data/taught.yml)."""
    package, listing = root / "code/llm_learn", root / "code/book/data/taught.yml"
    listed = yaml.safe_load(listing.read_text(encoding="utf-8")) or {}
    plumbing, pending = listed.get("plumbing") or {}, listed.get("pending") or {}
    slugs = planned_chapters(plan or load_plan(root / "code/book/data/chapters.yml"))
    taught: dict[str, list[str]] = {}
    for chapter in find_sources(root):
        for cell in packaged_cells(chapter):
            try:
                _, module, names = expected_source(cell, package)
            except ValueError:
                continue  # `differences` reports it
            for name in names:
                taught.setdefault(f"{module}.{name}", []).append(
                    f"{chapter.where}:{cell.line}"
                )

    messages, known = [], set()
    for module, path in module_names(package).items():
        known.add(module)
        for definition in definitions(path.read_text(encoding="utf-8")):
            if not definition.teachable:
                continue
            name = f"{module}.{definition.name}"
            known.add(name)
            places = taught.get(name, [])
            excuses = [key for key in (module, name) if key in plumbing] + [name] * (
                name in pending
            )
            if len(places) > 1:
                messages.append(
                    f"{name} is taught {len(places)} times ({', '.join(places)}): keep one"
                )
            elif places and excuses:
                messages.append(
                    f"{name} is taught in {places[0]}: remove it from taught.yml"
                )
            elif not places and not excuses:
                messages.append(
                    f"{name} is taught nowhere: show it in a packaged cell, or list it in taught.yml "
                    "(pending, with the chapter that will teach it, or plumbing, with the reason)"
                )
            elif len(excuses) > 1:
                messages.append(
                    f"{name} is listed more than once in taught.yml ({', '.join(excuses)})"
                )
    for key, reason in plumbing.items():
        if key not in known:
            messages.append(
                f"taught.yml lists `{key}` as plumbing, but llm_learn has no such definition"
            )
        if not isinstance(reason, str) or len(reason) < 10:
            messages.append(f"taught.yml lists `{key}` as plumbing without a reason")
    for key, slug in pending.items():
        if key not in known or "." not in key:
            messages.append(
                f"taught.yml lists `{key}` as pending, but llm_learn has no such definition"
            )
        if slug not in slugs:
            messages.append(
                f"taught.yml: `{key}` waits for `{slug}`, which is not a chapter of chapters.yml"
            )
        elif (root / f"chapters/{slug}.md").exists():
            messages.append(
                f"taught.yml: `{key}` waits for `{slug}`, which exists: teach it there"
            )
    return messages


def main(argv: Sequence[str] = (), root: Path = ROOT) -> int:
    """`python -m book sync [--check]`."""
    parser = argparse.ArgumentParser(
        prog="book sync", description="Write the package's text into packaged cells."
    )
    parser.add_argument(
        "--check", action="store_true", help="change nothing; fail on any difference"
    )
    check = parser.parse_args(list(argv)).check
    package, problems = root / "code/llm_learn", []
    for chapter in find_sources(root):
        if check:
            problems += differences(chapter, package)
            continue
        try:
            for name in rewrite(chapter, package):
                print(f"{chapter.where}: {name} updated")
        except ValueError:
            problems += differences(chapter, package)
    problems += taught_problems(root) if check else []
    for problem in problems:
        print(problem)
    return 1 if problems else 0
