"""Every chapter keeps the contract, and every check of the contract catches what it is for."""

import re
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_notebook, new_output

from book.commands.new_chapter import new_chapter, render
from book.contract.executed_outputs import executed_problems
from book.contract.registry import ROLES
from book.contract.required_content import CHECKS, Book, load_book
from book.read.chapters import Source, find_sources, load_plan, planned_chapters
from book.read.plan import plan_items

CHAPTERS = list(find_sources())
SLUG = "first-model/attention"
FILLER = "\n".join(
    ["Attention reads what it needs and leaves the rest alone, one query after another."]
    * 70
)


@pytest.fixture(scope="module")
def this_book() -> Book:
    return load_book()


@pytest.mark.parametrize("name", CHECKS)
@pytest.mark.parametrize("chapter", CHAPTERS, ids=lambda chapter: chapter.slug)
def test_chapter_keeps_the_contract(chapter, name, this_book):
    problems = CHECKS[name](chapter, this_book)
    assert not problems, "\n" + "\n".join(problems)


@pytest.fixture(scope="module")
def book() -> Book:
    return Book(
        plan=load_plan(),
        citations=frozenset({"vaswani2017attention", "sennrich2016neural"}),
        packaged=frozenset({"scaled_dot_product_attention", "GPT", "GPT4_PATTERN"}),
        extras=frozenset({"tokenization"}),
        helped=frozenset({SLUG}),
    )


@pytest.fixture(scope="module")
def good() -> str:
    """An older page that keeps the contract; test_second_edition.py has one of the second edition."""
    template = Path(__file__).with_name("first_edition.md")
    text = render(SLUG, load_plan(), template)
    text = re.sub(r"<!-- write:.*?-->", "", text, flags=re.DOTALL)
    return text.replace("(reading-attention)=", f"{FILLER}\n\n(reading-attention)=")


def problems_of(text: str, name: str, book: Book) -> list[str]:
    chapter = Source(path=Path("chapters/first-model/attention.md"), slug=SLUG, text=text)
    return CHECKS[name](chapter, book)


@pytest.mark.parametrize("name", CHECKS)
def test_a_good_chapter_passes(name, good, book):
    assert problems_of(good, name, book) == []


CELL = "\n```{code-cell}\n%s\n```\n\n(reading-attention)="


def cell(source: str) -> tuple[str, str]:
    return "(reading-attention)=", CELL % source


def prose(text: str) -> tuple[str, str]:
    return "(reading-attention)=", f"{text}\n\n(reading-attention)="


