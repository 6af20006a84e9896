"""The built site, page by page: its links, and how it behaves in a browser at two widths, in two themes."""

import re
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
import site_server as site
import yaml

PAGES = site.pages()
CHAPTER = "chapters/first-model/attention"
needs_site = pytest.mark.skipif(
    not (site.HTML / "index.html").is_file(), reason=site.missing() or ""
)
needs_browser = pytest.mark.skipif(site.missing() is not None, reason=site.missing() or "")


# --- Without a browser ---


class _Anchors(HTMLParser):
    """Collects what a page links to, loads, and can be linked to."""

    def __init__(self) -> None:
        super().__init__()
        self.ids: set[str] = set()
        self.targets: list[str] = []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        values = dict(attributes)
        self.ids.update(
            filter(None, (values.get("id"), values.get("name") if tag == "a" else None))
        )
        attribute = {"a": "href", "link": "href", "img": "src", "script": "src"}.get(tag)
        if attribute and values.get(attribute):
            self.targets.append(values[attribute])


@cache
def anchors(path: Path) -> _Anchors:
    parser = _Anchors()
    parser.feed(path.read_text(encoding="utf-8"))
    return parser


def broken_links(path: Path, root: Path) -> list[str]:
    """The targets on a page that lead to no file below `root`, or to no anchor of the file."""
    broken = []
    for target in anchors(path).targets:
        url = urlsplit(target)
        if url.scheme or url.netloc or target == "#":
            continue
        file = path if not url.path else (path.parent / unquote(url.path)).resolve()
        found = file.is_relative_to(root) and file.is_file()
        if found and url.fragment and file.suffix == ".html":
            found = unquote(url.fragment) in anchors(file).ids
        if not found:
            broken.append(target)
    return broken


@pytest.mark.parametrize(
    ("link", "is_broken"),
    [
        ("other.html", False),
        ("other.html#here", False),
        ("#there", False),
        ("other.html#there", True),
        ("missing.html", True),
        ("#here", True),
        ("../outside.html", True),
        ("https://example.org/missing", False),
    ],
)
def test_broken_links_are_found(tmp_path, link, is_broken):
    root = tmp_path / "site"
    root.mkdir()
    (tmp_path / "outside.html").write_text("<p>")
    (root / "other.html").write_text('<p id="here">')
    (root / "page.html").write_text(f'<p id="there"><a href="{link}">x</a>')
    assert broken_links(root / "page.html", root) == [link] * is_broken


@needs_site
@pytest.mark.parametrize("name", PAGES)
def test_internal_links_resolve(name):
    path = site.HTML / f"{name}.html"
    assert path.is_file(), f"{name} is in the table of contents, but was not built"
    assert broken_links(path, site.HTML) == []


FIRST_EDITION = yaml.safe_load(
    (site.ROOT / "tests/first_edition/manifest.yml").read_text(encoding="utf-8")
)["pages"]


@needs_site
@pytest.mark.parametrize("slug", [*FIRST_EDITION, "basics/index", "beyond/index"])
def test_the_address_of_every_page_of_the_first_edition_still_leads_to_a_page(slug):
    path = site.HTML / f"chapters/{slug}.html"
    if f"chapters/{slug}" in PAGES:
        return
    assert [target.startswith("../") for target in anchors(path).targets] == [True]
    assert broken_links(path, site.HTML) == []


@needs_site
@pytest.mark.parametrize("name", PAGES)
def test_no_trace_of_an_error(name):
    """What Sphinx could not resolve, or MyST could not read, shows in the text."""
    text = (site.HTML / f"{name}.html").read_text(encoding="utf-8")
    text = re.sub(r"<(script|style|pre|code)\b.*?</\1>", "", text, flags=re.DOTALL)
    for trace in (
        "system-message",
        "{term}`",
        "{glue:text}`",
        "{cite:t}`",
        "{cite:p}`",
        "{ref}`",
        "{{ ",
    ):
        assert trace not in text, f"{name} shows {trace!r}"


def test_assets_are_described_as_they_are():
    """The table on the page is typed; the registry is what runs."""
    from llm_learn.assets import ASSETS

    for page, columns in (("chapters/start/special-cases.md", 5), ("README.md", 3)):
        text = (site.ROOT / page).read_text(encoding="utf-8")
        rows = [
            line
            for line in text.splitlines()
            if line.count("|") == columns + 1 and "==" in line
        ]
        for asset in ASSETS.values():
            row = next((row for row in rows if f"`{asset.requirement}`" in row), None)
            assert row, f"{page} does not list {asset.requirement}"
            assert asset.licence.split(" (")[0] in row
            if columns == 5:
                assert f"`{asset.name}`" in row and asset.what in row
                assert f"{asset.files_bytes / 1e6:.1f} MB" in row
        assert len(rows) == len(ASSETS)


def test_commands_on_the_pages_are_targets_of_the_makefile():
    targets = set(
        re.findall(
            r"^([a-z-]+):", (site.ROOT / "Makefile").read_text(encoding="utf-8"), re.M
        )
    )
    for page in ("index.md", "README.md", "chapters/start/how-to-run.md"):
        text = (site.ROOT / page).read_text(encoding="utf-8")
        named = set(re.findall(r"(?:`|^\$ )make ([a-z-]+)", text, re.M))
        assert named and named <= targets, f"{page} names {named - targets}"


# --- In a browser ---


