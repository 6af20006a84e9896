"""The learning plan in a browser: ticks that last, travel and go; its links; no JavaScript."""

import json
import sys
from collections import Counter
from pathlib import Path
from urllib.parse import urlsplit

import pytest

sys.path.insert(0, str(Path(__file__).parent))
import site_server as site

from book.read.chapters import load_plan, planned_chapters

PLAN = "chapters/start/plan"
CHAPTERS = planned_chapters(load_plan())
PUBLISHED = [slug for slug in CHAPTERS if f"chapters/{slug}" in site.pages()]
FIRST, SECOND = PUBLISHED[:2]
KEY = "llm-learn:read"
UNKNOWN = "basics/of-another-year"
NO_STORAGE = """Object.defineProperty(window, 'localStorage', {
    get() { throw new DOMException('denied', 'SecurityError'); } })"""

pytestmark = pytest.mark.skipif(site.missing() is not None, reason=site.missing() or "")


class Reader:
    """One reader's browser."""

    def __init__(self, context, address: str) -> None:
        self.context, self.address = context, address
        self.page, self.problems = context.new_page(), []
        self.page.on("pageerror", lambda error: self.problems.append(str(error)))

    def open(self, name: str = PLAN):
        self.page.goto(f"{self.address}/{name}.html")
        return self.page

    def boxes(self, slug: str):
        return self.page.locator(f'.tick[data-slug="{slug}"] input')

    def message(self) -> str:
        return self.page.locator(".ticks-message").inner_text()

    def status(self) -> str:
        return self.page.locator(".ticks-status").inner_text()

    def stored(self) -> list[str] | None:
        text = self.page.evaluate(f"localStorage.getItem('{KEY}')")
        return json.loads(text)["read"] if text else None

    def put(self, text: str) -> None:
        area = self.page.locator("#ticks-text")
        area.evaluate("(area, text) => { area.value = text; }", text)

    def press(self, name: str) -> None:
        details = self.page.locator(".ticks-panel details")
        details.evaluate("element => { element.open = true; }")
        self.page.get_by_role("button", name=name, exact=True).click()


@pytest.fixture
def reader(chromium, address):
    context = site.open_context(chromium, width=1280)
    reader = Reader(context, address)
    yield reader
    context.close()
    assert reader.problems == []


def test_a_tick_survives_a_reload_and_shows_everywhere(reader):
    page = reader.open()
    assert "Ticks need JavaScript" not in page.locator("article").inner_text()
    assert f"0 of {len(PUBLISHED)} published chapters" in reader.status()
    assert reader.boxes(FIRST).count() > 1  # among the parts, and at the plan's items
    reader.boxes(FIRST).first.check()
    assert all(box.is_checked() for box in reader.boxes(FIRST).all())
    page.reload()
    assert all(box.is_checked() for box in reader.boxes(FIRST).all())
    assert not reader.boxes(SECOND).first.is_checked()
    assert f"1 of {len(PUBLISHED)} published chapters" in reader.status()
    part = FIRST.split("/")[0]
    count = page.locator(f'.read-count[data-of="{part}"]').inner_text()
    assert count.startswith("You have read 1 of ")

    reader.open(f"chapters/{part}/index")
    assert reader.boxes(FIRST).is_checked()
    assert page.locator(".read-count").inner_text().startswith("You have read 1 of ")
    reader.open("chapters/start/routes")
    assert reader.boxes(FIRST).first.is_checked()
    reader.open(f"chapters/{FIRST}")
    assert page.get_by_label("I have read this chapter").is_checked()
    page.get_by_label("I have read this chapter").uncheck()
    reader.open()
    assert not reader.boxes(FIRST).first.is_checked() and reader.stored() is None


def test_the_keyboard_ticks_and_a_change_is_announced(reader):
    page = reader.open()
    name = reader.boxes(FIRST).first.get_attribute("aria-label")
    box = page.get_by_role("checkbox", name=name, exact=True).first
    box.focus()
    page.keyboard.press("Space")
    assert box.is_checked()
    assert page.locator(".ticks-status").get_attribute("role") == "status"
    assert reader.status().startswith("You have read 1 of ")