HOURS = "hours: {core: 0.5, all: 1}"
# check, what is replaced by what, and a piece of the message
BAD = [
    ("front_matter", ("format_name: myst", "format_name: light"), "format_name: myst"),
    ("front_matter", ("name: python3}", "name: julia}"), "kernelspec"),
    ("front_matter", ("part: first-model", "part: pretraining"), "llm_learn.part"),
    ("front_matter", ("plan: [", 'plan: ["Nothing of the plan", '), "llm_learn.plan"),
    (
        "front_matter",
        (
            'prerequisites: ["first-model/backpropagation"]',
            "prerequisites: [first-model/gpt]",
        ),
        "llm_learn.prerequisites",
    ),
    ("front_matter", (HOURS, "hours: soon"), "llm_learn.hours"),
    ("front_matter", (HOURS, "hours: 2"), "llm_learn.hours"),
    ("front_matter", (HOURS, "hours: {core: 2, all: 1}"), "llm_learn.hours"),
    ("front_matter", (HOURS, f"{HOURS}\n  edition: 3"), "llm_learn.edition"),
    ("front_matter", ("cpu_seconds: 30", "cpu_seconds: 91"), "budget.cpu_seconds"),
    ("front_matter", ("memory_gib: 1.5", "memory_gib: 3.5"), "budget.memory_gib"),
    (
        "front_matter",
        ("  budget: {cpu_seconds: 30, memory_gib: 1.5}\n", ""),
        "budget.cpu_seconds",
    ),
    ("front_matter", ("extras: []", "extras: [everything]"), "everything"),
    *[
        ("anatomy", (f"({role}-attention)=\n", ""), f"({role}-attention)=")
        for role in ROLES[1]
    ],
    ("anatomy", ("(idea-attention)=", "(idea-something)="), "(idea-attention)="),
    (
        "anatomy",
        ("extras: []", "extras: []\n  excused: {cost: no}"),
        "remove the excuse",
    ),
    (
        "anatomy",
        ("extras: []", "extras: []\n  excused: {fun: none at all here}"),
        "not a role",
    ),
    ("verified", ("verify(\n", "print(\n"), "verify"),
    ("verified", ("(check-attention)=\n", ""), "verify"),
    ("figures", ("    alt: A falling", "    alt: '' #"), "0 characters"),
    ("figures", ("  figure:\n", "  unknown:\n"), "no figure"),
    (
        "figures",
        cell("import matplotlib.pyplot as plt\nplt.plot([1, 2])"),
        "this cell draws",
    ),
    (
        "figures",
        cell("def draw():\n    fig, ax = plt.subplots()\n\n\ndraw()"),
        "this cell draws",
    ),
    (
        "figures",
        cell("from llm_learn.notebook.plotting import loss_curve\nloss_curve([1, 2])"),
        "this cell draws",
    ),
    ("figures", prose("![a cat](cat.png)"), "alt text"),
    ("figures", prose("```{figure} cat.png\n:width: 50%\nA cat.\n```"), "alt text"),
    ("figures", prose("```{diagram} a.svg\n:name: fig-a\n\nA cat.\n```"), "alt text"),
    ("png_only", cell('fig.savefig(folder / "a.svg")'), "PNG"),
    ("png_only", cell("%config InlineBackend.figure_formats = ['svg']"), "PNG"),
    ("png_only", prose("![a cat that sits on a mat and looks at you](cat.svg)"), "PNG"),
    ("exercises", (":label: attention-by-hand", ""), "`:label:`"),
    (
        "exercises",
        ("{solution-start} attention-by-hand", "{solution-start} attention-elsewhere"),
        "no solution",
    ),
    (
        "exercises",
        ("```{hint}\n:class: dropdown\nPut", "```{note}\n:class: dropdown\nPut"),
        "no hint",
    ),
    ("exercises", ("-by-hand\n:class: dropdown\n```", "-by-hand\n```"), ":class: dropdown"),
    ("exercises", ("```{exercise-end}\n```", ""), "exercise-end"),
    (
        "exercises",
        ("{exercise-start} On your own", "{exercise} On your own"),
        "exercise-start",
    ),
    ("exercise_code", ("[exercise-starter]", "[starter]"), "exercise-starter"),
    ("exercise_code", ("[exercise-solution]", "[solution]"), "exercise-solution"),
    (
        "exercise_code",
        ("[exercise-checker, hide-input]", "[hide-input]"),
        "exercise-checker",
    ),
    ("exercise_code", ('@exercise("attention-in-code")\n', ""), "@exercise"),
    ("exercise_code", ("@exercise(", "@exercise()  # ("), "@exercise"),
    (
        "exercise_code",
        ('@exercise("attention-in-code")', '@exercise("attention-elsewhere")'),
        "no exercise of this chapter has the label",
    ),
    (
        "exercise_code",
        (
            'raise NotImplementedError\n\n\n_ = check("attention-in-code", log_weights)',
            "raise NotImplementedError",
        ),
        "`exercise-starter` calls",
    ),
    (
        "exercise_code",
        ("[nbval-ignore-output]", "[exercise-solution, exercise-starter]"),
        "inside",
    ),
    ("imports", cell("import tokenizers"), "`tokenizers` comes with none of the extras"),
    (
        "imports",
        cell("def f():\n    from pytest import raises"),
        "`pytest` comes with none",
    ),
    ("imports", cell("import nowhere.at_all"), "`nowhere` comes with none"),
    ("citations", ("{cite:t}`sennrich2016neural`", "a paper"), "1 works cited"),
    ("citations", ("sennrich2016neural", "nobody1900"), "nobody1900"),
    ("materials", (":for: this chapter\n", ""), "materials.yml has entries"),
    (
        "materials",
        ("```{materials}\n:for: this chapter\n```\n", ""),
        "under Further reading",
    ),
    ("materials", ("(reading-attention)=", "(reading-attention)=\n\n(cost-more)="), "move"),
    ("substance", (FILLER, ""), "words of prose"),
    ("substance", (FILLER, f"```python\n{FILLER}\n```"), "words of prose"),
    ("substance", ("```{code-cell}", "```python"), "code cells"),
    ("typed_numbers", prose("Training takes 12.5 s here."), "12.5 s"),
    ("typed_numbers", prose("It needs 3 GiB."), "3 GiB"),
    ("typed_numbers", prose("The model reaches\na loss of 1.23 after it."), "loss of 1.23"),
    ("typed_numbers", prose("Accuracy rises to 95 % in the end."), "95 %"),
    ("typed_numbers", prose("The text shrinks to 2.1 bits a character."), "2.1 bits"),
    ("typed_numbers", prose("Ours is 3.5 times faster."), "3.5 times"),
    ("typed_numbers", prose("- 40 ms a step"), "40 ms"),
    (
        "typed_numbers",
        prose("As known {cite}`vaswani2017attention`. It takes 5 ms."),
        "5 ms",
    ),
    (
        "typed_numbers",
        ("The largest of a thousand weights", "The loss is 1.52 nats, and"),
        "1.52 nats",
    ),
    (
        "redefinitions",
        cell("def scaled_dot_product_attention(q, k, v):\n    return v"),
        "import it",
    ),
    ("redefinitions", cell("class GPT:\n    pass"), "import it"),
    ("redefinitions", cell('GPT4_PATTERN = "x"'), "import it"),
    ("installs", cell("%pip install torch"), "extra"),
    ("installs", cell("!pip install -q torch"), "extra"),
    ("installs", cell("%%bash\npip install torch"), "extra"),
    ("escaping_cells", ("watch.seconds / 1000", "len(scores)"), "speak of seconds"),
    (
        "escaping_cells",
        ('print(f"{watch.sec', 'assert watch.seconds\nprint(f"{watch.sec'),
        "assert",
    ),
    ("escaping_cells", cell("assert watch.seconds < 1"), "print a time"),
    (
        "escaping_cells",
        (
            'print(f"{watch.sec',
            'llm_learn.verify("x", watch.seconds, 1)\nprint(f"{watch.sec',
        ),
        "move verify",
    ),
    *(
        (
            "escaping_cells",
            ('print(f"{watch.sec', f'{call}("x", a=watch)\nprint(f"{{watch.sec'),
            f"move {call} out",
        )
        for call in ("settle", "claim")
    ),
    (
        "escaping_cells",
        ('print(f"{watch.sec', 'verify_module("x", f, g, [x])\nprint(f"{watch.sec'),
        "move verify_module",
    ),
    (
        "escaping_cells",
        ('print(f"{watch.sec', 'results(best_loss="1")\nprint(f"{watch.sec'),
        "glues `best-loss`",
    ),
    (
        "escaping_cells",
        ("```{code-cell}\n", "```{code-cell}\n:tags: [nbval-ignore-output]\n"),
        "escape",
    ),
    *(
        (
            "escaping_cells",
            ('print(f"{watch.sec', f'glue(name={key}, value=1)\nprint(f"{{watch.sec'),
            "the proof would not compare it",
        )
        for key in ('"best-loss"', 'f"loss-{name}"', "name", '"ratios"', '"steps"')
    ),
    (
        "escaping_cells",
        ('print(f"{watch.sec', 'glue("best-loss", 1)\nprint(f"{watch.sec'),
        "the proof would not compare it",
    ),
    ("escaping_cells", ("[nbval-ignore-output]", "[nbval-skip]"), "go together"),
    ("escaping_cells", ("[nbval-ignore-output]", "[skip-execution]"), "go together"),
    ("escaping_cells", cell("# NBVAL_IGNORE_OUTPUT\nprint(1)"), "tag"),
    ("empty_asserts", cell("assert True"), "cannot fail"),
    ("empty_asserts", cell("assert 1 + 1 == 2"), "cannot fail"),
    ("empty_asserts", cell("assert x == x"), "cannot fail"),
    ("empty_asserts", cell('assert (x == 1, "message")'), "cannot fail"),
    ("empty_asserts", cell("assert x > 1 or True"), "cannot fail"),
    ("empty_asserts", cell("assert len(x) >= 0"), "cannot fail"),
    (
        "empty_asserts",
        cell('verify("a", 1, 2, against="b", tolerance=float("inf"))'),
        "admits anything",
    ),
    (
        "empty_asserts",
        cell('verify("a", 1, 2, against="b", tolerance=10)'),
        "admits anything",
    ),
    ("unfinished", cell("x = 1  # TODO: more"), "TODO"),
    ("unfinished", prose("More is coming soon."), "coming soon"),
    ("unfinished", prose("This is a placeholder."), "placeholder"),
    ("unfinished", prose("<!-- write: something -->"), "write"),
    (
        "language",
        prose("It takes two nats a token."),
        "`nats a token` (E1): write nats per",
    ),
    ("language", cell('print("drawn by lot")'), "`by lot` (E5): write at random"),
]


