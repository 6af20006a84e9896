"""The page of everything that was verified: what it shows of the records, and where its links lead."""

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_notebook, new_output
from smallbook import REPOSITORY, SmallBook, chapter, check

from book.execute.records import notebook_path
from book.pages import reference_comparisons
from book.pages.reference_comparisons import CHECK, check_labels, packaged_module, subject
from book.read.chapters import read_source

pytestmark = pytest.mark.filterwarnings("default")

BODY = """\
```{code-cell}
from torch.nn import functional as F
```

(check-attention)=
## Check it

```{code-cell}
verify_twice()
```

(cost-attention)=
## What it costs

```{code-cell}
:tags: [packaged]

# llm_learn.layers
def attend():
    pass
```

```{code-cell}
verify_once()
```
"""
CHECKS = [
    check("attend, forward", "F.softmax", 4.44e-16, 1e-10),
    check("attend, float32", "F.softmax", 1.2e-7, 1e-6, relative=True),
    check("count_flops", "torch.utils.flop_counter.FlopCounterMode", 0.0, 0.0),
    check("the slope at zero", "finite differences", 3e-5, 1e-3),
    check("Layer.attend, twice", "F.softmax", 0.0, 1e-3),
]

LAYERS = "def attend():\n    pass\n\n\nclass Layer:\n    pass\n"


@pytest.fixture
def book(tmp_path) -> SmallBook:
    book = SmallBook(tmp_path)
    book.index("chapters/first-model/attention", "chapters/capstone/verified")
    book.write("chapters/first-model/attention.md", chapter("Attention", BODY))
    book.write(
        "chapters/capstone/verified.md",
        "# Verified\n\n```{verified} totals\n```\n\n## All\n\n```{verified} chapters\n```\n",
    )
    book.write("code/llm_learn/layers.py", LAYERS)
    return book


def executed(book: SmallBook) -> None:
    """Writes the record and the notebook that an execution leaves."""
    book.record("first-model/attention", CHECKS)
    outputs = [
        new_output("display_data", {"text/plain": "✓"}, metadata={CHECK: one})
        for one in CHECKS
    ]
    cells = [
        new_code_cell("a"),
        new_code_cell("b", outputs=outputs[:2]),
        new_code_cell("c"),
        new_code_cell("d", outputs=[new_output("stream", text="✓"), *outputs[2:]]),
    ]
    source = read_source(book.root / "chapters/first-model/attention.md")
    path = notebook_path(book.root / "_build", source.docname)
    path.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(new_notebook(cells=cells), path)


def rows(page) -> list[list[str]]:
    table = page.select_one("table.verified-table")
    return [
        [cell.get_text() for cell in row.select("td")] for row in table.select("tbody tr")
    ]


@pytest.mark.slow
def test_the_page_shows_every_check(book):
    book.build()  # reading the chapter, myst-nb writes a notebook without outputs
    executed(book)
    assert book.build() == ""
    page = book.page("chapters/capstone/verified")
    version = reference_comparisons.resolve("torch.softmax", {}).version
    assert rows(page) == [
        [
            "attend, forward",
            f"torch.nn.functional.softmax torch {version}",
            "4e-16",
            "1e-10",
            "check",
        ],
        [
            "attend, float32",
            f"torch.nn.functional.softmax torch {version}",
            "1e-07 relative",
            "1e-06",
            "check",
        ],
        [
            "count_flops",
            f"torch.utils.flop_counter.FlopCounterMode torch {version}",
            "equal",
            "none",
            "check",
        ],
        [
            "the slope at zero",
            "finite differences (no library)",
            "3e-05",
            "1e-03",
            "check",
        ],
        [
            "Layer.attend, twice",
            f"torch.nn.functional.softmax torch {version}",
            "equal",
            "1e-03",
            "check",
        ],
    ]
    text = page.get_text()
    assert "5 comparisons in 1 chapter, against 3 references from 1 library." in text
    libraries = page.select_one("table.verified-libraries tbody tr").get_text(
        " ", strip=True
    )
    assert libraries.split()[:3] == ["torch", version, "4"]

    links = [
        [a["href"] for a in row.select("a")]
        for row in page.select(".verified-table tbody tr")
    ]
    here, source = "../first-model/attention.html", f"{REPOSITORY}/blob/trunk"
    module = f"{source}/code/llm_learn/layers.py"
    assert links == [
        [module, f"{here}#check-attention"],
        [module, f"{here}#check-attention"],
        [here, f"{here}#cost-attention"],  # only the chapter defines it
        [here, f"{here}#cost-attention"],
        [module, f"{here}#cost-attention"],  # where the class is
    ]
    assert page.select_one("section#verified-first-model-attention h3") is not None


@pytest.mark.slow
def test_a_changed_record_and_a_new_chapter_change_the_page(book):
    assert book.build() == ""
    page = book.page("chapters/capstone/verified")
    assert "This build executed no chapter." in page.get_text()
    assert "This build did not execute the chapter." in page.get_text()

    book.record("first-model/attention", CHECKS[:1])  # without a notebook: no anchor
    assert book.build() == ""
    page = book.page("chapters/capstone/verified")
    assert "1 comparison in 1 chapter" in page.get_text()
    assert page.find("a", string="check")["href"] == "../first-model/attention.html"

    before = book.path("chapters/capstone/verified").stat().st_mtime_ns
    assert book.build() == ""
    assert book.path("chapters/capstone/verified").stat().st_mtime_ns == before

    book.write("chapters/first-model/gpt.md", chapter("GPT"))
    names = ["first-model/attention", "first-model/gpt", "capstone/verified"]
    book.index(*(f"chapters/{name}" for name in names))
    assert book.build() == ""
    page = book.page("chapters/capstone/verified")
    assert page.select_one("#verified-first-model-gpt")
    (book.root / "chapters/first-model/gpt.md").unlink()
    book.index("chapters/first-model/attention", "chapters/capstone/verified")
    assert book.build() == ""
    assert not book.page("chapters/capstone/verified").select("#verified-first-model-gpt")


@pytest.mark.slow
def test_an_unknown_argument_is_an_error(book):
    book.write("chapters/capstone/verified.md", "# V\n\n```{verified} everything\n```\n")
    assert "verified 'everything' is none of totals, chapters" in book.build()


def test_where_a_chapter_shows_its_checks(book):
    source = read_source(book.root / "chapters/first-model/attention.md")
    assert check_labels(source, book.root) == []
    executed(book)
    labels = ["check-attention"] * 2 + ["cost-attention"] * 3
    assert check_labels(source, book.root) == labels


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("GPT, logits", ("GPT", "logits")),
        ("attention_flops", ("attention_flops", "")),
        ("GPT.forward, a, b", ("GPT.forward", "a, b")),
        ("the slope at zero", ("", "the slope at zero")),
    ],
)
def test_the_subject_of_a_check(name, expected):
    assert subject(name) == expected


def test_a_method_belongs_to_the_module_that_the_chapter_teaches(book):
    twice = "class A:\n    def encode(self):\n        pass\n"
    book.write("code/llm_learn/layers.py", f"def attend():\n    pass\n\n\n{twice}")
    source = read_source(book.root / "chapters/first-model/attention.md")
    assert packaged_module("encode", source, book.root) == "layers"
    book.write("code/llm_learn/other.py", twice)
    assert packaged_module("encode", source, book.root) == "layers"
    book.write("code/llm_learn/third.py", "def decode():\n    pass\n")
    book.write("code/llm_learn/fourth.py", "def decode():\n    pass\n")
    assert packaged_module("decode", source, book.root) is None  # which one, nobody says
    assert packaged_module("nothing", source, book.root) is None
