"""What readers do with the site: tab through it, search, copy, open, switch, and read it without scripts."""

import re
from urllib.parse import urlsplit

import pytest
import site_server as site

from book.contract.second_edition import FOLDS

CHAPTER = "chapters/first-model/attention"
FIRST_EDITION = "chapters/first-model/gpt"

pytestmark = pytest.mark.skipif(site.missing() is not None, reason=site.missing() or "")


@pytest.fixture
def visit(chromium, address):
    """Opens a page as a new reader, who has chosen that theme; fails on what the page complains of."""
    contexts, problems = [], []

    def open_page(name: str, *, width: int = 1280, theme: str = "light"):
        context = site.open_context(chromium, width=width, theme=theme)
        contexts.append(context)
        page = context.new_page()
        page.on(
            "console",
            lambda m: problems.append(f"console: {m.text}") if m.type == "error" else None,
        )
        page.on("pageerror", lambda error: problems.append(f"exception: {error}"))
        page.goto(f"{address}/{name}.html")
        site.settle(page)
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert problems == []


# --- By keyboard ---

# Marks what a reader can operate and see; gives how many there are.
INTERACTIVE = """() => {
    const controls = [...document.querySelectorAll('a[href], button, summary, input, select, textarea')].filter(
        e => !e.disabled && e.tabIndex >= 0 && e.getClientRects().length
            && e.checkVisibility({visibilityProperty: true}) && !e.closest('[inert]'));
    controls.forEach((e, i) => { e.dataset.control = i; });
    document.activeElement.blur();
    document.documentElement.addEventListener('focusin', ({target}) => {
        // The link of a card has no size of its own: the card shows the ring.
        const shown = target.matches('.sd-stretched-link') ? target.closest('.sd-card') : target;
        const style = getComputedStyle(shown), box = shown.getBoundingClientRect();
        let opacity = 1;
        for (let e = shown; e; e = e.parentElement) { opacity *= getComputedStyle(e).opacity; }
        window.stops.push([target.dataset.control ?? null, target.outerHTML.slice(0, 100),
            target.matches(':focus-visible') && style.outlineStyle !== 'none' && parseFloat(style.outlineWidth) >= 2,
            opacity, box.width * box.height, style.outlineColor]);
    });
    window.stops = [];
    return controls.map(e => e.outerHTML.slice(0, 100));
}"""
GROUND = "getComputedStyle(document.body).backgroundColor"


def luminance(color: str) -> float:
    channels = [float(value) / 255 for value in re.findall(r"[\d.]+", color)[:3]]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return sum(
        weight * c for weight, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True)
    )


def contrast(one: str, other: str) -> float:
    dark, light = sorted([luminance(one), luminance(other)])
    return (light + 0.05) / (dark + 0.05)


def tab_through(page) -> tuple[list[str], list[list], bool]:
    """Presses Tab until the focus leaves the page; gives the controls, its stops, and whether it left."""
    controls = page.evaluate(INTERACTIVE)
    for _ in range(3 * len(controls) + 100):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement === document.body"):
            return controls, page.evaluate("window.stops"), True
    return controls, page.evaluate("window.stops"), False


def keyboard_problems(page) -> list[str]:
    controls, stops, left = tab_through(page)
    ground = page.evaluate(GROUND)
    reached = {stop[0] for stop in stops}
    problems = [
        f"never reached: {html}" for i, html in enumerate(controls) if str(i) not in reached
    ]
    if not left:
        problems.append(f"the focus is trapped at {stops[-1][1]}")
    for _, html, ringed, opacity, area, color in stops:
        if not ringed:
            problems.append(f"no focus ring: {html}")
        elif opacity < 0.99 or area < 1:
            problems.append(f"focused, but not to be seen: {html}")
        elif contrast(color, ground) < 3:
            problems.append(f"a faint focus ring, {color} on {ground}: {html}")
    return problems


