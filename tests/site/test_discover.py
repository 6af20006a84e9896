"""The built site as others see it: descriptions, cards, site map, the page for lost readers, and paper."""

import functools
import http.server
import re
import threading
from html.parser import HTMLParser
from urllib.parse import urljoin, urlsplit
from xml.etree import ElementTree

import pytest
import site_server as site
import yaml

from book.read.repository_urls import git, named

PAGES = site.pages()
needs_site = pytest.mark.skipif(
    not (site.HTML / "index.html").is_file(), reason=site.missing() or ""
)
needs_browser = pytest.mark.skipif(site.missing() is not None, reason=site.missing() or "")
CONFIG = yaml.safe_load((site.ROOT / "_config.yml").read_text(encoding="utf-8"))
BASE = CONFIG["html"].get("baseurl") or named(CONFIG["repository"]["url"]).site
LOC = "{http://www.sitemaps.org/schemas/sitemap/0.9}loc"


class _Head(HTMLParser):
    """Collects a page's meta tags and links, each name with all its values."""

    def __init__(self) -> None:
        super().__init__()
        self.meta: dict[str, list[str]] = {}
        self.links: dict[str, list[str]] = {}

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        values = dict(attributes)
        if tag == "meta" and (name := values.get("name") or values.get("property")):
            self.meta.setdefault(name, []).append(values.get("content") or "")
        if tag == "link" and values.get("rel"):
            self.links.setdefault(values["rel"], []).append(values.get("href") or "")


def head(name: str) -> _Head:
    parser = _Head()
    parser.feed((site.HTML / f"{name}.html").read_text(encoding="utf-8"))
    return parser


def address(name: str) -> str:
    return f"{BASE}{name}.html"


@needs_site
@pytest.mark.parametrize("name", PAGES)
def test_a_page_says_what_it_is_and_where(name):
    found = head(name)
    assert found.links["canonical"] == [address(name)] == found.meta["og:url"]
    (description,), (shared,) = found.meta["description"], found.meta["og:description"]
    assert 40 <= len(description) <= 160 and shared == description
    (image,) = found.meta["og:image"]
    assert image.startswith(BASE) and (site.HTML / image.removeprefix(BASE)).is_file()
    assert found.meta["og:site_name"] == [CONFIG["title"]] and found.meta["og:title"][0]
    assert "noindex" not in found.meta.get("robots", [])


@needs_site
def test_descriptions_differ():
    descriptions = [head(name).meta["description"][0] for name in PAGES]
    assert len(set(descriptions)) == len(descriptions)


@needs_site
@pytest.mark.parametrize("name", ["search", "genindex", "404"])
def test_what_has_no_source_is_not_indexed(name):
    assert head(name).meta["robots"] == ["noindex"]


@needs_site
def test_the_site_map_lists_each_page_once():
    root = ElementTree.parse(site.HTML / "sitemap.xml").getroot()
    assert sorted(loc.text for loc in root.iter(LOC)) == sorted(map(address, PAGES))


@needs_site
@pytest.mark.parametrize("name", PAGES)
def test_the_date_is_one_of_the_history_or_absent(name):
    text = (site.HTML / f"{name}.html").read_text(encoding="utf-8")
    shown = re.findall(r"Last updated on (\S+)\.", text)
    # The page also changes with what it includes.
    history = git(site.ROOT, "log", "--format=%ad", "--date=format-local:%Y-%m-%d")
    assert len(shown) <= 1 and set(shown) <= set((history or "").split())
    whole = (
        git(site.ROOT, "rev-parse", "--is-shallow-repository") or ""
    ).strip() == "false"
    tracked = git(site.ROOT, "ls-tree", "HEAD", f"{name}.md")
    assert shown or not (whole and tracked)


@needs_site
@pytest.mark.parametrize("name", [name for name in PAGES if name.startswith("chapters/")])
def test_chapters_can_be_cited_and_other_pages_need_not(name):
    front = (site.ROOT / f"{name}.md").read_text(encoding="utf-8").split("\n---", 1)[0]
    text = (site.HTML / f"{name}.html").read_text(encoding="utf-8")
    chapter = "\nllm_learn:" in front
    assert text.count("Cite this chapter") == (1 if chapter else 0)
    assert not chapter or f"{address(name)}}}" in re.sub("<[^>]+>", "", text)


