"""Draws the picture of the parts and chapters: a row a chapter, and a line from each to what stands on it.

The lines run in tracks left of the names, as on a plan of a railway, so that names stay legible at any width. The
picture has no fixed width: what is on the right is placed from the right.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from html import escape

from book.curriculum import direct_prerequisites
from book.source import planned_chapters

ROW, HEADER, FOOTER, GAP = 27, 34, 8, 10  # heights, in pixels
TRACK, LEFT, BEND, DOT = 13, 9, 7, 5.5
CROSSING = 4  # half the gap in a line that another crosses


@dataclass(frozen=True, kw_only=True)
class Station:
    """What the picture shows of one chapter."""

    title: str
    href: str | None  # None for a planned chapter
    hours: str


def assign_tracks(order: list[str], needs: dict[str, list[str]]) -> dict[str, int]:
    """A track for each chapter, so that lines cross seldom and no line runs through another chapter's dot.

    A chapter keeps its track from its own row to just before the last row that needs it.

    Args:
        order: slugs, each after all that it needs.
        needs: slug -> the slugs that it needs.
    """
    row = {slug: i for i, slug in enumerate(order)}
    last = {s: max([row[c] for c in order if s in needs[c]], default=row[s]) for s in order}
    held = {s: range(row[s], max(last[s], row[s] + 1)) for s in order}

    def fits(slug: str, track: int, tracks: dict[str, int]) -> bool:
        mine = held[slug]
        return not any(
            t == track and held[s].start < mine.stop and mine.start < held[s].stop
            for s, t in tracks.items()
            if s != slug
        )

    def cost(tracks: dict[str, int]) -> float:
        """Crossings, and a little for each step to the side."""
        total = 0.0
        for slug in order:
            for need in needs[slug]:
                low, high = sorted((tracks[slug], tracks[need]))
                total += 0.05 * (high - low) + sum(
                    low < tracks[s] < high and row[s] < row[slug] < last[s] for s in order
                )
        return total

    tracks: dict[str, int] = {}
    for slug in sorted(order, key=lambda s: (row[s] - last[s], row[s])):  # longest first
        tracks[slug] = next(t for t in range(len(order)) if fits(slug, t, tracks))
    count = max(tracks.values()) + 1
    best, improved = cost(tracks), True
    while improved:
        improved = False
        for slug in order:
            for track in range(count):
                moved = tracks | {slug: track}
                if (
                    track != tracks[slug]
                    and fits(slug, track, tracks)
                    and cost(moved) < best
                ):
                    tracks, best, improved = moved, cost(moved), True
            for other in order:  # two chapters change places
                swapped = tracks | {slug: tracks[other], other: tracks[slug]}
                allowed = fits(slug, swapped[slug], swapped) and fits(
                    other, swapped[other], swapped
                )
                if allowed and cost(swapped) < best:
                    tracks, best, improved = swapped, cost(swapped), True
    return tracks


def x_of(track: int) -> int:
    return LEFT + TRACK * track


def line(
    start: tuple[int, float], end: tuple[int, float], crossed: Iterable[float] = ()
) -> str:
    """The path from one dot's rim down to another's, with a gap at each height where another line crosses it."""
    (x0, y0), (x1, y1) = start, end
    path = f"M{x0} {y0 + DOT}"
    for y in crossed:
        path += f"V{y - CROSSING}M{x0} {y + CROSSING}"
    if x0 == x1:
        return f"{path}V{y1 - DOT}"
    side = 1 if x1 > x0 else -1
    return f"{path}V{y1 - BEND}Q{x0} {y1} {x0 + side * BEND} {y1}H{x1 - side * DOT}"


def crossings(
    needs: dict[str, list[str]], place: dict[str, tuple[int, float]]
) -> dict[str, list[float]]:
    """For each chapter the heights, from above, at which its line down is crossed by the level piece of another's."""
    found: dict[str, list[float]] = {}
    for slug, (x, y) in place.items():
        found[slug] = [
            level
            for other, (x1, level) in place.items()
            if level > y
            and any(
                min(place[need][0], x1) < x < max(place[need][0], x1)
                for need in needs[other]
                if need != slug
            )
        ]
    return found


