"""Stores what a build has executed and measured."""

import json
from pathlib import Path


def notebook_path(build: Path, docname: str) -> Path:
    """The executed notebook of a page; a build lies in _build, a preview in _build/preview."""
    return build / "jupyter_execute" / f"{docname}.ipynb"


def records_folder(root: Path) -> Path:
    """Where the records of all chapters lie, a preview's too."""
    return root / "_build" / "chapters"


def record_path(root: Path, slug: str) -> Path:
    """What the last execution of the chapter measured."""
    return records_folder(root) / f"{slug}.json"


def read_record(root: Path, slug: str) -> dict | None:
    """What the last execution of the chapter measured; None where it has not run."""
    try:
        return json.loads(record_path(root, slug).read_text(encoding="utf-8"))
    except (FileNotFoundError, json.JSONDecodeError):
        return None
