"""The packages of the builder import one way."""

import ast
from pathlib import Path

BOOK = Path(__file__).parents[2] / "code" / "book"
# Each may import those before it.
ORDER = ["files", "read", "execute", "contract", "export", "site", "pages", "proof", "commands", "__main__"]  # fmt: skip


def test_packages_import_one_way():
    for path in BOOK.rglob("*.py"):
        room = path.relative_to(BOOK).with_suffix("").parts[0]
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("book"):
                used = [*node.module.split("."), *(alias.name for alias in node.names)][1]
                assert ORDER.index(used) <= ORDER.index(room), f"{path} imports book.{used}"