def draw_map(
    plan: dict, station: Callable[[str], Station], part_href: Callable[[str], str | None]
) -> str:
    """The picture as inline SVG.

    Args:
        plan: chapters.yml.
        station: gives what is shown of a slug.
        part_href: gives the address of a part's page, or None.
    """
    chapters = planned_chapters(plan)
    needs = {slug: direct_prerequisites(chapters, slug) for slug in chapters}
    tracks = assign_tracks(list(chapters), needs)
    names = x_of(max(tracks.values()) + 1) + 2
    place: dict[str, tuple[int, float]] = {}
    bands, headings, y = [], [], 0.0
    for part in plan["parts"]:
        height = HEADER + ROW * len(part["chapters"]) + FOOTER
        heading = text(part["title"], "map-part", names, y + HEADER * 0.68)
        bands.append(
            f'<rect class="map-band" x="0.5" y="{y + 0.5}" width="100%" height="{height}" rx="8"/>'
        )
        headings.append(link(heading, part_href(part["name"])))
        for number, chapter in enumerate(part["chapters"]):
            slug = chapter["slug"]
            place[slug] = (x_of(tracks[slug]), y + HEADER + ROW * (number + 0.5))
        y += height + GAP
    crossed = crossings(needs, place)
    rows = []
    for part, heading in zip(plan["parts"], headings, strict=True):
        rows.append(heading)
        rows += [
            chapter_row(chapter["slug"], station, needs, place, crossed, names)
            for chapter in part["chapters"]
        ]
    description = (
        f"{len(chapters)} chapters in {len(plan['parts'])} parts, one below the other. A line leads from a chapter "
        "down to each chapter that needs it. The lists below say the same in words."
    )
    return (
        f'<svg class="plan-map" role="group" aria-labelledby="map-title map-desc" width="100%" height="{y:g}" '
        'xmlns="http://www.w3.org/2000/svg">\n'
        '<title id="map-title">Map of the book</title>\n'
        f'<desc id="map-desc">{description}</desc>\n' + "\n".join(bands + rows) + "\n</svg>"
    )


def chapter_row(
    slug: str,
    station: Callable[[str], Station],
    needs: dict[str, list[str]],
    place: dict[str, tuple[int, float]],
    crossed: dict[str, list[float]],
    names: int,
) -> str:
    """The lines into one chapter, its dot and its name."""
    shown, (x, y) = station(slug), place[slug]
    state = "published" if shown.href else "planned"
    part = slug.split("/")[0]
    lines = []
    for need in needs[slug]:
        path = line(place[need], (x, y), [level for level in crossed[need] if level < y])
        lines.append(f'<path class="map-line map-{need.split("/")[0]}" d="{path}"/>')
    before = "; ".join(station(need).title for need in needs[slug])
    after = f"after {before}" if before else "needs no other chapter"
    name = text(shown.title, "map-name", names, y + 4.5)
    return (
        f'<g class="map-chapter is-{state}" data-map="{slug}"><title>{escape(shown.title)} ({state}), '
        f"{escape(after)}</title>\n"
        + "".join(lines)
        + f'<circle class="map-dot map-{part}" cx="{x}" cy="{y}" r="{DOT}">'
        f"<title>{escape(after)}</title></circle>"
        + f'<path class="map-read" d="M{x - 2.7} {y + 0.2}l2 2.1l3.5 -4.4"/>'
        + link(name, shown.href)
        + f'<text class="map-hours" x="100%" dx="-14" y="{y + 4.5}">{escape(shown.hours)}</text></g>'
    )


def text(words: str, css: str, x: float, y: float) -> str:
    return f'<text class="{css}" x="{x:g}" y="{y:g}">{escape(words)}</text>'


def link(content: str, href: str | None) -> str:
    return f'<a href="{escape(href)}">{content}</a>' if href else content
