"""Figures that run in the page: by mouse and keyboard, on a phone, from a file, without a script, in print, and their checks."""

import base64
import json
import re
import zipfile

import nbformat
import pytest
import site_server as site
from test_axe import RUN

from book.export.epub import FILE
from llm_learn.notebook import recorded_file

pytestmark = pytest.mark.skipif(site.missing() is not None, reason=site.missing() or "")

TOKENS = "chapters/first-model/tokenization", "fig-tokenization-tree"
BEAM = "chapters/origins/seq2seq", "fig-seq2seq-beam"
WRITER = "chapters/first-model/gpt", "fig-gpt-writer"
HEADS = "chapters/first-model/attention", "fig-attention-recorded"
FRONT = "index", ""
FIGURES = [TOKENS, BEAM, WRITER, HEADS, FRONT]
NAMES = ["tokens", "beam", "writer", "heads", "front"]
every_figure = pytest.mark.parametrize("figure", FIGURES, ids=NAMES)


@pytest.fixture
def live(chromium, address):
    """Opens a page and its figure; gives the box, with `requests` and `problems` on its page."""
    contexts = []

    def open_figure(
        figure,
        *,
        width=1280,
        theme="light",
        where=address,
        prepare=None,
        start=True,
        **options,
    ):
        name, anchor = figure
        context = (
            site.open_context(chromium, width=width, theme=theme)
            if not options
            else chromium.new_context(**options)
        )
        contexts.append(context)
        page = context.new_page()
        page.requests, page.problems = [], []
        page.on("request", lambda request: page.requests.append(request.url))
        page.on("pageerror", lambda error: page.problems.append(str(error)))
        if prepare:
            prepare(page)
        page.goto(f"{where}/{name}.html")
        page.wait_for_load_state("load")
        box = page.locator(f".live:has([id='{anchor}'])" if anchor else ".live")
        if start:
            run(box)
        return box

    yield open_figure
    for context in contexts:
        context.close()


def run(box) -> None:
    """Scrolls to a figure, asks for its model where it has one, and waits until it runs."""
    box.scroll_into_view_if_needed()
    if button := box.locator(".live-start").all():
        button[0].click()
    box.locator(".live-check, .live-player").last.wait_for()


@every_figure
@pytest.mark.parametrize("width", site.WIDTHS)
@pytest.mark.parametrize("theme", site.THEMES)
def test_a_figure_runs_and_asks_no_other_site(live, address, figure, width, theme):
    box = live(figure, width=width, theme=theme)
    page = box.page
    assert box.locator(".live-figure").count() == 1
    assert not box.locator("img").first.is_visible(), "the image gives way"
    assert page.problems == []
    assert [u for u in page.requests if not u.startswith((f"{address}/", "data:"))] == []
    assert page.evaluate("document.scrollingElement.scrollWidth <= innerWidth")
    if figure is not BEAM:
        assert "✓ Checked in this browser" in box.locator(".live-check").inner_text()


@every_figure
def test_a_figure_runs_from_a_file(live, figure):
    box = live(figure, where=f"file://{site.HTML}")
    assert box.locator(".live-figure").is_visible()
    assert box.page.problems == []
    assert [u for u in box.page.requests if not u.startswith(("file:", "data:"))] == []


@pytest.mark.parametrize("figure", [WRITER, HEADS, FRONT], ids=NAMES[2:])
def test_weights_are_loaded_on_a_click_only(live, figure):
    box = live(figure, start=False)
    box.scroll_into_view_if_needed()
    box.page.wait_for_timeout(500)
    assert [
        url for url in box.page.requests if "/_live/gpt-" in url or "/_live/live-" in url
    ] == []
    assert box.locator("img").first.is_visible()
    assert re.fullmatch(
        r"Run it here \(loads 1\.\d MB\)", box.locator(".live-start").inner_text()
    )
    run(box)
    assert len([url for url in box.page.requests if "/_live/gpt-" in url]) == 1


def test_a_figure_far_away_loads_nothing(live):
    box = live(TOKENS, start=False)
    box.page.wait_for_timeout(300)
    assert [u for u in box.page.requests if "/_live/" in u and "/loader-" not in u] == []


@every_figure
def test_without_scripts_the_image_stays(live, figure):
    box = live(figure, start=False, java_script_enabled=False)
    assert box.locator("img").first.is_visible()
    assert (
        not box.locator(".live-start").is_visible()
        if box.locator(".live-start").count()
        else True
    )


@every_figure
def test_where_the_script_is_missing_the_image_stays(live, figure):
    def block(page):
        page.route(re.compile(r"/_live/live-\w+\.js"), lambda route: route.abort())

    box = live(figure, start=False, prepare=block)
    box.scroll_into_view_if_needed()
    if box.locator(".live-start").count():
        box.locator(".live-start").click()
    box.page.wait_for_timeout(500)
    assert box.locator("img").first.is_visible()