def test_ticks_travel_as_a_text(reader, chromium, address):
    reader.open()
    reader.boxes(SECOND).first.check()
    text = reader.page.locator("#ticks-text").input_value()
    assert json.loads(text)["read"] == [SECOND]

    context = site.open_context(chromium, width=1280)
    other = Reader(context, address)
    other.open()
    other.boxes(FIRST).first.check()
    other.put(text)
    other.press("Import this text")
    assert other.message() == "Imported: 1 new."
    other.page.reload()
    assert sorted(other.stored()) == sorted([FIRST, SECOND])
    assert other.boxes(FIRST).first.is_checked() and other.boxes(SECOND).first.is_checked()
    context.close()


def test_ticks_travel_as_a_file(reader, tmp_path):
    page = reader.open()
    reader.boxes(FIRST).first.check()
    with page.expect_download() as download:
        reader.press("Save as a file")
    path = tmp_path / "ticks.json"
    download.value.save_as(path)
    reader.boxes(FIRST).first.uncheck()
    with page.expect_file_chooser() as chooser:
        reader.press("Import a file")
    chooser.value.set_files(path)
    page.wait_for_function("document.querySelector('.ticks-message').textContent !== ''")
    assert reader.message() == "Imported: 1 new."
    assert reader.boxes(FIRST).first.is_checked()


def test_ticks_are_copied(reader):
    reader.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page = reader.open()
    reader.boxes(FIRST).first.check()
    reader.press("Copy")
    page.wait_for_function(
        "document.querySelector('.ticks-message').textContent === 'Copied.'"
    )
    assert json.loads(page.evaluate("navigator.clipboard.readText()"))["read"] == [FIRST]


@pytest.mark.parametrize(
    "text", ["", "no JSON", "[]", "null", '{"read": 3}', '{"read": [1]}']
)
def test_another_text_is_refused_and_changes_nothing(reader, text):
    reader.open()
    reader.boxes(FIRST).first.check()
    reader.put(text)
    reader.press("Import this text")
    assert reader.message().startswith("Nothing was imported: this is not a text of ticks")
    assert reader.stored() == [FIRST]


def test_clearing_asks_first(reader):
    page = reader.open()
    reader.boxes(FIRST).first.check()
    asked = []

    def answer(dialog):
        asked.append(dialog.message)
        dialog.accept() if len(asked) == 2 else dialog.dismiss()

    page.on("dialog", answer)
    reader.press("Clear all ticks")
    assert reader.boxes(FIRST).first.is_checked() and reader.stored() == [FIRST]
    reader.press("Clear all ticks")
    assert not reader.boxes(FIRST).first.is_checked() and reader.stored() is None
    assert asked == ["Clear the one tick in this browser?"] * 2


def test_clearing_counts_what_the_book_knows_and_asks_only_where_there_is_something(reader):
    page, asked = reader.open(), []
    page.on("dialog", lambda dialog: (asked.append(dialog.message), dialog.accept()))
    reader.press("Clear all ticks")
    assert asked == [] and reader.message() == "There is nothing to clear."
    reader.boxes(FIRST).first.check()
    reader.boxes(SECOND).first.check()
    reader.put(json.dumps({"read": [UNKNOWN]}))
    reader.press("Import this text")
    reader.press("Clear all ticks")
    assert asked == ["Clear all 2 ticks in this browser?"] and reader.stored() is None
    reader.put(json.dumps({"read": [UNKNOWN]}))
    reader.press("Import this text")
    reader.press("Clear all ticks")
    assert "does not have yet" in asked[1] and reader.stored() is None


@pytest.mark.parametrize(
    ("slugs", "message"),
    [
        ([UNKNOWN, FIRST], "Imported: 1 new. 1 is no chapter of this site yet."),
        ([UNKNOWN, UNKNOWN + "-2"], "Imported: 0 new. 2 are no chapters of this site yet."),
        ([FIRST, FIRST], "Imported: 1 new."),
    ],
)
def test_an_import_keeps_chapters_of_another_year_and_says_so(reader, slugs, message):
    reader.open()
    reader.put(json.dumps({"read": slugs}))
    reader.press("Import this text")
    assert reader.message() == message
    assert sorted(reader.stored()) == sorted(set(slugs))
    assert f"You have read {int(FIRST in slugs)} of " in reader.status()


