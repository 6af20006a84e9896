"""Figures that run: what the build refuses, what it writes, and rules for their modules."""

import base64
import gzip
import json
import re

import nbformat
import pytest
from smallbook import SmallBook, chapter

from book.pages import live_figures
from book.pages.live_figures import LIVE, weights_path
from book.read.chapters import ROOT
from llm_learn.javascript.scripts import ENGINE
from llm_learn.notebook import PREFIX, TRACE, trace_figure

pytestmark = pytest.mark.filterwarnings("default")
MODULES = [
    *ENGINE.glob("*.js"),
    *(path for path in LIVE.glob("*.js") if path.stem != "loader"),
]
ALT = (
    "A picture with so many words of description that nothing more has to be said about it."
)


# --- What travels ---


def test_the_script_is_small():
    assert len(gzip.compress(live_figures.script().encode())) <= 30_000


def test_weights_are_few_and_small():
    files = [*(ROOT / "experiments").glob("*.safetensors")]
    assert 1 <= len(files) <= 3
    assert all(file.stat().st_size <= 1_250_000 for file in files)


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.stem)
def test_a_module_sets_text_and_asks_nobody(path):
    text = path.read_text(encoding="utf-8")
    assert text.startswith("/** ")
    assert not re.search(
        r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\b|new Function|fetch\(|XMLHttpRequest|https?:|@import",
        text,
    )


def test_colours_are_those_of_the_theme():
    text = (LIVE / "live.css").read_text(encoding="utf-8")
    assert not re.search(r"#[0-9a-fA-F]{3,8}\b|rgba?\(|hsl", text)
    assert {*re.findall(r"color: ([^;]+);", text)} <= {
        *re.findall(r"color: (var\(--pst-color-[\w-]+\));", text)
    }


def test_every_weights_file_is_verified_on_the_page_of_proofs():
    page = (ROOT / "chapters/capstone/figures-proved.md").read_text(encoding="utf-8")
    for file in (ROOT / "experiments").glob("*.safetensors"):
        assert f'recorded_file("{file.name}")' in page


def test_every_operation_is_verified_on_the_page_of_proofs():
    page = (ROOT / "chapters/capstone/figures-proved.md").read_text(encoding="utf-8")
    verified = {*re.findall(r'verify\(\s*f?"(\w+) in JavaScript', page)}
    exported = {
        n
        for path in ENGINE.glob("*.js")
        for n in re.findall(r"^export function (\w+)", path.read_text(), re.M)
    }
    # `add` and `range` are in all the others; numbers are random, and the filter is in the probabilities.
    assert exported - verified == {"add", "range", "randomNumbers", "filterLogits"}


# --- What the build does ---


PIXEL = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)
FIGURE = f"```{{figure}} pixel.png\n:name: fig-alpha\n:alt: {ALT}\n\nLook at it.\n```\n"
LIVE_FIGURE = (
    "```{live} writer\n:figure: fig-alpha\n:model: gpt\n:text: To be,\\n or <not>\n```\n"
)
STEPS = [{"say": "One step is done."}, {"say": "Two steps are done."}]


@pytest.fixture
def book(tmp_path):
    """A book whose only chapter has a figure; `traced` is what a cell of it recorded."""
    book = SmallBook(tmp_path)
    conf = (book.root / "conf.py").read_text(encoding="utf-8")
    book.write("conf.py", conf.replace("]\n", ', "book.pages.live_figures"]\n', 1))
    book.index("chapters/first-model/gpt")
    (book.root / "chapters/first-model").mkdir(parents=True)
    (book.root / "chapters/first-model/pixel.png").write_bytes(PIXEL)
    return book


def build(book, body=""):
    book.write(
        "chapters/first-model/gpt.md",
        chapter("GPT", f"{FIGURE}\n{body}\n```{{code-cell}}\n1 + 1\n```\n"),
    )
    return book.build()


def box_of(book):
    page = book.page("chapters/first-model/gpt")
    (box,) = page.select(".live")
    assert len(page.select("script[src*='loader-']")) == 1
    assert box.select("figure#fig-alpha img"), "the image stays inside"
    return box


def written(book, address: str) -> str:
    return (book.root / "_build/html/chapters/first-model" / address).read_text(
        encoding="utf-8"
    )