@pytest.mark.parametrize(
    ("name", "change", "message"), BAD, ids=[f"{i}-{bad[0]}" for i, bad in enumerate(BAD)]
)
def test_a_bad_chapter_is_caught(name, change, message, good, book):
    old, new = change
    assert old in good
    problems = problems_of(good.replace(old, new), name, book)
    assert any(message in problem for problem in problems), problems
    assert all(
        re.match(r"chapters/first-model/attention\.md:\d+: \S", problem)
        for problem in problems
    )


def test_every_check_has_a_bad_chapter():
    form = "book.contract.second_edition"  # whose checks have their own tests
    names = {name for name, run in CHECKS.items() if run.__module__ != form}
    assert {bad[0] for bad in BAD} == names


DIAGRAM = """```{diagram} attention-heads.svg
:name: fig-attention-shapes
:alt: Five stations from top to bottom, of which the third shows two heads side by side.

Follow the outlined row.
```"""
FINE = [
    ("imports", cell("import json, numpy, PIL\nfrom torch.nn import functional as F")),
    ("imports", cell("from IPython.display import Audio\nfrom llm_learn.model import GPT")),
    ("typed_numbers", prose("Training takes {glue:text}`x` s, `5 ms` or $3 s$.")),
    ("typed_numbers", prose("They report 12.5 s {cite}`vaswani2017attention`.")),
    (
        "typed_numbers",
        prose("They report, over\ntwo lines, 12.5 s {cite}`vaswani2017attention`."),
    ),
    (
        "typed_numbers",
        prose("It must end within 5 s. <!-- given: the bar of this exercise -->"),
    ),
    (
        "typed_numbers",
        prose("A byte has 8 bits, GPT-2 has 12 layers, and Python 3.11 runs 2 models."),
    ),
    ("typed_numbers", prose("$$\nt = 5.0 s\n$$")),
    ("typed_numbers", prose("```python\nx = '5.0 s'\n```")),
    ("figures", cell("def draw(ax):\n    ax.plot([1])")),
    *[(name, prose(DIAGRAM)) for name in ("figures", "png_only", "typed_numbers")],
    ("figures", cell("fig, ax = plt.subplots()\nplt.close(fig)")),
    (
        "redefinitions",
        cell("class Block:\n    def scaled_dot_product_attention(self):\n        pass"),
    ),
    ("anatomy", ("(idea-attention)=", "(idea-multi-head-attention)=")),
    ("anatomy", ("(build-attention)=", "(build-masks)=")),
    (
        "unfinished",
        prose("A placeholder in a template. <!-- given: the term of the field -->"),
    ),
    ("escaping_cells", ("[nbval-ignore-output]", "[nbval-skip, skip-execution]")),
    *(
        (
            "escaping_cells",
            ('print(f"{watch.sec', f'glue(name={key}, value=1)\nprint(f"{{watch.sec'),
        )
        for key in (
            '"ratio-best"',
            '"ratio best"',
            'f"seconds-{name}"',
            'f"{name}-seconds"',
            '"core-years"',
            '"memory"',
            '"cpu-seconds"',
        )
    ),
    ("escaping_cells", ('print(f"{watch.sec', 'glue("ratio", 1)\nprint(f"{watch.sec')),
    (
        "escaping_cells",
        ('print(f"{watch.sec', 'results(cpu_seconds="1")\nprint(f"{watch.sec'),
    ),
    ("verified", ("verify(\n", "verify_module(\n")),
    # What the proof compares may have any name.
    ("escaping_cells", cell('glue("best-loss", 1)')),
    ("installs", prose("`pip install -r requirements.txt` does it.")),
    ("language", prose("Dear reader! <!-- term: how a letter begins -->")),
]


