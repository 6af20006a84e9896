"""Diagrams: files that are refused, the drawing on a page, the file that stands alone, and the colours."""

import math
import re
from collections import Counter
from xml.etree import ElementTree

import pytest
from smallbook import SmallBook

from book.pages.diagrams import STYLE, inlined, own_style, read_diagram, standalone
from book.read.chapters import ROOT
from llm_learn.notebook.plotting import INK, PALETTE

pytestmark = pytest.mark.filterwarnings("default")
FILES = sorted((ROOT / "chapters").glob("*/*.svg"))
ALT = "Two boxes from left to right; an arrow leads from X to Y."
BOX = '<rect class="box" width="9" height="9"/>'
DRAWING = f"""\
<?xml-stylesheet href="diagrams.css"?>
<svg xmlns="http://www.w3.org/2000/svg">
  <title>From X &amp; Y</title>
  <defs><g id="cell">{BOX}</g><pattern id="hatch"><path d="M0 0h9"/></pattern></defs>
  <svg class="wide" viewBox="0 0 720 100"><use href="#cell" fill="url(#hatch)"/><text font-size="15">wide</text></svg>
  <svg class="narrow" viewBox="0 0 320 200"><text class="key" font-size="11.5">narrow</text></svg>
</svg>
"""
DIRECTIVE = (
    f"```{{diagram}} xy.svg\n:name: fig-xy\n:alt: {ALT}\n\nLook at *the arrow*.\n```\n"
)


def read(folder, text, name="xy.svg"):
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return read_diagram(path, ALT)


class TestFiles:
    @pytest.mark.parametrize("text", [DRAWING, DRAWING.replace("<text", '<text transform="translate(1 2) rotate(-90)"')])  # fmt: skip
    def test_what_keeps_the_rules_is_read(self, tmp_path, text):
        assert read(tmp_path, text).tag == "svg"

    @pytest.mark.parametrize(
        ("old", "new", "message"),
        [
            ("</svg>\n", "", "xy.svg is no SVG file beside the page: "),
            ("<title>From X &amp; Y</title>", "", "begins with a <title>"),
            ("From X &amp; Y", " ", "begins with a <title>"),
            ('viewBox="0 0 720 100"', "", 'viewBox="" of the wide drawing: accepted is "0 0 720 HEIGHT"'),
            ("0 0 320 200", "0 0 400 200", 'viewBox="0 0 400 200" of the narrow drawing'),
            ('class="narrow"', 'class="small"', "accepted are two drawings, of class wide and narrow"),
            ('font-size="15"', 'font-size="12.9"', 'font-size="12.9" in the wide drawing: accepted is 13 or more'),
            ('font-size="11.5"', 'font-size="10"', "accepted is 11 or more"),
            ('font-size="15"', 'font-size="90%"', 'font-size="90%"'),
            ("<text ", '<text fill="#123456" ', "none or url(#ID): colours are in diagrams.css"),
            ("<text ", '<text stroke="red" ', '<text stroke="red">'),
            ("<text ", '<text style="fill: red" ', "the look comes from classes"),
            ("<text ", '<text transform="scale(0.5)" ', "accepted is translate and rotate"),
            ('<use href="#cell"', BOX * 16 + '<use href="#cell"', "16 boxes in the wide drawing: accepted are 15 or fewer"),
        ],
    )  # fmt: skip
    def test_what_is_refused_is_named_with_what_is_accepted(
        self, tmp_path, old, new, message
    ):
        assert old in DRAWING
        with pytest.raises(ValueError, match=re.escape(message)) as refused:
            read(tmp_path, DRAWING.replace(old, new))
        assert str(refused.value).startswith("xy.svg")

    def test_fifteen_boxes_fit_in_each_drawing(self, tmp_path):
        boxes = DRAWING.replace("<use", BOX * 15 + "<use").replace(
            '<text class="key"', BOX * 15 + '<text class="key"'
        )
        assert read(tmp_path, boxes) is not None

    @pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
    def test_those_of_the_book_keep_the_rules_and_are_small(self, path):
        read_diagram(path)
        assert path.stat().st_size < 25_000

    def test_ids_differ_from_figure_to_figure(self, tmp_path):
        pages = "".join(
            inlined(read(tmp_path, DRAWING, p), "x") for p in ("a.svg", "b.svg")
        )
        assert max(Counter(re.findall(r' id="([^"]+)"', pages)).values()) == 1
        assert 'href="#svg-a-cell" fill="url(#svg-a-hatch)"' in pages
        assert 'aria-labelledby="svg-b-title svg-b-desc"' in pages

    def test_alone_it_has_a_size_and_its_own_style_and_shows_the_wide_drawing(
        self, tmp_path
    ):
        root = ElementTree.fromstring(standalone(read(tmp_path, DRAWING)))
        assert [root.get(name) for name in ("viewBox", "width", "height")] == [
            *("0 0 720 100", "720", "100")
        ]
        assert root.findtext("{*}desc") == ALT and root.find("{*}style").text == own_style()
        assert "".join(root.find("{*}svg").itertext()).strip() == "wide"
        assert "narrow" not in "".join(root.find("{*}svg").itertext())


