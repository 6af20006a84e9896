"""Checks of arguments, one line each: shapes as docstrings write them, conditions as Python writes them."""

import ast
import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from reprlib import repr as short_repr
from types import CodeType

import torch

DTYPE_KINDS = {"bool": "booleans", "int": "integers", "float": "floating-point numbers"}
SHAPE_CLAUSE = re.compile(
    r"(?!not )(?P<name>\w+)(?: (?P<kind>bool|int|float))? (?P<text>\(.*\))(?P<optional> or None)?"
)


@dataclass(frozen=True)
class ShapeClause:
    """A clause such as `ids int (B, T)`."""

    text: str  # the sizes, as written
    name: str
    kind: str | None  # of DTYPE_KINDS; None: any
    optional: bool  # None is accepted
    sizes: tuple[str | CodeType, ...]  # a name, or what computes the size
    gap: int | None  # before which of them there may be more


@dataclass(frozen=True)
class ConditionClause:
    """A clause such as `0 <= dropout < 1`."""

    text: str
    code: CodeType
    operands: tuple[str, ...]  # expressions whose values an error shows


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
    values, shapes = dict(arguments), {}
    for clause in _clauses(description):
        if isinstance(clause, ShapeClause):
            new = _check_shape(clause, values)
            shapes |= dict.fromkeys(new.keys() - values.keys(), clause)
            values = new
        elif not eval(clause.code, values):
            raise ValueError(_failure(clause, values, shapes))


def _check_shape(clause: ShapeClause, values: dict) -> dict:
    """The values, and those of the clause's letters; raises ValueError where the shape is another."""
    array, found = values[clause.name], dict(values)
    if array is None and clause.optional:
        return found
    shape, sizes, gap = getattr(array, "shape", None), clause.sizes, clause.gap
    if shape is not None and clause.kind in (None, _kind(array)):
        if gap is not None:
            shape = shape[:gap] + shape[max(gap, gap + len(shape) - len(sizes)) :]
        if len(shape) == len(sizes) and all(
            size == (found.setdefault(s, size) if isinstance(s, str) else eval(s, found))
            for size, s in zip(shape, sizes, strict=True)
        ):
            return found
    names = dict.fromkeys(re.findall(r"\w+", clause.text))
    letters = [f"{name} = {short_repr(values[name])}" for name in names if name in values]
    expected = clause.text + (f" with {', '.join(letters)}" if letters else "")
    if clause.kind:
        expected = f"{DTYPE_KINDS[clause.kind]} {expected}"
    raise ValueError(f"{_described(clause.name, array, clause.kind)}: expected {expected}")


def _failure(clause: ConditionClause, values: dict, shapes: dict[str, ShapeClause]) -> str:
    """What to say of a condition that fails: for a letter, the shape that it comes from."""
    shown, written = [], []
    for operand in clause.operands:
        if shape := shapes.get(operand):
            shown.append(_described(shape.name, values[shape.name]))
            written.append(shape.text)
        elif operand in values or not operand.isidentifier():
            # It may have no value: `len(n)` in `isinstance(n, list) and len(n) > 0`.
            with suppress(Exception):
                shown.append(_described(operand, eval(operand, values)))
    expected = " and ".join(dict.fromkeys(written)) + " with " if written else ""
    return f"{', '.join(dict.fromkeys(shown))}: expected {expected}{clause.text}"


def _kind(array: object) -> str:
    """One of DTYPE_KINDS, or the name of another dtype."""
    name = str(getattr(array, "dtype", "")).removeprefix("torch.")
    # bfloat16 is a float, and uint8 an int.
    return next((kind for kind in DTYPE_KINDS if kind in name), name)


def _described(name: str, value: object, kind: str | None = None) -> str:
    if getattr(value, "ndim", 0):
        dtype = f" and dtype {value.dtype}" if kind else ""
        return f"{name} has shape {tuple(value.shape)}{dtype}"
    return f"{name} is {short_repr(value.item() if hasattr(value, 'item') else value)}"


@cache
def _clauses(description: str) -> list[ShapeClause | ConditionClause]:
    return [_clause(text) for text in _split(description)]


def _split(text: str) -> list[str]:
    """The parts between commas that stand in no brackets and no quotes."""
    parts, depth = [""], 0
    for piece in re.findall(r"'[^']*'|\"[^\"]*\"|.", text):
        depth += (piece in "([{") - (piece in ")]}")
        if piece == "," and not depth:
            parts.append("")
        else:
            parts[-1] += piece
    return [part.strip() for part in parts if part.strip()]


def _clause(text: str) -> ShapeClause | ConditionClause:
    if match := SHAPE_CLAUSE.fullmatch(text):
        sizes = _split(match["text"][1:-1])
        gap = sizes.index("...") if "..." in sizes else None
        return ShapeClause(
            text=match["text"],
            name=match["name"],
            kind=match["kind"],
            optional=bool(match["optional"]),
            sizes=tuple(
                size if size.isidentifier() else compile(size, text, "eval")
                for size in sizes
                if size != "..."
            ),
            gap=gap,
        )
    tree = ast.parse(text, mode="eval")
    operands = tuple(dict.fromkeys(_operands(tree.body, text)))
    return ConditionClause(text, compile(tree, text, "eval"), operands)


def _operands(node: ast.AST, text: str) -> Iterator[str]:
    """The parts of a condition whose values tell why it fails, such as `len(ids)`, `x.ndim` and `x`."""
    parts = ast.iter_child_nodes(node)
    whole = isinstance(node, ast.Attribute | ast.Name)
    if isinstance(node, ast.Call):
        parts = node.args
        whole = ast.unparse(node.func) in ("len", "max", "min") or isinstance(
            node.func, ast.Attribute
        )
    if whole:
        yield ast.get_source_segment(text, node)
    else:
        for part in parts:
            yield from _operands(part, text)
