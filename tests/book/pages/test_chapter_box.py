"""The box under a chapter's title, and the addresses behind its buttons."""

from types import SimpleNamespace
from urllib.parse import parse_qs, urlsplit

import pytest
import torch
import yaml
from smallbook import REPOSITORY, SmallBook, chapter, check

from book.pages.reference_libraries import (
    imported_names,
    largest_differences,
    resolve,
    shown_difference,
)
from book.read.chapters import ROOT, read_source
from book.read.repository_urls import Repository, repository

pytestmark = pytest.mark.filterwarnings("default")

IMPORTS = """\
```{code-cell}
import math
import torch.utils.flop_counter
import tiktoken as tk
from torch.nn import functional as F
from llm_learn.attention import causal_mask
```"""


# --- Addresses ---


def test_addresses_come_from_the_configuration():
    config = yaml.safe_load((ROOT / "_config.yml").read_text(encoding="utf-8"))[
        "repository"
    ]
    options = {"repository_url": config["url"], "repository_branch": config["branch"]}
    ours = repository(SimpleNamespace(html_theme_options=options))
    docname = "chapters/first-model/attention"
    path = urlsplit(config["url"]).path
    assert ours.colab(docname) == (
        f"https://colab.research.google.com/github{path}/blob/notebooks/{docname}.ipynb"
    )
    assert ours.edit("a b.md") == f"{config['url']}/edit/{config['branch']}/a%20b.md"
    assert ours.file("code") == f"{config['url']}/blob/{config['branch']}/code"


def test_an_issue_is_filled_in():
    address = Repository(url=REPOSITORY, branch="main").new_issue("A & b: ", "one\ntwo?")
    assert parse_qs(urlsplit(address).query) == {
        "title": ["A & b: "],
        "body": ["one\ntwo?"],
    }
    assert "+" not in address  # some servers show it as it is


@pytest.mark.parametrize("options", [{}, {"repository_url": ""}])
def test_a_book_without_a_repository_has_no_addresses(options):
    assert repository(SimpleNamespace(html_theme_options=options)) is None


def test_colab_opens_what_is_on_github_only():
    assert Repository(url="https://example.org/a/b", branch="main").colab("x") is None
    fork = SimpleNamespace(html_theme_options={"repository_url": f"{REPOSITORY}.git/"})
    assert "/github/someone/a-fork/blob/" in (repository(fork).colab("x") or "")


# --- References ---


@pytest.mark.parametrize(
    ("against", "name", "library"),
    [
        ("F.softmax", "torch.nn.functional.softmax", "torch"),
        ("tk.Encoding", "tiktoken.Encoding", "tiktoken"),
        ("torch.softmax", "torch.softmax", "torch"),
        ("numpy.linalg.svd", "numpy.linalg.svd", "numpy"),  # not imported, but installed
        ("math.erf", "math.erf", "Python"),
        ("causal_mask", "llm_learn.attention.causal_mask", "this book"),
        ("finite differences", "finite differences", None),
        ("random", "random", None),  # a word, though there is such a module
        ("nowhere.to_be_found", "nowhere.to_be_found", None),
        ("the identity a·b = b·a", "the identity a·b = b·a", None),
    ],
)
def test_a_reference_is_told_from_its_words(tmp_path, against, name, library):
    path = tmp_path / "part/name.md"
    path.parent.mkdir()
    path.write_text(chapter("T", IMPORTS), encoding="utf-8")
    found = resolve(against, imported_names(read_source(path)))
    assert (found.name, found.library) == (name, library)
    assert bool(found.version) == (library not in (None, "this book"))


@pytest.mark.parametrize(
    ("difference", "relative", "shown"),
    [
        (0.0, True, "equal"),
        (1.206e-07, True, "1e-07 relative"),
        (4.44e-16, False, "4e-16"),
    ],
)
def test_a_difference_is_rounded_and_named(difference, relative, shown):
    assert shown_difference(difference, relative=relative) == shown


def test_a_page_shows_the_digit_that_the_proof_compares(capsys):
    from llm_learn.notebook import verify

    for size in (1.206e-07, 4.44e-16, 9.6e-05):
        verify("f", torch.tensor([size]).double(), torch.zeros(1), against="g", tolerance=1)
        assert (
            f"difference {shown_difference(size, relative=False)} ("
            in capsys.readouterr().out
        )


def test_the_largest_difference_of_each_reference_counts():
    checks = [check("a", "x", 1e-9), check("b", "y", 0.0), check("c", "x", 1e-7)]
    checks += [check("d", "x", 1e-8), check("e", "x", 1e-12, relative=True)]
    assert largest_differences(checks) == {
        "x": {False: 1e-7, True: 1e-12},
        "y": {False: 0.0},
    }


# --- The page ---


