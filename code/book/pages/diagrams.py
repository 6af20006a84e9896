"""Sphinx extension: diagrams that are drawn by hand, as SVG.

`{diagram} attention-heads.svg` makes a figure of a file beside the page. A page of the site holds the drawing itself, so
that a search finds its text and its colours follow the theme. Notebooks and the EPUB show the file in `_images`, which
brings its own style. A file holds `<svg class="wide">` and `<svg class="narrow">`, of which a page shows the one that
is legible there.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree
from xml.etree.ElementTree import Element

from docutils import nodes
from docutils.parsers.rst.directives import unchanged
from sphinx.application import Sphinx
from sphinx.directives.patches import Figure
from sphinx.util.osutil import relative_uri

from book.atomic_files import write_atomically

SVG = "http://www.w3.org/2000/svg"
STYLE = Path(__file__).parents[1] / "site" / "styles" / "diagrams.css"
# Of each drawing: the width of its viewBox, and the smallest type.
LIMITS = {"wide": (720, 13), "narrow": (320, 11)}
MAX_BOXES = 15
# Which attributes are limited, what they may be, and how a message says it.
ATTRIBUTES = (
    ("style", r"(?!)", "no such attribute: the look comes from classes"),
    ("fill|stroke|color", r"none|url.*", f"none or url(#ID): colours are in {STYLE.name}"),
    ("transform", r"((translate|rotate)\([^)]*\)\s*)*", "translate and rotate"),
)


def problems(root: Element) -> Iterator[str]:
    """What is wrong with a file, and what is accepted instead."""
    first = root[0] if len(root) else root
    if root.tag != "svg" or first.tag != "title" or not (first.text or "").strip():
        yield "accepted is an <svg> that begins with a <title>"
    for element in root.iter():
        for name, value in element.attrib.items():
            for limited, accepted, words in ATTRIBUTES:
                if re.fullmatch(limited, name) and not re.fullmatch(accepted, value):
                    yield f'<{element.tag} {name}="{value}">: accepted is {words}'
    drawings = root.findall("svg")
    if [svg.get("class") for svg in drawings] != [*LIMITS]:
        yield f"accepted are two drawings, of class {' and '.join(LIMITS)}"
        return
    for svg, (kind, (width, smallest)) in zip(drawings, LIMITS.items(), strict=True):
        box, elements = svg.get("viewBox", ""), list(svg.iter())
        if not re.fullmatch(rf"0 0 {width} [1-9]\d*", box):
            yield f'viewBox="{box}" of the {kind} drawing: accepted is "0 0 {width} HEIGHT"'
        for size in {e.get("font-size", str(smallest)) for e in elements}:
            if not re.fullmatch(r"\d+(\.\d+)?", size) or float(size) < smallest:
                yield f'font-size="{size}" in the {kind} drawing: accepted is {smallest} or more'
        boxes = sum("box" in e.get("class", "").split() for e in elements)
        if boxes > MAX_BOXES:
            yield f"{boxes} boxes in the {kind} drawing: accepted are {MAX_BOXES} or fewer"


def read_diagram(path: Path, alt: str = "") -> Element:
    """The root of an SVG file without its namespace, with a description, and with ids that begin with its name.

    Raises:
        ValueError: The file is missing, no XML, or holds what no diagram may hold.
    """
    try:
        root = ElementTree.fromstring(path.read_bytes())
    except (OSError, ElementTree.ParseError) as error:
        raise ValueError(f"{path.name} is no SVG file beside the page: {error}") from None
    for element in root.iter():
        element.tag = element.tag.removeprefix(f"{{{SVG}}}")
    if found := sorted(set(problems(root))):
        raise ValueError(f"{path.name}: {'; '.join(found)}")
    prefix = f"svg-{path.stem}-"
    root[0].set("id", "title")
    root.insert(1, Element("desc", id="desc"))
    root[1].text = alt
    for element in root.iter():
        for name, value in element.attrib.items():
            if name == "id":
                element.set(name, prefix + value)
            elif name == "href" or value.startswith("url("):
                element.set(name, value.replace("#", f"#{prefix}"))
    names = f"{prefix}title {prefix}desc"
    root.attrib |= {"class": "diagram", "role": "img", "aria-labelledby": names}
    return root


def inlined(root: Element, image: str) -> str:
    """Both drawings, as a page holds them; `image` is where the page finds the file."""
    wide, narrow = (svg.get("viewBox", "").split()[2:] for svg in root.iterfind("svg"))
    style = f"--wide: {'/'.join(wide)}; --narrow: {'/'.join(narrow)}"
    root.attrib |= {"style": style, "data-image": image}
    return ElementTree.tostring(root, encoding="unicode")


def standalone(root: Element) -> str:
    """The file with its own style and the wide drawing."""
    wide, narrow = root.iterfind("svg")
    root.remove(narrow)
    box = wide.get("viewBox", "")
    _, _, width, height = box.split()
    root.attrib |= {"xmlns": SVG, "viewBox": box, "width": width, "height": height}
    root.insert(2, Element("style"))
    root[2].text = own_style()
    return ElementTree.tostring(root, encoding="unicode")


def own_style() -> str:
    """The style sheet with colours in place of its variables, which some readers of EPUBs do not know."""
    sheet = re.sub(r"/\*.*?\*/\s*", "", STYLE.read_text(encoding="utf-8"), flags=re.DOTALL)
    # The colours of both themes, what is drawn, and what only pages need.
    light, dark, *rules, _ = sheet.split("\n\n")

    def filled(theme: str) -> str:
        colors = dict(re.findall(r"(--\w+): (#\w+);", theme))
        return re.sub(r"var\((--\w+)\)", lambda use: colors[use[1]], "\n".join(rules))

    return f"{filled(light)}\n@media (prefers-color-scheme: dark) {{\n{filled(dark)}\n}}"


class DiagramDirective(Figure):
    """`{diagram} file.svg`, with `:name:`, `:alt:` and a caption."""

    option_spec = {"name": unchanged, "alt": unchanged}  # noqa: RUF012 (docutils' own form)

    def run(self) -> list[nodes.Node]:
        env, (file,) = self.state.document.settings.env, self.arguments
        path = Path(env.doc2path(env.docname)).with_name(file)
        env.note_dependency(str(path))
        if not (self.options.get("name") and self.options.get("alt") and self.content):
            raise self.error(f"{file}: accepted is `:name:`, `:alt:` and a caption")
        try:
            read_diagram(path)
        except ValueError as error:
            raise self.error(str(error)) from None
        # The figure's class, and an attribute of its image.
        self.options |= {"figclass": ["diagram"], "diagram": True}
        return super().run()


def draw(app: Sphinx, doctree: nodes.document, docname: str) -> None:
    """Replaces the image of each diagram by the drawing, and writes the file for notebooks and the EPUB."""
    if app.builder.format != "html":
        return
    for image in [i for i in doctree.findall(nodes.image) if "diagram" in i]:
        path, alt = Path(app.srcdir, image["uri"]), image["alt"]
        file = f"{app.builder.imagedir}/{app.env.images[image['uri']][1]}"
        write_atomically(Path(app.outdir, file), standalone(read_diagram(path, alt)))
        address = relative_uri(app.builder.get_target_uri(docname), file)
        drawing = inlined(read_diagram(path, alt), address)
        image.replace_self(nodes.raw("", drawing, format="html"))


def setup(app: Sphinx) -> dict:
    app.add_directive("diagram", DiagramDirective)
    # After the notebooks, which link the image, and after the cards of the first page, which may show it.
    app.connect("doctree-resolved", draw, priority=600)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
