"""`python -m book modules`: lists the modules of the package and of the builder, each with what it is for."""

import ast
import textwrap
from pathlib import Path


def summaries(root: Path) -> dict[tuple[str, ...], str]:
    """The name of each module, in parts, and the first line of its docstring, in order."""
    found = {}
    for path in (*root.glob("code/book/**/*.py"), *root.glob("code/llm_learn/**/*.py")):
        text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "?"
        parts = path.relative_to(root / "code").with_suffix("").parts
        found[parts[:-1] if path.stem == "__init__" else parts] = text.partition("\n")[0]
    return dict(sorted(found.items()))


def listing(root: Path) -> str:
    """The modules, indented below their packages, and what they are for beside them."""
    lines, width = [], 25
    for name, text in summaries(root).items():
        start = ("  " * (len(name) - 1) + name[-1]).ljust(width)
        lines += textwrap.wrap(
            text, 100, initial_indent=start, subsequent_indent=" " * width
        )
    return "\n".join(lines)