@pytest.mark.parametrize("theme", site.THEMES)
@pytest.mark.parametrize("width", site.WIDTHS)
@pytest.mark.parametrize("name", ["index", CHAPTER])
def test_the_keyboard_reaches_everything_and_the_focus_shows(visit, name, width, theme):
    assert keyboard_problems(visit(name, width=width, theme=theme)) == []


@pytest.mark.parametrize(
    ("damage", "complaint"),
    [
        (
            "document.head.insertAdjacentHTML('beforeend', '<style>nav a:focus-visible {opacity: 0 !important}</style>')",
            "not to be seen",
        ),
        (
            "document.head.insertAdjacentHTML('beforeend', '<style>:focus-visible:focus-visible:focus-visible {outline-color: #eee !important}</style>')",
            "a faint focus ring",
        ),
        (
            "document.head.insertAdjacentHTML('beforeend', '<style>:focus-visible:focus-visible:focus-visible {outline: none !important}</style>')",
            "no focus ring",
        ),
        (
            "document.addEventListener('keydown', e => { if (e.key === 'Tab' && e.target.closest('article')) e.preventDefault(); })",
            "trapped",
        ),
        (
            "document.addEventListener('keydown', e => { if (e.key === 'Tab' && e.target.closest('nav')) document.querySelector('.right-next').focus(); })",
            "never reached",
        ),
    ],
)
def test_what_a_keyboard_cannot_do_is_found(visit, damage, complaint):
    page = visit("index")
    page.evaluate(damage)
    assert any(complaint in problem for problem in keyboard_problems(page))


@pytest.mark.parametrize("key", ["Enter", "Space"])
@pytest.mark.parametrize(
    ("opener", "dialog", "width"),
    [
        (".primary-toggle:visible", "#pst-primary-sidebar-modal", 390),
        (".secondary-toggle:visible", "#pst-secondary-sidebar-modal", 390),
        (".search-button__button:visible", "#pst-search-dialog", 390),
        (".search-button__button:visible", "#pst-search-dialog", 1280),
    ],
)
def test_dialogs_open_by_key_and_give_the_focus_back(visit, opener, dialog, width, key):
    page = visit(CHAPTER, width=width)
    button = page.locator(opener).first
    button.focus()
    page.keyboard.press(key)
    page.wait_for_selector(f"{dialog}[open]")
    assert page.evaluate(f"!!document.activeElement.closest('{dialog}')")
    page.keyboard.press("Escape")
    page.wait_for_selector(f"{dialog}:not([open])", state="attached")
    page.wait_for_function("e => document.activeElement === e", arg=button.element_handle())


# --- Search, menus, themes ---


def test_search_finds_a_term_and_leads_to_it(visit):
    page = visit("index")
    page.keyboard.press("Control+k")
    page.keyboard.type("softmax")
    page.keyboard.press("Enter")
    page.wait_for_url("**/search.html?q=softmax**")
    results = page.locator("#search-results li a")
    # Results come in one by one.
    page.locator(f'#search-results li a[href*="{CHAPTER}.html"]').first.wait_for()
    targets = {
        urlsplit(link.get_attribute("href")).path.split("#")[0] for link in results.all()
    }
    assert f"{CHAPTER}.html" in targets
    for target in targets:
        text = (site.HTML / target.lstrip("/")).read_text(encoding="utf-8")
        assert "softmax" in text.lower(), f"{target} is found, but does not hold the term"
    results.first.click()
    page.wait_for_load_state()
    assert "softmax" in page.locator("article").inner_text().lower()


