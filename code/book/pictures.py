"""Sphinx extension: cards that show a figure of a chapter on another page, taken from the executed notebook.

`{picture} basics/gpt fig-gpt-overtakes` makes a card: the figure that this build drew, the chapter's title, the
directive's text, and how many results agreed with a reference library. Without a name it shows the chapter's first
figure. A chapter that is not written yet has none of these, and its card says that it is planned.
"""

import base64
import hashlib
import json
from html import escape
from pathlib import Path

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.util import logging
from sphinx.util.docutils import SphinxDirective
from sphinx.util.osutil import relative_uri

from book.source import PLAN, Cell, planned_chapters, read_source

PNG = "image/png"
WIDE = (
    2.4  # wider than this times its height, a picture needs the whole width to be legible
)
ICON = "apple-touch-icon.png"
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
        path = Path(self.env.srcdir, "chapters", f"{slug}.md")
        card = picture_card(
            slug=slug, title=chapters[slug]["title"], published=path.is_file()
        )
        self.env.note_dependency(str(path))
        self.env.note_dependency(str(PLAN))
        if path.is_file():
            self.choose(card, figure, figure_cells(path, slug))
        elif figure:
            raise self.error(f"chapter {slug!r} is not written yet: it has no {figure!r}")
        text = self.content or [chapters[slug]["builds"]]
        card += self.parse_text_to_nodes("\n".join(text))
        return [card]

    def choose(
        self, card: picture_card, figure: str | None, cells: dict[str, Cell]
    ) -> None:
        """Puts the figure on the card, or the chapter's first one where none is named."""
        if figure is None and not cells:
            return
        figure = figure or next(iter(cells))
        if figure not in cells:
            raise self.error(
                f"chapter {card['slug']!r} has no figure {figure!r}; it has: "
                + (", ".join(cells) or "none")
            )
        image = cells[figure].options["mystnb"].get("image") or {}
        card["figure"], card["alt"] = figure, str(image.get("alt", ""))
        shown = self.env.metadata[self.env.docname].get("pictures", [])
        self.env.metadata[self.env.docname]["pictures"] = [*shown, (card["slug"], figure)]


def figure_cells(path: Path, slug: str) -> dict[str, Cell]:
    """The cells of a chapter that draw a named figure, by that name."""
    named = {}
    for cell in read_source(path, slug).cells:
        figure = (cell.options.get("mystnb") or {}).get("figure") or {}
        if figure.get("name"):
            named[figure["name"]] = cell
    return named


def executed_notebook(app: Sphinx, slug: str) -> dict:
    """The notebook that this build executed; without cells where it did not."""
    path = Path(app.outdir).parent / "jupyter_execute" / "chapters" / f"{slug}.ipynb"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {"cells": []}


def drawn(notebook: dict, figure: str) -> bytes | None:
    """The PNG of a named figure; None where its cell gave none."""
    for cell in notebook["cells"]:
        mystnb = cell.get("metadata", {}).get("mystnb") or {}
        if (mystnb.get("figure") or {}).get("name") == figure:
            for output in cell.get("outputs", []):
                if PNG in output.get("data", {}):
                    return base64.b64decode("".join(output["data"][PNG]))
    return None


def comparisons(notebook: dict) -> int:
    """How many results the notebook compared with a reference library."""
    return sum(
        "llm_learn_check" in output.get("metadata", {})
        for cell in notebook["cells"]
        for output in cell.get("outputs", [])
    )


def png_size(png: bytes) -> tuple[int, int]:
    """Width and height in pixels, from the header."""
    return int.from_bytes(png[16:20], "big"), int.from_bytes(png[20:24], "big")


def save_pictures(app: Sphinx, env: BuildEnvironment) -> list[str]:
    """Writes the pictures beside the site's other images; gives the pages whose pictures have changed."""
    seen, changed = getattr(env, "book_pictures", {}), []
    env.book_pictures = {}
    for docname, metadata in env.metadata.items():
        for slug, figure in metadata.get("pictures", []):
            notebook = executed_notebook(app, slug)
            png = drawn(notebook, figure)
            if png is None:
                logger.warning(
                    "%r of %s was not drawn in this build", figure, slug, location=docname
                )
                continue
            name = f"{figure}-{hashlib.sha256(png).hexdigest()[:8]}.png"
            facts = (name, png_size(png), comparisons(notebook))
            if seen.get(figure) != facts:
                changed.append(docname)
            env.book_pictures[figure] = facts
            path = Path(app.outdir, "_images", name)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(png)
    return changed


def fill(app: Sphinx, doctree: nodes.document, docname: str) -> None:
    """Replaces each card by what is known of its chapter now."""
    for card in list(doctree.findall(picture_card)):
        shown = nodes.container("", classes=["picture-card"])
        if not card["published"]:
            shown["classes"].append("planned")
            shown += nodes.paragraph("", card["title"], classes=["picture-title"])
            shown += card.children
            shown += nodes.paragraph("", "planned", classes=["picture-state"])
        else:
            if facts := app.env.book_pictures.get(card.get("figure")):
                shown["classes"].append(f"picture-{shape(facts[1])}")
            shown += published(app, card, docname)
        card.parent.replace(card, shown)


def shape(size: tuple[int, int]) -> str:
    """How a picture shares its card with the text: a wide one stands above it, the others beside it."""
    width, height = size
    return "wide" if width > WIDE * height else "beside"


def published(app: Sphinx, card: picture_card, docname: str) -> list[nodes.Node]:
    """The content of a card: picture, title with the link, text, and what was compared."""
    target = f"chapters/{card['slug']}"
    parts: list[nodes.Node] = []
    facts = app.env.book_pictures.get(card.get("figure"))
    if facts:
        name, (width, height), compared = facts
        uri = relative_uri(app.builder.get_target_uri(docname), f"_images/{name}")
        # Its size as attributes keeps the page from jumping; docutils would write it as a style, which scales badly.
        parts.append(
            nodes.raw(
                "",
                f'<img src="{escape(uri)}" alt="{escape(card["alt"])}" '
                f'width="{width}" height="{height}" loading="lazy">',
                format="html",
            )
        )
    link = nodes.reference(
        "",
        card["title"],
        internal=True,
        refuri=app.builder.get_relative_uri(docname, target),
    )
    parts += [nodes.paragraph("", "", link, classes=["picture-title"]), *card.children]
    if facts and compared:
        results = (
            "1 result agrees" if compared == 1 else f"{compared} results agree"
        ) + " with a reference library"
        parts.append(
            nodes.paragraph(
                "",
                f"✓ {results}",
                classes=["picture-state"],
            )
        )
    return parts


def link_icon(
    app: Sphinx, pagename: str, templatename: str, context: dict, doctree
) -> None:
    """Names the icon that phones put on their home screen."""
    if Path(app.srcdir, "_static", ICON).is_file():
        href = context["pathto"](f"_static/{ICON}", resource=True)
        context["metatags"] = (
            context.get("metatags", "") + f'\n<link rel="apple-touch-icon" href="{href}">'
        )


def setup(app: Sphinx) -> dict:
    app.add_node(picture_card)
    app.add_directive("picture", PictureDirective)
    # Late: by then the notebooks with their outputs are written.
    app.connect("env-updated", save_pictures, priority=950)
    app.connect("doctree-resolved", fill)
    app.connect("html-page-context", link_icon)
    return {
        "version": "1",
        "env_version": 1,
        "parallel_read_safe": True,
        "parallel_write_safe": True,
    }
