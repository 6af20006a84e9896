"""The packages of the builder import one way."""

import ast
from pathlib import Path

BOOK = Path(__file__).parents[2] / "code" / "book"
# Each may import those before it.
ORDER = ["atomic_files", "read", "execute", "contract", "export", "site", "pages", "proof", "commands", "__main__"]  # fmt: skip


def test_packages_import_one_way():
    for path in BOOK.rglob("*.py"):
        room = path.relative_to(BOOK).with_suffix("").parts[0]
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Import | ast.ImportFrom):
                continue
            names = [alias.name for alias in node.names]
            if isinstance(node, ast.ImportFrom):
                names = [f"{node.module}.{name}" for name in names]
            for used in (name.split(".")[1] for name in names if name.startswith("book.")):
                assert ORDER.index(used) <= ORDER.index(room), f"{path} imports book.{used}"
