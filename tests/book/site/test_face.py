"""The book's face: one palette, a drawn logo, pictures out of chapters, and pages that say how to run it anywhere."""

import json
import os
import re
import shlex
import struct
import sys
import tomllib
import zlib
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

from book.read.chapters import load_plan, read_source
from llm_learn.assets import ASSETS
from llm_learn.notebook.plotting import INK, PALETTE

ROOT = Path(__file__).parents[3]
STATIC = ROOT / "_static"
STYLES = ROOT / "code/book/site/styles"
HEX = re.compile(r"#[0-9A-Fa-f]{6}\b")

# --- Colours ---


def luminance(color: str) -> float:
    channels = np.array([int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)])
    linear = np.where(
        channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4
    )
    return linear @ [0.2126, 0.7152, 0.0722]


def contrast(a: str, b: str) -> float:
    """Contrast of two colours (WCAG 2.2)."""
    low, high = sorted(luminance(color) + 0.05 for color in (a, b))
    return high / low


def declared(theme: str) -> dict[str, str]:
    """The custom properties of palette.css in a theme, with the ones that refer to others resolved."""
    text = re.sub(
        r"/\*.*?\*/", "", (STYLES / "palette.css").read_text("utf-8"), flags=re.DOTALL
    )
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


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_text_is_legible_in_both_themes_and_figures_on_white(theme):
    """WCAG 2.2 asks 4.5:1 of text, and 3:1 of what a figure needs to be understood."""
    assert [color for color in PALETTE.values() if contrast(color, "#FFFFFF") < 3] == []
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


def test_chapters_name_colors_by_their_place_in_the_palette():
    for path in sorted((ROOT / "chapters").glob("*/*.md")):
        for cell in read_source(path, f"{path.parent.name}/{path.stem}").cells:
            found = HEX.findall(cell.source)
            assert not found, f"{path}:{cell.line}: write C0 to C6 instead of {found[0]}"


# --- The logo ---


def test_logo_is_named_where_readers_see_it():
    config = yaml.safe_load((ROOT / "_config.yml").read_text(encoding="utf-8"))
    logo = config["sphinx"]["config"]["html_theme_options"]["logo"]
    named = {logo["image_light"], logo["image_dark"], config["html"]["favicon"]}
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    shown = set(re.findall(r'(?:src|srcset)="(_static/[\w.-]+)"', readme))
    assert shown == {logo["image_light"], logo["image_dark"]}
    assert all((ROOT / path).is_file() for path in named)


# --- Pictures out of chapters ---

CONF = """\
extensions = ["myst_nb", "book.pages.docutils_nodes", "book.pages.front_page_figures"]
nb_execution_mode = "off"
exclude_patterns = ["_build"]
book_plan = {
    "parts": [{"name": "basics", "title": "Basics", "about": "First.", "chapters": [
        {"slug": "basics/one", "title": "One", "builds": "The first thing.", "plan": [], "prerequisites": []},
        {"slug": "basics/two", "title": "Two", "builds": "A second thing.", "plan": [], "prerequisites": []},
    ]}],
    "plan": [],
}
"""
CHAPTER = """\
# One

```{figure} wide.png
:name: fig-wide
:alt: A wide picture

Wide.
```

```{figure} high.png
:name: fig-high
:alt: A line that "falls" & rises

High.
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
        self.write("conf.py", CONF.encode())
        self.write("chapters/basics/one.md", CHAPTER.encode())
        self.write("chapters/basics/wide.png", png(300, 100))
        self.write("chapters/basics/high.png", png(100, 90))

    def write(self, name: str, content: bytes) -> None:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)

    def index(self, *directives: str) -> None:
        cards = "\n\n".join(f"```{{picture}} {directive}\n```" for directive in directives)
        text = f"# Book\n\n{cards}\n\n```{{toctree}}\nchapters/basics/one\n```\n"
        self.write("index.md", text.encode())

    def record(self, checks: int) -> None:
        """Leaves what an execution of the chapter would have measured."""
        record = {"checks": [{"against": "torch"}] * checks}
        self.write("_build/chapters/basics/one.json", json.dumps(record).encode())

    def build(self) -> str:
        """Builds, and returns what Sphinx complained of."""
        warnings, out = StringIO(), self.root / "_build"
        folders = (self.root, self.root, out / "html", out / "doctrees")
        with patch_docutils(str(self.root)), docutils_namespace():
            Sphinx(*folders, "html", status=None, warning=warnings).build()
        return warnings.getvalue()

    @property
    def cards(self) -> list[str]:
        html = (self.root / "_build/html/index.html").read_text(encoding="utf-8")
        return re.findall(r'<div class="picture-card.*?</div>', html, flags=re.DOTALL)


@pytest.fixture
def book(tmp_path):
    return Book(tmp_path)


needs_sphinx = [pytest.mark.slow, pytest.mark.filterwarnings("default")]


class TestPictures:
    pytestmark = needs_sphinx

    def test_a_card_shows_the_figure_and_leads_to_the_chapter(self, book):
        book.index("basics/one fig-high", "basics/two")
        book.record(checks=3)
        assert book.build() == ""
        one, two = book.cards
        (source,) = re.findall(r'src="([^"]+)"', one)
        assert (book.root / "_build/html" / source).read_bytes() == png(100, 90)
        assert 'alt="A line that &quot;falls&quot; &amp; rises"' in one
        assert "picture-beside" in one
        assert 'href="chapters/basics/one.html"' in one and "The first thing." in one
        assert "3 results agree with a reference library" in one
        # What is planned shows no picture, leads nowhere, and says what it is.
        assert "planned" in two and "Two" in two and "A second thing." in two
        assert "<img" not in two and "<a " not in two and "agree" not in two

    def test_without_a_name_the_first_figure_is_shown(self, book):
        book.index("basics/one")
        book.record(checks=1)
        book.build()
        (card,) = book.cards
        assert 'alt="A wide picture"' in card and "picture-wide" in card
        assert "1 result agrees with a reference library" in card

    def test_a_new_record_rewrites_the_page(self, book):
        book.index("basics/one fig-high")
        for checks in (2, 5):
            book.record(checks)
            book.build()
            assert f"{checks} results agree" in book.cards[0]

    @pytest.mark.parametrize(
        ("directive", "complaint"),
        [
            ("basics/three fig", "no chapter of the plan is called 'basics/three'; it has: basics/one"),
            ("basics/one fig-lime", "basics/one shows no figure 'fig-lime'"),
        ],
    )  # fmt: skip
    def test_what_does_not_exist_is_an_error(self, book, directive, complaint):
        book.index(directive)
        assert complaint in book.build()


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


def test_what_the_page_says_of_cores_is_what_the_build_uses():
    from book.execute.sphinx_extension import WORKERS

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