@pytest.mark.parametrize(
    ("words", "name"),
    [("attention", CHAPTER), ("tokenization", "chapters/first-model/tokenization")],
)
def test_search_names_the_chapter_first_and_shows_its_text(visit, address, words, name):
    page = visit("index")
    page.goto(f"{address}/search.html?q={words}")
    page.wait_for_function(
        "document.querySelector('.search-summary')?.innerText.includes('Search finished')"
    )
    results = page.locator("#search-results li")
    first = results.first.locator("a").get_attribute("href")
    assert urlsplit(first).path == f"{name}.html"
    page.wait_for_function(
        "[...document.querySelectorAll('#search-results li')].every(li => li.querySelector('.context'))"
    )
    excerpts = page.locator("#search-results .context").all_inner_texts()
    assert len(excerpts) >= 3 and words in excerpts[0].lower()
    for excerpt in excerpts:
        assert not [s for s in (".pdf", "Contents", "Before this") if s in excerpt]
    # A definition comes before pages that only hold the word.
    links = [a.get_attribute("href") for a in page.locator("#search-results li > a").all()]
    terms = [i for i, link in enumerate(links) if "#term-" in link]
    assert not terms or min(terms) > 0


@pytest.mark.parametrize("words", ["softmax", "scaled_dot_product_attention", "zzqqzz"])
def test_results_of_a_search_fit_on_a_phone(visit, address, words):
    """Excerpts hold formulas and code, in which there may be no place to break a line."""
    page = visit("index", width=390)
    page.goto(f"{address}/search.html?q={words}")
    page.wait_for_function(
        "document.querySelector('.search-summary')?.innerText.includes('Search finished')"
        " || document.querySelector('#search-results').innerText.includes('did not match')"
    )
    page.wait_for_function(
        "[...document.querySelectorAll('#search-results li')].every(li => li.querySelector('.context'))"
    )
    width = "document.scrollingElement.scrollWidth"
    assert page.evaluate(width) <= 390


def test_search_says_when_it_finds_nothing(visit, address):
    page = visit("index")
    page.goto(f"{address}/search.html?q=zzqqzz")
    page.wait_for_function(
        "document.querySelector('#search-results').innerText.includes('did not match')"
    )
    assert page.locator("#search-results li").count() == 0


def test_the_menu_of_a_phone_leads_to_a_page(visit):
    page = visit("index", width=390)
    page.locator(".primary-toggle:visible").click()
    sidebar = page.locator("#pst-primary-sidebar-modal")
    sidebar.get_by_role("link", name="Attention", exact=True).click()
    page.wait_for_url(f"**/{CHAPTER}.html")


def test_the_list_of_pages_can_be_put_away_at_a_desk(visit):
    page = visit(CHAPTER)
    sidebar, toggle = (
        page.locator("#pst-primary-sidebar nav"),
        page.locator(".primary-toggle:visible"),
    )
    assert sidebar.is_visible()
    toggle.click()
    sidebar.wait_for(state="hidden")
    toggle.click()
    sidebar.wait_for()


def test_previous_and_next_follow_the_table_of_contents(visit):
    page, order = visit("index"), site.pages()
    for name in order[1:6]:
        page.locator("a.right-next").click()
        page.wait_for_url(f"**/{name}.html")
    page.locator("a.left-prev").click()
    page.wait_for_url(f"**/{order[4]}.html")


def test_the_theme_goes_through_its_states_and_stays(chromium, address):
    context = chromium.new_context(color_scheme="dark")  # nothing chosen yet
    page = context.new_page()
    page.goto(f"{address}/index.html")
    button, root = page.locator(".theme-switch-button:visible").first, page.locator("html")
    assert root.get_attribute("data-theme") == "dark", "the system's choice is ignored"
    seen = {}
    for _ in range(3):
        button.focus()
        page.keyboard.press("Enter")
        mode = root.get_attribute("data-mode")
        seen[mode] = (root.get_attribute("data-theme"), page.evaluate(GROUND))
        page.goto(f"{address}/{CHAPTER}.html")
        assert root.get_attribute("data-mode") == mode, (
            "the choice is lost on the next page"
        )
        assert root.get_attribute("data-theme") == seen[mode][0]
    context.close()
    assert {mode: theme for mode, (theme, _) in seen.items()} == {
        "light": "light",
        "dark": "dark",
        "auto": "dark",
    }


