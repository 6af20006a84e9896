"""Helpers that bind a page's sentences to what its cells computed: numbers, answers, claims, tables, checks."""

import copy
from collections.abc import Callable, Mapping, Sequence
from html import escape
from typing import Any

import torch
from torch import Tensor, nn

from llm_learn.argument_checks import expect
from llm_learn.notebook import _display, _largest_difference, glue

# The bars of `verify_module`: (precision, outputs, gradients). Those of float32 are relative.
PRECISIONS = ((torch.float64, 1e-10, 1e-10), (torch.float32, 1e-6, 1e-5))


class Spread(str):
    """A mean with its spread, as text; `defined` also says in its brackets what they hold."""

    kind: str
    defined: str


_defined: set[str] = set()


def mean_and_range(values: Sequence[float], decimals: int = 2) -> Spread:
    """`2.21 (2.19–2.24)`: the mean over seeds, and in round brackets the smallest and the largest value.

    Args:
        values: one for each seed.
        decimals: digits after the decimal point.
    """
    expect("len(values) >= 2, decimals >= 0", values=values, decimals=decimals)
    numbers = [float(value) for value in values]
    mean, low, high = sum(numbers) / len(numbers), min(numbers), max(numbers)
    shown = f"{mean:.{decimals}f} ({low:.{decimals}f}–{high:.{decimals}f}"
    text = Spread(f"{shown})")
    text.kind, text.defined = "range", f"{shown}, the range over {len(numbers)} seeds)"
    return text


def mean_and_interval(mean: float, low: float, high: float, decimals: int = 2) -> Spread:
    """`2.21 [2.17, 2.26]`: an estimate, and in square brackets its 95 % confidence interval."""
    expect(
        "low <= mean <= high, decimals >= 0",
        mean=mean,
        low=low,
        high=high,
        decimals=decimals,
    )
    shown = f"{mean:.{decimals}f} [{low:.{decimals}f}, {high:.{decimals}f}"
    text = Spread(f"{shown}]")
    text.kind, text.defined = "interval", f"{shown}, a 95 % interval]"
    return text


def results(**values: str | int) -> None:
    """Stores the numbers of a section, so that prose shows them instead of repeating them by hand.

    The first spread of each kind also says what its brackets hold, so name the numbers in the order of the prose.

    Args:
        values: each is stored under its name, with `-` for `_`: as text, rounded as it should be read.

    Raises:
        ValueError: a value is neither text nor an integer, or there is none.
    """
    expect("len(values) >= 1", values=values)
    for name, value in values.items():
        if isinstance(value, bool) or not isinstance(value, str | int):
            raise ValueError(
                f"{name} is {value!r}: expected text, such as f'{{loss:.2f}}', or an integer"
            )
    for name, value in values.items():
        if isinstance(value, Spread) and value.kind not in _defined:
            _defined.add(value.kind)
            value = value.defined
        glue(name.replace("_", "-"), value)


def settle(question: str, **options: object) -> None:
    """Answers a question of the page: records which of its options the computed values support.

    Args:
        question: the name of a `{predict}` block.
        options: for each letter whether its statement holds.

    Raises:
        AssertionError: not exactly one statement holds.
    """
    holds = _conditions("options", options)
    expect("len(holds) >= 2", holds=holds)
    true = [letter for letter, value in holds.items() if value]
    if len(true) != 1:
        raise AssertionError(
            f"{question}: exactly one option must hold, but {', '.join(true) or 'none'} "
            f"of {', '.join(holds)} does"
        )
    answer = {"name": question, "key": true[0], "options": list(holds)}
    _record(question, true[0], {"llm_learn_answer": answer})


def claim(name: str, **conditions: object) -> None:
    """Records that a sentence of the page holds: every condition must be true.

    Args:
        name: what a `{claim}` of the page refers to.
        conditions: each is named after the budget or comparison that it states. A general sentence needs two.

    Raises:
        AssertionError: a condition is false.
    """
    holds = _conditions("conditions", conditions)
    expect("len(holds) >= 1", holds=holds)
    if failed := [condition for condition, value in holds.items() if not value]:
        raise AssertionError(f"{name} does not hold: {', '.join(failed)}")
    shown = {"name": name, "conditions": list(holds)}
    _record(name, ", ".join(holds), {"llm_learn_claim": shown})


def _record(name: str, value: str, metadata: dict) -> None:
    """Like `glue`: an output that the notebook keeps and the proof compares, and that no page shows."""
    prefix = "application/papermill.record/"
    scrapbook = {"name": name, "mime_prefix": prefix}
    _display({prefix + "text/plain": repr(value)}, {"scrapbook": scrapbook, **metadata})


def _conditions(what: str, values: Mapping[str, object]) -> dict[str, bool]:
    """Booleans, also of NumPy and torch; numbers are refused, since nearly all of them count as true."""
    conditions = {}
    for name, value in values.items():
        if isinstance(value, Tensor) or hasattr(value, "dtype"):
            single = getattr(value, "shape", ()) == () and "bool" in str(value.dtype)  # pyrefly: ignore
            value = bool(value) if single else value
        if not isinstance(value, bool):
            raise ValueError(f"{what}: {name} is {value!r}, expected True or False")
        conditions[name] = value
    return conditions


