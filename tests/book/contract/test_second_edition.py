"""Pages in the form of the second edition: what its checks catch and let pass, and the template, which has the form."""

import re
from pathlib import Path

import pytest
from nbformat.v4 import new_code_cell, new_notebook, new_output

from book.commands.new_chapter import render
from book.contract import second_edition
from book.contract.executed_outputs import executed_problems
from book.contract.registry import Book, role_at
from book.contract.required_content import CHECKS
from book.contract.second_edition import fold_title, kind_of, sections, words
from book.read.chapters import Source, load_plan

SLUG = "first-model/attention"
OURS = [n for n, run in CHECKS.items() if run.__module__ == second_edition.__name__]
SENTENCE = "Attention reads what it needs and leaves the rest alone, one query at a time."
READING = "(reading-attention)="


@pytest.fixture(scope="module")
def book() -> Book:
    keys = {"vaswani2017attention", "sennrich2016neural", "brown2020language"}
    return Book(
        plan=load_plan(),
        citations=frozenset(keys),
        packaged=frozenset({"GPT"}),
        extras=frozenset(),
        helped=frozenset({SLUG}),
    )


@pytest.fixture(scope="module")
def good() -> str:
    """A page that keeps the contract: the template without its guidance, and with more to read."""
    text = re.sub(r"<!-- write:.*?-->", "", render(SLUG, load_plan()), flags=re.DOTALL)
    return text.replace(READING, f"{SENTENCE}\n\n" * 70 + READING)


def source(text: str) -> Source:
    return Source(path=Path("chapters/first-model/attention.md"), slug=SLUG, text=text)


@pytest.mark.parametrize("name", CHECKS)
def test_a_good_page_passes(name, good, book):
    assert CHECKS[name](source(good), book) == []


@pytest.mark.parametrize("name", CHECKS)
def test_the_template_fails_only_where_an_author_must_write(name, book):
    problems = CHECKS[name](source(render(SLUG, load_plan())), book)
    assert bool(problems) == (name in {"substance", "unfinished"}), problems


def replaced(text: str, *changes: tuple[str, str]) -> str:
    for old, new in changes:
        assert old in text, old
        text = text.replace(old, new)
    return text


def core(text: str) -> tuple[str, str]:
    """More in the core: before the section on the library."""
    return "(library-attention)=", f"{text}\n\n(library-attention)="


def cell(code: str, tags: str = "", above: str = "") -> tuple[str, str]:
    return core(f"{above}\n\n```{{code-cell}}\n:tags: [{tags}]\n\n{code}\n```")


def asked(source: str, question: str) -> tuple[str, str]:
    return cell(source, "results", question)


ABLE = "- predict how a temperature changes the weights"
MANY = f"{SENTENCE}\n\n" * 40  # 560 words
LONG = "\n".join(["x = 1"] * 31)
SOLVED = "```{solution-start} ex\n```\n\n```{code-cell}\nassert x\n```"
HINT = "```{hint}\n:class: dropdown\nLook at the sums of the rows.\n```\n"
QUESTION = """```{predict} attention-long-key
Which queries attend to it more?
- a: All.
- b: None.
- c: Some.
- a!: No, *not* all.
- b!: It is not none.
- c!: It is so.
```"""
SETTLE = """settle("attention-long-key", a=x > y, b=x == y, c=x < y)"""
FIRST = "- The softmax turns scores into positive weights that add up to 1.\n"

