"""Sphinx extension: the pages of the learning plan, the routes and the parts, with boxes to tick.

What they show of a chapter is measured by this build, so it is filled in when a page is written, not when it is read.
"""

import math
from html import escape
from pathlib import Path

import yaml
from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective, SphinxRole

from book.execute.records import read_record
from book.execute.sphinx_extension import WORKERS
from book.pages.docutils_nodes import Pages, counted, measured, reading_hours, references
from book.read.chapters import DATA, PLAN, chapter_source, planned_chapters
from book.read.plan import Line, read_lines, route_chapters
from book.read.repository_urls import repository

CHANGELOG = DATA / "changelog.yml"
SCRIPT = DATA.parent / "site" / "scripts" / "ticks.js"
HOW_TO_RUN = "chapters/start/how-to-run"
EXERCISES = "exercises-"  # begins the label of a chapter's section of exercises
LEARNED = "learned by the plan’s author"  # in words: a sign would look like a box that the reader has ticked
AUTHORS = {"plan": "the learning plan", "book": "this book"}

# The script shows the panel: without it there is nothing to keep.
PANEL = """\
<div class="ticks-panel" hidden>
<p class="ticks-progress"><progress aria-label="Chapters read" max="1" value="0"></progress>
<span class="ticks-status" role="status"></span></p>
<p class="ticks-message" role="status"></p>
<details><summary>Take your ticks to another browser, or clear them</summary>
<p>Your ticks are kept in this browser, and nowhere else. This text holds them. Copy it or save it, or put another
text here and import it: its ticks are added to yours.</p>
<label for="ticks-text">Your ticks as text</label>
<textarea id="ticks-text" rows="3" spellcheck="false" autocomplete="off"></textarea>
<p class="ticks-buttons"><button type="button" data-do="copy">Copy</button>
<button type="button" data-do="save">Save as a file</button>
<button type="button" data-do="import">Import this text</button>
<button type="button" data-do="open">Import a file</button>
<input type="file" accept=".json,application/json,text/plain" aria-label="File with ticks" hidden>
<button type="button" data-do="clear">Clear all ticks</button></p>
</details>
</div>
<noscript><p>Ticks need JavaScript; the rest of this page does not.</p></noscript>
"""


class plan_slot(nodes.General, nodes.Element):
    """Stands where something of the plan will be filled in; `show` says what, and other attributes of what."""


class _Directive(SphinxDirective):
    """What the directives of this module share."""

    def shows(self, what: str, source: Path = PLAN) -> dict:
        """Notes what the page depends on: chapters ("*", or a part's name), and a file."""
        self.env.metadata[self.env.docname]["shows_records"] = what
        self.env.note_dependency(str(source))
        return self.config.book_plan

    def section(self, title: str, anchor: str, *content: nodes.Node) -> nodes.section:
        """A section whose title may hold Markdown."""
        heading = nodes.title("", "", *self.parse_inline(title)[0])
        section = nodes.section("", heading, *content, ids=[anchor], names=[anchor])
        self.state.document.note_explicit_target(section)
        return section


class PartDirective(_Directive):
    """`{part} name`: the chapters of one part."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        name = self.arguments[0]
        names = [part["name"] for part in self.config.book_plan["parts"]]
        if name not in names:
            raise self.error(f"part {name!r} is none of {', '.join(names)}")
        self.shows(name)
        return [plan_slot(show="part", name=name)]


class PlanDirective(_Directive):
    """`{plan} view`: one view of the plan, which is its chapters, its items or its history."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        views = {"chapters": self.chapters, "items": self.items, "history": self.history}
        if self.arguments[0] not in views:
            raise self.error(
                f"the plan has no view {self.arguments[0]!r}; the views are {', '.join(views)}"
            )
        return views[self.arguments[0]]()

    def linked(self, part: dict) -> str:
        """The part's title, which leads to its page where there is one."""
        page = f"chapters/{part['name']}/index"
        there = page in self.env.found_docs
        return f"[{part['title']}](/{page}.md)" if there else part["title"]

    def chapters(self) -> list[nodes.Node]:
        parts = [
            self.section(
                self.linked(part),
                f"part-{part['name']}",
                nodes.paragraph("", part["about"]),
                plan_slot(show="checklist", name=part["name"]),
            )
            for part in self.shows("*")["parts"]
        ]
        panel = nodes.raw("", PANEL, format="html")
        return [panel, nodes.container("", *parts, classes=["plan-parts"])]

    def items(self) -> list[nodes.Node]:
        return [
            self.section(
                section["section"],
                f"items-{number}",
                plan_slot(show="items", lines=read_lines(section["items"])),
            )
            for number, section in enumerate(self.shows("*")["plan"], 1)
        ]

    def history(self) -> list[nodes.Node]:
        self.env.note_dependency(str(CHANGELOG))
        entries = []
        for entry in yaml.safe_load(CHANGELOG.read_text(encoding="utf-8")):
            date = entry["date"].isoformat()
            head = f"{date} · {entry['title']} "
            author = nodes.inline("", AUTHORS[entry["by"]], classes=["history-by"])
            term = nodes.term("", "", nodes.Text(head), author)
            text = nodes.definition("", *self.parse_text_to_nodes(entry["text"]))
            entries.append(nodes.definition_list_item("", term, text))
        return [nodes.definition_list("", *entries, classes=["plan-history"])]


