"""Checks of what no chapter may do: type measured numbers, redefine names, install, prove nothing."""

import ast
import re
from collections.abc import Iterator

from book.contract.registry import Book, Found, allowed_escapes, at, calls, check, tree
from book.read.chapters import COMMENT, Source

EXCUSE = re.compile(r"(?:<!--|#) given: \S+")
NUMBER = r"\d[\d,]*(?:\.\d+)?"
UNIT = (
    r"(?:µs|ms|s|seconds?|minutes?|CPU-s(?:econds?)?|[kKMGT]i?B|nats?|[kMGT]?FLOPs?(?:/s)?|tokens/s"
    r"|%|per ?cent)"
)
MEASURED = (
    re.compile(rf"(?<![\w.,-]){NUMBER}[  -]?{UNIT}(?![\w/])"),
    re.compile(r"(?<![\w.,-])\d+\.\d+[  -]?(?:bits?|bytes?|times|×|points)(?![\w/])"),
    re.compile(
        r"\b(?i:loss|perplexity|accuracy|entropy|error|difference|norm|ratio)\s+(?:[a-z]+\s+){0,2}?"
        r"(?:of|is|at|to|was|=|from)\s+(?:about\s+)?-?\d+\.\d+"
    ),
)
UNFINISHED = re.compile(
    r"\b(?:TODO|FIXME|XXX|TBD)\b|(?i:\bplaceholder\b|coming soon|lorem ipsum|<!-- write)"
)
# What a cell that is not compared may glue, by its name: a time, a ratio or rate of times, what was fastest, memory.
TIMES = "seconds|ms|years|ratio|rate|fastest|memory"
NOT_COMPARED = re.compile(rf"^(?:{TIMES})[- ]|(?:^|[- ])(?:{TIMES})$")
NBVAL_COMMENT = re.compile(r"#\s*(?:NBVAL_\w+|PYTEST_VALIDATE_\w+)")
SHELL_INSTALL = re.compile(
    r"^\s*(?:[%!].*\b(?:pip|conda|mamba|uv)\b|(?:python3? -m )?pip install\b)"
)


def sentences(chapter: Source) -> Iterator[list[tuple[int, str]]]:
    """Sentences of the prose as (line number, text) pieces, with code and mathematics taken out."""
    prose = {
        n: COMMENT.sub(" ", line) if not EXCUSE.search(line) else line
        for n, line in chapter.prose
    }
    sentence, in_math = [], False
    for n, line in prose.items():
        if line.strip().startswith("$$"):
            in_math = not in_math if line.strip().count("$$") == 1 else in_math
            continue
        if in_math:
            continue
        clean = re.sub(r"\{cite[^`]*`[^`]*`", "{cite}", line)
        clean = re.sub(r"(?:\{[\w:-]+\})?`+[^`]*`+|\$[^$]+\$|\]\([^)]*\)", " … ", clean)
        if not line.strip() or re.match(
            r"^\s*(?:[-*|#]|\d+\.\s|[`:]{3,})", line
        ):  # a block begins anew
            yield sentence
            sentence = []
        for i, piece in enumerate(re.split(r"(?<=[.!?])\s+(?=[A-Z(*_{\[…])", clean)):
            if i:
                yield sentence
                sentence = []
            sentence.append((n, piece if not EXCUSE.search(line) else ""))
    yield sentence


@check
def typed_numbers(chapter: Source, book: Book) -> Found:
    """No number is typed where a cell measured it: it is glued, cited, or given for a reason."""
    remedy = (
        "is typed: glue it from the cell that measured it, cite its source in the sentence, or, if it is "
        "given and not measured, end the line with `<!-- given: why -->`"
    )
    for sentence in sentences(chapter):
        if any("{cite}" in piece for _, piece in sentence):
            continue
        for n, piece in sentence:
            if found := next(
                (m for pattern in MEASURED if (m := pattern.search(piece))), None
            ):
                yield n, f"`{found[0].strip()}` {remedy}"
    remedy = remedy.replace("<!-- given: why -->", "# given: why")
    for cell in chapter.cells:  # captions and alt texts are read too
        for n in range(cell.options_line, cell.line):
            line = chapter.lines[n - 1]
            if EXCUSE.search(line) or not re.search(r"\b(?:caption|alt):|^\s{4,}\S", line):
                continue
            clean = re.sub(r"(?:\{[\w:-]+\})?`+[^`]*`+|\$[^$]+\$", " … ", line)
            if found := next(
                (m for pattern in MEASURED if (m := pattern.search(clean))), None
            ):
                yield n, f"`{found[0].strip()}` in a caption or alt text {remedy}"


@check
def redefinitions(chapter: Source, book: Book) -> Found:
    """Packaged names are imported; only a packaged cell defines them."""
    for cell in chapter.cells:
        if "packaged" in cell.tags:
            continue
        for node in tree(cell).body:
            names = []
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                names = [node.name]
            elif isinstance(node, ast.Assign):
                names = [
                    t.id for t in node.targets if isinstance(t, ast.Name) and t.id.isupper()
                ]
            for name in set(names) & book.packaged:
                yield (
                    at(cell, node),
                    f"`{name}` is llm_learn's: import it, or give your simpler form another name",
                )


