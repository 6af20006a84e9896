"""Sphinx extension: the plan page and the part pages.

All of them show what this build measured, so they are filled when a page is written, not when it is read, and
the pages that show a record are written again whenever that record changes.
"""

import json
from pathlib import Path

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.util.docutils import SphinxDirective

from book.source import PLAN, Source, load_plan, planned_chapters, read_source

SHOWN_CHECKS = 4


class book_table(nodes.General, nodes.Element):
    """Stands where the chapters of one part, or the items of one section of the plan, will be listed."""


class PartDirective(SphinxDirective):
    """`{part} name`: the chapters of one part."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        name, names = (
            self.arguments[0],
            [part["name"] for part in self.config.book_plan["parts"]],
        )
        if name not in names:
            raise self.error(f"part {name!r} is none of {', '.join(names)}")
        self.env.metadata[self.env.docname]["shows_records"] = name
        self.env.note_dependency(str(PLAN))
        return [book_table(part=name)]


class PlanDirective(SphinxDirective):
    """`{plan}`: all parts with their chapters, then every item of the learning plan with its chapters."""

    def run(self) -> list[nodes.Node]:
        plan = self.config.book_plan
        self.env.metadata[self.env.docname]["shows_records"] = "*"
        self.env.note_dependency(str(PLAN))
        parts = [
            self.section(
                part["title"],
                f"part-{part['name']}",
                nodes.paragraph("", part["about"]),
                book_table(part=part["name"]),
            )
            for part in plan["parts"]
        ]
        items = [
            self.section(
                section["section"], f"items-{number}", book_table(items=section["items"])
            )
            for number, section in enumerate(plan["plan"], 1)
        ]
        return [
            self.section("The chapters, part by part", "plan-parts", *parts),
            self.section("The learning plan, item by item", "plan-items", *items),
        ]

    def section(self, title: str, anchor: str, *content: nodes.Node) -> nodes.section:
        section = nodes.section(
            "", nodes.title("", title), *content, ids=[anchor], names=[anchor]
        )
        self.state.document.note_explicit_target(section)
        return section


def read_record(root: Path, slug: str) -> dict | None:
    """What the last execution of the chapter measured; None where it has not run."""
    path = root / "_build" / "chapters" / f"{slug}.json"
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, json.JSONDecodeError):
        return None


def chapter_source(env: BuildEnvironment, docname: str) -> Source | None:
    """The chapter behind `docname`; None for every other page."""
    if not docname.startswith("chapters/"):
        return None
    path = Path(env.doc2path(docname))
    if path.suffix != ".md" or not path.is_file():
        return None
    source = read_source(path, docname.removeprefix("chapters/"))
    return source if source.meta and source.cells else None


def measured(record: dict | None) -> str:
    if record is None:
        return ""
    return (
        f"{max(1, round(record['cpu_seconds']))} CPU-s, {record['peak_memory_gib']:.1f} GiB"
    )


def references(record: dict | None) -> list[str]:
    """The distinct references that the chapter was verified against, in its order."""
    found = list(
        dict.fromkeys(str(check["against"]) for check in (record or {}).get("checks", []))
    )
    more = len(found) - SHOWN_CHECKS
    return found[:SHOWN_CHECKS] + ([f"{more} more"] if more > 0 else [])


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
        self, header: list[str], widths: list[int], rows: list[list[list[nodes.Node]]]
    ) -> nodes.table:
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
        return nodes.table("", group, classes=["plan-table"])

    def part(self, name: str) -> nodes.Node:
        part = next(part for part in self.plan["parts"] if part["name"] == name)
        rows = []
        for chapter in part["chapters"]:
            slug = chapter["slug"]
            exists = f"chapters/{slug}" in self.env.found_docs
            record = read_record(self.root, slug) if exists else None
            state = "published" if exists else "planned"
            proof = measured(record)
            if found := references(record):
                proof += f". Verified against {'; '.join(found)}"
            rows.append(
                [
                    [self.link(slug)],
                    [nodes.inline("", state, classes=["state", f"state-{state}"])],
                    [nodes.Text(chapter["builds"])],
                    [nodes.Text(proof)],
                ]
            )
        return self.table(
            ["Chapter", "State", "You build", "Measured and verified"],
            [20, 10, 40, 30],
            rows,
        )

    def items(self, names: list[str]) -> nodes.table:
        rows = []
        for name in names:
            slugs = [
                slug for slug, chapter in self.chapters.items() if name in chapter["plan"]
            ]
            rows.append([[nodes.Text(name)], self.links(slugs)])
        return self.table(["Item", "Chapters"], [50, 50], rows)


def fill(app: Sphinx, doctree: nodes.document, docname: str) -> None:
    pages = Pages(app, docname)
    for node in list(doctree.findall(book_table)):
        table = pages.part(node["part"]) if "part" in node else pages.items(node["items"])
        node.parent.replace(node, table)


def pages_to_rewrite(app: Sphinx, env: BuildEnvironment) -> list[str]:
    """The pages that show a record, a title or an entry that has changed since they were written."""
    root, plan = Path(app.srcdir), app.config.book_plan
    facts = {
        slug: json.dumps(
            [read_record(root, slug), f"chapters/{slug}" in env.found_docs, entry],
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


def drop_thebe(
    app: Sphinx, pagename: str, templatename: str, context: dict, doctree
) -> None:
    """Takes off the scripts of sphinx-thebe, which Jupyter Book adds to every page and this book does not use."""
    context["script_files"] = [
        script
        for script in context["script_files"]
        # Its constant lands on the page twice, which is an uncaught error.
        if "THEBE" not in (script.attributes.get("body") or "")
        and "thebe" not in str(script.filename)
    ]


def setup(app: Sphinx) -> dict:
    app.add_config_value("book_plan", load_plan(), "")
    app.add_node(book_table)
    app.add_directive("plan", PlanDirective)
    app.add_directive("part", PartDirective)
    # Late: by then the chapters' records are written, and every title is known.
    app.connect("env-updated", pages_to_rewrite, priority=900)
    app.connect("doctree-resolved", fill)
    app.connect("html-page-context", drop_thebe, priority=900)
    return {
        "version": "1",
        "env_version": 1,
        "parallel_read_safe": True,
        "parallel_write_safe": True,
    }