class TotalsRole(SphinxRole):
    """`{totals}`: how many chapters and hours the book has, a route has, or how long one build computes.

    Its text is `book`, `minutes`, or the name of a route.
    """

    def run(self) -> tuple[list[nodes.Node], list[nodes.system_message]]:
        plan = self.config.book_plan
        slugs = {route["name"]: route_chapters(plan, route) for route in plan["routes"]}
        slugs["book"] = slugs["minutes"] = list(planned_chapters(plan))
        if self.text not in slugs:
            message = self.inliner.reporter.error(
                f"{self.text!r} has no totals; what has: {', '.join(sorted(slugs))}",
                line=self.lineno,
            )
            return [], [message]
        self.env.metadata[self.env.docname]["shows_records"] = "*"
        self.env.note_dependency(str(PLAN))
        show = "minutes" if self.text == "minutes" else "count"
        return [plan_slot(show=show, slugs=slugs[self.text])], []


class RoutesDirective(_Directive):
    """`{routes}`: the ways through the book, a section each."""

    def run(self) -> list[nodes.Node]:
        plan = self.shows("*")
        sections: list[nodes.Node] = []
        for route in plan.get("routes", []):
            slugs = route_chapters(plan, route)
            slot = plan_slot(show="route", slugs=slugs, assumes=route.get("assumes", []))
            about = nodes.paragraph("", route["about"])
            sections.append(
                self.section(route["title"], f"route-{route['name']}", about, slot)
            )
        return sections


