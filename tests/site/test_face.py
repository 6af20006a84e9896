"""The book's face as a reader meets it: the logo, the measure of a line, and the pictures of the first page."""

import re
import statistics
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
import site_server as site

pytestmark = pytest.mark.skipif(site.missing() is not None, reason=site.missing() or "")

# Pages of each kind: the first one, prose, and a chapter.
READ = ["index", "chapters/start/how-to-run", "chapters/first-model/attention"]


@pytest.fixture
def visit(chromium, address):
    """Opens a page for a reader with a window of that width and that theme."""
    contexts = []

    def open_page(name: str, *, width: int = 1280, theme: str = "light"):
        contexts.append(site.open_context(chromium, width=width, theme=theme))
        page = contexts[-1].new_page()
        page.goto(f"{address}/{name}.html")
        site.settle(page)
        return page

    yield open_page
    for context in contexts:
        context.close()


@pytest.mark.parametrize("theme", site.THEMES)
@pytest.mark.parametrize("name", ["index", "chapters/first-model/attention"])
def test_the_logo_of_the_theme_is_loaded_and_large_enough(visit, name, theme):
    page = visit(name, theme=theme)
    shown = [
        logo
        for logo in page.locator(".bd-sidebar-primary .navbar-brand img").all()
        if logo.is_visible()
    ]
    assert len(shown) == 1
    logo = shown[0]
    assert f"logo-{theme}.svg" in logo.get_attribute("src")
    assert logo.evaluate("image => image.naturalWidth") > 0
    box = logo.bounding_box()
    # At 200 pixels its letters are as high as the text of the page.
    assert box["width"] >= 200 and 4 < box["width"] / box["height"] < 8
    assert logo.get_attribute("alt").startswith("LLM Learn")


def test_icons_are_there(visit, address):
    page = visit("chapters/start/plan")
    for relation in ("icon", "apple-touch-icon"):
        link = page.locator(f'link[rel~="{relation}"]').first
        assert page.request.get(link.evaluate("link => link.href")).ok, relation


# The characters of each line but the last of its paragraph, which ends where the sentence does.
LINES = """() => {
    const counts = [], range = document.createRange();
    const chosen = '.bd-article section > p, .bd-article section > ul > li > p, .bd-article .admonition p';
    for (const paragraph of document.querySelectorAll(chosen)) {
        if (!paragraph.checkVisibility() || paragraph.querySelector('img, math, mjx-container, .math')) { continue; }
        let line = null, count = 0;
        const texts = document.createTreeWalker(paragraph, NodeFilter.SHOW_TEXT);
        while (texts.nextNode()) {
            for (let i = 0; i < texts.currentNode.length; i++) {
                range.setStart(texts.currentNode, i);
                range.setEnd(texts.currentNode, i + 1);
                const box = range.getClientRects()[0];
                if (!box?.width) { continue; }
                if (line !== null && box.top > line + 12) { counts.push(count); count = 0; line = box.top; }
                line ??= box.top;
                count += 1;
            }
        }
    }
    return counts;
}"""


