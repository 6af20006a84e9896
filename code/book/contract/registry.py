"""Registers the checks of a chapter's source, and loads what they compare it with."""

import ast
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import wraps
from itertools import takewhile
from pathlib import Path

from book.contract.packaged_cells import definitions
from book.read.chapters import ROOT, Cell, Source, load_plan, project
from book.read.recommended_links import load_materials

ALWAYS = [
    "minute",
    "question",
    "idea",
    "build",
    "check",
    "experiment",
    "wrong",
    "remember",
    "exercises",
    "reading",
]
# The roles that a page must have, by its edition.
ROLES = {1: [*ALWAYS, "cost", "scale"], 2: [*ALWAYS, "since"]}
OPTION = re.compile(r"^:(\w+):\s*(.*)$", re.M)
Directive = tuple[int, str, str, dict[str, str]]  # line, kind, argument, options
CITE = re.compile(r"\{cite(?::\w+)?\}`([^`]+)`")


@dataclass(frozen=True, kw_only=True)
class Book:
    """What the checks compare a chapter with."""

    plan: dict  # chapters.yml
    citations: frozenset[str]  # keys of references.bib
    packaged: frozenset[str]  # functions, classes and constants of llm_learn
    extras: frozenset[str]  # optional dependencies of pyproject.toml
    helped: frozenset[str]  # chapters that an entry of materials.yml helps


def load_book(root: Path = ROOT) -> Book:
    bib = root / "references.bib"
    names = {
        d.name
        for path in (root / "code/llm_learn").rglob("*.py")
        for d in definitions(path.read_text(encoding="utf-8"))
        if d.teachable
    }
    keys = (
        re.findall(r"^@\w+\{\s*([^,\s]+)", bib.read_text(encoding="utf-8"), re.M)
        if bib.exists()
        else []
    )
    plan = load_plan(root / "code/book/data/chapters.yml")
    return Book(
        plan=plan,
        citations=frozenset(keys),
        packaged=frozenset(names),
        extras=frozenset(project(root).get("optional-dependencies", {})),
        helped=frozenset(slug for entry in load_materials() for slug in entry.helps),
    )


Check = Callable[[Source, Book], list[str]]
Found = Iterator[tuple[int, str]]  # lines, and what to do there
CHECKS: dict[str, Check] = {}


def check(
    function: Callable[[Source, Book], Found],
    applies: Callable[[Source], bool] = lambda chapter: True,
) -> Check:
    """Registers a generator of (line, remedy) as a check that returns messages; pages where it does not apply have none."""

    @wraps(function)
    def run(chapter: Source, book: Book) -> list[str]:
        found = function(chapter, book) if applies(chapter) else ()
        return [f"{chapter.where}:{line}: {text}" for line, text in found]

    CHECKS[function.__name__] = run
    return run


def tree(cell: Cell) -> ast.Module:
    """The cell's syntax tree, magics left out; empty where it is not Python (the build reports that)."""
    lines = ["" if re.match(r"\s*[%!]", line) else line for line in cell.source.split("\n")]
    try:
        return ast.parse("\n".join(lines))
    except SyntaxError:
        return ast.Module(body=[], type_ignores=[])


def imported(module: ast.Module) -> Iterator[tuple[ast.stmt, str, str]]:
    """(statement, name in the cell, what it stands for) of every import, such as `F` and `torch.nn.functional`."""
    for node in ast.walk(module):
        if isinstance(node, ast.Import):
            for alias in node.names:
                root = alias.name.split(".")[0]
                yield node, alias.asname or root, alias.name if alias.asname else root
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            for alias in node.names:
                yield node, alias.asname or alias.name, f"{node.module}.{alias.name}"


def calls(node: ast.AST) -> Iterator[tuple[str, ast.Call]]:
    """(last part of the called name, call) for every call under `node`."""
    for call in (n for n in ast.walk(node) if isinstance(n, ast.Call)):
        yield getattr(call.func, "attr", getattr(call.func, "id", "")), call


def literal(call: ast.Call) -> str | None:
    """The call's first argument where it is a string literal."""
    match call.args:
        case [ast.Constant(value=str(text)), *_]:
            return text
    return None


def at(cell: Cell, node: ast.expr | ast.stmt) -> int:
    return cell.line + node.lineno - 1


def role_at(chapter: Source, line: int) -> str:
    """The anatomy role whose label stands last above `line`."""
    roles = [label.split("-")[0] for n, label in chapter.labels if n < line]
    known = {*ROLES[1], *ROLES[2]}
    return next((role for role in reversed(roles) if role in known), "")


def directives(chapter: Source, kinds: str) -> Iterator[Directive]:
    """Every directive in the prose whose kind matches."""
    for number, line in chapter.prose:
        if match := re.match(rf"[`:]{{3,}}\{{({kinds})\}}\s*(.*?)\s*$", line):
            given = takewhile(lambda text: text.startswith(":"), chapter.lines[number:])
            yield number, match[1], match[2], dict(OPTION.findall("\n".join(given)))


def allowed_escapes(num_cells: int) -> int:
    """How many of a chapter's cells the proof may leave uncompared: three, or a fifth where that is more."""
    return max(3, num_cells // 5)