# --- Chapters ---


def test_copy_buttons_copy_the_code_exactly(visit, address):
    page = visit(CHAPTER)
    page.context.grant_permissions(["clipboard-read", "clipboard-write"], origin=address)
    page.evaluate("document.querySelectorAll('details').forEach(e => { e.open = true; })")
    cells = page.locator(".cell_input")
    assert cells.count() >= 10
    for index in (0, 1, cells.count() - 1):
        cell = cells.nth(index)
        cell.hover()
        cell.locator("button.copybtn").click()
        page.wait_for_function(
            "async code => (await navigator.clipboard.readText()).trimEnd() === code.trimEnd()",
            arg=cell.locator("pre").text_content(),
        )


def test_hints_solutions_and_folded_code_open(visit):
    page = visit(CHAPTER)
    for kind in ("details.hint", "details.solution", "details.hide"):
        boxes = page.locator(kind)
        assert boxes.count() >= 3
        first = boxes.first
        content = first.locator(":scope > :not(summary)").first
        assert not content.is_visible()
        first.locator("summary").first.focus()
        page.keyboard.press("Enter")
        content.wait_for()
        first.locator("summary").first.click()
        content.wait_for(state="hidden")


# Of each folded box: its kind, whether a title inside has a ground of its own, and the size of its sign.
BARS = """() => [...document.querySelectorAll('article details.admonition')].map(box => {
    const line = box.querySelector(':scope > summary'), titles = [...line.querySelectorAll('.admonition-title')];
    const sign = getComputedStyle(line, '::before'), clear = 'rgba(0, 0, 0, 0)';
    const others = [line, ...titles].map(e => getComputedStyle(e, '::after'));
    return {
        kind: ['hint', 'solution', 'hide', 'predict-answer'].find(name => box.classList.contains(name)) ?? 'dropdown',
        words: line.innerText.trim(),
        patched: titles.some(e => getComputedStyle(e).backgroundColor !== clear),
        indented: box.getBoundingClientRect().right - line.getBoundingClientRect().right > 2,
        size: parseFloat(sign.width) / parseFloat(getComputedStyle(line).fontSize),
        shape: sign.clipPath,
        signs: others.filter(style => style.content !== 'none' && style.content !== 'normal').length,
    };
})"""


@pytest.mark.parametrize("theme", site.THEMES)
@pytest.mark.parametrize("width", site.WIDTHS)
def test_folded_boxes_are_one_bar_with_one_sign(visit, width, theme):
    page = visit(CHAPTER, width=width, theme=theme)
    closed = page.evaluate(BARS)
    kinds = {"hint", "solution", "hide", "predict-answer", "dropdown"}
    assert {bar["kind"] for bar in closed} <= kinds
    assert {(round(b["size"], 1), b["signs"], b["indented"]) for b in closed} == {
        (0.8, 0, False)
    }
    assert not any(bar["patched"] for bar in closed if bar["kind"] == "hide")
    assert len({bar["shape"] for bar in closed}) == 1
    page.evaluate("document.querySelectorAll('details').forEach(e => { e.open = true; })")
    opened = page.evaluate(BARS)
    assert len({b["shape"] for b in opened}) == 1
    assert opened[0]["shape"] != closed[0]["shape"] != "none"


@pytest.mark.parametrize("name", [CHAPTER, FIRST_EDITION])
def test_folded_code_says_what_a_click_shows(visit, name):
    page = visit(name)
    checkers = page.locator(".tag_exercise-checker > details.hide > summary").all()
    others = page.locator(
        ".cell:not(.tag_exercise-checker) > details.hide.above-input > summary"
    ).all()
    assert checkers and len(others) >= 2
    assert {bar.inner_text().strip() for bar in checkers} == {"Show the checker"}
    shown = {*FOLDS.values(), "The packaged version"}
    shown |= {"Show the code"} if name == FIRST_EDITION else set()
    assert {bar.inner_text().strip() for bar in others} <= shown
    checkers[0].click()
    assert checkers[0].inner_text().strip() == "Hide the checker"


