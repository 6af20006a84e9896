"""Sphinx extension: the box under each chapter's title, with reading time, prerequisites and links.

It shows what this build measured, so it is made when the page is written; `book.pages.docutils_nodes` has the page written again
whenever the chapter's record changes.
"""

from collections.abc import Iterator, Sequence
from html import escape
from pathlib import Path

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.osutil import relative_uri

from book.execute.records import read_record
from book.export.notebooks import FOLDER, wanted
from book.pages.docutils_nodes import Pages, counted
from book.pages.reference_comparisons import VERIFIED, section_id
from book.pages.reference_libraries import (
    imported_names,
    largest_differences,
    resolve,
    shown_difference,
)
from book.pages.second_edition import link, page_sections
from book.read.chapters import Source, chapter_source
from book.read.repository_urls import repository

SHOWN_REFERENCES = 4
ISSUE = """\
Page: {path}

What is wrong, and where:


What it should say or show:

"""


class chapter_box(nodes.container, nodes.Admonition):
    """A container that descriptions of the page leave out."""


Row = tuple[str, Sequence[nodes.Node]]


def line(*content: nodes.Node | str) -> nodes.paragraph:
    """A paragraph; in text, backticks mark code."""
    made: list[nodes.Node] = []
    for piece in content:
        if isinstance(piece, nodes.Node):
            made.append(piece)
        else:
            texts = enumerate(piece.split("`"))
            made += [nodes.literal("", t) if i % 2 else nodes.Text(t) for i, t in texts]
    return nodes.paragraph("", "", *made)


def second_edition(
    pages: Pages, chapter: Source, doctree: nodes.document, known: list[str], run: str
) -> Iterator[Row]:
    """What a page teaches, what it takes, and which of its sections can be left out."""
    able = [nodes.list_item("", line(text)) for text in chapter.meta.get("able") or []]
    yield "You will be able to", [nodes.bullet_list("", *able)]
    asked = chapter.meta.get("before") or {}
    skip = {slug: f"if you can say {text.rstrip('.?')}." for slug, text in asked.items()}
    before = [
        line(pages.link(slug), f"; skip it {skip[slug]}" if slug in skip else "")
        for slug in known
    ] or [line("No other chapter.")]
    if "this" in skip:
        before.append(line(f"Skip this chapter {skip['this']}"))
    yield "Before this", before
    core, all_ = (counted(hours, "hour") for hours in chapter.hours)
    time = f"Core: {core}. With all optional sections: {all_}. Running all cells: {run}."
    yield "Time", [line(time)]
    for kind in ("core", "optional"):
        found = [s for s, its_kind in page_sections(doctree, chapter) if its_kind == kind]
        if links := [piece for section in found for piece in (" · ", link(section))]:
            yield kind.capitalize(), [line(*links[1:])]


def cost(record: dict | None) -> str:
    """What it takes to run the chapter, in words."""
    if record is None:
        return "not measured: this build did not execute the page"
    seconds = counted(max(1, round(record["cpu_seconds"])), "second")
    memory = f"{record['peak_memory_gib']:.1f} GiB of memory"
    return f"{seconds} of one processor core, {memory} (measured in this build)"


def bounds(largest: dict[bool, float]) -> list[nodes.Node]:
    """The largest difference from one reference; absolute and relative ones are never compared."""
    numbers = {relative: number for relative, number in sorted(largest.items()) if number}
    if not numbers:
        return [nodes.Text(" (equal)")]
    content: list[nodes.Node] = [nodes.Text(" (largest difference ")]
    for relative, number in numbers.items():
        content += [nodes.Text(", ")] if len(content) > 1 else []
        shown = shown_difference(number, relative=relative)
        content.append(nodes.inline("", shown, classes=["box-bound"]))
    return [*content, nodes.Text(")")]


def verified_against(app: Sphinx, chapter: Source, record: dict | None) -> list[nodes.Node]:
    """Each reference with the largest difference, and a link to all comparisons."""
    content: list[nodes.Node] = []
    imported = imported_names(chapter)
    largest = largest_differences((record or {}).get("checks", []))
    for against, differences in list(largest.items())[:SHOWN_REFERENCES]:
        reference = resolve(against, imported)
        kind = nodes.literal if reference.is_code else nodes.inline
        content += [nodes.Text("; ")] if content else []
        content += [kind("", reference.name), *bounds(differences)]
    more = len(largest) - SHOWN_REFERENCES
    if content and VERIFIED in app.env.found_docs:
        uri = app.builder.get_relative_uri(chapter.docname, VERIFIED)
        anchor = section_id(chapter.slug)
        text = f"{more} more" if more > 0 else "all comparisons"
        link = nodes.reference("", text, internal=True, refuri=f"{uri}#{anchor}")
        content += [nodes.Text("; "), link]
    elif more > 0:
        content.append(nodes.Text(f"; {more} more"))
    return content


def actions(app: Sphinx, chapter: Source, title: str) -> list[tuple[str, str]]:
    """(name, address) of what a reader can do with the page."""
    docname, source = chapter.docname, repository(app.config)
    if source is None:
        return []
    notebook = []
    if docname in wanted(app):
        colab = source.colab(docname)
        here = app.builder.get_target_uri(docname)
        download = relative_uri(here, f"{FOLDER}/{docname}.ipynb")
        notebook = [("Open in Colab", colab)] if colab else []
        notebook += [("Download notebook", download)]
    path = f"{docname}.md"
    return [
        *notebook,
        ("Edit this page", source.edit(path)),
        ("Report an error", source.new_issue(f"{title}: ", ISSUE.format(path=path))),
    ]


def _buttons(links: list[tuple[str, str]]) -> list[nodes.Node]:
    if not links:
        return []
    items = "".join(
        f'<li><a href="{escape(uri)}"{" download" if uri.endswith(".ipynb") and "://" not in uri else ""}>'
        f"{escape(name)}</a></li>"
        for name, uri in links
    )
    return [nodes.raw("", f'<ul class="box-actions">{items}</ul>\n', format="html")]


def facts(app: Sphinx, chapter: Source, doctree: nodes.document) -> Iterator[Row]:
    """The rows of the box of one chapter."""
    pages = Pages(app, chapter.docname)
    record = read_record(Path(app.srcdir), chapter.slug)
    known = [s for s in chapter.meta.get("prerequisites") or [] if s in pages.chapters]
    yield from second_edition(pages, chapter, doctree, known, cost(record))
    if verified := verified_against(app, chapter, record):
        yield "Verified against", [line(*verified)]


def box(app: Sphinx, chapter: Source, title: str, doctree: nodes.document) -> nodes.Node:
    """The box of one chapter."""
    items = [
        nodes.definition_list_item("", nodes.term("", name), nodes.definition("", *content))
        for name, content in facts(app, chapter, doctree)
    ]
    return chapter_box(
        "",
        nodes.definition_list("", *items),
        *_buttons(actions(app, chapter, title)),
        classes=["chapter-box"],
    )


def insert(app: Sphinx, doctree: nodes.document, docname: str) -> None:
    """Puts the box under the title of a chapter."""
    chapter = chapter_source(app.env, docname)
    section = next(doctree.findall(nodes.section), None)
    if chapter is None or section is None:
        return
    title = next(section.findall(nodes.title))
    section.insert(section.index(title) + 1, box(app, chapter, title.astext(), doctree))


def setup(app: Sphinx) -> dict:
    app.setup_extension("book.pages.docutils_nodes")
    app.setup_extension("book.pages.second_edition")
    app.connect("doctree-resolved", insert)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
