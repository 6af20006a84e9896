"""Questions and claims on a page: what their source may be, what is shown of a record, and what fails the build."""

import re

import nbformat
import pytest
from docutils.core import publish_doctree
from myst_parser.parsers.docutils_ import Parser
from smallbook import SmallBook, chapter
from tinybook import TinyBook, page

from book.export.epub import article
from book.pages.predictions import PENDING, split

SLUG = "first-model/attention"
QUESTION = """\
```{predict} attention-long-key
One key is multiplied by $3$. Which
`queries` attend *more*?

It stays a key.
- a: All queries.
- b: None.
- c: Those with a positive
  dot product.
- a!: *Longer is stronger.* It falls.
- c!: The sign stays, see [the end](#the-end).
- b!: *Softmax undoes scale.* It does not.
```
"""
CLAIM = "After 500 steps {claim}`attention has\nthe lower loss <attention-ahead>` here."
BODY = f"""\
{QUESTION}
```{{code-cell}}
1 + 1
```

{CLAIM}

```{{code-cell}}
settle("attention-long-key", a=False, b=False, c=True)
claim(
    "attention-ahead", short=True, long=True
)
```

(the-end)=
## The end
"""
ANSWERS = {"attention-long-key": "c"}
CLAIMS = {"attention-ahead": ["short", "long"]}

pytestmark = pytest.mark.filterwarnings("default")


# --- The source ---


def content(text: str = QUESTION) -> list:
    """What MyST makes of the lines inside the directive."""
    text = "\n".join(text.splitlines()[1:-1])
    return publish_doctree(text, parser=Parser()).children


def test_a_question_is_split_into_its_pieces():
    *stem, options, reasons = split(content())
    assert [node.astext() for node in stem][1:] == ["It stays a key."]
    assert [item.astext() for item in options.children] == [
        "a: All queries.",
        "b: None.",
        "c: Those with a positive\ndot product.",
    ]
    assert [item.astext() for item in reasons.children][:2] == [
        "a: Longer is stronger. It falls.",
        "b: Softmax undoes scale. It does not.",
    ]
    four = split(content(QUESTION.replace("- a!", "- d: Two.\n- d!: Two are `two`.\n- a!")))
    assert [len(node.children) for node in four[-2:]] == [4, 4]


@pytest.mark.parametrize(
    ("old", "new", "found"),
    [
        ("- c: Those with a positive\n  dot product.\n", "", "a, a!, b, b!, c!"),
        ("- c: Those", "- d: Those", "a, a!, b, b!, c!, d"),
        ("- c: Those", "- c: X\n- d: X\n- e: Those", "a, a!, b, b!, c, c!, d, e"),
        ("- b: None.", "- a: None.", "a, a, a!, b!, c, c!"),
        ("- b!: *Soft", "- c!: *Soft", "a, a!, b, c, c!, c!"),
        ("- b!: *Softmax undoes scale.* It does not.\n", "", "a, a!, b, c, c!"),
        ("- a!: ", "- d!: y\n- a!: ", "a, a!, b, b!, c, c!, d!"),
        ("- b: None.", "- B: None.", "B, a, a!, b!, c, c!"),
        ("- b: None.", "- b: ", "a, a!, b!, b:, c, c!"),
        ("- b!: *", "- b! *", "a, a!, b, b! , c, c!"),
        (QUESTION[QUESTION.index("One") : QUESTION.index("- a:")], "", "a, a!, b, b!, c"),
        (QUESTION[QUESTION.index("- a:") : QUESTION.index("```\n")], "", "It stays a key."),
        (QUESTION[QUESTION.index("One") : QUESTION.index("```\n")], "", "no list"),
    ],
)
def test_what_is_no_question_is_named(old, new, found):
    assert old in QUESTION
    problem = f"expected a question, then a list of options a, b, c and at most d.*; found {found}"
    with pytest.raises(ValueError, match=problem):
        split(content(QUESTION.replace(old, new)))


# --- The page ---


@pytest.fixture
def book(tmp_path) -> SmallBook:
    book = SmallBook(tmp_path)
    conf = (book.root / "conf.py").read_text(encoding="utf-8")
    more = '"book.pages.predictions", "book.site.accessibility"]\n'
    conf = conf.replace("]\n", f", {more}", 1)
    book.write("conf.py", f'{conf}myst_enable_extensions = ["dollarmath"]\n')
    book.index(f"chapters/{SLUG}", "chapters/capstone/verified")
    book.write(
        "chapters/capstone/verified.md", "# Verified\n\n```{verified} chapters\n```\n"
    )
    write(book)
    return book


def write(book: SmallBook, *change: str) -> None:
    """Writes the chapter, with one piece replaced by another."""
    assert not change or change[0] in BODY
    text = BODY.replace(*change) if change else BODY
    book.write(f"chapters/{SLUG}.md", chapter("Attention", text))


