"""The words that the list enforces: what is read of a page, what is excused, and the numbers that may only fall."""

import re
from pathlib import Path

import pytest

from book.contract.language import (
    all_pages,
    hits,
    language,
    load_words,
    page_lines,
)
from book.contract.registry import Book, load_book
from book.read.chapters import Source

SLUG = "first-model/attention"
ENFORCED = {word.mark: word for word in load_words() if word.mark.startswith("E")}
# What each pattern is for, in the order of the marks.
EXAMPLES = """
two nats a token, or tokens a second
whoever reads it
the model shall learn
the data to be had
drawn by lot
all begin anew
the result of above
it goes to and fro
every second token
half as much again
three times over
it is right in 0.97
dear in memory
it mends the bug
it is seldom used
known beforehand
the likeliest token
the weights sum up to 1
zeros in the place of weights
a whole number
the merit of RoPE
a good bargain
the filling at the end
a pile of pages
trained with the middle last
the keys are turned
a loud token
the log sum of each row
the first weights
the weights as drawn
in the company of others
all crowd into one
the running means
learned by heart
the optimizer is parted
with whole copies
a long leash
as it has practised
the pens write
it runs free
the deviation is large
the luck of the draw
what is left over
a duel of two models
the yardstick is loss
the picture shows it
a sequence gives way
the manners of a reply
found by meaning
"""
# Met in the chapters, and right there.
RIGHT = """
Three steps: how many tokens a pass brings, the positions a head reads from.
It has the scores a second time.
“You shall know a word by your company”, and a company's certificate.
It is turned into a method, and turned back into numbers. Whatever turned out.
The company it keeps, the company that his name keeps.
It is filling in a form, and filling up the cache.
Large terms crowd out small ones.
Nothing is wrong in what is written.
The running sum up to the chunk.
That is the whole picture.
The Pile is a corpus; the histogram has piles.
Manners of speech, the standard deviation, and a deviation from the mean.
"""
FRONT = "---\nllm_learn:\n  part: first-model\n---\n\n# Title\n\n"


def page(text: str, front: str = FRONT) -> Source:
    path = Path("chapters/first-model/attention.md")
    return Source(path=path, slug=SLUG, text=front + text)


def found(text: str, mark: str = "E") -> list[str]:
    return [match[0] for _, _, match in hits(page_lines(page(text)), mark)]


def in_code(source: str) -> list[str]:
    return found(f"```{{code-cell}}\n{source}\n```\n")


def judge(text: str) -> list[str]:
    sets = dict.fromkeys(("citations", "packaged", "extras", "helped"), frozenset())
    return language(page(text), Book(plan={}, **sets))


def test_the_list_enforces_49_patterns():
    assert list(ENFORCED) == [f"E{number}" for number in range(1, 50)]
    assert {word.mark[0] for word in load_words()} == {"E", "W", "J"}
    assert all(word.write and word.pattern.pattern for word in load_words())


@pytest.mark.parametrize(
    ("mark", "text"), [*zip(ENFORCED, EXAMPLES.strip().split("\n"), strict=True)]
)
def test_each_pattern_finds_what_it_is_for(mark, text):
    assert mark in {word.mark for _, word, _ in hits(page_lines(page(text)))}


@pytest.mark.parametrize("line", RIGHT.strip().split("\n"))
def test_what_is_right_passes(line):
    assert found(line) == []


@pytest.mark.parametrize(
    "text",
    [
        "It is **whoever** reads.",
        "It is *who*ever reads.",
        "# Whoever reads",
        "| a | whoever |",
        "```{note} Whoever\nsays\n```",
        "````{predict} attention-key\nAsk.\n- a: Whoever reads.\n````",
        "```{diagram} a-b.svg\n:name: fig-a\n:alt: Whoever reads.\n\nA caption.\n```",
        "```{diagram} a-b.svg\n:name: fig-a\n:alt: One.\n\nWhoever reads.\n```",
        "{claim}`attention-ahead <whoever reads gains>` here.",
        "{claim}`attention-ahead\n<whoever\nreads gains>` here.",
        "[whoever reads](gpt.md), ![a](b.png)",
        "Costs $5$ whoever pays $6$.",
        "A `code\nspan` whoever <!-- given: two\nlines --> ends.",
        "```{code-cell}\n---\nmystnb:\n  image: {alt: Whoever.}\n---\n1\n```",
        "```{code-cell}\n---\nmystnb:\n  figure:\n    caption: Whoever.\n    name: fig-a\n---\n1\n```",
    ],
)
def test_prose_captions_and_alt_texts_are_read(text):
    assert [word.lower() for word in found(text)] == ["whoever"]


