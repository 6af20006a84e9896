"""Writes files atomically."""

import os
import shutil
from pathlib import Path


def write_atomically(path: Path, text: str) -> None:
    """Replaces a file at once: whatever interrupts this leaves the old one, or the new one.

    Args:
        path: the file; its folder is made where it is missing, and a link is followed.
        text: what it will hold, as UTF-8.
    """
    path = path.resolve()
    path.parent.mkdir(parents=True, exist_ok=True)
    # In the same folder, because only there a rename is one step.
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_text(text, encoding="utf-8")
        if path.exists():
            shutil.copymode(path, temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
