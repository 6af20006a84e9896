"""The words that pages avoid (data/word-list.tsv). `python -m book words NAME` lists those of a page."""

import csv
import re
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

from book.contract.registry import Book, Found, check
from book.read.chapters import COMMENT, DATA, ROOT, Cell, Source, find, read_source

EXCUSE = re.compile(r"(?:<!--|#) *term: *\w")
# What is left out of prose, and what takes its place.
MARKUP = (
    (COMMENT.pattern, " "),
    # Labels, options, and the names of figures.
    (r"^\([\w-]+\)=\s*$|^\s*:(?!alt|caption)[\w-]+:.*?$|\bname: *[\w-]+", ""),
    (r"^\s*[`:~]{3,}(?:\{[\w:-]+\}(?: *\S+[-./]\S+\s*?$)?)?", ""),  # a directive, its name
    (r"\{claim\}`[^`<]*<([^`]*)>`", r"\1"),  # a role that prints its text
    (r"(?:\{[\w:-]+\})?(?<!`)(`+)(?!`)(?:[^\n]|\n(?!\s*\n))*?(?<!`)\1(?!`)", "CODE"),
    (r"\$\$.*?\$\$|\$[^$\n]+\$", "CODE"),
    (r"!?\[([^\]\n]*)\](?:\([^)\n]*\)|\[[^\]\n]*\])", r"\1"),
    (r"https?://\S+|<[^>\n]+>|\*+|(?<!\w)_+|_+(?!\w)", ""),
)
# The same for comments and strings: a string that is a name, a string in an f-string, and what else it computes.
CODE_MARKUP = (
    (r"\w*(['\"])\w+(?:[-./:]\w+)+\1", ""),
    (r"\{(['\"])([^{}'\"]*)\1[^{}]*\}", r" \2 "),
    (r"\\[^\n]|\{(?:[^{}]|\{[^{}]*\})*\}", " "),
    *MARKUP,
)
# A comment or a string of Python.
SPOKEN = re.compile(
    r"""#[^\n]*|\w*(?:'''(?:\\.|.)*?'''|\"""(?:\\.|.)*?\"""|'(?:\\.|[^'\\\n])*'|"(?:\\.|[^"\\\n])*")""",
    re.S,
)


class Word(NamedTuple):
    """A row of the word list: E is enforced, W is a candidate for the author, J has no test."""

    mark: str
    write: str  # what to write instead
    pattern: re.Pattern[str]


# Line of the file, row of the list, and place in the line as it is read.
Hit = tuple[int, Word, re.Match[str]]


@cache
def load_words() -> list[Word]:
    with (DATA / "word-list.tsv").open(encoding="utf-8", newline="") as file:
        rows = csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
        return [
            Word(r["mark"], r["write"], re.compile(r["regex"], re.I if r["flags"] else 0))
            for r in rows
        ]


def _without(pattern: str, new: str, text: str) -> str:
    """Replaces what the pattern matches, and leaves every line in its place."""

    def replaced(match: re.Match[str]) -> str:
        put = match.expand(new)
        return put + "\n" * (match[0].count("\n") - put.count("\n"))

    return re.sub(pattern, replaced, text, flags=re.M | re.S)


def _read(numbered: Iterable[tuple[int, str]], markup: tuple) -> Iterator[tuple[int, str]]:
    """The lines as they are read, without those that are excused."""
    numbers, lines = zip(*numbered, strict=True)
    text = "\n".join(lines)
    for pattern, new in markup:
        text = _without(pattern, new, text)
    for number, line, plain in zip(numbers, lines, text.split("\n"), strict=True):
        if not EXCUSE.search(line):
            yield number, plain


def code_lines(cell: Cell) -> Iterator[tuple[int, str]]:
    """The lines of comments and strings, without those that an excuse follows."""
    source = cell.source
    lines = [""] * (source.count("\n") + 1)
    for found in SPOKEN.finditer(source):
        rest = source[found.end() :].partition("\n")[0]
        if not EXCUSE.search(found[0] + rest):
            begin = source.count("\n", 0, found.start())
            for number, line in enumerate(found[0].split("\n"), begin):
                lines[number] += f" {line}"
    return _read(enumerate(lines, cell.line), CODE_MARKUP)


def page_lines(page: Source) -> Iterator[tuple[int, str]]:
    """What is read of a page: front matter, prose, captions, alt texts, comments and strings."""
    lines = dict(enumerate(page.lines[: page.prose[0][0] - 1], 1)) | dict(page.prose)
    for cell in page.cells:
        lines |= {n: page.lines[n - 1] for n in range(cell.options_line, cell.line)}
        yield from code_lines(cell)
    yield from _read(sorted(lines.items()), MARKUP)


def hits(lines: Iterable[tuple[int, str]], marks: str = "E") -> list[Hit]:
    """Where words of these marks occur, in the order of lines."""
    return [
        (number, word, match)
        for number, line in sorted(lines)
        for word in load_words()
        if word.mark[0] in marks
        for match in word.pattern.finditer(line)
    ]


def all_pages(root: Path = ROOT) -> list[Source]:
    """The chapters, and the pages that are no chapters."""
    pages = [read_source(path) for path in sorted((root / "chapters").glob("*/*.md"))]
    return [*pages, read_source(root / "index.md", "index")]


@check
def language(chapter: Source, book: Book) -> Found:
    """No enforced word of the list occurs."""
    for line, word, match in hits(page_lines(chapter)):
        excuse = "or end the line with an excuse, `term: why` in a comment"
        yield line, f"`{match[0]}` ({word.mark}): write {word.write}, {excuse}"


def words(argv: list[str], root: Path) -> int:
    """`python -m book words NAME`: the words of a page that its author must replace, or judge."""
    if len(argv) != 1:
        raise ValueError(f"`words` takes the name of a page, but got {argv}")
    page = find(all_pages(root), argv[0])
    for line, word, found in hits(page_lines(page), "EW"):
        near = found.string[max(0, found.start() - 40) : found.end() + 40].strip()
        remedy = f"{word.mark} `{found[0]}`: write {word.write}"
        print(f"{page.where}:{line}: {remedy} (… {near} …)")
    return 0