@every_figure
def test_print_shows_the_image(live, figure):
    box = live(figure)
    box.page.emulate_media(media="print")
    assert box.locator("img").first.is_visible()
    assert not box.locator(".live-figure").is_visible()


@every_figure
def test_the_epub_and_the_notebook_have_the_image(figure):
    name, anchor = figure
    if anchor:
        notebook = nbformat.read(
            site.ROOT / "_build/notebooks" / f"{name}.ipynb", as_version=4
        )
        cells = [
            cell
            for cell in notebook.cells
            if any("image/png" in o.get("data", {}) for o in cell.get("outputs", []))
        ]
        assert any(
            "load_for_javascript" in cell.source or "trace_figure(" in cell.source
            for cell in cells
        )
        assert not any("{live}" in cell.source for cell in notebook.cells)
    with zipfile.ZipFile(site.HTML / FILE) as epub:
        text = "".join(epub.read(n).decode() for n in epub.namelist() if n.endswith("html"))
    assert "Run it here" not in text and "_live/" not in text
    assert not anchor or f"--{anchor}" in text


# --- What a reader does ---


def test_the_tokenizer_by_keyboard(live):
    box = live(TOKENS)
    page = box.page
    box.locator("textarea").focus()
    page.keyboard.press("Control+A")
    page.keyboard.type("Romeo wherefore")
    assert (
        box.locator(".live-said").first.inner_text() == "15 characters, 15 bytes, 4 tokens."
    )
    page.keyboard.press("Tab")
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    chunks = box.locator(".live-chunk")
    assert [c.get_attribute("aria-pressed") for c in chunks.all()] == ["false", "true"]
    slider = box.locator("input[type=range]")
    slider.focus()
    assert slider.get_attribute("aria-valuetext").startswith("1 of ")
    page.keyboard.press("ArrowRight")
    assert "Merge 1 of" in box.locator(".live-player .live-said").inner_text()
    page.keyboard.press("End")
    row = box.locator(".live-tokens").last.locator(".live-token").all_inner_texts()
    pressed = chunks.nth(1).locator(".live-token").all_inner_texts()
    assert row == pressed, "the last merge gives the tokens of the chunk"


def test_odd_texts_keep_their_characters(live):
    box = live(TOKENS)
    for text in ("", "<b>& 🙂", "a\u0085b \ufeff", "\t中"):
        box.locator("textarea").fill(text)
        assert f"{len(text)} characters" in box.locator(".live-said").first.inner_text()
    assert box.locator(".live-figure b").count() == 0, "a text is never markup"
    assert box.page.problems == []


def test_the_stepper_plays_only_when_asked_and_stops_when_out_of_sight(live):
    box = live(BEAM)
    slider, said = box.locator("input[type=range]"), box.locator(".live-said")
    box.page.wait_for_timeout(1500)
    assert slider.input_value() == "0"
    box.get_by_role("button", name="Back").press("Enter")
    assert slider.input_value() == "0" and said.get_attribute("aria-live") == "polite"
    box.get_by_role("button", name="Play").click()
    assert slider.input_value() == "1" and said.get_attribute("aria-live") == "off"
    box.page.evaluate("scrollTo(0, 0)")
    box.page.wait_for_timeout(300)
    assert box.get_by_role("button", name="Play").count() == 1
    box.scroll_into_view_if_needed()
    for _ in range(30):
        box.get_by_role("button", name="Next").press("Enter")
    assert "(end)" in box.locator(".live-bars").inner_text()
    assert box.get_by_role("button", name="Next").get_attribute("aria-disabled") == "true"


def probabilities(box) -> list[float]:
    return [
        float(t.removesuffix(" %"))
        for t in box.locator(".live-bars td:last-child").all_inner_texts()
    ]


def test_the_writer_changes_probabilities_and_generates(live):
    box = live(WRITER)
    before, names = probabilities(box), box.locator(".live-bars th").all_inner_texts()
    box.get_by_label("Temperature").fill("0.5")
    assert probabilities(box)[0] > before[0]
    assert box.locator(".live-bars th").all_inner_texts() == names
    box.get_by_label("Top-k").fill("2")
    assert [p > 0 for p in probabilities(box)] == [True] * 4 + [False] * 6
    assert "; 4 tokens have a probability above 0" in box.locator(".live-said").inner_text()
    box.get_by_label("Top-k").fill("12")
    box.get_by_label("Temperature").fill("0")
    assert probabilities(box) == [100] + [0] * 9
    text = box.locator("textarea").input_value()
    longer = generate(box)
    assert longer.startswith(text) and len(longer) > len(text)
    box.locator("textarea").fill("")
    assert box.locator(".live-said").inner_text() == "Write something first."
    box.get_by_role("button", name="Generate 20 tokens").press("Enter")
    assert box.locator("textarea").input_value() == "" and box.page.problems == []