@pytest.mark.parametrize(
    ("name", "change"), FINE, ids=[f"{i}-{fine[0]}" for i, fine in enumerate(FINE)]
)
def test_what_is_allowed_passes(name, change, good, book):
    old, new = change
    assert old in good
    assert problems_of(good.replace(old, new), name, book) == []


def test_materials_at_the_very_end_have_no_options(good, book):
    text = f"{good.replace(':for: this chapter', '')}\n```{{materials}}"
    assert "list them under Further reading" in problems_of(text, "materials", book)[0]


def test_only_a_newline_ends_a_line():
    text = '```{code-cell}\nx = "a\u2028b"\n```\n\n(here)=\n'
    source = Source(path=Path("x.md"), slug=SLUG, text=text)
    assert source.cells[0].source == 'x = "a\u2028b"' and source.labels == [(5, "here")]


def test_a_message_names_the_line(good, book):
    text = good.replace(*prose("Training takes 12.5 s here."))
    line = text.split("\n").index("Training takes 12.5 s here.") + 1
    assert problems_of(text, "typed_numbers", book)[0].startswith(
        f"chapters/first-model/attention.md:{line}: "
    )
    text = good.replace(*cell("x = 1\nassert True"))
    line = text.split("\n").index("assert True") + 1
    assert problems_of(text, "empty_asserts", book)[0].startswith(
        f"chapters/first-model/attention.md:{line}: "
    )


