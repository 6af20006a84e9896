"""Checks of the second edition's form; some hold only for pages with `edition: 2` in their front matter.

CONTRIBUTING.md describes the form. The other modules check what holds for every page.
"""

import math
import re
from collections.abc import Collection, Iterable
from functools import partial
from itertools import takewhile
from typing import NamedTuple

from book.contract.registry import (
    ALWAYS,
    CITE,
    Book,
    Found,
    at,
    calls,
    check,
    directives,
    literal,
    tree,
)
from book.read.chapters import COMMENT, FENCE, Cell, Source

VERBS = (
    "build|calculate|check|choose|compare|compute|debug|derive|design|detect|diagnose|draw|estimate|evaluate|explain"
    "|find|fix|implement|justify|measure|name|plot|predict|prove|reproduce|test|trace|train|tune|verify|write"
)
# The sections around the core and the optional ones; those in CORE are read with the core.
AROUND = ("minute", "remember", "library", "since", "exercises", "reading")
CORE = {"core", "minute", "remember", "library"}

# What a folded cell is called, by its tag.
FOLDS = {
    "setup": "Imports",
    "data": "Data and models",
    "check": "Check",
    "drawing": "Drawing",
    "results": "Numbers of this section",
}
KINDS = ("write", "predict", "derive", "bug", "project")  # of exercises
TWO_HINTS = {"write", "derive", "bug"}

SUMMARY_WORDS = {"minute": (90, 130), "since": (0, 120)}
CORE_LIMITS, PAGE_LIMITS = (2000, 150), (4000, 400)  # words, visible lines of code
MAX_SECTION, MAX_PARAGRAPH, MAX_CELL, MAX_PACKAGED, MAX_BRACKETS = 500, 120, 30, 25, 2

# What is not counted as text: comments, solutions, questions to predict, formulas, marks.
UNCOUNTED = (
    COMMENT,
    re.compile(r"^[`:]{3,}\{solution-start\}.*?^[`:]{3,}\{solution-end\}", re.M | re.S),
    re.compile(r"^([`:]{3,})\{predict\}.*?^\1", re.M | re.S),
    re.compile(r"\$\$.*?\$\$(?: *\([\w-]+\))?", re.S),
    re.compile(r"^(?:[`:]{3,}.*|:\w[\w-]*:.*|\([\w-]+\)=|#.*)$", re.M),
)
HEADING = re.compile(r"(?:^\([\w-]+\)=\s*)*^## ", re.M)
ITEM = re.compile(r"(?:[-*+]|\d+\.)\s+")
# Also an item of a list, and a row of a table.
PARAGRAPH = re.compile(rf"^[ \t]*\S.*(?:\n(?![ \t]*(?:{ITEM.pattern}|\||$)).*)*", re.M)
BRACKETS = re.compile(r"\([A-Z][^()]*(?:\([^()]*\)[^()]*)*[.!?]\)")
COMPARATIVE = re.compile(
    r"\b(?:better|worse|lower|higher|larger|bigger|smaller|faster|slower|fewer|outperforms?"
    r"|exceeds?|(?:more|less)\b.*?\bthan)\b",
    re.I,
)
PROOFS = re.compile(
    r"^\s*(?:assert|raise(?! NotImplementedError))\b"
    r"|(?<![\w.])(?:glue|results|claim|settle|verify|verify_module|catches)\("
)
SENTENCE_END = re.compile(r"(?:(?<=[.!?])|(?<=[.!?]\*\*))\s+(?=[A-Z(*_{\[])")
CHOICE = re.compile(r"^- ([a-z]): ", re.M)  # of a question to predict

second = partial(check, applies=lambda chapter: chapter.edition == 2)


class Section(NamedTuple):
    """A heading of the second level and what follows it; the first section is what precedes all of them."""

    lines: range  # from the first label
    kind: str
    labels: list[str]
    paragraphs: list[tuple[int, str]]
    words: int
    code: int  # its visible lines