@check
def installs(chapter: Source, book: Book) -> Found:
    """No cell installs anything: published notebooks get one install cell, pinned to the commit."""
    for cell in chapter.cells:
        for n, line in enumerate(cell.source.split("\n"), cell.line):
            if SHELL_INSTALL.search(line):
                yield (
                    n,
                    "remove the install: list what the chapter needs as an extra in pyproject.toml",
                )


def _key(call: ast.Call) -> str:
    """The name that `glue` stores under, `…` for each part that is computed."""
    key = next(
        iter([*call.args[:1], *(k.value for k in call.keywords if k.arg == "name")]), None
    )
    parts = key.values if isinstance(key, ast.JoinedStr) else [key]
    return "".join(
        str(part.value) if isinstance(part, ast.Constant) else "…" for part in parts
    )


@check
def escaping_cells(chapter: Source, book: Book) -> Found:
    """Few cells escape the proof's comparison, and each of those only prints timings, and glues them by their names."""
    ignored = [cell for cell in chapter.cells if "nbval-ignore-output" in cell.tags]
    escaping = [
        c for c in chapter.cells if {"nbval-ignore-output", "nbval-skip"} & set(c.tags)
    ]
    allowed = allowed_escapes(len(chapter.cells))
    if len(escaping) > allowed:
        yield (
            escaping[allowed].line,
            f"{len(escaping)} cells escape comparison, at most {allowed} may",
        )
    for cell in ignored:
        if "second" not in cell.source:
            yield (
                cell.line,
                "a cell tagged `nbval-ignore-output` only prints timings: its source must speak of seconds",
            )
        if any(isinstance(node, ast.Assert) for node in ast.walk(tree(cell))):
            yield cell.line, "move the assert out of the cell tagged `nbval-ignore-output`"
        for name, call in calls(tree(cell)):
            if name in ("verify", "verify_module", "settle", "claim"):
                yield (
                    at(cell, call),
                    f"move {name} out of the cell tagged `nbval-ignore-output`: its result would not be proved",
                )
            keys = [_key(call)] if name == "glue" else []
            if name == "results":
                keys = [str(k.arg or "…").replace("_", "-") for k in call.keywords]
            for key in (key for key in keys if not NOT_COMPARED.search(key)):
                yield (
                    at(cell, call),
                    f"a cell tagged `nbval-ignore-output` glues `{key}`, and the proof would not compare it: "
                    "if it is a time, a ratio or rate of times, or memory, begin or end its name with seconds, ms, "
                    "years, ratio, rate, fastest or memory; else glue it in a cell that is compared",
                )
    for cell in chapter.cells:
        for node in ast.walk(tree(cell)):
            if isinstance(node, ast.Assert) and "seconds" in ast.unparse(node.test):
                yield (
                    at(cell, node),
                    "print a time, and assert nothing about it: machines differ",
                )
        if ("nbval-skip" in cell.tags) != ("skip-execution" in cell.tags):
            yield (
                cell.line,
                "`nbval-skip` and `skip-execution` go together: give the cell both or neither",
            )
        if comment := NBVAL_COMMENT.search(cell.source):
            yield (
                cell.line,
                f"replace the comment `{comment[0]}` by the cell's tag, which the contract counts",
            )


def _cannot_fail(test: ast.expr) -> bool:
    if isinstance(test, ast.Tuple):
        return bool(test.elts)
    if isinstance(test, ast.BoolOp) and isinstance(test.op, ast.Or):
        return any(_cannot_fail(value) for value in test.values)
    if isinstance(test, ast.BoolOp):
        return all(_cannot_fail(value) for value in test.values)
    if not any(isinstance(node, ast.Name) for node in ast.walk(test)):
        return True
    if isinstance(test, ast.Compare) and len(test.ops) == 1:
        left, op, right = test.left, test.ops[0], test.comparators[0]
        same = ast.dump(left) == ast.dump(right) and isinstance(
            op, ast.Eq | ast.LtE | ast.GtE | ast.Is
        )
        size = isinstance(left, ast.Call) and getattr(left.func, "id", "") in ("len", "abs")
        at_least_0 = (
            isinstance(op, ast.GtE) and isinstance(right, ast.Constant) and right.value == 0
        )
        return same or (size and at_least_0)
    return False


@check
def empty_asserts(chapter: Source, book: Book) -> Found:
    """No assertion that cannot fail, and no tolerance that admits anything."""
    for cell in chapter.cells:
        for node in ast.walk(tree(cell)):
            if isinstance(node, ast.Assert) and _cannot_fail(node.test):
                yield (
                    at(cell, node),
                    f"`assert {ast.unparse(node.test)}` cannot fail: assert what could be wrong",
                )
        for name, call in calls(tree(cell)):
            for keyword in call.keywords if name.startswith("verify") else ():
                value = getattr(keyword.value, "value", None)  # of a constant
                endless = isinstance(
                    keyword.value, ast.Call | ast.Attribute
                ) and "inf" in ast.unparse(keyword.value)
                if keyword.arg == "tolerance" and (
                    endless or (isinstance(value, int | float) and value > 0.1)
                ):
                    yield (
                        at(cell, call),
                        f"a tolerance of {ast.unparse(keyword.value)} admits anything: justify less",
                    )


@check
def unfinished(chapter: Source, book: Book) -> Found:
    """No mark of unfinished work is left."""
    for n, line in enumerate(chapter.lines, 1):
        if (found := UNFINISHED.search(line)) and not EXCUSE.search(line):
            yield n, f"`{found[0]}` marks unfinished work: finish it, or take it out"
