"""Sphinx extension: helpers of the pages that show records of this build.

They show what this build measured, so they are filled when a page is written, not when it is read, and the pages that
show a record are written again whenever that record changes.
"""

import json
from collections.abc import Sequence
from pathlib import Path

from docutils import nodes
from pybtex.backends.plaintext import Backend
from pybtex.plugin import register_plugin
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment

from book.execute.records import read_record
from book.read.chapters import chapter_source, load_plan, planned_chapters

SHOWN_CHECKS = 4
Rows = Sequence[Sequence[Sequence[nodes.Node]]]  # of a table


def reading_hours(env: BuildEnvironment, slug: str, entry: dict) -> tuple[float, float]:
    """Hours for the core and for the page, from the front matter if published, else the estimate of chapters.yml."""
    docname, estimate = f"chapters/{slug}", entry.get("hours", 0)
    source = chapter_source(env, docname) if docname in env.found_docs else None
    return source.hours if source and source.hours[0] else (estimate, estimate)


def measured(record: dict | None) -> str:
    if record is None:
        return ""
    seconds, memory = max(1, round(record["cpu_seconds"])), record["peak_memory_gib"]
    return f"runs in {seconds} s on one core, {memory:.1f} GiB"


def references(record: dict | None) -> list[str]:
    """The distinct references that the chapter was verified against, in its order."""
    found = list(
        dict.fromkeys(str(check["against"]) for check in (record or {}).get("checks", []))
    )
    more = len(found) - SHOWN_CHECKS
    return found[:SHOWN_CHECKS] + ([f"{more} more"] if more > 0 else [])


def counted(number: float, one: str, many: str = "") -> str:
    """`1 chapter`, `2 chapters`; `many` is the plural where it is not `one` with an s."""
    return f"{number:g} {one if number == 1 else many or one + 's'}"


class Pages:
    """Makes the nodes of one page."""

    def __init__(self, app: Sphinx, docname: str) -> None:
        self.app, self.env, self.docname = app, app.env, docname
        self.plan = app.config.book_plan
        self.root = Path(app.srcdir)
        self.chapters = planned_chapters(self.plan)

    def link(self, slug: str) -> nodes.Node:
        """The chapter's title, linked where the chapter exists."""
        docname = f"chapters/{slug}"
        if docname not in self.env.found_docs:
            return nodes.inline("", self.chapters[slug]["title"], classes=["planned"])
        title = self.env.titles[docname].astext() if docname in self.env.titles else slug
        uri = self.app.builder.get_relative_uri(self.docname, docname)
        return nodes.reference("", "", nodes.inline("", title), internal=True, refuri=uri)

    def links(self, slugs: list[str]) -> list[nodes.Node]:
        separated: list[nodes.Node] = []
        for slug in slugs:
            separated += [nodes.Text(", ")] if separated else []
            separated.append(self.link(slug))
        return separated

    def table(
        self, name: str, header: list[str], widths: list[int], rows: Rows
    ) -> nodes.table:
        """A table of the class `name`."""
        group = nodes.tgroup(
            "", *(nodes.colspec(colwidth=w) for w in widths), cols=len(widths)
        )
        head = [[nodes.Text(text)] for text in header]
        for parent, lines in ((nodes.thead(), [head]), (nodes.tbody(), rows)):
            for line in lines:
                cells = (
                    nodes.entry(
                        "", nodes.paragraph("", "", *cell) if cell else nodes.paragraph()
                    )
                    for cell in line
                )
                parent += nodes.row("", *cells)
            group += parent
        return nodes.table("", group, classes=[name])


def pages_to_rewrite(app: Sphinx, env: BuildEnvironment) -> list[str]:
    """The pages that show a record, a title or an entry that has changed since they were written."""
    root, plan = Path(app.srcdir), app.config.book_plan
    facts = {
        slug: json.dumps(
            [
                read_record(root, slug),
                f"chapters/{slug}" in env.found_docs,
                env.titles[f"chapters/{slug}"].astext()
                if f"chapters/{slug}" in env.titles
                else "",
                reading_hours(env, slug, entry),
                entry,
                env.metadata.get(f"chapters/{slug}", {}).get("claims"),
            ],
            sort_keys=True,
        )
        for slug, entry in planned_chapters(plan).items()
    }
    before = getattr(env, "book_facts", {})
    env.book_facts = facts
    changed = {slug for slug in facts if facts[slug] != before.get(slug)}
    pages = {f"chapters/{slug}" for slug in changed} & env.found_docs
    for docname, metadata in env.metadata.items():
        shown = metadata.get("shows_records")
        if shown and any(shown in ("*", slug.split("/")[0]) for slug in changed):
            pages.add(docname)
    return sorted(pages)


def setup(app: Sphinx) -> dict:
    # Else it is looked up for every citation, in the metadata of all that is installed: seven seconds a build.
    register_plugin("pybtex.backends", "plaintext", Backend)
    app.add_config_value("book_plan", load_plan(), "")
    app.setup_extension("book.pages.plan")
    # Late: by then the chapters' records are written, and every title is known.
    app.connect("env-updated", pages_to_rewrite, priority=900)
    return {
        "version": "1",
        "env_version": 2,
        "parallel_read_safe": True,
        "parallel_write_safe": True,
    }