@pytest.fixture
def book(tmp_path) -> SmallBook:
    book = SmallBook(tmp_path)
    docnames = ["first-model/tokenization", "first-model/attention", "capstone/verified"]
    book.index(*(f"chapters/{name}" for name in docnames))
    book.write(
        "chapters/first-model/tokenization.md",
        chapter("Tokens & text", hours={"core": 2, "all": 2.5}),
    )
    book.write(
        "chapters/first-model/attention.md",
        chapter(
            "Attention",
            IMPORTS,
            prerequisites=["first-model/tokenization", "origins/seq2seq"],
        ),
    )
    book.write(
        "chapters/capstone/verified.md", "# Verified\n\n```{verified} chapters\n```\n"
    )
    return book


@pytest.mark.slow
def test_the_box_says_what_a_reader_wants_to_know(book):
    checks = [check("a", "F.softmax", 1.206e-7, relative=True)]
    checks += [check("b", "F.softmax", 3e-16), check("c", "finite differences")]
    checks += [check("d", "math.erf"), check("e", "math.erf", 2e-5, relative=True)]
    book.record("first-model/attention", checks)
    assert book.build() == ""

    page = book.page("chapters/first-model/attention")
    (box,) = page.select(".chapter-box")
    assert box.find_previous("h1").get_text().startswith("Attention")
    assert box.find_next("p", string="A promise.")
    facts = {
        term.get_text(): definition.get_text().strip()
        for term, definition in zip(box.select("dt"), box.select("dd"), strict=True)
    }
    assert facts == {
        "You will be able to": "",
        "Before this": "Tokens & text\nSequence to sequence",
        "Time": (
            "Core: 1 hour. With all optional sections: 1 hour. Running all cells: "
            "12 seconds of one processor core, 0.4 GiB of memory (measured in this build)."
        ),
        "Verified against": (
            "torch.nn.functional.softmax (largest difference 3e-16, 1e-07 relative); "
            "finite differences (equal); math.erf (largest difference 2e-05 relative); "
            "all comparisons"
        ),
    }
    links = {a.get_text(): a["href"] for a in box.select("dd a")}
    assert links == {
        "Tokens & text": "tokenization.html",
        "all comparisons": "../capstone/verified.html#verified-first-model-attention",
    }
    assert [code.get_text() for code in box.select("dd code")] == [
        "torch.nn.functional.softmax",
        "math.erf",
    ]

    buttons = {a.get_text(): a for a in box.select(".box-actions a")}
    path = "chapters/first-model/attention"
    assert list(buttons) == [
        "Open in Colab",
        "Download notebook",
        "Edit this page",
        "Report an error",
    ]
    assert buttons["Open in Colab"]["href"].endswith(
        f"/github/someone/a-fork/blob/notebooks/{path}.ipynb"
    )
    assert (
        buttons["Download notebook"]["href"]
        == "../../notebooks/chapters/first-model/attention.ipynb"
    )
    assert [name for name, a in buttons.items() if a.has_attr("download")] == [
        "Download notebook"
    ]
    assert buttons["Edit this page"]["href"] == f"{REPOSITORY}/edit/trunk/{path}.md"
    issue = urlsplit(buttons["Report an error"]["href"])
    assert issue._replace(query="").geturl() == f"{REPOSITORY}/issues/new"
    filled = parse_qs(issue.query)
    assert filled["title"] == ["Attention: "] and f"{path}.md" in filled["body"][0]

    other = book.page("chapters/first-model/tokenization").select_one(".chapter-box")
    assert "Core: 2 hours." in other.get_text() and "No other chapter." in other.get_text()
    assert "did not execute" in other.get_text()
    assert "Verified against" not in other.get_text()
    assert not book.page("chapters/capstone/verified").select(".chapter-box")


@pytest.mark.slow
def test_many_references_are_cut(book):
    checks = [check("x", f"reference {i}") for i in range(7)]
    book.record("first-model/attention", checks, cpu_seconds=0.2)
    assert book.build() == ""
    box = book.page("chapters/first-model/attention").select_one(".chapter-box").get_text()
    assert "reference 3 (equal); 3 more" in box and "reference 4" not in box
    assert "Running all cells: 1 second of" in box.replace("\n", "")


@pytest.mark.slow
def test_without_repository_and_verified_page_the_box_keeps_the_rest(book):
    conf = (book.root / "conf.py").read_text(encoding="utf-8")
    book.write("conf.py", conf.replace(f'"{REPOSITORY}"', '""'))
    book.index("chapters/first-model/tokenization", "chapters/first-model/attention")
    (book.root / "chapters/capstone/verified.md").unlink()
    book.record("first-model/attention", [check("x", f"reference {i}") for i in range(6)])
    assert book.build() == ""
    box = book.page("chapters/first-model/attention").select_one(".chapter-box")
    assert "reference 3 (equal); 2 more" in box.get_text() and len(box.select("dd a")) == 1
    assert not box.select(".box-actions")  # nothing to edit, and no notebook is written


@pytest.mark.slow
def test_without_an_address_of_the_site_there_is_no_notebook_to_offer(book):
    conf = (book.root / "conf.py").read_text(encoding="utf-8")
    book.write("conf.py", conf.replace("html_baseurl", "# html_baseurl"))
    assert book.build() == ""
    buttons = book.page("chapters/first-model/attention").select(".box-actions a")
    assert [a.get_text() for a in buttons] == ["Edit this page", "Report an error"]
