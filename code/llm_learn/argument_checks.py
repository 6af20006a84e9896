"""Checks of arguments in one line: shapes as docstrings write them, conditions as Python expressions."""

import ast
import re
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from reprlib import repr as short_repr
from typing import Any

import torch

DTYPE_KINDS = {"bool": "booleans", "int": "integers", "float": "floating-point numbers"}
SHAPE_CLAUSE = re.compile(
    r"(?!not )(?P<name>\w+)(?: (?P<kind>bool|int|float))? (?P<text>\(.*\))(?P<optional> or None)?"
)


@dataclass(frozen=True)
class Clause:
    """A shape such as `ids int (B, T)`, or a condition such as `0 <= dropout < 1`."""

    text: str  # the sizes, or the condition
    name: str = ""  # the array that has the shape; empty for a condition
    kind: str | None = None  # of DTYPE_KINDS; None: any
    optional: str | None = None  # " or None" where None is accepted


@dataclass(frozen=True)
class Description:
    """A parsed description for arguments of certain names."""

    clauses: list[Clause]
    letters: dict[str, int]  # which clause gives each letter its value
    # None if the arguments are as described, else the number of the clause that fails, and all values
    check: Callable[..., tuple[int, dict] | None]


def expect(description: str, /, **arguments: object) -> None:
    """Raises a ValueError unless the arguments are as described.

    `expect("q (..., T, D), k (..., S, D), 0 <= dropout < 1", q=q, k=k, dropout=dropout)` checks two shapes, which
    share D, and a number.

    Args:
        description: clauses with commas between them. `x (B, T)` is the shape of a tensor or an array, `ids int (B, T)`
            that of integers (or `bool`, `float`), and `mask bool (T, S) or None` may be absent. A letter has the same
            value in every clause, `...` stands for any sizes, and a size may be computed: `2 * D`. Everything else is a
            condition in Python, in which the letters have their values.
        arguments: the names in the description.

    Raises:
        ValueError: a clause does not hold. The message gives the argument, its value, and what was expected.
    """
    if torch.compiler.is_compiling():
        return
    parsed = _parse(description, tuple(arguments))
    if failed := parsed.check(**arguments):
        raise ValueError(_message(parsed, *failed))


def _message(parsed: Description, number: int, values: dict) -> str:
    clause = parsed.clauses[number]
    known = {n for n in values if n != "_s" and parsed.letters.get(n, -1) < number}
    if clause.name:
        names = dict.fromkeys(re.findall(r"\w+", clause.text))
        sizes = [f"{n} = {short_repr(values[n])}" for n in names if n in known]
        expected = clause.text + (f" with {', '.join(sizes)}" if sizes else "")
        if clause.kind:
            expected = f"{DTYPE_KINDS[clause.kind]} {expected}"
        return f"{_described(clause.name, values[clause.name], clause.kind)}: expected {expected}"
    shown, shapes = [], []
    for operand in _operands(ast.parse(clause.text, mode="eval").body, clause.text):
        if (
            operand in parsed.letters
        ):  # a letter is explained by the shape that it comes from
            shape = parsed.clauses[parsed.letters[operand]]
            shown.append(_described(shape.name, values[shape.name]))
            shapes.append(shape.text)
        elif operand in known or not operand.isidentifier():
            # It may have no value: `len(n)` in `isinstance(n, list) and len(n) > 0`.
            with suppress(Exception):
                shown.append(_described(operand, eval(operand, dict(values))))
    having = " and ".join(dict.fromkeys(shapes)) + " with " if shapes else ""
    return f"{', '.join(dict.fromkeys(shown))}: expected {having}{clause.text}"


def _described(name: str, value: Any, kind: str | None = None) -> str:
    if getattr(value, "ndim", 0):
        dtype = f" and dtype {value.dtype}" if kind else ""
        return f"{name} has shape {tuple(value.shape)}{dtype}"
    return f"{name} is {short_repr(value.item() if hasattr(value, 'item') else value)}"


@cache
def _kind(dtype: object) -> str:
    """One of DTYPE_KINDS, or the name of another dtype."""
    name = str(dtype).removeprefix("torch.")
    # bfloat16 is a float, and uint8 an int.
    return next((kind for kind in DTYPE_KINDS if kind in name), name)


@cache
def _parse(description: str, names: tuple[str, ...]) -> Description:
    """Compiles a description to a function, since layers check their inputs in every forward pass."""
    clauses, letters, lines = [], {}, []
    for number, text in enumerate(_split(description)):
        if match := SHAPE_CLAUSE.fullmatch(text):
            clause = Clause(**match.groupdict())
            shape = list(_shape_lines(number, clause, names, letters))
            head = [f"if {clause.name} is not None:"] if clause.optional else []
            lines += head + [" " * len(head) + line for line in shape]
        else:
            clause = Clause(text)
            lines.append(f"if not ({text}): return {number}, locals()")
        clauses.append(clause)
    scope: dict = {"_kind": _kind}
    exec(
        f"def check({', '.join(names)}):\n" + "".join(f" {line}\n" for line in lines), scope
    )
    return Description(clauses, letters, scope["check"])


def _shape_lines(
    number: int, clause: Clause, names: tuple[str, ...], letters: dict[str, int]
) -> Iterator[str]:
    """Python that compares a shape, and gives each new letter its value."""
    name, failed, sizes = (
        clause.name,
        f"return {number}, locals()",
        _split(clause.text[1:-1]),
    )
    gap = sizes.index("...") if "..." in sizes else len(sizes)
    too_few = (
        f"len(_s) < {len(sizes) - 1}" if gap < len(sizes) else f"len(_s) != {len(sizes)}"
    )
    yield f"_s = getattr({name}, 'shape', None)"
    yield f"if _s is None or {too_few}: {failed}"
    if clause.kind:
        yield f"if _kind({name}.dtype) != {clause.kind!r}: {failed}"
    for i, size in enumerate(sizes):
        place = i if i < gap else i - len(sizes)
        if size.isidentifier() and size not in (*names, *letters):
            letters[size] = number
            yield f"{size} = _s[{place}]"
        elif size != "...":
            yield f"if _s[{place}] != ({size}): {failed}"


def _split(text: str) -> list[str]:
    """Splits at the commas that are outside brackets and quotes."""
    parts, depth = [""], 0
    for piece in re.findall(r"'[^']*'|\"[^\"]*\"|.", text):
        depth += (piece in "([{") - (piece in ")]}")
        if piece == "," and not depth:
            parts.append("")
        else:
            parts[-1] += piece
    return [part.strip() for part in parts if part.strip()]


def _operands(node: ast.AST, text: str) -> Iterator[str]:
    """The parts of a condition whose values show why it fails, such as `len(ids)`, `x.ndim` and `x`."""
    parts = ast.iter_child_nodes(node)
    whole = isinstance(node, ast.Attribute | ast.Name)
    if isinstance(node, ast.Call):
        parts = node.args
        whole = ast.unparse(node.func) in ("len", "max", "min") or isinstance(
            node.func, ast.Attribute
        )
    if whole:
        yield ast.get_source_segment(text, node) or ""
    else:
        for part in parts:
            yield from _operands(part, text)