@pytest.fixture(scope="module")
def contexts():
    """One reader for each width and theme."""
    with site.browser() as chromium:
        yield {
            (width, theme): site.open_context(chromium, width=width, theme=theme)
            for width in site.WIDTHS
            for theme in site.THEMES
        }


@pytest.fixture
def visit(contexts, address):
    """Opens a page; gives it, and a list of what went wrong while it opened."""
    opened = []

    def open_page(name: str, width: int, theme: str = "light"):
        page, problems = contexts[width, theme].new_page(), []
        opened.append(page)

        def third_party(request) -> None:
            if not request.url.startswith((f"{address}/", "data:", "blob:")):
                problems.append(f"third party: {request.url}")

        page.on("request", third_party)
        page.on(
            "console",
            lambda m: problems.append(f"console: {m.text}") if m.type == "error" else None,
        )
        page.on("pageerror", lambda error: problems.append(f"exception: {error}"))
        page.on("requestfailed", lambda request: problems.append(f"failed: {request.url}"))
        page.on(
            "response",
            lambda r: problems.append(f"{r.status}: {r.url}") if r.status >= 400 else None,
        )
        page.goto(f"{address}/{name}.html")
        site.settle(page)
        return page, problems

    yield open_page
    for page in opened:
        page.close()


WIDE = """() => {
    const root = document.scrollingElement;
    if (root.scrollWidth <= root.clientWidth + 1) { return []; }
    return [...document.querySelectorAll('body *')]
        .filter(e => e.getBoundingClientRect().right > root.clientWidth + 1)
        .slice(0, 5).map(e => e.outerHTML.slice(0, 120));
}"""
IMAGES = """() => [...document.querySelectorAll('article img')].map(image => [
    image.getAttribute('src').slice(0, 80), image.naturalWidth > 0, (image.alt || '').trim()])"""
FORMULAS = """() => [...document.querySelectorAll('article .math')].map(formula => {
    const math = formula.querySelector('math'), box = math?.getBoundingClientRect();
    return [formula.textContent.slice(0, 60), Boolean(math && box.width > 2 && box.height > 2),
            /\\\\[a-z]|\\$/i.test(formula.textContent)];
})"""


# Text under WCAG 2.1's contrast of 4.5 with its background. Highlighted code has the theme's own colours.
LOW_CONTRAST = """() => {
    const parse = color => color.match(/[\\d.]+/g).map(Number);
    const luminance = ([r, g, b]) => [r, g, b]
        .map(c => (c /= 255) <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4)
        .reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
    const background = element => {
        for (let e = element; e; e = e.parentElement) {
            const color = parse(getComputedStyle(e).backgroundColor);
            if (color.length < 4 || color[3] === 1) { return color; }
        }
        return [255, 255, 255];
    };
    const chosen = 'article :is(p, li, td, th, dt, dd, h1, h2, h3, a, code, figcaption, .state)';
    return [...document.querySelectorAll(chosen)]
        .filter(e => e.checkVisibility() && e.innerText?.trim() && !e.closest('.highlight'))
        .map(e => {
            const [a, b] = [parse(getComputedStyle(e).color), background(e)].map(luminance);
            const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
            return [e.innerText.slice(0, 40), Number(ratio.toFixed(2))];
        })
        .filter(([, ratio]) => ratio < 4.5);
}"""


# Each width and each theme once: a theme moves nothing, and an article has the same text at every width.
@needs_browser
@pytest.mark.parametrize(("width", "theme"), [(1280, "light"), (390, "dark")])
@pytest.mark.parametrize("name", PAGES)
def test_page_opens_cleanly_and_fits(visit, name, width, theme):
    page, problems = visit(name, width, theme)
    assert problems == []
    assert page.get_attribute("html", "data-theme") == theme
    assert page.evaluate(WIDE) == [], f"{name} scrolls to the side at {width} px"
    for source, loaded, alt in page.evaluate(IMAGES):
        assert loaded, f"{source} did not load"
        # Sphinx puts the file's address where a page gives no text.
        assert alt and alt not in source, f"{source} has no alternative text"
    for formula, drawn, raw in page.evaluate(FORMULAS):
        assert drawn and not raw, f"{formula} is not drawn"
    if theme == "dark":  # in the light theme, axe looks at the contrast of every page
        assert page.evaluate(LOW_CONTRAST) == []


@needs_browser
def test_the_theme_can_be_switched(visit):
    page, _ = visit(CHAPTER, 1280)
    ground = "getComputedStyle(document.body).backgroundColor"
    light = page.evaluate(ground)
    assert page.get_attribute("html", "data-theme") == "light"
    assert page.evaluate(LOW_CONTRAST) == []
    button = page.locator(".theme-switch-button:visible").first
    for _ in range(3):  # the button goes through light, dark and the system's choice
        button.click()
        if page.get_attribute("html", "data-theme") == "dark":
            break
    assert page.get_attribute("html", "data-theme") == "dark"
    assert page.evaluate(ground) != light  # at once: this reader asked for less motion
    assert page.evaluate("document.getAnimations().length") == 0
    assert page.evaluate(LOW_CONTRAST) == []


@needs_browser
def test_pale_text_is_found_in_the_dark_theme(visit):
    page, _ = visit(CHAPTER, 1280, "dark")
    style = "color: #555; transition: none"
    page.evaluate(f"document.querySelector('article p').style = '{style}'")
    assert len(page.evaluate(LOW_CONTRAST)) == 1
