"""The book's face: one palette, a drawn logo, pictures out of chapters, and pages that say how to run it anywhere."""

import itertools
import json
import os
import re
import shlex
import struct
import sys
import tomllib
import xml.etree.ElementTree as ET
import zlib
from base64 import b64encode
from io import StringIO
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from jinja2 import Template
from sphinx.application import Sphinx
from sphinx.util.docutils import docutils_namespace, patch_docutils

from book.source import load_plan, read_source
from llm_learn.assets import ASSETS
from llm_learn.plotting import INK, PALETTE

ROOT = Path(__file__).parents[2]
STATIC = ROOT / "_static"
HEX = re.compile(r"#[0-9A-Fa-f]{6}\b")

# --- Colours ---

# A colour-blind reader's view, complete dichromacy (Machado, Oliveira and Fernandes 2009), in linear RGB.
VISION = {
    "full": np.eye(3),
    "protanopia": np.array(
        [
            [0.152286, 1.052583, -0.204868],
            [0.114503, 0.786281, 0.099216],
            [-0.003882, -0.048116, 1.051998],
        ]
    ),
    "deuteranopia": np.array(
        [
            [0.367322, 0.860646, -0.227968],
            [0.280085, 0.672501, 0.047413],
            [-0.011820, 0.042940, 0.968881],
        ]
    ),
    "tritanopia": np.array(
        [
            [1.255528, -0.076749, -0.178779],
            [-0.078411, 0.930809, 0.147602],
            [0.004733, 0.691367, 0.303900],
        ]
    ),
}
# Linear RGB to the cone responses of Oklab, and their cube roots to L, a, b (Ottosson 2020).
CONES = np.array(
    [
        [0.4122214708, 0.5363325363, 0.0514459929],
        [0.2119034982, 0.6806995451, 0.1073969566],
        [0.0883024619, 0.2817188376, 0.6299787005],
    ]
)
OKLAB = np.array(
    [
        [0.2104542553, 0.7936177850, -0.0040720468],
        [1.9779984951, -2.4285922050, 0.4505937099],
        [0.0259040371, 0.7827717662, -0.8086757660],
    ]
)


def linear(color: str) -> np.ndarray:
    channels = np.array([int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)])
    return np.where(
        channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4
    )


def contrast(a: str, b: str) -> float:
    """Contrast of two colours (WCAG 2.2)."""
    low, high = sorted(linear(c) @ [0.2126, 0.7152, 0.0722] + 0.05 for c in (a, b))
    return high / low


def distance(a: str, b: str, vision: np.ndarray) -> float:
    """How different two colours look, in hundredths of Oklab's lightness from black to white."""
    one, other = (
        OKLAB @ np.cbrt(CONES @ np.clip(vision @ linear(color), 0, 1)) for color in (a, b)
    )
    return 100 * float(np.linalg.norm(one - other))


def declared(theme: str) -> dict[str, str]:
    """The custom properties of palette.css in a theme, with the ones that refer to others resolved."""
    text = re.sub(r"/\*.*?\*/", "", (STATIC / "palette.css").read_text(), flags=re.DOTALL)
    values: dict[str, str] = {}
    for selector, body in re.findall(r"([^{}]+)\{([^}]*)\}", text):
        selector = selector.strip()
        dark = '[data-theme="dark"]'
        if selector == "html:root" or (
            selector
            == (f"html:root{dark}" if theme == "dark" else f"html:root:not({dark})")
        ):
            values |= dict(re.findall(r"(--[\w-]+):\s*([^;]+);", body))
    while any("var(" in value for value in values.values()):
        for name, value in values.items():
            values[name] = re.sub(r"var\((--[\w-]+)\)", lambda m: values[m[1]], value)
    return values


def test_distance_and_contrast_are_measured_rightly():
    assert distance("#000000", "#FFFFFF", VISION["full"]) == pytest.approx(100, abs=0.01)
    assert contrast("#000000", "#FFFFFF") == pytest.approx(21)
    # Red and olive: a deuteranope takes one for the other.
    assert distance("#FF0000", "#808000", VISION["full"]) > 25
    assert distance("#FF0000", "#808000", VISION["deuteranopia"]) < 7


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_the_site_and_the_figures_share_one_palette(theme):
    properties = declared(theme)
    site = {
        name.removeprefix("--book-"): value
        for name, value in properties.items()
        if name.startswith("--book-")
    }
    assert site == PALETTE
    if theme == "light":
        assert properties["--pst-color-text-base"] == INK