BAD = [
    ("front_matter", ("hours: {core: 1, all: 2}", "hours: 2"), "{core: …, all: …}"),
    ("front_matter", ("{core: 1, all: 2}", "{core: 3, all: 2}"), "core at most all"),
    ("front_matter", ("{core: 1, all: 2}", "{core: 1}"), "{core: …, all: …}"),
    ("front_matter", ("{core: 1, all: 2}", "{core: soon, all: 2}"), "'soon'"),
    *(
        ("anatomy", (f"({role}-attention)=", ""), f"({role}-attention)=")
        for role in ("minute", "remember", "since", "wrong")
    ),
    ("head", (ABLE, "- understand temperatures"), "with a verb to test"),
    ("head", (ABLE, "- seek temperatures"), "with a verb to test"),
    ("head", (ABLE, ""), "must list three"),
    ("head", (ABLE, "- 3"), "must list three"),
    (
        "head",
        ("before: {}", "before: {first-model/gpt: what}"),
        "'this'] (it is {'first-model/gpt': 'what'})",
    ),
    ("head", ("before: {}", "before: {this: 1}"), "must ask"),
    ("head", ("before: {}", "before: [this]"), "must ask"),
    ("head", ("[cost-attention]", "[cost-nowhere]"), "it is ['cost-nowhere']"),
    ("head", ("[cost-attention]", "cost-attention"), "must list labels"),
    ("head", ("[cost-attention]", "[wrong-attention]"), "`wrong` is required"),
    ("head", ("## What it costs", "### What it costs"), "must list labels above `##`"),
    ("head", ("[cost-attention]", "[remember-attention]"), "`remember` is required"),
    ("summaries", ("## In one minute", "## In one minute\n\nMore. " * 20), "of 90 to 130"),
    ("summaries", ("## In one minute", "## In one minute\n\n## More"), "of 90 to 130"),
    ("lengths", core(f"## More\n\n{MANY}"), "in a section, at most 500"),
    ("lengths", core(f"## More\n\n{MANY}" * 4), "the core has"),
    ("lengths", (READING, MANY * 6 + READING), "the page has"),
    ("lengths", core(f"{SENTENCE} " * 9), "135 words in a paragraph"),
    ("summaries", ("## Since 2025", f"## Since 2025\n\n{MANY}"), "120"),
    ("lengths", cell("\n".join(["x = 1"] * 140)), "the core shows"),
    (
        "lengths",
        (READING, cell(LONG)[1].replace("(library-attention)=", "") * 12 + READING),
        "the page shows",
    ),
    ("core_hours", ("{core: 1,", "{core: 2,"), "takes 9 minutes: state 0.5"),
    ("summaries", (FIRST, ""), "five list items"),
    ("summaries", (FIRST, FIRST * 2), "five list items"),
    ("summaries", (FIRST, FIRST.replace("add", "always " * 10 + "add")), "not of [22,"),
    ("summaries", (" and {cite:t}`brown2020language`", ""), "2 works cited"),
    ("predictions", core(QUESTION), 'call `settle("attention-long-key", a=…, …)`'),
    ("predictions", cell(SETTLE), "the question attention-long-key offers []"),
    ("predictions", asked(SETTLE, QUESTION.replace("long-key", "key")), "no cell settles"),
    ("predictions", asked(f"{SETTLE}\n{SETTLE}", QUESTION), "attention-long-key offers []"),
    (
        "predictions",
        asked(SETTLE.replace("c=", "d="), QUESTION),
        "settle judges ['a', 'b', 'd']",
    ),
    (
        "predictions",
        asked(SETTLE.replace(", c=x < y", ""), QUESTION),
        "offers ['a', 'b', 'c']",
    ),
    (
        "predictions",
        asked('settle("a" + "b", a=x > y, b=x == y)', QUESTION),
        "question None",
    ),
    ("brackets", core("(It works.) " * 3), "sentences in brackets"),
    ("sentence_forms", core("It is much worse: {glue:text}`x`."), "`worse` compares"),
    (
        "sentence_forms",
        core("At {glue:text}`x` it needs more memory\nthan that."),
        "`more memory than`",
    ),
    ("sentence_forms", core("**Their loss is {glue:text}`x`.** Why?"), "is bold"),
    ("sentence_forms", core("**It fails in 3 of 5 runs.** {claim}`a <Worse.>`"), "is bold"),
    ("cell_forms", cell(LONG), "31 lines in a core cell"),
    ("cell_forms", cell("x = 1", "hide-input"), "fold the cell by the tag"),
    ("cell_forms", cell("x = 1", "data, show-input"), "is for one cell"),
    ("cell_forms", cell("x = 1", "check, show-input"), "is for one cell"),
    *(
        ("proofs_folded", cell(code, tags, above), f"move `{name}`")
        for above in ("", "```{solution-start} ex\n```\n\n```{solution-end}\n```")
        for name, code in (
            ("assert", "assert x"),
            ("raise", "def f(x):\n    raise ValueError(x)"),
            ("glue", 'glue("a", 1)'),
            ("results", 'results(a="1")'),
            ("claim", 'claim("a", b=x)'),
            ("settle", 'settle("a", b=x)'),
            ("verify", 'verify("a", 1, 1)'),
            ("verify_module", 'verify_module("a", f, g, [x])'),
            ("catches", 'catches("a", f, g)'),
        )
        for tags in ("", "data")
    ),
    ("exercise_kinds", (":class: derive\n", ""), "of which kind"),
    ("exercise_kinds", (":class: derive", ":class: bug derive"), "of which kind"),
    ("exercise_kinds", (":class: derive", ":class: bug"), "`:class: derive`"),
    ("exercises", (HINT, ""), "has 1 hint: add a `{hint}` before its solution (2 in all)"),
]


