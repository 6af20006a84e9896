"""What the first edition contains, page by page, so that the second edition loses nothing without a reason.

`tests/first_edition/manifest.yml` lists it, for the commit that the file names. `tests/first_edition/dropped.yml` lists
what the second edition renames or leaves out. The tests look for everything else somewhere in the book.
"""

import ast
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import yaml

from book.contract.registry import CITE, directives, role_at, tree
from book.execute.fingerprint import records_read
from book.execute.records import read_record
from book.read.chapters import ROOT, Source, read_source

FOLDER = ROOT / "tests" / "first_edition"
MANIFEST, DROPPED = FOLDER / "manifest.yml", FOLDER / "dropped.yml"
MISTAKES = re.compile("mistak|planted", re.I)
REASON = re.compile(r"[A-Z].{18,}\.")
Items = dict[str, set[str]]  # kind -> what a page, or the book, has of it


def check_item(name: str, against: str) -> str:
    return f"{name} | {against}"


def _failures(chapter: Source) -> Iterator[str]:
    """The bold leads and headings of the sections on failures, and the mistakes that a check must catch."""
    for number, line in chapter.prose:
        if role_at(chapter, number + 1) == "wrong":
            lead = re.match(r"\*\*(.+?)\*\*|#+ (.+)$", line)
            if lead and (text := (lead[1] or lead[2]).strip()) != "What goes wrong":
                yield text
    for cell in chapter.cells:
        for node in ast.walk(tree(cell)):
            targets = node.targets if isinstance(node, ast.Assign) else []
            if any(MISTAKES.search(getattr(target, "id", "")) for target in targets):
                yield from _names(node.value)


def _names(node: ast.expr) -> Iterator[str]:
    """The keys of a dictionary, or the members of a tuple that a dictionary is made of."""
    if isinstance(node, ast.DictComp):
        node = node.generators[0].iter
    for member in node.keys if isinstance(node, ast.Dict) else getattr(node, "elts", []):
        if isinstance(member, ast.Name):
            yield member.id
        elif isinstance(member, ast.Constant) and isinstance(member.value, str):
            yield member.value


def _exercises(chapter: Source) -> Iterator[str]:
    for *_, options in directives(chapter, "exercise|exercise-start"):
        if "label" in options:
            yield options["label"]


def _figures(chapter: Source) -> Iterator[str]:
    for cell in chapter.cells:
        figure = (cell.options.get("mystnb") or {}).get("figure") or {}
        if "name" in figure:
            yield figure["name"]


def _citations(chapter: Source) -> Iterator[str]:
    for keys in CITE.findall("\n".join(line for _, line in chapter.prose)):
        yield from (key.strip() for key in keys.split(","))


def _records(chapter: Source) -> Iterator[str]:
    for cell in chapter.cells:
        yield from (path.stem for path in records_read(cell.source, ROOT / "experiments"))


def _terms(page: Source) -> Iterator[str]:
    """The terms that a page's glossary defines."""
    for block in re.findall(r"^```\{glossary\}\n(.*?)^```", page.text, re.M | re.S):
        yield from re.findall(r"^(?![ :])(\S.*)$", block, re.M)


IN_SOURCE: dict[str, Callable[[Source], Iterator[str]]] = {
    "failures": _failures,
    "exercises": _exercises,
    "figures": _figures,
    "citations": _citations,
    "records": _records,
    "terms": _terms,
}


def sources(root: Path = ROOT) -> list[Source]:
    """The chapters, and the pages that are no chapters."""
    every = (read_source(path) for path in sorted((root / "chapters").glob("*/*.md")))
    return [*every, read_source(root / "index.md", "index")]


def in_source(page: Source) -> Items:
    """What a page's source holds, of all kinds but checks."""
    return {kind: set(find(page)) for kind, find in IN_SOURCE.items()}


def in_record(page: Source, root: Path = ROOT) -> Items:
    """The comparisons that the last build made on a page."""
    checks = (read_record(root, page.slug) or {}).get("checks", ())
    return {"checks": {check_item(c["name"], str(c["against"])) for c in checks}}


def together(pages: list[Items]) -> Items:
    """What several pages hold."""
    kinds = {kind for page in pages for kind in page}
    return {kind: set().union(*(page.get(kind, ()) for page in pages)) for kind in kinds}


def lost(manifest: dict, dropped: list[dict], now: Items) -> list[str]:
    """A sentence for each item of the manifest that `now` lacks, and for each entry of `dropped` that is wrong.

    Only the kinds that `now` has are looked at.
    """
    problems, listed = [], set()
    for entry in dropped:
        page, kind, item = (str(entry.get(key, "")) for key in ("page", "kind", "item"))
        if kind not in now:
            continue
        where = f"dropped.yml: {page}, {kind}, {item!r}"
        listed.add((page, kind, item))
        if item not in manifest["pages"].get(page, {}).get(kind, ()):
            problems.append(f"{where} is not in the manifest")
        elif item in now[kind]:
            problems.append(f"{where} is still in the book: remove the entry")
        if ("now" in entry) == ("reason" in entry):
            problems.append(f"{where} needs `now`, the new name, or `reason`")
        elif "now" in entry and entry["now"] not in now[kind]:
            problems.append(f"{where}: the book has no {entry['now']!r} either")
        elif "reason" in entry and not REASON.fullmatch(str(entry["reason"])):
            problems.append(f"{where}: `reason` must be a sentence")
    for page, kinds in manifest["pages"].items():
        for kind in kinds.keys() & now.keys():
            problems += [
                f"{page} had {item!r} ({kind}): keep it somewhere in the book, or list it in dropped.yml"
                for item in kinds[kind]
                if item not in now[kind] and (page, kind, item) not in listed
            ]
    return problems


def load() -> tuple[dict, list[dict]]:
    """The manifest, and what was dropped since."""
    manifest = yaml.safe_load(MANIFEST.read_text(encoding="utf-8"))
    return manifest, yaml.safe_load(DROPPED.read_text(encoding="utf-8")) or []