def kind_of(labels: Iterable[str], optional: Collection[str]) -> str:
    """What a section with these labels is: `optional`, a role in AROUND, or `core`."""
    roles = [name.partition("-")[0] for name in labels if "-" in name]
    kind = next((role for role in AROUND if role in roles), "core")
    return "optional" if {*labels} & {*optional} else kind


def found_in(chapter: Source, pattern: re.Pattern[str], text: str) -> list[tuple[int, str]]:
    """(line, text) of each match in the prose."""
    places = pattern.finditer(text)
    return [(chapter.prose[text.count("\n", 0, m.start())][0], m[0]) for m in places]


def sections(chapter: Source) -> list[Section]:
    """The page's sections; what precedes the first heading is read with the core."""
    text = "\n".join(line for _, line in chapter.prose)
    starts = [(1, ""), *found_in(chapter, HEADING, text)]
    ends = [*(first for first, _ in starts[1:]), len(chapter.lines) + 1]
    for pattern in UNCOUNTED:
        text = pattern.sub(lambda match: "\n" * match[0].count("\n"), text)
    paragraphs, made = found_in(chapter, PARAGRAPH, text), []
    for (first, heading), end in zip(starts, ends, strict=True):
        lines, labels = range(first, end), re.findall(r"\(([\w-]+)\)=", heading)
        kind = kind_of(labels, chapter.meta.get("optional") or [])
        mine = [(n, " ".join(text.split())) for n, text in paragraphs if n in lines]
        length = sum(words(text) for _, text in mine)
        code = sum(visible_lines(cell) for cell in chapter.cells if cell.line in lines)
        made.append(Section(lines, kind, labels, mine, length, code))
    return made


def plain(text: str) -> str:
    """The text as it is read; code, formulas, citations and glued values are an X each."""
    text = re.sub(r"\{(?:glue|cite)[\w:]*\}`[^`]*`", "X", text)
    text = re.sub(r"\{claim\}`([^`]*)`", r"\1", text)
    text = re.sub(r"\{[\w:-]+\}`([^`<]*)[^`]*`|\]\([^)]*\)", r"\1", text)
    return re.sub(r"`+[^`]*`+|\$[^$]+\$", "X", text)


def words(text: str) -> int:
    """The number of words in a paragraph or a list item."""
    return len(re.findall(r"\S*\w\S*", plain(ITEM.sub("", text, count=1))))


def fold_title(tags: Collection[str], source: str) -> str:
    """What a folded cell is called; empty where the cell is open."""
    if "packaged" in tags:
        return "The packaged version" if source.count("\n") >= MAX_PACKAGED else ""
    titles = (title for tag, title in FOLDS.items() if tag in tags)
    return "" if "show-input" in tags else next(titles, "")


def is_core(tags: Collection[str]) -> bool:
    """Whether a cell holds core code: it is not folded, not packaged, and no exercise."""
    return not any(t in FOLDS or t == "packaged" or t.startswith("exercise-") for t in tags)


def visible_lines(cell: Cell) -> int:
    """The lines of code that a reader sees without opening anything."""
    closed = {"hide-input", "hide-cell", "exercise-solution"} & set(cell.tags)
    closed = closed or fold_title(cell.tags, cell.source)
    return 0 if closed else cell.source.count("\n") + 1


def _texts(value: object) -> list[str]:
    """The value where it is a list of strings, else an empty list."""
    texts = value if isinstance(value, list) else []
    return texts if all(isinstance(text, str) for text in texts) else []