class PlanPages(Pages):
    """Makes what stands in the slots of one page."""

    def published(self, slug: str) -> bool:
        return f"chapters/{slug}" in self.env.found_docs

    def title(self, slug: str) -> str:
        return self.link(slug).astext()

    def href(self, docname: str) -> str | None:
        if docname not in self.env.found_docs:
            return None
        return self.app.builder.get_relative_uri(self.docname, docname)

    def hours(self, slug: str) -> float:
        """Hours to read the core."""
        return reading_hours(self.env, slug, self.chapters[slug])[0]

    def time(self, slugs: list[str]) -> str:
        """How long it takes to read the cores, in words."""
        times = [reading_hours(self.env, slug, self.chapters[slug]) for slug in slugs]
        less = any(core < everything for core, everything in times)
        total = counted(sum(core for core, _ in times), "hour")
        return f"{total} to read{' without optional sections' if less else ''}"

    def fill(self, slot: plan_slot) -> list[nodes.Node]:
        return getattr(self, f"show_{slot['show']}")(slot)

    # --- Pieces ---

    def tick(self, slug: str, label: str = "") -> nodes.Node:
        """Where the script puts the box; nothing for a planned chapter."""
        classes = "tick" if self.published(slug) else "tick-none"
        words = f' data-label="{escape(label)}"' if label else ""
        return nodes.raw(
            "",
            f'<span class="{classes}" data-slug="{slug}" data-title="{escape(self.title(slug))}" '
            f'data-hours="{self.hours(slug):g}"{words}></span>',
            format="html",
        )

    def read_count(self, name: str) -> nodes.Node:
        """Where the script says how many chapters of a part, or of a route, are read."""
        return nodes.raw(
            "", f'<span class="read-count" data-of="{name}"></span>', format="html"
        )

    def state(self, slug: str) -> nodes.Node:
        state = "published" if self.published(slug) else "planned"
        return nodes.inline("", state, classes=["state", f"state-{state}"])

    def needs(self, slug: str) -> list[nodes.Node]:
        """The chapter's prerequisites, linked."""
        needed = self.chapters[slug]["prerequisites"]
        if not needed:
            return [nodes.Text("needs no other chapter")]
        return [nodes.Text("after "), *self.links(needed)]

    def facts(self, slug: str) -> nodes.paragraph:
        """Reading time, what this build measured, what the chapter is verified against, and what it needs."""
        record = read_record(self.root, slug) if self.published(slug) else None
        about = "about " if self.published(slug) else "estimate: "
        facts: list[list[nodes.Node]] = [[nodes.Text(f"{about}{self.time([slug])}")]]
        if record:
            facts.append([nodes.Text(measured(record))])
        if found := references(record):
            facts.append([nodes.Text("verified against " + "; ".join(found))])
        facts.append(self.needs(slug))
        joined: list[nodes.Node] = []
        for fact in facts:
            joined += [nodes.Text(" · ")] if joined else []
            joined.append(nodes.inline("", "", *fact, classes=["fact"]))
        return nodes.paragraph("", "", *joined, classes=["facts"])

    def entry(self, slug: str, *more: nodes.Node) -> nodes.list_item:
        """A chapter with its box and its state, and all that `more` adds."""
        head = nodes.paragraph(
            "", "", self.tick(slug), self.link(slug), nodes.Text(" "), self.state(slug)
        )
        return nodes.list_item("", head, *more, classes=["chapter-entry"])

    def checklist(self, slugs: list[str], *, numbered: bool = False) -> nodes.Node:
        """The chapters with their hours. A numbered list is in reading order; another one names prerequisites."""
        entries = []
        for slug in slugs:
            needs = nodes.paragraph("", "", *self.needs(slug), classes=["facts"])
            entry = self.entry(slug, *([] if numbered else [needs]))
            head = next(entry.findall(nodes.paragraph))
            head += nodes.inline("", f" {self.hours(slug):g} h", classes=["hours"])
            entries.append(entry)
        kind = nodes.enumerated_list if numbered else nodes.bullet_list
        return kind("", *entries, classes=["chapter-list", "compact"])

    def totals(self, slugs: list[str]) -> str:
        there = [slug for slug in slugs if self.published(slug)]
        text = f"{counted(len(slugs), 'chapter')}, about {self.time(slugs)}"
        if len(there) == len(slugs):
            return f"{text}; all are published."
        hours = counted(sum(self.hours(slug) for slug in there), "hour")
        ready = f"{len(there)} ({hours})" if there else "none"
        return f"{text}; {ready} of them published."

    def show_count(self, slot: plan_slot) -> list[nodes.Node]:
        """The published chapters among the slot's, and their hours."""
        there = [slug for slug in slot["slugs"] if self.published(slug)]
        return [nodes.Text(f"{counted(len(there), 'chapter')}, about {self.time(there)}")]

    def show_minutes(self, slot: plan_slot) -> list[nodes.Node]:
        """How long the chapters of this build compute, as many at a time as a build executes."""
        records = [
            record
            for slug in slot["slugs"]
            if self.published(slug) and (record := read_record(self.root, slug))
        ]
        seconds = sum(record["cpu_seconds"] for record in records) / WORKERS
        return [nodes.Text(counted(max(1, math.ceil(seconds / 60)), "minute"))]

    def part(self, name: str) -> dict:
        return next(part for part in self.plan["parts"] if part["name"] == name)

    def part_slugs(self, name: str) -> list[str]:
        return [chapter["slug"] for chapter in self.part(name)["chapters"]]

    def part_pages(self, name: str) -> list[nodes.Node]:
        """A line for each page of the part that is no chapter."""
        return [
            nodes.paragraph(
                "",
                "",
                nodes.Text("Beside the chapters: "),
                self.link(page["slug"]),
                nodes.Text(f". {page['about']}"),
                classes=["part-page"],
            )
            for page in self.part(name).get("pages", ())
            if self.published(page["slug"])
        ]

    # --- What a slot may show ---

    def show_checklist(self, slot: plan_slot) -> list[nodes.Node]:
        slugs = self.part_slugs(slot["name"])
        return [
            nodes.paragraph("", "", self.read_count(slot["name"]), classes=["read-line"]),
            self.checklist(slugs),
            *self.part_pages(slot["name"]),
        ]

    def show_part(self, slot: plan_slot) -> list[nodes.Node]:
        slugs, entries = self.part_slugs(slot["name"]), []
        for slug in slugs:
            builds = nodes.paragraph("", self.chapters[slug]["builds"], classes=["builds"])
            entries.append(self.entry(slug, builds, self.facts(slug)))
        totals = nodes.paragraph(
            "",
            "",
            nodes.Text(f"{self.totals(slugs)} "),
            self.read_count(slot["name"]),
            classes=["totals"],
        )
        listed = nodes.bullet_list("", *entries, classes=["chapter-list"])
        return [totals, listed, *self.part_pages(slot["name"])]

    def show_items(self, slot: plan_slot) -> list[nodes.Node]:
        return [self.item_list(slot["lines"])]

    def item_list(self, lines: tuple[Line, ...]) -> nodes.bullet_list:
        items = []
        for line in lines:
            words = nodes.paragraph("", line.words, classes=["plan-words"])
            if line.done:
                mark = nodes.inline("", LEARNED, classes=["author-mark"])
                words += [nodes.Text(" "), mark]
            item = nodes.list_item("", words, classes=["plan-item"])
            if line.item:
                slugs = [s for s, c in self.chapters.items() if line.item in c["plan"]]
                entries = [self.entry(slug, self.facts(slug)) for slug in slugs]
                item += nodes.bullet_list("", *entries, classes=["chapter-list"])
            if line.lines:
                item += self.item_list(line.lines)
            items.append(item)
        return nodes.bullet_list("", *items, classes=["plan-items"])

    def show_route(self, slot: plan_slot) -> list[nodes.Node]:
        slugs, assumes = slot["slugs"], slot["assumes"]
        known: list[nodes.Node] = [
            nodes.Text("Python, a little calculus, and what a matrix is.")
        ]
        if assumes:
            below = "it stands" if len(assumes) == 1 else "they stand"
            known = [*self.links(assumes), nodes.Text(f", and all that {below} on.")]
        assumed = nodes.paragraph(
            "",
            "",
            nodes.strong("", "You know already: "),
            *known,
            classes=["route-assumes"],
        )
        name = slot.parent["ids"][0]
        totals = nodes.paragraph(
            "", "", nodes.Text(f"{self.totals(slugs)} "), self.read_count(name)
        )
        return [assumed, totals, self.checklist(slugs, numbered=True)]


