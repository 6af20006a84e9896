"""Sphinx extension: cards that show a chapter's figure on another page.

`{picture} first-model/gpt fig-gpt-overtakes` makes a card: the figure that this build drew, the chapter's title, the
directive's text, and how many results agreed with a reference library. Without a name it shows the chapter's first
figure. A chapter that is not written yet has none of these, and its card says that it is planned.
"""

from pathlib import Path

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.util import logging
from sphinx.util.docutils import SphinxDirective
from sphinx.util.images import get_image_size

from book.execute.records import read_record
from book.pages.docutils_nodes import Pages
from book.read.chapters import PLAN, planned_chapters

# Wider than this times its height, a picture needs the whole width to be legible.
WIDE = 2.4
logger = logging.getLogger(__name__)


class picture_card(nodes.General, nodes.Element):
    """Stands where a chapter's figure, title and comparisons will be shown."""


class PictureDirective(SphinxDirective):
    """`{picture} slug figure` or `{picture} slug`: the card of one chapter."""

    required_arguments = 1
    optional_arguments = 1
    has_content = True

    def run(self) -> list[nodes.Node]:
        slug, figure = [*self.arguments, None][:2]
        chapters = planned_chapters(self.config.book_plan)
        if slug not in chapters:
            raise self.error(
                f"no chapter of the plan is called {slug!r}; it has: {', '.join(chapters)}"
            )
        self.env.metadata[self.env.docname]["shows_records"] = "*"
        self.env.note_dependency(str(PLAN))
        text = self.content or [chapters[slug]["builds"]]
        content = self.parse_text_to_nodes("\n".join(text))
        return [picture_card("", *content, slug=slug, figure=figure)]


def drawn(env: BuildEnvironment, slug: str, name: str | None) -> nodes.image | None:
    """The picture of a chapter's figure, or of its first; None where the page has no such figure."""
    for figure in env.get_doctree(f"chapters/{slug}").findall(nodes.figure):
        image = figure.next_node(nodes.image)
        if image and figure["names"] and name in (None, *figure["names"]):
            return image.deepcopy()
    return None


def fill(app: Sphinx, doctree: nodes.document, docname: str) -> None:
    """Replaces each card by what is known of its chapter now."""
    for card in list(doctree.findall(picture_card)):
        slug, pages = card["slug"], Pages(app, docname)
        shown = nodes.container("", classes=["picture-card"])
        title = nodes.paragraph("", "", pages.link(slug), classes=["picture-title"])
        if f"chapters/{slug}" not in app.env.found_docs:
            shown["classes"].append("planned")
            state = "planned"
        else:
            picture = drawn(app.env, slug, card["figure"])
            if picture is not None:
                path = str(Path(app.srcdir, picture["uri"]))
                width, height = get_image_size(path) or (0, 0)
                shape = "wide" if width > WIDE * height else "beside"
                shown["classes"].append(f"picture-{shape}")
                shown += picture
            elif card["figure"]:
                logger.warning(
                    "%s shows no figure %r", slug, card["figure"], location=docname
                )
            checks = len((read_record(pages.root, slug) or {}).get("checks", ()))
            agree = "result agrees" if checks == 1 else "results agree"
            state = checks and f"✓ {checks} {agree} with a reference library"
        shown += [title, *card.children]
        if state:
            shown += nodes.paragraph("", state, classes=["picture-state"])
        card.replace_self(shown)


def setup(app: Sphinx) -> dict:
    app.add_node(picture_card)
    app.add_directive("picture", PictureDirective)
    app.connect("doctree-resolved", fill)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
