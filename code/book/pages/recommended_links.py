"""Sphinx extension: the learning plan's materials, on their own page and under each chapter's reading.

`{materials}` lists all of them by kind; with `:for: this chapter` it lists those that help the chapter.
"""

import re

from docutils import nodes
from docutils.parsers.rst.directives import unchanged_required
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from book.pages.docutils_nodes import Pages
from book.read.chapters import DATA
from book.read.recommended_links import (
    KINDS,
    LANGUAGES,
    LEVELS,
    MATERIALS,
    THIS_REPOSITORY,
    Material,
    helping,
    load_materials,
)
from book.read.repository_urls import repository

SCRIPT = DATA.parent / "site" / "scripts" / "materials.js"
THIS_CHAPTER = "this chapter"
CHINESE = re.compile(r"([\u3400-\u9fff\uf900-\ufaff]+)")


def in_its_language(text: str) -> list[nodes.Node]:
    """The text, with its Chinese words marked as such: docutils turns the class into a `lang` attribute."""
    return [
        nodes.inline("", piece, classes=["language-zh"])
        if CHINESE.fullmatch(piece)
        else nodes.Text(piece)
        for piece in CHINESE.split(text)
        if piece
    ]


class helped_chapters(nodes.General, nodes.Element):
    """Stands where links to the chapters that an entry helps will be."""


class MaterialsDirective(SphinxDirective):
    """`{materials}`, or with `:for: this chapter` those that help the chapter."""

    option_spec = {"for": unchanged_required}  # noqa: RUF012 (docutils reads it so)

    def run(self) -> list[nodes.Node]:
        self.env.note_dependency(str(MATERIALS))
        try:
            materials = load_materials()
        except ValueError as error:
            raise self.error(str(error)) from error
        wanted = self.options.get("for")
        if wanted is None:
            return self.all(materials)
        if wanted != THIS_CHAPTER:
            raise self.error(f"`:for:` is {wanted!r}; it can only be `{THIS_CHAPTER}`")
        slug = self.env.docname.removeprefix("chapters/")
        found = helping(materials, slug)
        if not found:
            raise self.error(
                f"no entry of code/book/data/materials.yml helps `{slug}`: add it to one, or remove this directive"
            )
        items = [self.entry(m, m.words_for(slug), m.facts()) for m in found]
        return [nodes.bullet_list("", *items, classes=["materials-for-chapter"])]

    def all(self, materials: list[Material]) -> list[nodes.Node]:
        metadata = self.env.metadata[self.env.docname]
        metadata["shows_records"] = "*"  # its links change when a chapter is published
        metadata["filters_materials"] = True
        self.env.note_dependency(str(SCRIPT))
        content: list[nodes.Node] = [nodes.raw("", filter_form(), format="html")]
        for kind, title in KINDS.items():
            items = [self.listed(m) for m in materials if m.kind == kind]
            section = nodes.section(
                "",
                nodes.title("", title),
                nodes.bullet_list("", *items, classes=["materials"]),
                ids=[f"materials-{kind}"],
                names=[f"materials-{kind}"],
            )
            self.state.document.note_explicit_target(section)
            content += [section] if items else []
        return content

    def listed(self, material: Material) -> nodes.list_item:
        language = LANGUAGES[material.language]
        item = self.entry(material, material.about, [language, material.level])
        item["classes"] += [
            "material",
            f"in-{material.language}",
            f"level-{material.level}",
        ]
        item["ids"].append(f"material-{material.key}")
        if material.helps:
            item += helped_chapters(slugs=list(material.helps))
        return item

    def entry(self, material: Material, words: str, facts: list[str]) -> nodes.list_item:
        url = material.url
        if url == THIS_REPOSITORY:
            source = repository(self.config)
            if source is None:
                raise self.error(f"`{material.key}` needs repository.url of _config.yml")
            url = source.url
        title = nodes.reference("", "", *in_its_language(material.title), refuri=url)
        tags = [nodes.inline("", fact, classes=["material-fact"]) for fact in facts]
        spaced = [node for tag in tags for node in (nodes.Text(" "), tag)]
        by = nodes.Text(f" · {material.by}")
        return nodes.list_item(
            "",
            nodes.paragraph("", "", nodes.strong("", "", title), by, *spaced),
            nodes.paragraph("", words),
        )


def filter_form() -> str:
    """The filter, hidden until the page's script shows it."""

    def select(label: str, prefix: str, options: dict[str, str]) -> str:
        rest = "".join(
            f'<option value="{prefix}-{v}">{t}</option>' for v, t in options.items()
        )
        return (
            f'<label>{label} <select><option value="">all</option>{rest}</select></label>'
        )

    return (
        '<form class="materials-filter" autocomplete="off" hidden>'
        + select("Language", "in", LANGUAGES)
        + select("Level", "level", {level: level for level in LEVELS})
        + "<output></output></form>\n"
    )


def fill(app: Sphinx, doctree: nodes.document, docname: str) -> None:
    """Links the chapters that an entry helps."""
    pages = Pages(app, docname)
    for node in list(doctree.findall(helped_chapters)):
        chapters = [slug for slug in node["slugs"] if slug in pages.chapters]
        text = nodes.inline("", "Helps with ", classes=["material-helps"])
        paragraph = nodes.paragraph("", "", text, *pages.links(chapters))
        paragraph["classes"].append("material-chapters")
        node.replace_self(paragraph)


def add_script(
    app: Sphinx, pagename: str, templatename: str, context: dict, doctree
) -> None:
    """The filter's script, on the page of materials only, and in the page itself: it is small."""
    if app.env.metadata.get(pagename, {}).get("filters_materials"):
        app.add_js_file(None, body=SCRIPT.read_text(encoding="utf-8"), type="module")


def setup(app: Sphinx) -> dict:
    app.setup_extension("book.pages.docutils_nodes")
    app.add_node(helped_chapters)
    app.add_directive("materials", MaterialsDirective)
    # Before book.export.notebooks looks at the page.
    app.connect("doctree-resolved", fill, priority=300)
    app.connect("html-page-context", add_script)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