def test_an_excused_role_is_not_missed(good, book):
    text = good.replace("(cost-attention)=\n", "")
    text = text.replace(
        "extras: []", "extras: []\n  excused: {cost: nothing here is computed}"
    )
    assert problems_of(text, "anatomy", book) == []


@pytest.mark.parametrize(
    ("lacks", "check", "old", "new"),
    [
        ("cost", "anatomy", "(cost-attention)=", "(cost-of-it)="),
        ("figure", "figures", "  figure:\n", "  unknown:\n"),
        ("length", "substance", FILLER, ""),
    ],
)
def test_a_page_from_a_split_may_lack_what_it_names(good, book, lacks, check, old, new):
    assert old in good
    less = good.replace(old, new)
    excuse = f"extras: []\n  excused: {{{lacks}: second edition}}"
    assert problems_of(less, check, book) != []
    assert problems_of(less.replace("extras: []", excuse), check, book) == []
    other = excuse.replace(lacks, "scale" if lacks == "cost" else "idea")
    assert problems_of(less.replace("extras: []", other), check, book) != []


@pytest.mark.parametrize(
    ("excuse", "check"),
    [("cost: second edition", "anatomy"), ("exercises: second edition", "exercises")],
)
def test_an_excuse_goes_when_the_page_is_complete(good, book, excuse, check):
    text = good.replace("extras: []", f"extras: []\n  excused: {{{excuse}}}")
    assert "remove the excuse" in str(problems_of(text, check, book))


def test_what_exercises_there_are_keep_their_rules(good, book):
    text = good.replace("extras: []", "extras: []\n  excused: {exercises: second edition}")
    bare = text.replace(":class: dropdown", ":class: open")
    assert "hide the solution" in str(problems_of(bare, "exercises", book))