def record(book, monkeypatch, kind, name):
    """Has the executed chapter hold a trace; without an execution, its notebook is written by every build."""
    trace = {"kind": kind, "data": {"steps": STEPS}}
    output = nbformat.v4.new_output("display_data", {TRACE: json.dumps(trace)})
    output["metadata"] = {"scrapbook": {"name": name, "mime_prefix": PREFIX}}
    cells = [
        nbformat.v4.new_code_cell("", outputs=[output]),
        nbformat.v4.new_markdown_cell("x"),
    ]
    book.write(
        "_build/executed.ipynb", nbformat.writes(nbformat.v4.new_notebook(cells=cells))
    )
    path = book.root / "_build/executed.ipynb"
    monkeypatch.setattr(live_figures, "notebook_path", lambda *_: path)


@pytest.mark.slow
def test_a_trace_runs_at_once_under_the_name_of_its_figure(book, monkeypatch):
    record(book, monkeypatch, "beam", "fig-alpha")
    assert build(book) == ""
    box = box_of(book)
    assert box["data-kind"] == "beam" and json.loads(box["data-data"]) == {
        "trace": "fig-alpha"
    }
    text = written(book, json.loads(box["data-files"])["fig-alpha"])
    assert json.loads(text.partition("] = ")[2].rstrip(";\n")) == {"steps": STEPS}
    assert not box.select("button")
    loader = book.page("chapters/first-model/gpt").select_one("script[src*='loader-']")
    assert len(written(book, loader["src"]).encode()) < 1_000


@pytest.mark.slow
def test_a_model_asks_first_and_gets_the_text(book):
    assert build(book, LIVE_FIGURE) == ""
    box = box_of(book)
    assert json.loads(box["data-data"]) == {"model": "gpt", "text": "To be,\n or <not>"}
    text = written(book, json.loads(box["data-files"])["gpt"])
    weights = base64.b64decode(json.loads(text.partition("] = ")[2].rstrip(";\n")))
    assert weights == weights_path("gpt").read_bytes()
    (button,) = box.select("button[hidden]")
    assert re.fullmatch(r"Run it here \(loads 1\.\d MB\)", button.get_text())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("body", "traced", "message"),
    [
        (
            "",
            ("beam", "fig-beta"),
            "'fig-beta' of kind 'beam': expected a figure of this page",
        ),
        (
            "",
            ("clock", "fig-alpha"),
            "'fig-alpha' of kind 'clock': expected a figure of this page, and a kind",
        ),
        (LIVE_FIGURE.replace("fig-alpha", "fig-beta"), None, "'fig-beta' of kind 'writer'"),
        (
            LIVE_FIGURE.replace(":model: gpt\n", ""),
            None,
            "{live} needs :model:, :text:, and either",
        ),
        (
            LIVE_FIGURE.replace(":figure: fig-alpha\n", ""),
            None,
            "either :figure: or content",
        ),
        (
            LIVE_FIGURE.replace(": gpt", ": bert"),
            None,
            "there is no experiments/bert.safetensors",
        ),
    ],
)
def test_what_cannot_run_is_named(book, monkeypatch, body, traced, message):
    if traced:
        record(book, monkeypatch, *traced)
    assert message in build(book, body)


class TestTrace:
    def test_it_is_stored_as_text_that_no_page_shows(self, shown):
        trace_figure("fig-alpha", "beam", steps=STEPS)
        ((data, metadata),) = shown
        assert json.loads(data[TRACE]) == {"kind": "beam", "data": {"steps": STEPS}}
        assert metadata["scrapbook"]["name"] == "fig-alpha" and TRACE.startswith(PREFIX)

    @pytest.mark.parametrize(
        ("figure", "data", "message"),
        [
            ("alpha", {"steps": STEPS}, "figure"),
            ("fig-alpha", {"steps": []}, "steps"),
            ("fig-alpha", {"steps": STEPS[:1]}, "steps"),
            ("fig-alpha", {"steps": STEPS * 41}, "steps"),
            ("fig-alpha", {"steps": [{"say": "Short"}] * 2}, "say"),
            ("fig-alpha", {"steps": [{"say": "x" * 161}] * 2}, "say"),
            ("fig-alpha", {"merges": [1] * 20_000}, "text"),
            ("fig-alpha", {"odds": float("nan")}, "JSON"),
        ],
    )
    def test_what_a_figure_cannot_show_is_refused(self, shown, figure, data, message):
        with pytest.raises(ValueError, match=message):
            trace_figure(figure, "beam", **data)
        assert shown == []

    @pytest.fixture
    def shown(self, monkeypatch):
        shown = []
        monkeypatch.setattr("llm_learn.notebook._display", lambda *both: shown.append(both))
        return shown