class TestColours:
    def luminance(self, color: str) -> float:
        channels = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]  # fmt: skip
        return sum(c * w for c, w in zip(linear, (0.2126, 0.7152, 0.0722), strict=True))

    def contrast(self, a: str, b: str) -> float:
        low, high = sorted(self.luminance(color) + 0.05 for color in (a, b))
        return high / low

    def themes(self) -> list[dict[str, str]]:
        blocks = re.findall(r"svg\.diagram \{([^}]*)\}", STYLE.read_text(encoding="utf-8"))
        return [dict(re.findall(r"--(\w+): (#\w+);", block)) for block in blocks[:2]]

    def test_text_is_legible_in_both_themes(self):
        light, dark = self.themes()
        assert light.keys() == dark.keys()
        for colors in (light, dark):
            for name, color in colors.items():
                least = {"paper": 1, "panel": 1, "focus": 3}.get(name, 4.5)
                for ground in ("paper",) if name == "focus" else ("paper", "panel"):
                    assert self.contrast(color, colors[ground]) >= least, (name, ground)

    def test_the_light_theme_has_the_colours_of_the_figures(self):
        light, _ = self.themes()
        named = {"query": "navy", "key": "rust", "mlp": "violet", "residual": "grey"}
        assert {name: light[name] for name in named} == {n: PALETTE[c] for n, c in named.items()}  # fmt: skip
        assert light["ink"] == INK

    def test_alone_no_variable_is_left_and_the_dark_theme_follows_the_system(self):
        light, dark = own_style().split("@media (prefers-color-scheme: dark)")
        for text, colors in zip((light, dark), self.themes(), strict=True):
            assert f"fill: {colors['query']};" in text and f"background: {colors['paper']};" in text  # fmt: skip
        assert "var(" not in light + dark and "@container" not in light + dark


@pytest.fixture
def book(tmp_path):
    book = SmallBook(tmp_path)
    conf = (tmp_path / "conf.py").read_text(encoding="utf-8")
    more = 'extensions += ["book.pages.diagrams", "book.pages.figure_numbering"]\nnumfig = True\n'
    book.write("conf.py", conf + more)
    book.write("part/xy.svg", DRAWING)
    book.write("part/page.md", f"# Page\n\nSee {{numref}}`fig-xy`.\n\n{DIRECTIVE}")
    book.index("part/page")
    return book


class TestPage:
    def test_the_page_holds_both_drawings_and_the_file_is_copied(self, book):
        assert book.build() == ""
        (figure,) = book.page("part/page").select("figure.diagram")
        svg = figure.select_one("svg.diagram")
        assert figure["id"] == "fig-xy" and svg["role"] == "img" and not figure("img")
        assert svg["aria-labelledby"] == "svg-xy-title svg-xy-desc"
        assert svg.title.text == "From X & Y" and svg.desc.text == ALT
        assert svg["style"] == "--wide: 720/100; --narrow: 320/200"
        assert [part["class"] for part in svg.find_all("svg")] == [["wide"], ["narrow"]]
        assert svg["data-image"] == "../_images/xy.svg"
        alone = (book.root / "_build/html/_images/xy.svg").read_text(encoding="utf-8")
        assert "<style>" in alone and ALT in alone

    def test_it_is_numbered_as_other_figures_are(self, book):
        book.build()
        page = book.page("part/page")
        assert page.select_one("p a.reference").get_text() == "Fig. 1"
        assert "Fig. 1" in page.figcaption.get_text()

    def test_a_changed_file_changes_the_page(self, book):
        book.build()
        book.write("part/xy.svg", DRAWING.replace(">wide<", ">new<"))
        book.build()
        alone = (book.root / "_build/html/_images/xy.svg").read_text(encoding="utf-8")
        assert (
            "new" in str(book.page("part/page").select_one("svg.wide")) and "new" in alone
        )

    @pytest.mark.parametrize(
        ("old", "new", "message"),
        [
            (f":alt: {ALT}\n", "", "xy.svg: accepted is `:name:`, `:alt:` and a caption"),
            (":name: fig-xy\n", "", "xy.svg: accepted is `:name:`"),
            ("\nLook at *the arrow*.\n", "", "and a caption"),
            ("xy.svg", "none.svg", "none.svg is no SVG file beside the page"),
            ("xy.svg", "bad.svg", "bad.svg: accepted are two drawings"),
        ],
    )  # fmt: skip
    def test_an_error_names_the_file_and_what_is_accepted(self, book, old, new, message):
        book.write("part/bad.svg", DRAWING.replace("narrow", "small"))
        assert old in DIRECTIVE
        book.write("part/page.md", "# Page\n\n" + DIRECTIVE.replace(old, new))
        assert message in book.build()


@pytest.mark.parametrize("drawing", ["wide", "narrow"])
def test_the_bars_of_the_soft_lookup_are_a_gaussian_kernel(drawing):
    """The hours of the chapter and a query at 11; the bars stand on the line of the axis, which is as high as a weight of 0."""
    root = read_diagram(ROOT / "chapters/first-model/attention-soft-lookup.svg")
    bars = root.iterfind(f"svg[@class='{drawing}']/rect[@class='bar']")
    heights = [float(bar.get("height")) for bar in bars]
    expected = []
    hours = (1, 4, 6, 9, 12, 15, 18, 22)
    for bandwidth in (0.3, 1.5, 8):
        kernel = [math.exp(-((11 - h) ** 2) / (2 * bandwidth**2)) for h in hours]
        expected += [k / sum(kernel) for k in kernel if k / sum(kernel) > 0.002]
    scale = max(heights) / max(expected)
    assert heights == pytest.approx([scale * e for e in expected], abs=0.1)
