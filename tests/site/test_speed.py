"""How much a page loads, where from, and that it can be read and used with what it loads."""

import gzip
import re

import pytest
import site_server as site

pytestmark = pytest.mark.skipif(site.missing() is not None, reason=site.missing() or "")

PAGES = [*site.pages(), "search"]
CHAPTER = "chapters/first-model/attention"
COMPRESSED = (".png", ".woff2")
# What a phone may fetch before the reader scrolls: kB as sent, compressed like GitHub Pages does, without pictures.
# The theme's style sheets take 110, its scripts 50, the text of the longest chapter 65, and the font of mathematics 54.
PAGE = 300
# The search adds its index, which grows by 3 kB a chapter.
SEARCH = 450
PICTURES = 500


SHIFTS = """() => {
    window.shifts = 0;
    new PerformanceObserver(list => { for (const e of list.getEntries()) window.shifts += e.value; })
        .observe({type: 'layout-shift', buffered: true});
}"""


def sent(name: str, body: bytes) -> int:
    """The bytes of a file on their way to the reader."""
    return len(body) if name.endswith(COMPRESSED) else len(gzip.compress(body, 6))


@pytest.fixture
def load(address, chromium):
    """Opens a page on a phone; gives the page and what came, as (address, bytes sent)."""
    contexts = []

    def load(name: str, block: str = "", **options):
        context = chromium.new_context(viewport={"width": 390, "height": 844}, **options)
        contexts.append(context)
        page, responses = context.new_page(), []
        if block:
            page.route(re.compile(block), lambda route: route.abort())
        page.on("response", lambda response: responses.append(response))
        page.problems = []
        page.on("pageerror", lambda error: page.problems.append(str(error)))
        page.on("console", lambda m: m.type == "error" and page.problems.append(m.text))
        page.goto(f"{address}/{name}.html")
        page.wait_for_load_state("load")
        page.wait_for_timeout(300)
        files = [
            (r.url, sent(r.url.partition("?")[0], r.body()))
            for r in responses
            if not r.url.startswith("data:")
        ]
        return page, files

    yield load
    for context in contexts:
        context.close()


@pytest.mark.parametrize("name", PAGES)
def test_a_page_loads_little_and_from_here_only(load, address, name):
    page, files = load(name)
    assert [url for url, _ in files if not url.startswith(f"{address}/")] == []
    assert [url for url, _ in files if re.search("fontawesome|mathjax|thebe", url)] == []
    assert any("searchindex" in url for url, _ in files) == (name == "search")
    pictures = sum(size for url, size in files if url.endswith(".png"))
    assert pictures <= 1000 * PICTURES
    total = sum(size for _, size in files) - pictures
    assert total <= 1000 * (SEARCH if name == "search" else PAGE)
    mathematics = page.locator("math").count() > 0
    font = any(url.endswith("math.woff2") for url, _ in files)
    assert font == mathematics, "the font comes with mathematics, and only with it"
    assert page.problems == []


def test_a_chapter_can_be_read_without_scripts(load):
    page, _ = load(CHAPTER, java_script_enabled=False)
    article = page.locator("article")
    assert article.locator("math").first.is_visible()
    assert article.locator("pre:visible").first.is_visible()
    assert article.locator(".exercise p:not(.admonition-title)").first.is_visible()
    solution = article.locator("details.solution").first
    solution.locator("summary").first.click()
    assert solution.locator("p, pre").first.is_visible(), "without scripts it stays closed"


def test_pictures_wait_for_the_reader_and_do_not_move_what_is_read(load):
    page, _ = load(CHAPTER)
    images = page.locator("article img").all()
    assert len(images) > 1
    assert {image.get_attribute("loading") for image in images} == {"lazy"}
    page.evaluate(SHIFTS)
    height = page.evaluate("document.scrollingElement.scrollHeight")
    for top in range(0, height, 600):
        page.evaluate("top => scrollTo(0, top)", top)
        page.wait_for_timeout(50)
    assert page.evaluate("window.shifts") < 0.1  # what Lighthouse calls good


def test_every_icon_of_the_pages_is_drawn():
    css = (site.ROOT / "code/book/site/styles/icons.css").read_text(encoding="utf-8")
    used = set()
    for path in site.HTML.rglob("*.html"):
        if "_static" not in path.parts:
            used.update(
                re.findall(r"\bfa-([a-z][a-z-]+)", path.read_text(encoding="utf-8"))
            )
    missing = {
        name for name in used - {"solid", "lg", "brands"} if f".fa-{name} {{" not in css
    }
    assert "magnifying-glass" in used and missing == set()


# --- What scripts do still works ---


def test_menus_open_on_a_phone(load):
    page, _ = load(CHAPTER)
    for button, sidebar in (("primary", "primary"), ("secondary", "secondary")):
        page.locator(f"button.{button}-toggle:visible").first.click()
        modal = page.locator(f"#pst-{sidebar}-sidebar-modal")
        modal.locator("a:visible").first.wait_for(timeout=5000)
        page.keyboard.press("Escape")
        modal.wait_for(state="hidden", timeout=5000)


def test_solutions_and_hints_open(load):
    page, _ = load(CHAPTER)
    for kind in ("hint", "solution"):
        boxes = page.locator(f"article details.{kind}")
        assert boxes.count() > 1 and page.locator(f"details.{kind}[open]").count() == 0
        boxes.first.locator("summary").first.click()
        assert page.locator(f"details.{kind}[open]").count() == 1


def test_code_is_copied(load, address):
    page, _ = load(CHAPTER)
    page.context.grant_permissions(["clipboard-read", "clipboard-write"], origin=address)
    cell = page.locator("div.highlight:has(button.copybtn):visible").first
    cell.hover()
    cell.locator("button.copybtn").click()
    copied = page.evaluate("navigator.clipboard.readText()")
    assert copied.strip() and copied.strip() == cell.locator("pre").inner_text().strip()


def test_the_search_finds_a_term_and_lights_it_up(load, address):
    page, _ = load("index")
    page.locator(".search-button__button:visible").first.click()
    page.locator("#pst-search-dialog input[name=q]").fill("tokenizer")
    page.keyboard.press("Enter")
    found = page.locator("#search-results ul.search li a")
    found.first.wait_for(timeout=10_000)
    assert found.count() > 1
    found.first.click()
    page.locator("article .highlighted").first.wait_for(timeout=5000, state="attached")


def test_a_tooltip_of_the_tool_bar_has_an_arrow(chromium, address):
    context = chromium.new_context(viewport={"width": 1280, "height": 900})
    page = context.new_page()
    page.goto(f"{address}/{CHAPTER}.html")
    page.locator("button[data-bs-toggle=tooltip]:visible").first.hover()
    arrow = page.locator(".tooltip .tooltip-arrow")
    arrow.wait_for(timeout=5000, state="attached")
    size = "e => parseFloat(getComputedStyle(e, '::before').borderBottomWidth)"
    width = "e => parseFloat(getComputedStyle(e).width)"
    assert arrow.evaluate(size) > 0 and arrow.evaluate(width) > 0
    context.close()


def test_the_theme_is_right_before_the_themes_scripts_run(load):
    for scheme in ("dark", "light"):
        page, _ = load("index", color_scheme=scheme, block=r"_static/.*\.js")
        assert page.get_attribute("html", "data-theme") == scheme


def test_the_theme_follows_the_reader(load):
    for scheme in ("dark", "light"):
        page, _ = load("index", color_scheme=scheme)
        assert page.get_attribute("html", "data-theme") == scheme
        assert page.get_attribute("html", "data-mode") == "auto"
