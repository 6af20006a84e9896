"""`python -m book links`: asks every external address of the book whether it still answers."""

import json
from pathlib import Path

from book.commands.build import sphinx


def links(argv: list[str], root: Path) -> int:
    """Has Sphinx ask every external address of the book, and prints those that are broken.

    Returns:
        1 if an address is broken or the chapters are not executed, else 0.
    """
    if argv:
        raise ValueError(f"`links` takes no arguments, but got {' '.join(argv)}")
    # With doctrees of its own: what this build reads must not keep the site from reading it.
    output = root / "_build" / "links" / "linkcheck"
    report = output / "output.json"
    report.unlink(missing_ok=True)
    sphinx(root, output, builder="linkcheck", quiet=True)
    if not report.is_file():
        return 1
    answers = [json.loads(line) for line in report.read_text("utf-8").splitlines()]
    asked = [a for a in answers if a["status"] not in ("unchecked", "ignored")]
    # A site that refuses programs, or asks them to wait, is not gone.
    broken = [
        answer
        for answer in asked
        if answer["status"] == "broken" and not answer["info"].startswith(("403 ", "429 "))
    ]
    for answer in broken:
        where = f"{answer['filename']}:{answer['lineno']}"
        print(f"{where}: {answer['uri']}\n  {answer['info']}")
    print(f"\n{len(broken)} broken of {len(asked)} addresses")
    return 1 if broken else 0