@check
def head(chapter: Source, book: Book) -> Found:
    """The front matter holds what the head box shows, and the core has every required role."""
    able, before, optional = (chapter.meta.get(k) for k in ("able", "before", "optional"))
    if len(_texts(able)) != 3:
        yield 1, f"llm_learn.able must list three things to be able to do (it is {able!r})"
    for text in _texts(able):
        if not re.match(rf"(?:{VERBS})\b", text):
            yield 1, f"llm_learn.able: begin {text!r} with a verb to test: {VERBS}"
    known = {*(chapter.meta.get("prerequisites") or []), "this"}
    questions = _texts([*before.values()]) if isinstance(before, dict) else []
    if before and not (questions and {*before} <= known):
        yield 1, f"llm_learn.before must ask about {sorted(known)} (it is {before!r})"
    found = sections(chapter)
    labels = {label for section in found for label in section.labels}
    if optional and not (_texts(optional) and {*optional} <= labels):
        yield 1, f"llm_learn.optional must list labels above `##` (it is {optional!r})"
    for role in ALWAYS:
        lines = [n for n, label in chapter.labels if label.startswith(f"{role}-")]
        kinds = {section.kind for section in found for n in lines if n in section.lines}
        if kinds == {"optional"}:
            yield lines[0], f"`{role}` is required, so its section cannot be optional"


@second
def lengths(chapter: Source, book: Book) -> Found:
    """Paragraphs, sections, core and page keep to their limits."""
    page = [section for section in sections(chapter) if section.kind != "reading"]
    core = [section for section in page if section.kind in CORE]
    for section in page:
        for line, text in section.paragraphs if section.kind != "minute" else []:
            if words(text) > MAX_PARAGRAPH:
                yield line, f"{words(text)} words in a paragraph, at most {MAX_PARAGRAPH}"
        if section.kind == "core" and section.words > MAX_SECTION:
            yield (
                section.lines[0],
                f"{section.words} words in a section, at most {MAX_SECTION}",
            )
    for name, part, limits in (("core", core, CORE_LIMITS), ("page", page, PAGE_LIMITS)):
        num_words, num_lines = sum(s.words for s in part), sum(s.code for s in part)
        if num_words > limits[0]:
            yield 1, f"the {name} has {num_words} words, at most {limits[0]}: shorten it"
        if num_lines > limits[1]:
            yield 1, f"the {name} shows {num_lines} lines of code, at most {limits[1]}"


@check
def core_hours(chapter: Source, book: Book) -> Found:
    """`hours.core` agrees with the length of the core."""
    core = [section for section in sections(chapter) if section.kind in CORE]
    asked = [line for line, *_ in directives(chapter, "predict")]
    questions = sum(line in section.lines for line in asked for section in core)
    minutes = sum(s.words / 90 + s.code / 10 for s in core) + 2 * questions
    needed, stated = math.ceil(minutes / 30) / 2, chapter.hours[0]
    if isinstance(stated, int | float) and abs(stated - needed) > 0.5:
        why = f"the core takes {minutes:.0f} minutes"
        yield 1, f"llm_learn.hours.core is {stated:g}, but {why}: state {needed:g}"


@check
def summaries(chapter: Source, book: Book) -> Found:
    """The summaries keep to their limits: In one minute, What to remember, and Since 2025 with its citations."""
    for section in sections(chapter):
        low, high = SUMMARY_WORDS.get(section.kind, (0, section.words))
        if not low <= section.words <= high:
            yield section.lines[0], f"{section.words} words in a section of {low} to {high}"
        texts = [text for _, text in section.paragraphs]
        items = [words(text) for text in texts if ITEM.match(text)]
        if section.kind == "remember" and not (len(items) == 5 and max(items) <= 20):
            problem = f"write five list items of at most 20 words each, not of {items}"
            yield section.lines[0], problem
        cited = {*",".join(CITE.findall(" ".join(texts))).split(",")} - {""}
        if section.kind == "since" and len(cited) < 3:
            yield section.lines[0], f"{len(cited)} works cited in this section: cite three"


@second
def predictions(chapter: Source, book: Book) -> Found:
    """Each question to predict is settled by one call, which judges all of its options."""
    asked: dict[str | None, tuple[int, list[str]]] = {}
    for line, _, name, _ in directives(chapter, "predict"):
        inside = takewhile(lambda text: not FENCE.match(text), chapter.lines[line:])
        asked[name] = line, CHOICE.findall("\n".join(inside))
    for cell in chapter.cells:
        for call in [call for called, call in calls(tree(cell)) if called == "settle"]:
            name, judged = literal(call), sorted(str(k.arg) for k in call.keywords)
            _, offered = asked.pop(name, (0, []))
            if judged != offered:
                problem = f"settle judges {judged}, the question {name} offers {offered}"
                yield at(cell, call), problem
    for name, (line, _) in asked.items():
        yield line, f'no cell settles it: call `settle("{name}", a=…, …)`'