def show_table(
    rows: Sequence[Sequence[str | int]], *, columns: Sequence[str], caption: str = ""
) -> None:
    """Shows a table on the page, and as plain text where there is no HTML; both are compared by the proof.

    Args:
        rows: the cells, as they should be read. The first column names the row.
        columns: the headings.
        caption: what the table shows.
    """
    rule = "len(rows) >= 1, all(len(row) == len(columns) for row in rows)"
    expect(rule, rows=rows, columns=columns)
    expect("all(isinstance(cell, str | int) for row in rows for cell in row)", rows=rows)
    cells = [list(map(str, columns)), *(list(map(str, row)) for row in rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(columns))]

    def line(row: Sequence[str]) -> str:
        first, *others = row
        aligned = [first.ljust(widths[0])]
        aligned += [
            cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True)
        ]
        return "  ".join(aligned).rstrip()

    def tags(row: Sequence[str], first: str, others: str) -> str:
        opened = zip([first, *[others] * (len(row) - 1)], map(escape, row), strict=True)
        return (
            "<tr>" + "".join(f"<{tag}>{text}</{tag[:2]}>" for tag, text in opened) + "</tr>"
        )

    head, *body = cells
    plain = "\n".join([*([caption] if caption else []), *map(line, cells)])
    html = [
        '<table class="table results">',
        *([f"<caption>{escape(caption)}</caption>"] if caption else []),
        "<thead>" + tags(head, 'th scope="col"', 'th scope="col"') + "</thead>",
        "<tbody>",
        *(tags(row, 'th scope="row"', "td") for row in body),
        "</tbody></table>",
    ]
    _display({"text/plain": plain, "text/html": "\n".join(html)}, {})


def verify_module(
    name: str,
    ours: Callable,
    reference: Callable,
    inputs: Sequence[Tensor],
    *,
    against: str,
    call: Callable[..., Tensor] | None = None,
) -> None:
    """Verifies outputs and all gradients, in float64 and in float32.

    Gradients are those of a random projection of the output, for each floating-point input and, where both are
    modules, for each parameter. Modules are copied, and parameters compared in the order of `parameters()`.

    Args:
        name: the definition that is verified.
        ours, reference: modules or functions, which get `inputs`. A reference module has our weights already.
        inputs: tensors; those that are no floating-point numbers, such as masks, are passed on as they are.
        against: the reference, as the reader would import it.
        call: how the reference is called, as `call(reference, *inputs)`; `reference(*inputs)` where None.

    Raises:
        AssertionError: a difference is above 1e-10 in float64, or in float32 above 1e-6 (outputs) or 1e-5
            (gradients) of the largest magnitude.
    """
    expect("any(x.is_floating_point() for x in inputs)", inputs=inputs)
    call = call or (lambda module, *given: module(*given))
    modules = isinstance(ours, nn.Module) and isinstance(reference, nn.Module)
    lines = {"outputs": "outputs  ", "gradients": "gradients"}
    for dtype, output_bar, gradient_bar in PRECISIONS:
        found = []
        for function, run in ((ours, lambda f, *given: f(*given)), (reference, call)):
            if isinstance(function, nn.Module):
                function = copy.deepcopy(function).to(dtype)
            learned = list(function.parameters()) if modules else []  # pyrefly: ignore
            found.append(_output_and_gradients(run, function, inputs, learned, dtype))
        bits, relative = str(dtype).removeprefix("torch."), dtype == torch.float32
        kinds: list[Any] = [("outputs", 0, output_bar), ("gradients", 1, gradient_bar)]
        for kind, i, bar in kinds:
            check = {
                "name": f"{name}, {bits}" if i == 0 else f"{name}, gradients, {bits}",
                "against": against,
                "difference": _largest_difference(found[0][i], found[1][i], relative),
                "tolerance": bar,
                "relative": relative,
            }
            difference = f"{check['difference']:.0e}"
            if not check["difference"] <= bar:  # NaN must fail too.
                raise AssertionError(
                    f"{check['name']} differs from {against} by {difference}, more than {bar:.0e}"
                )
            _record(check["name"], difference, {"llm_learn_check": check})
            lines[kind] += f"   {bits} {difference} (allowed {bar:.0e})"
    shown = [f"✓ {name} = {against}, largest difference", *lines.values()]
    _display(
        {"text/plain": "\n".join([*shown, "in float32 relative to the largest value"])}, {}
    )


def _output_and_gradients(
    run: Callable,
    function: Callable,
    inputs: Sequence[Tensor],
    learned: list,
    dtype: torch.dtype,
) -> tuple[Tensor, list[Tensor]]:
    given = [
        x.detach().to(dtype).requires_grad_() if x.is_floating_point() else x
        for x in inputs
    ]
    output = run(function, *given)
    generator = torch.Generator().manual_seed(1)
    direction = torch.randn(output.shape, dtype=torch.float64, generator=generator).to(
        dtype
    )
    sources = [x for x in given if x.requires_grad] + learned
    return output, list(torch.autograd.grad((output * direction).sum(), sources))


def catches(bug: str, check: Callable[[Any], object], broken: Any) -> None:
    """Asserts that a check notices a planted bug, and shows how.

    Args:
        bug: what was done, in a few words.
        check: raises AssertionError where something is wrong.
        broken: the version with the bug, which `check` gets.

    Raises:
        AssertionError: the check passes in spite of the bug.
    """
    try:
        check(broken)
    except AssertionError as error:
        message = str(error).strip()
        first = message.splitlines()[0] if message else "AssertionError"
        _display({"text/plain": f"✓ caught: {bug}: {first}"}, {})
        return
    raise AssertionError(f"the check does not notice: {bug}")
