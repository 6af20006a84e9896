"""Checks of arguments, one line each: shapes as docstrings write them, conditions as Python writes them."""

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from reprlib import repr as short_repr
from types import CodeType

import torch

SHAPE_CLAUSE = re.compile(
    r"(?P<name>\w+)(?: (?P<kind>bool|int|float))? (?P<text>\(.*\))(?P<optional> or None)?"
)
MEASURING_CALLS = ("abs", "len", "max", "min", "sum")
DTYPE_KINDS = {"bool": "booleans", "int": "integers", "float": "floating-point numbers"}


@dataclass(frozen=True)
class ShapeClause:
    """A clause such as `ids int (B, T)`."""

    text: str  # the sizes, as written
    name: str
    kind: str | None  # of DTYPE_KINDS; None: any
    open: bool  # more sizes may come first
    optional: bool  # None is accepted
    sizes: tuple[str | CodeType, ...]  # a name, or what computes the size


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
    shape, sizes = getattr(array, "shape", None), clause.sizes
    if shape is not None and clause.kind in (None, _kind(array)):
        own = shape[max(0, len(shape) - len(sizes)) :] if clause.open else shape
        if len(own) == len(sizes) and all(
            size == (found.setdefault(s, size) if isinstance(s, str) else eval(s, found))
            for size, s in zip(own, sizes, strict=True)
        ):
            return found
    letters = [f"{name} = {values[name]}" for name in _names(clause.text) if name in values]
    expected = clause.text + (f" with {', '.join(letters)}" if letters else "")
    if clause.kind:
        expected = f"{DTYPE_KINDS[clause.kind]} {expected}"
    raise ValueError(f"{_described(clause.name, array, clause.kind)}: expected {expected}")


def _failure(clause: ConditionClause, values: dict, shapes: dict[str, ShapeClause]) -> str:
    """What to say of a condition that fails: for a letter, the shape that it comes from."""
    shown, expected = [], clause.text
    for operand in clause.operands:
        if shape := shapes.get(operand):
            expected = f"{shape.text} with {clause.text}"
            shown.append(_described(shape.name, values[shape.name]))
        elif values.keys() >= set(_names(operand)) - set(MEASURING_CALLS):
            shown.append(_described(operand, eval(operand, values)))
    return f"{', '.join(dict.fromkeys(shown))}: expected {expected}"


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


def _names(expression: str) -> list[str]:
    """The names in an expression, each once."""
    nodes = ast.walk(ast.parse(expression.replace("...", "0"), mode="eval"))
    return list(dict.fromkeys(node.id for node in nodes if isinstance(node, ast.Name)))


def _operands(node: ast.AST) -> Iterator[str]:
    """The parts of a condition whose values tell why it fails, such as `len(ids)`, `x.ndim` and `x`."""
    if isinstance(node, ast.Call):
        measures = isinstance(node.func, ast.Attribute) or node.func.id in (
            "len",
            "max",
            "min",
        )
        if measures:
            yield ast.unparse(node)
            return
        children = node.args
    elif isinstance(node, ast.Attribute | ast.Name):
        yield ast.unparse(node)
        return
    else:
        children = list(ast.iter_child_nodes(node))
    for child in children:
        yield from _operands(child)


@cache
def _clauses(description: str) -> list[ShapeClause | ConditionClause]:
    parts, depth = [""], 0
    for character in description:
        depth += (character in "([{") - (character in ")]}")
        if character == "," and not depth:
            parts.append("")
        else:
            parts[-1] += character
    return [_clause(part.strip()) for part in parts]


def _clause(text: str) -> ShapeClause | ConditionClause:
    if match := SHAPE_CLAUSE.fullmatch(text):
        written = [size.strip() for size in match["text"][1:-1].split(",") if size.strip()]
        sizes = tuple(
            size if size.isidentifier() else compile(size, text, "eval")
            for size in written
            if size != "..."
        )
        return ShapeClause(
            text=match["text"],
            name=match["name"],
            kind=match["kind"],
            open="..." in written,
            optional=bool(match["optional"]),
            sizes=sizes,
        )
    tree = ast.parse(text, mode="eval")
    return ConditionClause(
        text, compile(tree, text, "eval"), tuple(dict.fromkeys(_operands(tree.body)))
    )