@check
def brackets(chapter: Source, book: Book) -> Found:
    """Few sentences are in brackets."""
    pieces = [pair for section in sections(chapter) for pair in section.paragraphs]
    found = [(n, m[0]) for n, text in pieces for m in BRACKETS.finditer(plain(text))]
    for line, sentence in found[MAX_BRACKETS:]:
        yield line, f"`{sentence[:40]}`: at most {MAX_BRACKETS} sentences in brackets"


@second
def sentence_forms(chapter: Source, book: Book) -> Found:
    """Comparisons of measured numbers, and numbers in bold, carry a claim."""
    for line, text in [p for section in sections(chapter) for p in section.paragraphs]:
        for sentence in SENTENCE_END.split(text):
            if "{claim}" in sentence:
                continue
            remedy = "write {claim}`words <name>`, and call claim() in a `results` cell"
            if "{glue" in sentence and (found := COMPARATIVE.search(plain(sentence))):
                yield line, f"`{found[0]}` compares a measured number: {remedy}"
            for bold in re.findall(r"\*\*(.+?)\*\*", sentence):
                number = "{glue" in bold or re.search(r"(?<![\w-])\d", plain(bold))
                if number and words(bold) > 3:
                    yield line, f"`{bold[:40]}` is bold and has a number: {remedy}"


@second
def cell_forms(chapter: Source, book: Book) -> Found:
    """Cells are folded by the tag of what they hold, and core cells are short."""
    remedy = f"fold the cell by the tag of what it holds: {', '.join(FOLDS)}"
    opened = [cell for cell in chapter.cells if "show-input" in cell.tags]
    for cell in opened[1:] or [c for c in opened if "check" not in c.tags]:
        yield cell.line, "`show-input` is for one cell tagged `check`"
    for cell in chapter.cells:
        exercise = any(tag.startswith("exercise-") for tag in cell.tags)
        if {"hide-input", "hide-cell"} & set(cell.tags) and not exercise:
            yield cell.line, remedy
        if is_core(cell.tags) and (length := cell.source.count("\n") + 1) > MAX_CELL:
            yield cell.line, f"{length} lines in a core cell, at most {MAX_CELL}: {remedy}"


@check
def proofs_folded(chapter: Source, book: Book) -> Found:
    """Only some cells check and store numbers; those of solutions are closed anyway."""
    opened, closed = (
        [n for n, *_ in directives(chapter, f"solution-{end}")] for end in ("start", "end")
    )
    for cell in chapter.cells:
        exercise = any(tag.startswith("exercise-") for tag in cell.tags)
        exercise |= sum(n < cell.line for n in opened) > sum(n < cell.line for n in closed)
        if exercise or {"packaged", "check", "results"} & set(cell.tags):
            continue
        for line, text in enumerate(cell.source.split("\n"), cell.line):
            if found := PROOFS.search(text.split("#")[0]):
                name = found[0].strip(" (")
                yield line, f"move `{name}` to a cell tagged `results` or `check`"


@second
def exercise_kinds(chapter: Source, book: Book) -> Found:
    """There is an exercise of each kind, and each names its kind."""
    classes: list[str] = []
    for line, _, _, options in directives(chapter, "exercise-start"):
        named = [kind for kind in KINDS if kind in options.get("class", "").split()]
        classes += named
        if len(named) != 1:
            yield line, f"say of which kind the exercise is, as `:class: {'|'.join(KINDS)}`"
    for kind in [kind for kind in KINDS if kind not in classes]:
        yield 1, f"no exercise has `:class: {kind}`"