@pytest.mark.parametrize(
    ("name", "change", "message"), BAD, ids=[f"{i}-{bad[0]}" for i, bad in enumerate(BAD)]
)
def test_a_bad_page_is_caught(name, change, message, good, book):
    problems = CHECKS[name](source(replaced(good, change)), book)
    assert any(message in problem for problem in problems), problems


def test_every_check_of_the_form_has_a_bad_page():
    assert {bad[0] for bad in BAD} >= set(OURS)


# What holds for every page.
COMMON = {"head", "core_hours", "summaries", "brackets", "proofs_folded"}


@pytest.mark.parametrize(("name", "change"), [bad[:2] for bad in BAD if bad[0] in OURS])
def test_a_page_of_the_first_edition_is_asked_for_less(name, change, good, book):
    text = replaced(good, change, ("  edition: 2\n", ""))
    assert bool(CHECKS[name](source(text), book)) == (name in COMMON)


FINE = [
    ("head", (ABLE, "- test, with one line, the weights")),
    ("head", ("before: {}", "before: {this: why not}")),
    ("head", ("  before: {}\n  optional: [cost-attention]\n", "")),
    ("anatomy", ("(cost-attention)=", "(efficiency-attention)=")),
    (
        "lengths",
        ("## In one minute\n\n\n\n", "## In one minute\n\nIt is what you need most. "),
    ),
    # What is folded, a solution, or a question to predict is not counted.
    ("lengths", cell("\n".join(["x = 1"] * 500), "data")),
    ("lengths", cell("\n".join(["x = 1"] * 500), "packaged")),
    ("lengths", cell("\n".join(["x = 1"] * 500), "exercise-solution")),
    ("lengths", ("All weights are equal", f"{MANY * 10}All weights are equal")),
    ("lengths", ("The scores are 1,000 and", f"{SENTENCE * 20} The scores are 1,000 and")),
    ("lengths", ("## What it costs", f"## What it costs\n\n{MANY}")),
    ("lengths", ("## Further reading", f"## Further reading\n\n{MANY * 10}")),
    ("lengths", core(f"$$\n{SENTENCE * 50}\n$$ (eq-x)")),
    ("predictions", asked(SETTLE, QUESTION)),
    ("predictions", asked(SETTLE, QUESTION.replace("```", ":::"))),
    ("predictions", asked(SETTLE, QUESTION.replace("Which", "$$\na\n$$\n\nWhich"))),
    ("brackets", core("(It works.) " * 2)),
    ("brackets", core("A pair (T, C), and a set (x, y), (a) or (b). " * 3)),
    (
        "sentence_forms",
        core("Worse, {claim}`a <it is lower: {glue:text}>` {glue:text}`x`."),
    ),
    ("sentence_forms", core("It reaches {glue:text}`worse-loss`. Ours is better.")),
    ("sentence_forms", core("**Value 3.** **One thing to note.** **Why more than that?**")),
    ("cell_forms", cell("\n".join(["x = 1"] * 30))),
    ("cell_forms", cell(LONG, "data")),
    ("proofs_folded", cell("assert x\nraise ValueError", "results")),
    ("proofs_folded", cell("assert x\nraise ValueError", "packaged")),
    ("proofs_folded", cell("assert x\nraise ValueError", "exercise-starter")),
    ("proofs_folded", core(f"{SOLVED}\n\n```{{solution-end}}\n```")),
    (
        "cell_forms",
        cell("def f():\n    raise NotImplementedError\n\n\nx.results()  # assert"),
    ),
    ("exercise_kinds", (":class: project", ":class: project long")),
]