@pytest.mark.parametrize("vision", VISION)
def test_figure_colors_are_told_apart(vision):
    """Two hundredths are just noticed side by side; five times that is seen across a figure."""
    closest = min(
        itertools.combinations(PALETTE.values(), 2),
        key=lambda pair: distance(*pair, VISION[vision]),
    )
    assert distance(*closest, VISION[vision]) >= 10, closest


def test_figure_colors_stand_out_from_white():
    """WCAG 2.2 asks 3:1 of what a figure needs to be understood."""
    assert {name: c for name, c in PALETTE.items() if contrast(c, "#FFFFFF") < 3} == {}


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_text_is_legible_in_both_themes(theme):
    colors = declared(theme)
    grounds = ["background", "on-background", "surface"]
    texts = ["text-base", "text-muted", "heading", "link", "link-hover", "inline-code"]
    texts += ["link-higher-contrast", "primary", "secondary", "accent"]
    pairs = [(text, ground) for text in texts for ground in grounds]
    pairs += [
        ("text-base", f"{kind}-bg")
        for kind in ("info", "success", "warning", "danger", "secondary", "attention")
    ]
    kinds = ("primary", "secondary", "info", "success", "warning", "danger")
    pairs += [(f"{kind}-text", kind) for kind in kinds]
    pairs += [("on-surface", "surface"), ("text-base", "target")]
    for text, ground in pairs:
        ratio = contrast(*(colors[f"--pst-color-{name}"] for name in (text, ground)))
        assert ratio >= 4.5, f"{text} on {ground}: {ratio:.2f}"


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_every_part_has_a_colour_that_stands_out_from_the_map(theme):
    """WCAG 2.2 asks 3:1 of a line or a dot that means something."""
    colors = declared(theme)
    for part in load_plan()["parts"]:
        pair = HEX.findall(colors[f"--part-{part['name']}"])
        assert len(pair) == 2, f"palette.css: give --part-{part['name']} light-dark(…, …)"
        color = pair[theme == "dark"]
        ratio = contrast(color, colors["--pst-color-surface"])
        assert ratio >= 3, f"{part['name']}, {theme}: {color} has {ratio:.2f}"


def test_colours_of_parts_stand_in_the_palette_alone():
    used = {part["name"] for part in load_plan()["parts"]}
    plan = (STATIC / "plan.css").read_text(encoding="utf-8")
    assert set(re.findall(r"--part: var\(--part-([\w-]+)\)", plan)) == used
    assert HEX.findall(plan) == []


def test_chapters_name_colors_by_their_place_in_the_palette():
    for path in sorted((ROOT / "chapters").glob("*/*.md")):
        for cell in read_source(path, f"{path.parent.name}/{path.stem}").cells:
            found = HEX.findall(cell.source)
            assert not found, f"{path}:{cell.line}: write C0 to C6 instead of {found[0]}"


# --- The logo ---


@pytest.mark.parametrize(
    ("name", "theme"),
    [("logo-light.svg", "light"), ("logo-dark.svg", "dark"), ("favicon.svg", None)],
)
def test_logo_is_drawn_in_the_palette_without_a_font(name, theme):
    text = (STATIC / name).read_text(encoding="utf-8")
    root = ET.fromstring(text)
    tags = {element.tag.rpartition("}")[2] for element in root.iter()}
    assert tags <= {"svg", "g", "rect", "path"}
    assert "href" not in text and len(text) < 4000
    # Beside the palette: white, the past of a dark page, and letters on a dark page.
    assert set(HEX.findall(text)) <= {*PALETTE.values(), "#FFFFFF", "#8FA0CC", "#E8ECF4"}
    _, _, width, height = map(float, root.attrib["viewBox"].split())
    if theme is None:
        assert width == height
        return
    assert width > 4 * height and root.attrib["aria-label"] == "LLM Learn"
    letters = {e.attrib["stroke"] for e in root.iter() if len(e.attrib.get("d", "")) > 60}
    ground = declared(theme)["--pst-color-background"]
    assert letters and all(contrast(color, ground) >= 4.5 for color in letters)


def test_logo_is_named_where_readers_see_it():
    config = yaml.safe_load((ROOT / "_config.yml").read_text(encoding="utf-8"))
    logo = config["sphinx"]["config"]["html_theme_options"]["logo"]
    named = {logo["image_light"], logo["image_dark"], config["html"]["favicon"]}
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    shown = set(re.findall(r'(?:src|srcset)="(_static/[\w.-]+)"', readme))
    assert shown == {logo["image_light"], logo["image_dark"]}
    assert all((ROOT / path).is_file() for path in named)