# --- In a browser ---


class _Pages(http.server.SimpleHTTPRequestHandler):
    """Serves the site as GitHub Pages does: below its path, with 404.html for what is missing."""

    def do_GET(self) -> None:
        prefix = urlsplit(BASE).path
        path = urlsplit(self.path).path
        local = path.removeprefix(prefix) if path.startswith(prefix) else ""
        file = site.HTML / (local or "404.html")
        missing = not file.is_file()
        content = (site.HTML / "404.html" if missing else file).read_bytes()
        self.send_response(404 if missing else 200)
        kind = self.guess_type("404.html" if missing else str(file))
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_) -> None:
        pass


@pytest.fixture(scope="module")
def pages_address():
    handler = functools.partial(_Pages, directory=str(site.HTML))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@needs_browser
@pytest.mark.parametrize("path", ["missing.html", "chapters/part/deeper/missing.html"])
def test_a_lost_reader_finds_the_way_from_any_depth(chromium, pages_address, path):
    context = site.open_context(chromium, width=390)
    page, failed = context.new_page(), []
    page.on("response", lambda r: failed.append(r.url) if r.status >= 400 else None)
    start = pages_address + urlsplit(BASE).path + path
    page.goto(start)
    site.settle(page)
    assert failed == [start]  # itself, and nothing that it loads
    links = page.eval_on_selector_all(".bd-docs-nav a", "all => all.map(a => a.href)")
    names = {urlsplit(link).path.removeprefix(urlsplit(BASE).path) for link in links}
    assert names == {f"{name}.html" for name in PAGES}
    assert page.evaluate("document.scrollingElement.scrollWidth") <= 390
    page.locator("article input[name=q]").fill("attention")
    page.locator("article button").click()
    page.wait_for_selector("#search-results li", timeout=20000)
    assert urlsplit(page.url).path == urljoin(urlsplit(BASE).path, "search.html")
    context.close()


VISIBLE = """selector => [...document.querySelectorAll(selector)]
    .filter(e => e.checkVisibility()).map(e => e.className || e.id)"""
CHROME = (
    ".bd-sidebar-primary, .bd-sidebar-secondary, .bd-header-article, .prev-next-footer, "
    ".copybtn, .headerlink"
)
# Relative luminance of text and of the ground that it would be printed on, which is paper.
PALE = """() => [...document.querySelectorAll('article :is(p, li, h1, h2, h3, pre, pre span, td, dd, a)')]
    .filter(e => e.checkVisibility() && e.innerText.trim())
    .filter(e => {
        const [r, g, b] = getComputedStyle(e).color.match(/[\\d.]+/g).map(Number)
            .map(c => (c /= 255) <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
        return 1.05 / (0.2126 * r + 0.7152 * g + 0.0722 * b + 0.05) < 4.5;
    }).slice(0, 5).map(e => e.outerHTML.slice(0, 100))"""
CUT = """() => [...document.querySelectorAll('article :is(pre, div.math, table)')]
    .filter(e => e.checkVisibility() && getComputedStyle(e).overflowX !== 'visible')
    .map(e => e.outerHTML.slice(0, 100))"""


@needs_browser
@pytest.mark.parametrize("theme", site.THEMES)
def test_a_chapter_prints_as_text_in_dark_ink(chromium, theme, tmp_path):
    name = next(page for page in PAGES if page.endswith("/attention"))
    context = site.open_context(chromium, width=1280, theme=theme)
    page = context.new_page()
    with site.serve() as where:
        page.goto(f"{where}/{name}.html")
        site.settle(page)
        assert page.evaluate(VISIBLE, CHROME) != []  # on the screen they are there
        page.emulate_media(media="print")
        assert page.evaluate(VISIBLE, CHROME) == []
        assert page.evaluate(CUT) == []
        if theme == "dark":  # in the light theme code keeps its colours
            assert page.evaluate(PALE) == []
        pdf = tmp_path / "chapter.pdf"
        page.pdf(path=pdf, format="A4")
    context.close()
    sheets = len(re.findall(rb"/Type\s*/Page\b", pdf.read_bytes()))
    assert 5 <= sheets <= 40