@pytest.mark.parametrize("width", [1440, 1280, 970])
@pytest.mark.parametrize("name", READ)
def test_lines_hold_60_to_75_characters(visit, name, width):
    lines = sorted(visit(name, width=width).evaluate(LINES))
    assert len(lines) >= 15
    assert 60 <= statistics.median(lines) <= 75
    # A word that does not fit leaves its line short, and narrow letters make one long: one line in twenty.
    assert lines[len(lines) // 20] >= 55 and lines[-1 - len(lines) // 20] <= 75


EDGES = """selector => [...document.querySelectorAll(`.bd-article ${selector}`)]
    .filter(e => e.checkVisibility() && !e.closest('li, dd, .admonition, .solution, .exercise, details, td'))
    .map(e => { const box = e.getBoundingClientRect(); return [Math.round(box.left), Math.round(box.right)]; })"""


@pytest.mark.parametrize("width", [1280, 390])
def test_text_code_and_figures_share_their_edges(visit, width):
    page = visit("chapters/first-model/attention", width=width)
    paragraphs, code, outputs, figures = (
        page.evaluate(EDGES, selector)
        for selector in ("section > p", "div.cell_input", "div.cell_output", "figure img")
    )
    assert min(map(len, (paragraphs, code, outputs, figures))) >= 3
    left, right = code[0]
    assert {edge for edge, _ in paragraphs} == {left}
    assert {tuple(edges) for edges in code + outputs} == {(left, right)}
    if width == 1280:  # on a phone a figure keeps a legible size, and scrolls
        # A table of weights may be narrower than the page; nothing is wider or begins elsewhere.
        assert all(left <= a and b <= right for a, b in figures)
        assert (left, right) in {tuple(edges) for edges in figures}


def test_code_of_92_characters_needs_no_scrolling(visit):
    page = visit("chapters/first-model/attention")
    room = page.evaluate(
        """() => {
            const pre = document.querySelector('.bd-article .cell_input pre');
            pre.textContent = 'x'.repeat(92);
            return pre.clientWidth - pre.scrollWidth;
        }"""
    )
    assert room >= 0


# --- The first page ---


def directives() -> list[tuple[str, str | None]]:
    """The cards that index.md asks for."""
    text = (site.ROOT / "index.md").read_text(encoding="utf-8")
    return re.findall(r"^```\{picture\} (\S+) ?(\S+)?$", text, re.MULTILINE)


@pytest.mark.parametrize("theme", site.THEMES)
@pytest.mark.parametrize("width", [1280, 970, 390])
def test_pictures_of_the_first_page_are_those_of_the_chapters(visit, width, theme):
    page = visit("index", width=width, theme=theme)
    cards = page.locator(".picture-card").all()
    assert len(cards) == len(directives()) >= 3
    pictures = 0
    for card, (slug, figure) in zip(cards, directives(), strict=True):
        exists = (site.ROOT / "chapters" / f"{slug}.md").is_file()
        links = card.locator("a")
        assert links.count() == int(exists)
        if not exists:
            assert "planned" in card.inner_text() and card.locator("img").count() == 0
            continue
        assert links.first.get_attribute("href") == f"chapters/{slug}.html"
        if figure:
            image = card.locator("img")
            facts = image.evaluate(
                "i => [i.naturalWidth, i.naturalHeight, i.width, i.height]"
            )
            natural_width, natural_height, shown, height = facts
            assert natural_width >= shown > 250, "too small to be read"
            assert height < 1.35 * shown * natural_height / natural_width + 20, "stretched"
            assert len(image.get_attribute("alt")) >= 40
            pictures += 1
    assert pictures >= 3


# How many letters of English, in its own font, fit into a line of each text on a card.
ROOM = """() => [...document.querySelectorAll(
        '.bd-article .picture-card p, .bd-article .sd-card :is(p, .sd-card-title)')]
    .filter(e => e.checkVisibility() && e.innerText.trim())
    .map(e => {
        const probe = document.createElement('span'), words = 'The quick brown fox jumps over the lazy dog';
        probe.textContent = words;
        probe.style = 'position: absolute; visibility: hidden; white-space: nowrap';
        e.append(probe);
        const letter = probe.getBoundingClientRect().width / words.length;
        probe.remove();
        const style = getComputedStyle(e);
        const room = e.clientWidth - parseFloat(style.paddingLeft) - parseFloat(style.paddingRight);
        return [e.innerText.slice(0, 40), room / letter];
    })"""


def narrow(page) -> dict[str, float]:
    """The texts on cards whose lines hold fewer than 20 characters."""
    return {text: round(room, 1) for text, room in page.evaluate(ROOM) if room < 20}


@pytest.mark.parametrize("width", [1280, 768, 390])
def test_lines_on_every_card_hold_20_characters(visit, width):
    page = visit("index", width=width)
    cards = page.locator(".bd-article :is(.picture-card, .sd-card)").count()
    assert cards > 10 and len(page.evaluate(ROOM)) >= 2 * cards
    assert narrow(page) == {}


def test_a_squeezed_card_is_found(visit):
    page = visit("index")
    page.locator(".picture-card p").last.evaluate("p => { p.style.width = '4rem'; }")
    assert len(narrow(page)) == 1


@pytest.mark.parametrize("width", [1280, 768])
def test_the_first_screen_says_how_much_there_is_and_where_to_begin(visit, address, width):
    from book.read.chapters import find_sources, load_plan, planned_chapters

    page = visit("index", width=width)
    facts = page.locator(".book-facts")
    box = facts.bounding_box()
    assert box["y"] + box["height"] <= 900
    words = facts.inner_text()
    planned = planned_chapters(load_plan())
    there = [s for s in find_sources(site.ROOT) if s.slug in planned]
    hours = sum(source.hours[0] for source in there)
    assert f"{len(there)} chapters, about {hours:g} hours to read" in words
    assert "PyTorch" in words and "make book" in words and " GB " in words
    assert re.search(r"in about \d+ minutes? on two cores", words)
    links = [a.evaluate("a => a.href") for a in facts.locator("a").all()]
    routes = [link for link in links if "routes.html#route-" in link]
    assert routes[0] == f"{address}/chapters/start/routes.html#route-main-line"
    assert f"{address}/chapters/first-model/backpropagation.html" in links


def test_the_first_steps_fit_on_one_screen(visit):
    page = visit("chapters/start/how-to-run")
    steps = page.locator("section:has(> #first-steps), section#first-steps").last
    assert steps.locator("li").count() == 5 and "make book" in steps.inner_text()
    box = steps.bounding_box()
    assert box["y"] + box["height"] <= 900


def test_three_doors_lead_somewhere(visit, address):
    page = visit("index")
    doors = page.locator(".doors a")
    assert doors.count() == 3
    for door in doors.all():
        target = door.evaluate("a => a.href")
        assert target.startswith(address) and page.request.get(target).ok


def test_the_whole_card_is_the_link(visit):
    page = visit("index")
    card = page.locator(".picture-card:has(a)").first
    href = card.locator("a").get_attribute("href")
    box = card.bounding_box()
    card.click(position={"x": box["width"] / 2, "y": 60})
    page.wait_for_url(f"**/{href}")
