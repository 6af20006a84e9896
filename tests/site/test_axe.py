"""Every page in the eyes of axe-core: no finding, in either theme, from a phone to a desk."""

import pytest
import site_server as site

PAGES = [*site.pages(), "search", "genindex"]
# One page of each kind. The chapter has figures, tables, mathematics, exercises and folded code.
KINDS = [
    "index",
    "chapters/first-model/index",
    "chapters/first-model/attention",
    "chapters/start/plan",
    "chapters/start/notation",
    "chapters/start/bibliography",
    "search",
    "genindex",
]
# Of long lists, where axe takes half a minute each, one width is enough: their entries are all alike.
LISTS = ["chapters/start/notation", "chapters/start/bibliography"]
# A theme moves nothing, so that each width but the widest is looked at in one of them.
MODES = [
    (name, theme, width)
    for name in KINDS
    for theme, width in (
        [("light", 390), ("dark", 970), ("light", 1280), ("dark", 1280)]
        if name not in LISTS
        else [("light", 390), ("dark", 390)]
    )
]
# The others as they are first seen.
MODES += [(name, "light", 1280) for name in PAGES if name not in KINDS]

pytestmark = pytest.mark.skipif(site.missing() is not None, reason=site.missing() or "")

# Opens what is folded: axe judges what can be seen. Of the thousands of tokens in highlighted code, one of each
# colour on each ground stays, so that a page takes a second rather than ten; the others have the same contrast.
# Of a formula, in which axe would find no pale text either, the text stays.
PREPARE = """() => {
    document.querySelectorAll('details').forEach(details => { details.open = true; });
    document.querySelectorAll('math').forEach(math => { math.replaceChildren(math.textContent); });
    const seen = new Set(), same = [];
    for (const token of document.querySelectorAll('.highlight pre span:not(:has(*))')) {
        const style = getComputedStyle(token), ground = getComputedStyle(token.closest('pre'));
        const look = [style.color, style.backgroundColor, style.fontWeight, ground.backgroundColor].join();
        if (seen.has(look) && !token.id) { same.push(token); }
        seen.add(look);
    }
    same.forEach(token => token.replaceWith(token.textContent));
}"""
# All of axe's rules, its best practices too; none is switched off.
RUN = """() => axe.run({resultTypes: ['violations']}).then(({violations}) => violations.flatMap(
    rule => rule.nodes.map(node => `${rule.id}: ${node.target.join(' ')}: ${node.html.slice(0, 120)}: `
        + node.failureSummary.split('\\n').slice(1).join(' '))))"""


@pytest.fixture(scope="module")
def reader():
    """Gives a page of that theme and width; there is one for each, since starting one takes long."""
    with site.serve() as address, site.browser() as chromium:
        pages = {}

        def open_page(name: str, theme: str, width: int):
            if (theme, width) not in pages:
                pages[theme, width] = site.open_context(
                    chromium, width=width, theme=theme
                ).new_page()
            page = pages[theme, width]
            page.goto(f"{address}/{name}.html")
            site.settle(page)
            assert page.get_attribute("html", "data-theme") == theme
            return page

        yield open_page


def findings(page, axe_script: str) -> list[str]:
    page.evaluate(PREPARE)
    page.evaluate(axe_script)
    return page.evaluate(RUN)


@pytest.mark.parametrize(("name", "theme", "width"), MODES)
def test_axe_finds_nothing(reader, axe_script, name, theme, width):
    assert findings(reader(name, theme, width), axe_script) == []


@pytest.mark.parametrize("theme", site.THEMES)
@pytest.mark.parametrize(
    ("opener", "dialog"),
    [
        (".primary-toggle:visible", "#pst-primary-sidebar-modal"),
        (".secondary-toggle:visible", "#pst-secondary-sidebar-modal"),
        (".search-button__button:visible", "#pst-search-dialog"),
    ],
)
def test_axe_finds_nothing_in_an_open_dialog(reader, axe_script, theme, opener, dialog):
    page = reader("chapters/first-model/attention", theme, 390)
    page.locator(opener).first.click()
    page.wait_for_selector(f"{dialog}[open]")
    assert findings(page, axe_script) == []


DAMAGE = {
    "image-alt": "document.querySelector('article img').removeAttribute('alt')",
    "html-has-lang": "document.documentElement.removeAttribute('lang')",
    "region": "document.querySelector('#pst-primary-sidebar').removeAttribute('role')",
    "heading-order": "document.querySelector('article h2').outerHTML = '<h5>x</h5>'",
    "link-name": "document.querySelector('article p a.reference').innerHTML = ''",
}
PALE = (
    "article p",
    ".cell:not(.tag_setup) .highlight .k",
    "details.hint p:not(.admonition-title)",
)


def test_axe_finds_what_is_broken(reader, axe_script):
    page = reader("chapters/first-model/attention", "light", 1280)
    for damage in DAMAGE.values():
        page.evaluate(damage)
    for selector in PALE:
        # At once: a colour that still fades is that of its neighbours.
        style = "color: #aaa; transition: none"
        page.evaluate(f"document.querySelector('{selector}').style = '{style}'")
    rules = [finding.split(":")[0] for finding in findings(page, axe_script)]
    assert rules.count("color-contrast") == len(PALE)
    assert set(rules) == {*DAMAGE, "color-contrast"}