def test_chapters_that_the_book_does_not_know_are_kept_and_not_counted(reader):
    page = reader.open()
    stored = json.dumps({"read": [UNKNOWN, FIRST]})
    page.evaluate("text => localStorage.setItem('llm-learn:read', text)", stored)
    page.reload()
    assert reader.status().startswith("You have read 1 of ")
    reader.boxes(SECOND).first.check()
    assert sorted(reader.stored()) == sorted([UNKNOWN, FIRST, SECOND])


def test_a_tick_follows_its_chapter_into_another_part(reader):
    page = reader.open()
    old = "older/" + FIRST.split("/")[1]
    stored = json.dumps({"read": [UNKNOWN, old]})
    page.evaluate("text => localStorage.setItem('llm-learn:read', text)", stored)
    page.reload()
    assert reader.status().startswith("You have read 1 of ")
    reader.boxes(SECOND).first.check()
    assert sorted(reader.stored()) == sorted([UNKNOWN, FIRST, SECOND])


@pytest.mark.parametrize("stored", ["not JSON", '{"read": 3}', "[]"])
def test_a_damaged_store_is_no_error(reader, stored):
    page = reader.open()
    page.evaluate("text => localStorage.setItem('llm-learn:read', text)", stored)
    page.reload()
    assert reader.status().startswith("You have read 0 of ")
    reader.boxes(FIRST).first.check()
    assert reader.stored() == [FIRST]


def test_a_browser_that_stores_nothing_says_so(chromium, address):
    context = chromium.new_context(viewport={"width": 1280, "height": 900})
    context.add_init_script(NO_STORAGE)
    reader = Reader(context, address)
    reader.open()
    assert "does not let this page store anything" in reader.message()
    reader.boxes(FIRST).first.check()
    assert reader.status().startswith("You have read 1 of ")
    assert all(box.is_checked() for box in reader.boxes(FIRST).all())
    context.close()


def test_a_tick_in_another_tab_arrives(reader):
    reader.open()
    other = Reader(reader.context, reader.address)
    other.open(f"chapters/{FIRST}")
    other.page.get_by_label("I have read this chapter").check()
    selector = f'.tick[data-slug="{FIRST}"] input'
    reader.page.wait_for_function(
        "selector => document.querySelector(selector).checked", arg=selector
    )
    assert other.problems == []


def test_without_javascript_everything_but_the_boxes_is_there(chromium, address):
    context = chromium.new_context(
        viewport={"width": 390, "height": 900}, java_script_enabled=False
    )
    page = context.new_page()
    page.goto(f"{address}/{PLAN}.html")
    assert page.locator(".tick input").count() == 0
    assert not page.locator(".ticks-panel").is_visible()
    assert page.locator("noscript p").is_visible()
    assert page.get_by_text("needs no other chapter").first.is_visible()
    assert page.get_by_text(
        "RLHF (Reinforcement Learning from Human Feedback)"
    ).is_visible()
    page.goto(f"{address}/chapters/{FIRST}.html")
    assert not page.locator(".chapter-end").is_visible()
    context.close()


def test_the_part_lists_link_every_part_chapter_and_prerequisite(chromium, address):
    context = site.open_context(chromium, width=1280)
    page = context.new_page()
    page.goto(f"{address}/{PLAN}.html")
    links = page.locator(".plan-parts a.internal").evaluate_all(
        "all => all.map(a => a.href)"
    )
    wanted = [f"{part['name']}/index" for part in load_plan()["parts"]]
    for slug in PUBLISHED:
        wanted += [slug, *(p for p in CHAPTERS[slug]["prerequisites"] if p in PUBLISHED)]
    found = Counter(urlsplit(link).path.removeprefix("/chapters/") for link in links)
    missing = Counter(f"{name}.html" for name in wanted) - found
    assert missing == Counter()
    for name in found:
        assert (site.HTML / "chapters" / name).is_file(), name
    context.close()


def test_only_pages_with_something_to_tick_load_the_script():
    for name in site.pages():
        html = (site.HTML / f"{name}.html").read_text(encoding="utf-8")
        assert ("_static/ticks.js" in html) == ('class="tick"' in html), name
    assert "ticks.js" in (site.HTML / f"{PLAN}.html").read_text(encoding="utf-8")