def test_exercises_say_where_to_try_them(visit):
    page = visit(CHAPTER)
    line = page.locator(f"section:has(> #exercises-{CHAPTER.rpartition('/')[2]}) > p").first
    assert line.inner_text() == (
        "To try them, open the notebook in Colab or on your machine."
    )
    colab, here = (a.get_attribute("href") for a in line.locator("a").all())
    assert re.match(r"https://colab\.research\.google\.com/github/.*\.ipynb$", colab)
    assert here == "../start/how-to-run.html"
    notebook = site.ROOT / f"_build/notebooks/{CHAPTER}.ipynb"
    assert "To try them" not in notebook.read_text(encoding="utf-8")


def test_a_link_opens_the_solution_that_it_leads_to(visit, address):
    page = visit(CHAPTER)
    anchor = page.locator("details.solution").first.get_attribute("id")
    # An id inside the box, as a link from elsewhere would name it.
    inside = page.locator("details.solution [id]").first.get_attribute("id")
    assert anchor and inside
    page.goto(f"{address}/{CHAPTER}.html#{inside}")
    page.locator(f"details.solution:has(#{inside})[open]").wait_for()


@pytest.mark.parametrize("theme", site.THEMES)
def test_figures_stand_on_white_in_both_themes(visit, theme):
    page = visit(CHAPTER, theme=theme)
    cards = page.evaluate("""() => [...document.querySelectorAll('article .cell_output img')].map(
        image => [getComputedStyle(image).backgroundColor, getComputedStyle(image).filter])""")
    # In the dark the whole sheet is dimmed a little; nothing is inverted.
    dimmed = "none" if theme == "light" else "brightness(0.92)"
    assert cards and set(map(tuple, cards)) == {("rgb(255, 255, 255)", dimmed)}
    caption = page.evaluate(
        "getComputedStyle(document.querySelector('article figcaption p, article figcaption')).color"
    )
    assert contrast(caption, page.evaluate(GROUND)) >= 4.5


def test_nothing_moves_for_a_reader_who_asks_for_it(visit):
    page = visit(CHAPTER)
    slow = page.evaluate("""() => [...document.querySelectorAll('body *')].filter(e => {
        const style = getComputedStyle(e);
        const seconds = times => Math.max(...times.split(',').map(parseFloat));
        // A transition of any length makes each element take an inherited colour a frame late.
        return seconds(style.transitionDuration) > 0 || seconds(style.animationDuration) > 0.001
            || style.scrollBehavior === 'smooth';
    }).map(e => e.outerHTML.slice(0, 80))""")
    assert slow == []


@pytest.mark.parametrize("width", site.WIDTHS)
@pytest.mark.parametrize("name", ["index", CHAPTER])
def test_pages_are_readable_without_scripts(chromium, address, name, width):
    context = chromium.new_context(
        java_script_enabled=False, viewport={"width": width, "height": 900}
    )
    page = context.new_page()
    page.goto(f"{address}/{name}.html")
    text = page.locator("article").inner_text()
    assert len(text) > 2000
    for paragraph in page.locator("article > section > p").all()[:5]:
        assert paragraph.is_visible()
    # The list of pages, and where a box is folded, its line.
    assert page.locator("#pst-primary-sidebar nav a").first.is_visible()
    for box in page.locator("article details.dropdown").all():
        box.locator("summary").click()
        assert box.locator(":scope > :not(summary)").first.is_visible()
    # A button that does nothing is worse than none.
    idle = [b.get_attribute("class") for b in page.locator("button:visible").all()]
    assert idle == []
    context.close()