def test_front_matter_is_read():
    front = FRONT.replace("---\n\n", "  able: [name whoever reads]\n---\n\n")
    assert [line for line, *_ in hits(page_lines(page("", front)))] == [4]


@pytest.mark.parametrize(
    "text",
    [
        "`whoever`, ``a ` whoever``, and `the\nwhoever`.",
        "$whoever$ and\n$$\nwhoever\n$$",
        "{term}`whoever`, {ref}`a <whoever>`, {glue:text}`whoever`",
        "[a](whoever.md), [b][whoever], ![c](whoever.png), <https://whoever.org>",
        "https://a.org/whoever",
        "<!-- whoever -->, <!-- two\nwhoever\nlines -->",
        "(idea-whoever)=",
        "```{note} A\n:name: whoever\nB\n```",
        "```{exercise-start} ex-whoever\n```",
        "```python\nwhoever = 'whoever'\n```",
        "```{math}\nwhoever\n```",
        "```{code-cell}\n---\nmystnb:\n  figure: {caption: A, name: fig-whoever}\n---\n1\n```",
    ],
)
def test_code_formulas_roles_and_addresses_are_not_read(text):
    assert found(text) == []


@pytest.mark.parametrize(
    "source",
    [
        "x = 1  # whoever",
        "print('whoever')",
        'print("it is whoever")',
        'print(f"{x:.2f} whoever {y}")',
        "print(f\"{'':<9}{'a loss':>9}{'whoever':>9}\")",
        'print(\n    "one "\n    "whoever\\n"\n)',
        'print("a\\nwhoever")',
        'def f():\n    """One.\n\n    Whoever.\n    """',
        "%time print('whoever')",
        """a = "it's #"  # whoever""",
    ],
)
def test_comments_and_strings_are_read(source):
    assert [word.lower() for word in in_code(source)] == ["whoever"]


@pytest.mark.parametrize(
    "source",
    [
        "whoever = 1",
        'print(f"{whoever:.2f}")',
        'glue("loss-whoever", f"{whoever[0]:{width}}")',
        "print(f\"{row['whoever'][0]}\")",
        "# what `whoever` is",
        "a.whoever('a', b=\"c\")",
    ],
)
def test_names_are_not_read(source):
    assert in_code(source) == []


def test_lines_are_those_of_the_file():
    text = 'A.\n\n```{code-cell}\n:tags: [a]\n\nx = f"""\n{1}\nwhoever"""\n```\n\nWhoever.'
    lines = [line for line, *_ in hits(page_lines(page(text)))]
    assert lines == [FRONT.count("\n") + 8, FRONT.count("\n") + 11]


@pytest.mark.parametrize(
    "text",
    [
        "Dear whoever! <!-- term: how a letter begins -->",
        "```{code-cell}\nx = 'dear'  # term: how a letter begins\n```",
        '```{code-cell}\nx = """\ndear"""  # term: how a letter begins\n```',
        '```{code-cell}\nx = """\ndear\nx"""  # term: how a letter begins\n```',
        "```{code-cell}\n---\nmystnb:\n  image:\n    alt: Dear. # term: it begins a letter\n---\n1\n```",
    ],
)
def test_an_excuse_with_a_reason_lets_a_word_pass(text):
    assert found(text) == []
    assert found(re.sub(r" term: .*?(?= -->|\n|$)", " term:", text, count=1))
    assert found(text.replace(" term: ", " given: "))


def test_an_excuse_is_for_its_line_only():
    assert found("Dear! <!-- term: a letter -->\nDear!") == ["Dear"]


def test_a_message_names_file_line_word_and_remedy():
    (message,) = judge("One.\n\nIt is seldom so.")
    where, _, text = message.partition(": ")
    assert where == f"chapters/first-model/attention.md:{FRONT.count(chr(10)) + 3}"
    assert text.startswith("`seldom` (E15): write rarely, or end the line with an excuse")
    assert judge("Rarely known.") == []


def test_pages_without_code_have_no_enforced_word():
    """The other tests of the contract read the chapters."""
    others = [page for page in all_pages() if not page.is_chapter]
    book = load_book()
    problems = [problem for page in others for problem in language(page, book)]
    assert others and not problems, "\n" + "\n".join(problems)