@pytest.mark.parametrize(
    ("name", "change"), FINE, ids=[f"{i}-{fine[0]}" for i, fine in enumerate(FINE)]
)
def test_what_is_allowed_passes(name, change, good, book):
    assert CHECKS[name](source(replaced(good, change)), book) == []


def test_a_message_names_the_line(good, book):
    text = replaced(good, cell("x = 1\nassert x"))
    line = text.split("\n").index("assert x") + 1
    (problem,) = CHECKS["proofs_folded"](source(text), book)
    assert problem.startswith(f"chapters/first-model/attention.md:{line}: ")


def test_sections_have_a_kind(good):
    kinds = [section.kind for section in sections(source(good))]
    after = ["remember", "library", "optional", "since", "exercises", "reading"]
    assert kinds == ["core", "minute", *["core"] * 6, *after]


def test_only_a_label_gives_a_section_its_kind():
    assert kind_of(["since-attention", "attention"], ["attention"]) == "optional"
    assert kind_of(["library", "wrong-attention"], ["cost-attention"]) == "core"


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("- one two", 2),
        ("1. one – two", 2),
        ("{glue:text}`a-b c` {cite:p}`a,b` $x + y$ `a b` [to](a b)", 5),
        ("{term}`a word <words>` {claim}`name <it is>`", 5),
    ],
)
def test_words_are_counted_as_they_are_read(text, number):
    assert words(text) == number


@pytest.mark.parametrize(
    ("tags", "lines", "title"),
    [
        ([], 99, ""),
        (["setup"], 1, "Imports"),
        (["check"], 1, "Check"),
        (["check", "show-input"], 1, ""),
        (["results", "nbval-ignore-output"], 1, "Numbers of this section"),
        (["packaged"], 25, ""),
        (["packaged"], 26, "The packaged version"),
    ],
)
def test_a_fold_is_named_by_its_tag(tags, lines, title):
    assert fold_title(tags, "\n".join("x" * lines)) == title


@pytest.mark.parametrize(
    ("tags", "text", "refused"),
    [
        ([], "one\ntwo", False),
        ([], "one\n\ntwo\n\n<Figure size 640x480 with 1 Axes>", False),
        ([], "one\ntwo\nthree", True),
        (["check"], "one\ntwo\nthree", False),
        (["exercise-starter"], "Not yet: one\ntwo\nthree", False),
    ],
)
@pytest.mark.parametrize("edition", [1, 2])
def test_a_core_cell_prints_two_lines(tags, text, refused, edition):
    front = f"---\nllm_learn: {{edition: {edition}}}\n---\n"
    page = source(f"{front}```{{code-cell}}\n:tags: [{', '.join(tags)}]\nx = 1\n```\n")
    made = new_code_cell("x = 1", metadata={"tags": tags}, execution_count=1)
    made.outputs = [new_output("stream", name="stdout", text=text)]
    problems = executed_problems(page, new_notebook(cells=[made]), {})
    assert any("core cell" in p for p in problems) == (refused and edition == 2), problems


def test_a_summary_is_a_role_of_its_own(good):
    chapter = source(good)
    line = next(n for n, label in chapter.labels if label == "remember-attention")
    assert role_at(chapter, line) != "remember" == role_at(chapter, line + 1)