def record(book: SmallBook, answers=ANSWERS, claims=CLAIMS) -> None:
    book.record(SLUG, [], answers=answers, claims=claims)


def line_of(book: SmallBook, text: str) -> str:
    source = (book.root / f"chapters/{SLUG}.md").read_text(encoding="utf-8")
    number = next(n for n, t in enumerate(source.splitlines(), 1) if text in t)
    return f"attention.md:{number}: "


@pytest.mark.slow
def test_an_executed_page_answers_in_a_closed_box(book):
    record(book)
    assert book.build() == ""
    page = book.page(f"chapters/{SLUG}")
    (box,) = page.select("div.predict")
    assert box["id"] == "predict-attention-long-key"
    label, *stem = box.find_all("p", recursive=False)
    assert label.get_text() == "Predict"
    assert [p.get_text() for p in stem][1:] == ["It stays a key."]
    assert stem[0].select_one(".math") and stem[0].code.get_text() == "queries"
    options = box.find("ul", recursive=False).find_all("li")
    assert [" ".join(li.get_text().split()) for li in options] == [
        "a: All queries.",
        "b: None.",
        "c: Those with a positive dot product.",
    ]
    details = box.find("details", recursive=False)
    assert not details.has_attr("open") and details.summary.get_text() == "Answer"
    # The answer comes first.
    assert details.find("p").get_text() == "c: The sign stays, see the end."
    assert details.find("p").a["href"] == "#the-end"
    assert [li.get_text().strip() for li in details.find("ul").find_all("li")] == [
        "a: Longer is stronger. It falls.",
        "b: Softmax undoes scale. It does not.",
    ]
    assert details.find("ul").em.get_text() == "Longer is stronger."
    assert not box.find("script") and PENDING not in page.get_text()


@pytest.mark.slow
def test_a_page_that_was_not_executed_says_so_and_shows_no_reason(book):
    assert book.build() == ""
    box = book.page(f"chapters/{SLUG}").select_one("div.predict")
    assert box.find_all("p", recursive=False)[-1].get_text() == PENDING
    assert "Longer is stronger" not in box.get_text() and not box.find("details")
    # The answer follows the record, and a record that changes changes the page.
    record(book)
    assert book.build() == ""
    assert "c: The sign" in book.page(f"chapters/{SLUG}").select_one("details p").get_text()
    record(book, answers={"attention-long-key": "a"})
    assert book.build() == ""
    answer = book.page(f"chapters/{SLUG}").select_one("details p").get_text()
    assert answer == "a: Longer is stronger. It falls."


@pytest.mark.slow
def test_a_claim_is_linked_to_its_cell(book):
    record(book)
    write(book, "## The end", "## The end\n\nA {claim}`second time <attention-ahead>`.")
    assert book.build() == ""
    page = book.page(f"chapters/{SLUG}")
    first, second = page.select("a.claim")
    assert first.get_text() == "attention has the lower loss"
    assert first["href"] == second["href"] == "#claim-attention-ahead"
    (cell,) = page.select("#claim-attention-ahead")
    assert '"attention-ahead"' in cell.get_text() and "1 + 1" not in cell.get_text()

    verified = book.page("chapters/capstone/verified")
    (table,) = verified.select("table.verified-claims")
    rows = [[td.get_text() for td in tr.select("td")] for tr in table.select("tbody tr")]
    assert rows == [
        ["attention has the lower loss", "short, long", "cell"],
        ["second time", "short, long", "cell"],
    ]
    link = f"../{SLUG}.html#claim-attention-ahead"
    assert {a["href"] for a in table.select("a")} == {link}

    # The table follows the words of the chapter, and goes with the last claim.
    write(book, "attention has\nthe lower loss <", "the loss is lower <")
    assert book.build() == ""
    verified = book.page("chapters/capstone/verified").get_text()
    assert "the loss is lower" in verified and "second time" not in verified
    write(book, CLAIM, "Nothing is claimed.")
    assert book.build() == ""
    assert not book.page("chapters/capstone/verified").select(".verified-claims")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("answers", "claims", "change", "place", "problem"),
    [
        (
            {},
            CLAIMS,
            [],
            "{predict}",
            "predict 'attention-long-key': the executed answer is None, expected one of a, b, c",
        ),
        (
            {"attention-long-key": "d"},
            CLAIMS,
            [],
            "{predict}",
            "the executed answer is 'd', expected one of a, b, c",
        ),
        (
            ANSWERS,
            {},
            [],
            "After 500",
            "claim 'attention-ahead': expected 1 condition in an executed cell, found none",
        ),
        (
            ANSWERS,
            {"attention-ahead": ["short"]},
            [CLAIM, f"**{CLAIM}**"],
            "**After 500",
            "claim 'attention-ahead': expected 2 conditions in an executed cell, found short",
        ),
        (
            ANSWERS,
            CLAIMS,
            ["<attention-ahead>`", "`"],
            "After 500",
            "lacks words or a name: write `words <name>`",
        ),
        (
            {},
            CLAIMS,
            ["{predict} attention-", "{predict} gpt-"],
            "{predict}",
            "predict 'gpt-long-key': the name must begin with `attention-`",
        ),
        (
            {},
            CLAIMS,
            ["- b!: ", "- d!: "],
            "{predict}",
            "predict 'attention-long-key': expected a question",
        ),
        (
            ANSWERS,
            CLAIMS,
            ["## The end", f"## The end\n\n{QUESTION}"],
            "",
            'Duplicate explicit target name: "predict-attention-long-key"',
        ),
    ],
)
def test_what_does_not_fit_is_a_warning_that_names_place_and_question(
    book, answers, claims, change, place, problem
):
    record(book, answers, claims)
    write(book, *change)
    (warning,) = book.build().strip().splitlines()
    assert problem in warning
    assert line_of(book, place) in warning or not place