def test_new_chapter_writes_a_chapter_and_refuses_the_rest(tmp_path):
    (tmp_path / "code/book/data").mkdir(parents=True)
    source = Path(__file__).parents[3] / "code/book/data/chapters.yml"
    (tmp_path / "code/book/data/chapters.yml").write_text(
        source.read_text(encoding="utf-8"), encoding="utf-8"
    )
    path = new_chapter("inference/kv-cache", tmp_path)
    text = path.read_text(encoding="utf-8")
    assert path == tmp_path / "chapters/inference/kv-cache.md"
    assert "# The KV cache" in text and "{{" not in text and "(question-kv-cache)=" in text
    for slug, message in (
        ("inference/kv-cache", "exists already"),
        ("nowhere/attention", "no such part"),
        ("attention", "part/name"),
        ("basics/../attention", "part/name"),
    ):
        with pytest.raises(ValueError, match=message):
            new_chapter(slug, tmp_path)


def test_plan_and_chapters_name_each_other():
    plan = load_plan()
    chapters = planned_chapters(plan)
    items = plan_items(plan)
    assert len(items) == len(set(items))
    assert {item for chapter in chapters.values() for item in chapter["plan"]} == set(items)
    for slug, chapter in chapters.items():
        keys = {"slug", "title", "builds", "plan", "prerequisites"}
        assert set(chapter) - {"hours"} == keys, slug
        earlier = list(chapters)[: list(chapters).index(slug)]
        assert set(chapter["prerequisites"]) <= set(earlier), (
            f"{slug} needs a later chapter"
        )
        assert chapter["builds"].endswith(".")
    assert [
        s
        for part in plan["parts"]
        for s in (c["slug"].split("/")[0] for c in part["chapters"])
    ] == [part["name"] for part in plan["parts"] for _ in part["chapters"]]


def executed(chapter: Source) -> nbformat.NotebookNode:
    """The chapter's cells with the outputs that a good execution leaves."""
    cells = []
    for number, source in enumerate(chapter.cells, 1):
        text = {"exercise-starter": "Not yet: no", "exercise-solution": "Correct."}
        said = next((text[tag] for tag in source.tags if tag in text), "1.0")
        outputs = [new_output("stream", name="stdout", text=said)]
        for name in re.findall(r'glue\("([\w-]+)"', source.source):
            outputs.append(
                new_output("display_data", {}, metadata={"scrapbook": {"name": name}})
            )
        cells.append(
            new_code_cell(source.source, metadata={"tags": source.tags}, outputs=outputs)
        )
        cells[-1].execution_count = number
    return new_notebook(cells=cells)


RECORD = {
    "checks": [
        {
            "name": "weights",
            "against": "torch.softmax",
            "difference": 1e-9,
            "tolerance": 1e-6,
        }
    ]
}


def test_executed_chapter_checks(good):
    chapter = Source(path=Path("chapters/first-model/attention.md"), slug=SLUG, text=good)
    assert executed_problems(chapter, executed(chapter), RECORD) == []

    def after(change, record=RECORD) -> str:
        notebook = executed(chapter)
        change(notebook.cells)
        return "\n".join(executed_problems(chapter, notebook, record))

    def tagged(cells, tag):
        return next(c for c in cells if tag in c.metadata.tags)

    def say(cell, text, name="stdout"):
        cell.outputs = [new_output("stream", name=name, text=text)]

    assert "no execution count" in after(
        lambda cells: cells[0].update(execution_count=None)
    )
    assert "starter" in after(
        lambda cells: say(tagged(cells, "exercise-starter"), "Correct.")
    )
    assert "solution" in after(
        lambda cells: say(tagged(cells, "exercise-solution"), "Not yet: no")
    )
    assert "stderr" in after(lambda cells: say(cells[0], "x", name="stderr"))
    assert "UserWarning" in after(lambda cells: say(cells[0], "a.py:3: UserWarning: x"))
    assert "build the book again" in after(lambda cells: cells.pop())
    assert "no cell glues" in after(
        lambda cells: [c.update(outputs=[]) for c in cells if "glue(" in c.source]
    )
    nothing, check = (lambda cells: None), RECORD["checks"][0]
    assert "no checks" in after(nothing, {"checks": []})
    text = good.replace("extras: []", "extras: []\n  excused: {check: second edition}")
    excused = Source(path=chapter.path, slug=SLUG, text=text)
    assert executed_problems(excused, executed(excused), {"checks": []}) == []
    assert "differs" in after(nothing, {"checks": [check | {"difference": 1e-3}]})
    assert "differs" in after(nothing, {"checks": [check | {"difference": float("nan")}]})
