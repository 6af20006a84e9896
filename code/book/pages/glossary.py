"""Sphinx extension: the glossary as an index, with links to the chapters that use each term."""

import re
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

from docutils import nodes
from sphinx import addnodes
from sphinx.application import Sphinx

from book.pages.docutils_nodes import Pages
from book.read.chapters import Source, find_sources

SHOWN = 5  # chapters; of the rest there is only the number
ROLE = re.compile(r"\{term\}`(?:[^`<]*<)?([^`<>]+?)>?`")


def uses(sources: Iterable[Source]) -> dict[str, list[str]]:
    """The slugs of the chapters that link each term, in the order of the sources; terms in lower case."""
    found = defaultdict(list)
    for source in sources:
        prose = "\n".join(line for _, line in source.prose)
        for term in dict.fromkeys(" ".join(t.split()).lower() for t in ROLE.findall(prose)):
            found[term].append(source.slug)
    return dict(found)


def depend_on_chapters(app: Sphinx, doctree: nodes.document) -> None:
    """A page with a glossary is read again when the text of a chapter changes."""
    if next(doctree.findall(addnodes.glossary), None) is None:
        return
    for source in find_sources(Path(app.srcdir)):
        app.env.note_dependency(str(source.path))
    # A chapter's title may change where its text does not.
    app.env.metadata[app.env.docname]["shows_records"] = "*"


def add_uses(app: Sphinx, doctree: nodes.document, docname: str) -> None:
    """Adds to each definition the chapters that use its term."""
    glossaries = list(doctree.findall(addnodes.glossary))
    if not glossaries:
        return
    pages = Pages(app, docname)
    sources = {source.slug: source for source in find_sources(Path(app.srcdir))}
    used = uses(sources[slug] for slug in pages.chapters if slug in sources)
    for glossary in glossaries:
        for item in glossary.findall(nodes.definition_list_item):
            terms = [term.astext().lower() for term in item.findall(nodes.term)]
            in_some = {slug for term in terms for slug in used.get(term, ())}
            slugs = [slug for slug in pages.chapters if slug in in_some]
            if slugs:
                next(item.findall(nodes.definition)).append(paragraph(pages, slugs))


def paragraph(pages: Pages, slugs: list[str]) -> nodes.paragraph:
    more = len(slugs) - SHOWN
    rest = [nodes.Text(f" and {more} more")] if more > 0 else []
    label = nodes.inline("", "In ", classes=["term-label"])
    links = pages.links(slugs[:SHOWN])
    return nodes.paragraph("", "", label, *links, *rest, classes=["term-chapters"])


def setup(app: Sphinx) -> dict:
    app.setup_extension("book.pages.docutils_nodes")
    app.connect("doctree-read", depend_on_chapters)
    app.connect("doctree-resolved", add_uses)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