@pytest.mark.parametrize(
    ("name", "size"),
    [("apple-touch-icon.png", (180, 180)), ("social-card.png", (1200, 630))],
)
def test_icons_have_the_size_that_is_asked_for(name, size):
    header = (STATIC / name).read_bytes()[:24]
    assert header.startswith(b"\x89PNG") and struct.unpack(">II", header[16:]) == size


# --- Pictures out of chapters ---

CONF = """\
from pathlib import Path
from types import SimpleNamespace

extensions = ["myst_nb", "book.pictures"]
nb_execution_mode = "off"
exclude_patterns = ["_build"]
book_plan = {
    "parts": [{"name": "basics", "title": "Basics", "about": "First.", "chapters": [
        {"slug": "basics/one", "title": "One", "builds": "The first thing.", "plan": [], "prerequisites": []},
        {"slug": "basics/two", "title": "Two", "builds": "A second thing.", "plan": [], "prerequisites": []},
    ]}],
    "plan": [],
}


def execute(app, env):
    # As the book's own extension does: the notebooks with their outputs replace those of myst-nb.
    root = Path(app.srcdir)
    target = root / "_build/jupyter_execute/chapters/basics/one.ipynb"
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text((root / "executed.json").read_text())


def setup(app):
    app.add_config_value("book_plan", {}, "")
    app.connect("env-updated", execute, priority=600)
"""
CHAPTER = """\
---
jupytext: {text_representation: {extension: .md, format_name: myst}}
kernelspec: {display_name: Python 3, language: python, name: python3}
---

# One

```{code-cell}
---
mystnb:
  image: {alt: A line that "falls" & rises}
  figure: {caption: A line., name: fig-line}
---
draw()
```
"""


def png(width: int, height: int) -> bytes:
    """A grey picture."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        crc = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + crc

    rows = zlib.compress((b"\0" + b"\x80" * width) * height)
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    start = b"\x89PNG\r\n\x1a\n"
    return start + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


class Book:
    """A book with one chapter, and a first page that shows it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.write("conf.py", CONF)
        self.write("chapters/basics/one.md", CHAPTER)
        self.execute(None)

    def write(self, name: str, text: str) -> None:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")

    def index(self, *directives: str) -> None:
        cards = "\n\n".join(f"```{{picture}} {directive}\n```" for directive in directives)
        self.write(
            "index.md", f"# Book\n\n{cards}\n\n```{{toctree}}\nchapters/basics/one\n```\n"
        )

    def execute(self, picture: bytes | None, checks: int = 0) -> None:
        """Leaves the notebook as an execution would."""
        outputs = [{"metadata": {"llm_learn_check": {}}, "data": {}} for _ in range(checks)]
        if picture:
            outputs.append({"data": {"image/png": b64encode(picture).decode()}})
        mystnb = {"figure": {"name": "fig-line"}}
        cell = {"metadata": {"mystnb": mystnb}, "outputs": outputs}
        self.write("executed.json", json.dumps({"cells": [cell]}))

    def build(self) -> str:
        """Builds, and returns what Sphinx complained of."""
        warnings, out = StringIO(), self.root / "_build"
        folders = (self.root, self.root, out / "html", out / "doctrees")
        with patch_docutils(str(self.root)), docutils_namespace():
            Sphinx(*folders, "html", status=None, warning=warnings).build()
        return warnings.getvalue()

    @property
    def html(self) -> str:
        return (self.root / "_build/html/index.html").read_text(encoding="utf-8")


@pytest.fixture
def book(tmp_path):
    return Book(tmp_path)


needs_sphinx = [pytest.mark.slow, pytest.mark.filterwarnings("default")]


