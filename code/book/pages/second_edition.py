"""Sphinx extension: cells folded by their tags, and optional sections of pages with a head."""

from docutils import nodes
from sphinx.application import Sphinx

from book.contract.second_edition import AROUND, fold_title, kind_of
from book.read.chapters import Source, chapter_source

BADGE = "optional-badge"


def fold_cells(app: Sphinx, doctree: nodes.document) -> None:
    """Closes the cells that the form folds, and says of every folded cell what a click shows.

    myst-nb reads what is set here, and so do the notebooks.
    """
    chapter = chapter_source(app.env, app.env.docname)
    if chapter is None:
        return
    for cell in doctree.findall(nodes.container):
        if cell.get("nb_element") != "cell_code" or not cell.children:
            continue
        tags, source = cell["cell_metadata"].get("tags", []), cell[0].astext()
        what = "the checker" if "exercise-checker" in tags else "the code"
        cell["prompt_show"], cell["prompt_hide"] = f"Show {what}", f"Hide {what}"
        if title := fold_title(tags, source):
            # The output stays open, except that of numbers, which the prose shows.
            whole = "results" in tags and "show_table(" not in source
            cell["hide_mode"] = "all" if whole else "input"
            cell["prompt_show"] = cell["prompt_hide"] = title


def page_sections(
    doctree: nodes.document, chapter: Source
) -> list[tuple[nodes.section, str]]:
    """The sections below the page's title, each with what it is: see `kind_of`."""
    found = next(doctree.findall(nodes.section)).children
    sections = [section for section in found if isinstance(section, nodes.section)]
    optional = chapter.meta.get("optional") or []
    return [(section, kind_of(section["names"], optional)) for section in sections]


def link(section: nodes.section) -> nodes.reference:
    """The section's heading, linked; its badge left out."""
    words = nodes.inline("", "", *next(section.findall(nodes.title)).deepcopy().children)
    for badge in [node for node in words.findall(nodes.inline) if BADGE in node["classes"]]:
        words.remove(badge)
    return nodes.reference("", "", words, internal=True, refuri=f"#{section['ids'][0]}")


def mark_optional(app: Sphinx, doctree: nodes.document, docname: str) -> None:
    """Gives an optional section a badge, and a link to the next section that is not optional."""
    chapter = chapter_source(app.env, docname)
    sections = page_sections(doctree, chapter) if chapter else []
    for number, (section, kind) in enumerate(sections):
        if kind != "optional":
            continue
        title = next(section.findall(nodes.title))
        following = [pair for pair in sections[number + 1 :] if pair[1] != "optional"]
        for target, role in following[:1]:
            words = "Continue with: " if role in AROUND else "Next core section: "
            line = nodes.paragraph("", words, link(target), classes=["onwards"])
            section.insert(section.index(title) + 1, line)
        # The style of the site hides the brackets.
        left, right = (nodes.inline("", sign, classes=["bracket"]) for sign in (" (", ")"))
        badge = [left, nodes.Text("optional"), right]
        title += nodes.inline("", "", *badge, classes=[BADGE])


def setup(app: Sphinx) -> dict:
    app.connect("doctree-read", fold_cells)
    # Before the notebooks are written, which show badges and links, too.
    app.connect("doctree-resolved", mark_optional, priority=300)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
