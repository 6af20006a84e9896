"""What a page with a head shows, of either edition: its head box, badges of optional sections, folded cells."""

import re

import pytest
from smallbook import SmallBook, chapter

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("default")]

FORM = {
    "hours": {"core": 1, "all": 2.5},
    "able": ["write `attention`", "predict its cost", "detect a leak"],
    "prerequisites": ["first-model/tokenization", "first-model/backpropagation"],
    "before": {
        "first-model/tokenization": "what `encode` returns?",
        "this": "why a mask is needed.",
    },
    "optional": ["cost-attention", "scale-attention", "experiment-attention-more"],
}
SECTIONS = (
    ("minute", "In one minute"),
    ("idea", "Soft *lookup*"),
    ("cost", "What it costs"),
    ("check", "The same as `F`"),
    ("scale", "At scale"),
    ("experiment-attention-more", "More data"),
    ("exercises", "Exercises"),
)
BODY = "\n\n".join(
    f"({label if '-' in label else f'{label}-attention'})=\n## {title}\n\nSome words."
    for label, title in SECTIONS
)
LONG = "\n".join(["x = 1"] * 26)
CELLS = {
    "": LONG,
    "setup": "import math",
    "data": "x = 2",
    "check": "x = 3",
    "check, show-input": "x = 4",
    "drawing": "x = 5",
    "results": "results(x=6)",
    "results, nbval-ignore-output": "show_table(x)",
    "packaged": LONG.replace("x", "y"),
    "packaged, other": "y = 1",
    "exercise-checker, hide-input": "x = 7",
}


def cells() -> str:
    return "\n\n".join(
        f"```{{code-cell}}\n:tags: [{tags}]\n{code}\n```" for tags, code in CELLS.items()
    )


FOLDS = ["Imports", "Data and models", "Check", "Drawing", "Numbers of this section"]
FOLDS += ["Numbers of this section", "The packaged version"]


@pytest.fixture(params=[1, 2])
def book(tmp_path, request) -> SmallBook:
    form = {"edition": request.param, **FORM}
    book = SmallBook(tmp_path)
    conf = (tmp_path / "conf.py").read_text(encoding="utf-8")
    book.write(
        "conf.py", conf.replace('"myst_nb",', '"myst_nb", "book.site.accessibility",')
    )
    names = ["tokenization", "attention", "gpt"]
    book.index(*(f"chapters/first-model/{name}" for name in names))
    book.write("chapters/first-model/tokenization.md", chapter("Tokens", cells()))
    book.write(
        "chapters/first-model/attention.md",
        chapter("Attention", f"{cells()}\n\n{BODY}", **form),
    )
    short = form | {"prerequisites": [], "optional": [], "hours": {"core": 1, "all": 1}}
    short.pop("before")
    book.write("chapters/first-model/gpt.md", chapter("GPT", **short))
    return book


def folds(page) -> list[list[str]]:
    return [
        [p.get_text() for p in fold.select("summary > p")]
        for fold in page.select("details.hide")
    ]


def test_the_page_shows_its_form(book):
    book.record("first-model/attention", [])
    assert book.build() == ""
    page = book.page("chapters/first-model/attention")
    (box,) = page.select(".chapter-box")
    facts = {
        term.get_text(): [p.get_text() for p in definition.select("p")]
        for term, definition in zip(box.select("dt"), box.select("dd"), strict=True)
    }
    assert facts == {
        "You will be able to": ["write attention", "predict its cost", "detect a leak"],
        "Before this": [
            "Tokens; skip it if you can say what encode returns.",
            "Tensors and backpropagation",
            "Skip this chapter if you can say why a mask is needed.",
        ],
        "Time": [
            "Core: 1 hour. With all optional sections: 2.5 hours. Running all cells: 12 seconds of one processor core, "
            "0.4 GiB of memory (measured in this build)."
        ],
        "Core": ["Soft lookup · The same as F"],
        "Optional": ["What it costs · At scale · More data"],
    }
    assert [code.get_text() for code in box.select("dd code")] == [
        "attention",
        "encode",
        "F",
    ]
    assert box.select_one("dd em").get_text() == "lookup"
    for link in box.select("dd a[href^='#']"):
        heading = page.find(id=link["href"][1:]).find("h2").get_text()
        assert heading.startswith(link.get_text()), heading

    badged = [badge.parent.get_text() for badge in page.select("h2 .optional-badge")]
    assert [re.sub("¶$", "", text) for text in badged] == [
        f"{title} (optional)" for title in ("What it costs", "At scale", "More data")
    ]
    onwards = [p.get_text() for p in page.select("p.onwards")]
    assert onwards == [
        "Next core section: The same as F",
        "Continue with: Exercises",
        "Continue with: Exercises",
    ]
    assert [p.find_previous(["h2", "p"]).name for p in page.select("p.onwards")] == [
        "h2"
    ] * 3

    assert folds(page) == [
        *([title] * 2 for title in FOLDS),
        ["Show the checker", "Hide the checker"],
    ]
    assert (
        book.page("chapters/first-model/gpt").select(".chapter-box dt")[-1].get_text()
        == "Time"
    )
    assert (
        "No other chapter."
        in book.page("chapters/first-model/gpt").select_one("dl").get_text()
    )


def test_a_page_without_optional_sections_has_no_badge(book):
    assert book.build() == ""
    page = book.page("chapters/first-model/tokenization")
    assert [first for first, _ in folds(page)] == [*FOLDS, "Show the checker"]
    assert not page.select(".optional-badge")
    names = [term.get_text() for term in page.select(".chapter-box dt")]
    assert names == ["You will be able to", "Before this", "Time"]