class TestPictures:
    pytestmark = needs_sphinx

    def test_a_card_shows_the_figure_and_leads_to_the_chapter(self, book):
        book.index("basics/one fig-line", "basics/two")
        book.execute(png(300, 100), checks=3)
        assert "fig-line" not in book.build()
        one, two = re.findall(
            r'<div class="picture-card.*?</div>', book.html, flags=re.DOTALL
        )
        source, alt = re.search(r'<img src="([^"]+)" alt="([^"]+)"', one).groups()
        saved = book.root / "_build/html" / source
        assert saved.read_bytes() == png(300, 100)
        assert alt == "A line that &quot;falls&quot; &amp; rises"
        assert 'width="300" height="100"' in one and "picture-wide" in one
        assert 'href="chapters/basics/one.html"' in one and "The first thing." in one
        assert "3 results agree with a reference library" in one
        # What is planned shows no picture, leads nowhere, and says what it is.
        assert "planned" in two and "Two" in two and "A second thing." in two
        assert "<img" not in two and "<a " not in two and "agree" not in two

    def test_without_a_name_the_first_figure_is_shown(self, book):
        book.index("basics/one")
        book.execute(png(100, 100), checks=1)
        book.build()
        assert "_images/fig-line-" in book.html and "picture-beside" in book.html
        assert "1 result agrees with a reference library" in book.html

    def test_a_new_picture_rewrites_the_page_and_an_old_one_does_not(self, book):
        book.index("basics/one fig-line")
        book.execute(png(100, 100))
        book.build()
        page = book.root / "_build/html/index.html"
        for picture, rewritten in ((png(100, 100), False), (png(100, 90), True)):
            page.write_text(page.read_text(encoding="utf-8") + "<!-- as it was -->")
            book.execute(picture)
            book.build()
            assert ("as it was" not in book.html) == rewritten
        assert 'height="90"' in book.html and "agree" not in book.html

    @pytest.mark.parametrize(
        ("directive", "complaint"),
        [
            ("basics/three fig", "no chapter of the plan is called 'basics/three'; it has: basics/one"),
            ("basics/one fig-lime", "has no figure 'fig-lime'; it has: fig-line"),
            ("basics/two fig-x", "'basics/two' is not written yet: it has no 'fig-x'"),
        ],
    )  # fmt: skip
    def test_what_does_not_exist_is_an_error(self, book, directive, complaint):
        book.index(directive)
        assert complaint in book.build()

    def test_a_figure_that_was_not_drawn_is_a_warning(self, book):
        book.index("basics/one fig-line")
        book.execute(None)
        assert "'fig-line' of basics/one was not drawn in this build" in book.build()
        assert "<img" not in book.html and "chapters/basics/one.html" in book.html


# --- The map of the first page ---


def test_the_map_names_the_parts_that_each_part_stands_on():
    parts = load_plan()["parts"]
    titles = {part["name"]: part["title"] for part in parts}
    text = (ROOT / "index.md").read_text(encoding="utf-8")
    cards = re.findall(
        r"^```\{grid-item-card\} ([^\n]+)\n:link: chapters/([\w-]+)/index\n.*?\n\n([^\n]+)\n```",
        text,
        re.MULTILINE | re.DOTALL,
    )
    assert [(name, title) for title, name, _ in cards] == list(titles.items())
    for part, (_, name, said) in zip(parts, cards, strict=True):
        needed = {p.split("/")[0] for c in part["chapters"] for p in c["prerequisites"]}
        expected = [title for n, title in titles.items() if n in needed - {name}]
        assert re.findall(r"\*([^*]+)\*", said) == expected, name


# --- Running it anywhere ---

HOW_TO_RUN = ROOT / "chapters/start/how-to-run.md"
SPECIAL_CASES = ROOT / "chapters/start/special-cases.md"


def commands() -> list[str]:
    """What the pages ask to type: lines of consoles, and the code of tables."""
    text = "".join(path.read_text(encoding="utf-8") for path in (HOW_TO_RUN, SPECIAL_CASES))
    typed = re.findall(r"^[$>] (.+)$", text, re.MULTILINE)
    return typed + re.findall(r"`(python -m [^`]+)`", text)


def test_commands_of_the_book_exist(capsys):
    from book.__main__ import main

    asked = {m[1] for m in re.finditer(r"python3? -m book ([\w-]+)", "\n".join(commands()))}
    assert asked >= {"build", "prove", "lab", "sync"}
    for name in asked & {"build", "prove"}:
        with pytest.raises(SystemExit) as stopped:
            main([name, "--help"])
        assert stopped.value.code == 0
    shown = capsys.readouterr().out
    for command in commands():
        for option in re.findall(r"-m book .*?(--[\w-]+)", command):
            assert option in shown, command
    with pytest.raises(SystemExit):
        main(["--help"])
    known = re.search(r"\{([\w,-]+)\}", capsys.readouterr().out)[1].split(",")
    assert asked <= set(known)


