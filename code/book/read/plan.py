"""Reads the learning plan's items, the routes and the order of chapters from chapters.yml."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from book.read.chapters import planned_chapters


@dataclass(frozen=True, kw_only=True)
class Line:
    """One line of the learning plan."""

    words: str  # as the plan has them
    item: str | None  # the name that chapters use; None for a line that no chapter teaches
    done: bool  # the plan's own tick
    lines: tuple["Line", ...]  # nested below


def read_lines(entries: Iterable[str | dict]) -> tuple[Line, ...]:
    """The lines of one section of chapters.yml.

    Raises:
        ValueError: an entry has neither `item` nor `note`, both, or a key that means nothing.
    """
    lines = []
    for given in entries:
        entry = {"item": given} if isinstance(given, str) else given
        if unknown := set(entry) - {"item", "note", "words", "done", "items"}:
            raise ValueError(
                f"plan: {entry} has the key {min(unknown)!r}; a line has item or note, words, done and items"
            )
        if ("item" in entry) == ("note" in entry):
            raise ValueError(
                f"plan: {entry} must have one of `item`, which chapters name, and `note`"
            )
        item = entry.get("item")
        lines.append(
            Line(
                words=entry.get("words") or item or entry["note"],
                item=item,
                done=bool(entry.get("done")),
                lines=read_lines(entry.get("items", ())),
            )
        )
    return tuple(lines)


def walk(lines: Iterable[Line]) -> Iterator[Line]:
    """Every line, each before those nested below it."""
    for line in lines:
        yield line
        yield from walk(line.lines)


def plan_items(plan: dict) -> list[str]:
    """The names of all items, in the plan's order."""
    return [
        line.item
        for section in plan["plan"]
        for line in walk(read_lines(section["items"]))
        if line.item
    ]


def route_chapters(plan: dict, route: dict) -> list[str]:
    """The slugs of a route, in its order.

    Raises:
        ValueError: the route lists not exactly one of `chapters` and `parts`, or names what the book has not.
    """
    if ("chapters" in route) == ("parts" in route):
        raise ValueError(f"route {route['name']!r} must list either `chapters` or `parts`")
    parts = {part["name"]: [c["slug"] for c in part["chapters"]] for part in plan["parts"]}
    for name in route.get("parts", ()):
        if name not in parts:
            raise ValueError(
                f"route {route['name']!r} names the part {name!r}; the parts are {', '.join(parts)}"
            )
    slugs = route.get("chapters") or [s for name in route["parts"] for s in parts[name]]
    chapters = planned_chapters(plan)
    for slug in [*slugs, *route.get("assumes", ())]:
        if slug not in chapters:
            raise ValueError(
                f"route {route['name']!r} names {slug!r}, which is no chapter of chapters.yml"
            )
    return slugs
