"""How much a page loads, where from, and that it can be read and used with what it loads."""

import gzip
import re

import pytest
import site_server as site

pytestmark = pytest.mark.skipif(site.missing() is not None, reason=site.missing() or "")

PAGES = [*site.pages(), "search"]
CHAPTER = "chapters/basics/attention"
COMPRESSED = (".png", ".woff2")
# What a phone may fetch before the reader scrolls, of each kind: kB as sent, compressed like GitHub Pages does.
# A page has its text, a stylesheet, a script and the favicon; mathematics adds a font, figures add themselves.
# The text may take 64 kB because the longest chapter, on evaluation, takes just 62.
BUDGET = {"html": 64, "css": 40, "js": 50, "svg": 12, "woff2": 64, "png": 250}
REQUESTS = {"html": 1, "css": 1, "js": 2, "svg": 3, "woff2": 1, "png": 4}
# Only the search loads the index, which grows by 3 kB a chapter: 152 kB in all with 34 chapters of 44.
SEARCH_JS = (190, 4)


def sent(name: str, body: bytes) -> int:
    """The bytes of a file on their way to the reader."""
    return len(body) if name.endswith(COMPRESSED) else len(gzip.compress(body, 6))


@pytest.fixture
def load(address, chromium):
    """Opens a page on a phone; gives the page and what came, as (address, bytes sent)."""
    contexts = []

    def load(name: str, **options):
        context = chromium.new_context(viewport={"width": 390, "height": 844}, **options)
        contexts.append(context)
        page, responses = context.new_page(), []
        page.on("response", lambda response: responses.append(response))
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


def over_budget(name: str, files: list[tuple[str, int]]) -> list[str]:
    """A sentence for each kind of file of which a page loads too many or too much."""
    problems, kinds = [], {}
    for url, size in files:
        kind = url.partition("?")[0].rpartition(".")[2]
        count, total = kinds.get(kind, (0, 0))
        kinds[kind] = (count + 1, total + size)
    for kind, (count, total) in kinds.items():
        kilobytes, requests = BUDGET.get(kind, 0), REQUESTS.get(kind, 0)
        if name == "search" and kind == "js":
            kilobytes, requests = SEARCH_JS
        if total > 1000 * kilobytes or count > requests:
            problems.append(
                f"{name}: {count} files .{kind} with {total / 1000:.0f} kB; "
                f"{requests} with {kilobytes} kB are allowed"
            )
    return problems


def test_a_page_over_its_budget_is_found():
    assert over_budget("index", [("a/b.css?v=1", 39_000), ("a/b.js", 49_000)]) == []
    scripts = [(f"{name}.js", 1) for name in "abc"]
    assert len(over_budget("index", [("b.css", 41_000), *scripts])) == 2
    assert over_budget("index", [("a.ttf", 1)]) and not over_budget("search", [("a.js", 9)])


@pytest.mark.parametrize("name", PAGES)
def test_a_page_loads_little_and_from_here_only(load, address, name):
    page, files = load(name)
    assert [url for url, _ in files if not url.startswith(f"{address}/")] == []
    assert over_budget(name, files) == []
    mathematics = page.locator("math").count() > 0
    font = any(url.endswith("math.woff2") for url, _ in files)
    assert font == mathematics, "the font comes with mathematics, and only with it"


def test_a_chapter_can_be_read_without_scripts(load):
    page, _ = load(CHAPTER, java_script_enabled=False)
    article = page.locator("article")
    assert article.locator("math").first.is_visible()
    assert article.locator("pre").first.is_visible()
    assert article.locator(".exercise p:not(.admonition-title)").first.is_visible()
    solution = article.locator("details.solution").first
    solution.locator("summary").first.click()
    assert solution.locator("p, pre").first.is_visible(), "without scripts it stays closed"
    for image in article.locator("img").all():
        assert image.get_attribute("width") and image.get_attribute("height")


def test_pictures_do_not_move_the_text(load):
    page, _ = load(CHAPTER)
    images = page.locator("article img")
    lazy = [image.get_attribute("loading") for image in images.all()]
    assert len(lazy) > 1 and lazy == [None, *["lazy"] * (len(lazy) - 1)]
    height = "document.scrollingElement.scrollHeight"
    before = page.evaluate(height)
    site.settle(page)
    assert abs(page.evaluate(height) - before) <= 2


def test_every_icon_of_the_pages_is_drawn():
    css = (site.HTML / "_static" / "icons.css").read_text(encoding="utf-8")
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


def test_code_without_markup_would_have_the_colour_of_plain_text():
    css = (site.HTML / "_static" / "pygments.css").read_text(encoding="utf-8")
    for theme in ("light", "dark"):
        colours = [
            re.search(
                rf'\[data-theme="{theme}"\] \.highlight {kind}{{[^}}]*?\bcolor: (#\w+)', css
            )[1]
            for kind in ("", r"\.n ", r"\.p ", r"\.w ")
        ]
        assert len(set(colours)) == 1, theme
    html = (site.HTML / f"{CHAPTER}.html").read_text(encoding="utf-8")
    assert '<span class="k">' in html and not re.search(r'<span class="[npw]">[^<]*<', html)


def test_no_page_names_what_was_left_off():
    for path in site.HTML.rglob("*.html"):
        if "_static" not in path.parts:
            text = path.read_text(encoding="utf-8")
            head = text.partition("</head>")[0].lower()
            for name in ("mathjax", "fontawesome", "thebe", "require.js", "cdn."):
                assert name not in head, f"{path.name} loads {name}"


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
    cell = page.locator("div.highlight:has(button.copybtn)").first
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


def test_the_theme_follows_the_reader(load):
    for scheme in ("dark", "light"):
        page, _ = load("index", color_scheme=scheme)
        assert page.get_attribute("html", "data-theme") == scheme
        assert page.get_attribute("html", "data-mode") == "auto"