def test_the_page_types_what_make_test_runs():
    """Without make, a reader runs the same proof."""
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    recipe = re.search(r"^test:.*\n((?:\t.*\n)+)", makefile, re.MULTILINE)[1]
    steps = re.findall(r"@\$\(run\) (.+)", recipe)
    assert len(steps) > 4
    typed = [shlex.split(command) for command in commands()]
    missing = [s for s in steps if ["python", "-m", *shlex.split(s)] not in typed]
    assert missing == []


def test_every_system_and_situation_has_its_section():
    text = HOW_TO_RUN.read_text(encoding="utf-8")
    for label in ("first-steps", "train", "colab", "commands", "proved", "digits"):
        assert f"({label})=" in text
    for phrase in ("Linux", "macOS", "Apple silicon", "PowerShell"):
        assert phrase in text
    text = SPECIAL_CASES.read_text(encoding="utf-8")
    for label in ("sharding", "gpu", "mirror", "offline", "packaged-data", "cpu-pytorch"):
        assert f"({label})=" in text
    for phrase in ("PIP_INDEX_URL", "PIP_NO_INDEX", "LOCKED=1", "torchrun"):
        assert phrase in text


def test_what_the_page_says_of_cores_is_what_the_build_uses():
    from book.execution import WORKERS

    text = " ".join(HOW_TO_RUN.read_text(encoding="utf-8").split())
    assert "executes two chapters at a time" in text and WORKERS == 2


def test_the_page_names_the_pytorch_that_intel_macs_lack():
    pyproject = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    (torch,) = [r for r in pyproject["project"]["dependencies"] if r.startswith("torch")]
    lowest = re.search(r">=([\d.]+)", torch)[1]
    assert f"PyTorch {lowest} or later" in HOW_TO_RUN.read_text(encoding="utf-8")


@pytest.mark.slow
@pytest.mark.skipif(torch.version.cuda is not None, reason="PyTorch with GPU libraries")
def test_the_disk_that_the_pages_name_is_enough():
    named = {
        int(re.search(r"(\d+) GB of disk", path.read_text(encoding="utf-8"))[1])
        for path in (HOW_TO_RUN, ROOT / "index.md")
    }
    size = sum(asset.files_bytes for asset in ASSETS.values())
    for folder, _, files in os.walk(sys.prefix):
        size += sum(os.lstat(os.path.join(folder, file)).st_size for file in files)
    # The rest is for pip's cache and for what the build writes.
    assert named == {4} and 1e9 < size < 3.5e9


@pytest.mark.parametrize("book_epub", [True, False])
def test_the_epub_is_linked_only_where_it_is_written(book_epub):
    """A preview of one chapter has none."""
    page = HOW_TO_RUN.read_text(encoding="utf-8")
    (sentence,) = re.findall(r"^\{\{.*epub.*\}\}$", page, re.MULTILINE)
    assert "llm-learn.epub" not in page.replace(sentence, "").replace(
        "`_build/html/llm-learn.epub`", ""
    )
    env = SimpleNamespace(config=SimpleNamespace(book_epub=book_epub))
    shown = Template(sentence).render(env=env)
    assert ('<a href="../../llm-learn.epub">' in shown) == book_epub
    assert ("python -m book epub" in shown) == (not book_epub)


def test_the_gpu_lines_run():
    """The page's sketch, on the processor."""
    text = SPECIAL_CASES.read_text(encoding="utf-8")
    block = re.search(r"\(gpu\)=.*?```python\n(.*?)```", text, re.DOTALL)[1]
    assert block.count('"cuda"') == 1
    scope: dict = {}
    exec(block.replace('"cuda"', '"cpu"'), scope)
    assert scope["logits"].shape == (1, 64, 256)


def test_every_term_has_its_chinese_name():
    text = (ROOT / "chapters/start/notation.md").read_text(encoding="utf-8")
    glossary = re.search(r"```\{glossary\}\n:sorted:\n(.*?)\n```", text, re.DOTALL)[1]
    entries = re.findall(r"^((?:\S.*\n)+)  (.+)", glossary, re.MULTILINE)
    assert len(entries) > 60
    for terms, definition in entries:
        name = re.match(r"\(([^)]+)\) \S", definition)
        assert name, f"{terms.strip()}: the definition starts with its Chinese name"
        assert re.search(r"[\u4e00-\u9fff]", name[1]), f"{terms.strip()}: {name[1]}"