def test_the_heads_follow_block_head_and_query_by_keyboard(live):
    box = live(HEADS)
    said = box.locator(".live-said")
    first = said.inner_text()
    box.get_by_label("Head").focus()
    box.page.keyboard.press("ArrowRight")
    assert "head 2" in said.inner_text() and said.inner_text() != first
    token = box.locator(".live-token").nth(1)
    token.focus()
    box.page.keyboard.press("Enter")
    assert token.get_attribute("aria-pressed") == "true"
    weights = box.locator(".live-token small").all_inner_texts()
    assert weights[2:] == ["–"] * len(weights[2:]), "the future is masked"
    assert sum(int(w.removesuffix(" %")) for w in weights[:2]) in (99, 100, 101)


@pytest.mark.parametrize("name", ["blocks.1.mlp.up.weight", "token_embedding.weight"])
def test_a_wrong_weight_turns_the_check_red(live, name):
    data = bytearray(recorded_file("gpt.safetensors").read_bytes())
    start = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:start])
    offset = start + header[name]["data_offsets"][0]
    data[offset] = (data[offset] + 64) % 256

    def damage(page):
        text = f"(window.liveData ??= {{}})['gpt'] = '{base64.b64encode(data).decode()}';"
        page.route(
            re.compile(r"/_live/gpt-"),
            lambda route: route.fulfill(body=text, content_type="text/javascript"),
        )

    box = live(WRITER, prepare=damage)
    wrong = box.locator(".live-wrong")
    assert "✗ This browser computes something else" in wrong.inner_text()


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("epsilon = 1e-5", "epsilon = 1e-6"),
        ("0.044715", "0.0474715"),
        ("const position = this.ids.length;", "const position = this.ids.length + 1;"),
    ],
    ids=["epsilon", "GELU", "position"],
)
def test_a_mistake_in_the_engine_turns_the_check_red(live, old, new):
    def damage(page):
        def mistaken(route):
            text = route.fetch().text()
            assert text.count(old) == 1
            route.fulfill(body=text.replace(old, new), content_type="text/javascript")

        page.route(re.compile(r"/_live/live-\w+\.js"), mistaken)

    box = live(HEADS, prepare=damage)
    assert (
        "✗ This browser computes something else" in box.locator(".live-wrong").inner_text()
    )


@pytest.mark.parametrize("missing", ["live", "gpt"])
def test_what_did_not_load_is_said_and_can_be_repeated(live, missing):
    pattern = re.compile(rf"/_live/{missing}-\w+\.js")
    box = live(
        WRITER, start=False, prepare=lambda page: page.route(pattern, lambda r: r.abort())
    )
    box.locator(".live-start").click()
    box.get_by_text("Not loaded. Try again").wait_for()
    assert box.locator("img").first.is_visible()
    box.page.unroute(pattern)
    run(box)
    assert (
        box.locator(".live-figure").count() == 1 and box.locator(".live-start").count() == 0
    )


def generate(box) -> str:
    """Lets the model write its twenty tokens; gives the text."""
    box.get_by_role("button", name="Generate 20 tokens").press("Enter")
    area, last = box.locator("textarea"), None
    while last != (last := area.input_value()):
        box.page.wait_for_timeout(400)
    assert area.evaluate("e => e.scrollTop + e.clientHeight >= e.scrollHeight - 1")
    return last


def test_the_writer_by_keyboard_alone(live):
    box = live(WRITER, start=False)
    page = box.page
    box.locator(".live-start").focus()
    page.keyboard.press("Enter")
    box.locator(".live-check").wait_for()
    assert box.evaluate("box => box.getBoundingClientRect().top >= 0"), "its top is in view"
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.tagName") == "TEXTAREA"
    page.keyboard.press("Control+A")
    page.keyboard.type("My lord")
    for label in ("Temperature", "Top-k", "Top-p"):
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.labels[0].textContent") == label
        page.keyboard.press("ArrowLeft")
    assert box.locator("output").all_inner_texts() == ["0.9", "2048", "0.95"]
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Generate 20 tokens"
    assert generate(box).startswith("My lord")
    assert len(box.locator("textarea").input_value()) > len("My lord") + 20


@pytest.mark.parametrize("theme", site.THEMES)
@every_figure
def test_axe_finds_nothing_in_three_states(live, axe_script, figure, theme):
    box = live(figure, theme=theme, width=390, start=False)
    page = box.page
    page.evaluate(axe_script)

    def findings():
        return [f for f in page.evaluate(RUN) if "live" in f]

    assert findings() == []
    run(box)
    assert findings() == []
    for slider in box.locator("input[type=range]").all():
        slider.press("ArrowRight")
    if figure is not BEAM:
        box.locator("textarea").fill("Romeo! Romeo!")
    assert findings() == []