def chapter_end(pages: PlanPages, slug: str) -> nodes.Node:
    """The box at the end of a chapter, and the way back to the plan."""
    line = nodes.paragraph("", "", pages.tick(slug, label="I have read this chapter"))
    return nodes.container("", line, classes=["chapter-end"])


def exercises_line(pages: PlanPages) -> nodes.Node:
    """Where to try the exercises: a page cannot run them."""
    ways: list[tuple[str, str, bool]] = []
    source = repository(pages.app.config)
    colab = source.colab(pages.docname) if source else None
    if colab and chapter_source(pages.env, pages.docname):
        ways.append(("in Colab", colab, False))
    if href := pages.href(HOW_TO_RUN):
        ways.append(("on your machine", href, True))
    line = nodes.paragraph("", "To try them, open the notebook", classes=["exercises-line"])
    for number, (words, address, internal) in enumerate(ways):
        line += nodes.Text(" or " if number else " ")
        line += nodes.reference("", words, refuri=address, internal=internal)
    line += nodes.Text(".")
    return line


def fill(app: Sphinx, doctree: nodes.document, docname: str) -> None:
    pages = PlanPages(app, docname)
    for slot in list(doctree.findall(plan_slot)):
        slot.replace_self(pages.fill(slot))
    slug = docname.removeprefix("chapters/")
    if docname.startswith("chapters/") and slug in pages.chapters:
        sections = list(doctree.findall(nodes.section))
        for section in sections:
            if any(name.startswith(EXERCISES) for name in section["names"]):
                section.insert(1, exercises_line(pages))
        if sections:
            sections[0] += chapter_end(pages, slug)


def add_script(
    app: Sphinx, pagename: str, templatename: str, context: dict, doctree: nodes.document
) -> None:
    """Loads the script where there is something to tick."""
    if 'class="tick"' in context.get("body", ""):
        app.add_js_file(SCRIPT.name, loading_method="defer")


def setup(app: Sphinx) -> dict:
    app.add_node(plan_slot)
    app.add_directive("plan", PlanDirective)
    app.add_directive("part", PartDirective)
    app.add_directive("routes", RoutesDirective)
    app.add_role("totals", TotalsRole())
    # Not under _static/: Jupyter Book adds what lies there to every page.
    app.connect(
        "config-inited", lambda app, config: config.html_static_path.append(str(SCRIPT))
    )
    # After the notebooks are written: boxes to tick and the like are of the site alone.
    app.connect("doctree-resolved", fill)
    app.connect("html-page-context", add_script)
    return {
        "version": "1",
        "env_version": 1,
        "parallel_read_safe": True,
        "parallel_write_safe": True,
    }