@pytest.mark.slow
def test_a_bold_claim_with_two_conditions_and_a_plain_one_with_one_pass(book):
    record(book)
    write(book, CLAIM, f"**{CLAIM}**")
    assert book.build() == ""
    assert book.page(f"chapters/{SLUG}").select_one("strong a.claim")
    record(book, claims={"attention-ahead": ["short"]})
    write(book)
    assert book.build() == ""


@pytest.mark.slow
def test_a_page_without_cells_cannot_ask(book):
    book.write(
        "chapters/capstone/verified.md",
        f"# Verified\n\n{QUESTION}".replace("attention-", "verified-"),
    )
    assert "predict 'verified-long-key': the executed answer is None" in book.build()


# --- A book that is executed ---

EXECUTED = """\
from IPython.display import display
for kind, entry in {
    "answer": {"name": "alpha-sum", "key": KEY, "options": ["a", "b", "c"]},
    "claim": {"name": "alpha-ahead", "conditions": ["short"]},
}.items():
    display({"text/plain": "✓"}, raw=True, metadata={f"llm_learn_{kind}": entry})
if 1 > 2:
    claim("alpha-ahead", short=True)"""
ASKED = """
{claim}`the sum is <alpha-ahead>` what it is.

```{predict} alpha-sum
What is $1 + 1$?
- a: One.
- b: Two.
- c: Three.
- a!: *Half of it.* There are two.
- b!: It is [two](https://example.org).
- c!: *One more.* There are only two.
```
"""


@pytest.mark.slow
def test_the_key_of_an_execution_reaches_page_notebook_and_epub(tmp_path):
    book = TinyBook(tmp_path)
    old = "local_extensions: {"
    path = re.search(
        r"book\.export\.notebooks: ([^}]+)\}", (book.root / "_config.yml").read_text()
    )[1]
    new = "".join(
        f"{name}: {path}, "
        for name in ("book.pages.predictions", "book.site.accessibility")
    )
    book.replace("_config.yml", old, old + new)
    book.replace(
        "_config.yml",
        "sphinx:\n",
        "parse: {myst_enable_extensions: [dollarmath]}\nsphinx:\n",
    )
    text = page("Alpha", [EXECUTED.replace("KEY", '"b"')]) + ASKED
    book.write("chapters/part/alpha.md", text)
    done = book.build()
    assert done.returncode == 0, done.stdout + done.stderr

    cells = nbformat.read(book.published("alpha"), as_version=4).cells
    markdown = "\n\n".join(c.source for c in cells if c.cell_type == "markdown")
    assert (
        "**Predict**\n\nWhat is $1 + 1$?\n\n- **a:** One.\n- **b:** Two.\n- **c:** Three.\n\n"
        "<details>\n<summary>Answer</summary>\n\n**b:** It is [two](https://example.org).\n\n"
        "- **a:** *Half of it.* There are two.\n- **c:** *One more.* There are only two.\n\n</details>"
    ) in markdown
    assert (
        "[the sum is](https://somebody.github.io/Tiny/chapters/part/alpha.html#claim-alpha-ahead)"
        in markdown
    )

    site = book.root / "_build/html"
    bound = article(site, "chapters/part/alpha", ["chapters/part/alpha"], "")
    answer = bound.select_one(".predict .details")
    assert answer.select_one("p.summary").get_text() == "Answer"
    assert answer.get_text().split()[1:5] == ["b:", "It", "is", "two."]
    assert (
        bound.select_one("a.claim")["href"]
        == "#" + bound.select_one("[id$=claim-alpha-ahead]")["id"]
    )

    # Another key needs another execution; one that is no option fails the build, now and the next time.
    book.replace("chapters/part/alpha.md", '"key": "b"', '"key": "d"')
    for _ in range(2):
        done = book.build()
        assert done.returncode != 0
        assert "alpha-sum" in done.stderr and "alpha.md:" in done.stderr
