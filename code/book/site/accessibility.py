"""Sphinx extension: makes the theme's pages usable with a keyboard and a screen reader.

It changes the page that the theme's templates have written, since the elements concerned stand in the middle of
their blocks. A mend whose text is absent changes nothing; the tests of the site tell whether it is still needed.
"""

import re
from collections.abc import Callable

from docutils import nodes
from sphinx.application import Sphinx

# The theme's script binds each sidebar to the first button of its kind, which would be in the top bar. This book does
# not show that bar, so it is emptied; it stays as an element, since the script measures it.
TOP_BAR = re.compile(r'(<header id="pst-header"[^>]*)>.*?</header>', re.DOTALL)
REPLACED = {
    # Dialogs say what they are.
    '<dialog id="pst-search-dialog">': '<dialog id="pst-search-dialog" aria-label="Search">',
    '<dialog id="pst-primary-sidebar-modal">': '<dialog id="pst-primary-sidebar-modal" aria-label="Contents of the book">',
    '<dialog id="pst-secondary-sidebar-modal">': '<dialog id="pst-secondary-sidebar-modal" aria-label="On this page">',
    # The logo stands beside the list of pages, outside every landmark.
    '<div id="pst-primary-sidebar"': '<div id="pst-primary-sidebar" role="navigation" aria-label="Book"',
    # The role is deprecated; an entry of a list is what it is.
    'role="doc-biblioentry"': 'role="listitem"',
    # What stands in the summary names it, and says whether it is open.
    '<summary aria-label="Toggle hidden content">': "<summary>",
}


class disclosure(nodes.General, nodes.Element):
    """What a reader opens by a click or a key: the body of a hint or of a solution."""


class summary(nodes.General, nodes.TextElement):
    """The line that stays when a disclosure is closed."""


def mended(html: str) -> str:
    """The page, with its landmarks, names and roles put right."""
    html = TOP_BAR.sub(r"\1 hidden></header>", html)
    for old, new in REPLACED.items():
        html = html.replace(old, new)
    return html


def mend_pages(app: Sphinx) -> None:
    """Sends every page through `mended` on its way from the template to the file."""
    if app.builder.format != "html":
        return
    render: Callable[[str, dict], str] = app.builder.templates.render

    def render_mended(template: str, context: dict) -> str:
        return mended(render(template, context))

    app.builder.templates.render = render_mended


def fold(app: Sphinx, doctree: nodes.document, docname: str) -> None:
    """Makes `details` of the boxes of class "dropdown": they open by keyboard, in a search, and without a script."""
    if app.builder.format != "html":
        return
    for box in list(doctree.findall(nodes.Element)):
        if not isinstance(box, nodes.Admonition) or "dropdown" not in box["classes"]:
            continue
        if box.children and isinstance(box[0], nodes.title):
            title, content = box[0].astext(), box[1:]
        else:
            title, content = box.tagname.capitalize(), box.children
        kind = box.get("type") or box.tagname
        classes = list(dict.fromkeys(["admonition", *box["classes"], kind]))
        # Text alone: a link inside a summary would be a control inside a control.
        folded = disclosure("", summary("", title), *content, classes=classes)
        folded["ids"] = list(box["ids"])
        box.replace_self(folded)


def visit_disclosure(writer, node: disclosure) -> None:
    writer.body.append(writer.starttag(node, "details"))


def depart_disclosure(writer, node: disclosure) -> None:
    writer.body.append("</details>\n")


def visit_summary(writer, node: summary) -> None:
    writer.body.append(writer.starttag(node, "summary", "", CLASS="admonition-title"))


def depart_summary(writer, node: summary) -> None:
    writer.body.append("</summary>\n")


def setup(app: Sphinx) -> dict:
    app.add_node(disclosure, html=(visit_disclosure, depart_disclosure))
    app.add_node(summary, html=(visit_summary, depart_summary))
    app.connect("builder-inited", mend_pages)
    # Late: by then numbers and links stand in the titles of exercises and solutions.
    app.connect("doctree-resolved", fold, priority=900)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
