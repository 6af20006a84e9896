"""Checks of what every chapter must have; each message names file, line and remedy.

What a chapter must not do is in `book.contract.forbidden_content`; importing this module registers all in CHECKS.
"""

import ast
import re
from typing import Any

from book.contract import declared_imports, forbidden_content, language  # noqa: F401 (register their checks)
from book.contract.registry import (
    CHECKS,
    CITE,
    ROLES,
    Book,
    Found,
    calls,
    check,
    directives,
    load_book,
    role_at,
    tree,
)
from book.contract.second_edition import TWO_HINTS, sections
from book.execute.budgets import MAX_CPU_SECONDS, MAX_MEMORY_GIB
from book.read.chapters import Source, planned_chapters

__all__ = ["CHECKS", "Book", "load_book"]

EXERCISE_TAGS = ("checker", "starter", "solution")
MIN_ALT, MIN_WORDS, MIN_CELLS, MIN_EXERCISES, MIN_CITATIONS = 40, 900, 8, 3, 2

# The reason on a page that came out of a split, for a role that it will get, or for what else it still lacks;
# tests/first_edition/unfinished.yml lists them.
UNFINISHED, ELSE = "second edition", ["figure", "length"]

DRAWING = {"subplots", "figure", "subplot_mosaic", "plot", "imshow", "matshow"}
DRAWING |= {"pcolormesh", "scatter", "bar", "hist"}


def _is_number(value: Any, limit: float) -> bool:
    return type(value) in (int, float) and 0 < value <= limit


@check
def front_matter(chapter: Source, book: Book) -> Found:
    """The front matter is complete and agrees with chapters.yml."""
    front, meta, slugs = chapter.front, chapter.meta, planned_chapters(book.plan)
    form = ((front.get("jupytext") or {}).get("text_representation") or {}).get(
        "format_name"
    )
    if form != "myst":
        yield 1, "set jupytext.text_representation to {extension: .md, format_name: myst}"
    if (front.get("kernelspec") or {}).get("name") != "python3":
        yield (
            1,
            "set kernelspec to {display_name: Python 3, language: python, name: python3}",
        )
    if chapter.slug not in slugs:
        yield (
            1,
            f"`{chapter.slug}` is not in code/book/data/chapters.yml: add it there, or rename the file",
        )
        return
    if meta.get("part") != chapter.part:
        yield (
            1,
            f"set llm_learn.part to `{chapter.part}`, the chapter's folder (it is {meta.get('part')!r})",
        )
    for key in ("plan", "prerequisites"):
        listed = slugs[chapter.slug].get(key) or []
        if not isinstance(meta.get(key), list) or sorted(meta[key]) != sorted(listed):
            yield (
                1,
                f"llm_learn.{key} is {meta.get(key)!r}, chapters.yml has {listed!r}: make them agree",
            )
    if meta.get("edition", 1) not in (1, 2):
        yield 1, f"set llm_learn.edition to 2, or leave it out (it is {meta['edition']!r})"
    core, everything = chapter.hours
    if not (_is_number(core, 12) and _is_number(everything, 12) and core <= everything):
        form = "{core: …, all: …}, above 0 and at most 12, core at most all"
        yield 1, f"set llm_learn.hours to {form} (it is {meta.get('hours')!r})"
    budget = meta.get("budget") if isinstance(meta.get("budget"), dict) else {}
    for key, limit in (("cpu_seconds", MAX_CPU_SECONDS), ("memory_gib", MAX_MEMORY_GIB)):
        if not _is_number(value := budget.get(key), limit):
            yield (
                1,
                f"set llm_learn.budget.{key} to more than 0 and at most {limit} (it is {value!r})",
            )
    if not isinstance(meta.get("extras"), list) or (
        unknown := sorted(set(meta["extras"]) - book.extras)
    ):
        yield (
            1,
            f"llm_learn.extras must list extras of pyproject.toml ({sorted(book.extras)}), unknown: "
            + str(unknown if isinstance(meta.get("extras"), list) else meta.get("extras")),
        )
    if not isinstance(meta.get("excused", {}), dict):
        yield (
            1,
            "llm_learn.excused maps a role of the anatomy to the reason why it does not apply",
        )


def unfinished(chapter: Source) -> list[str]:
    """What a page from a split still lacks: roles, three exercises, a figure, or length."""
    excused = chapter.meta.get("excused")
    excused = excused if isinstance(excused, dict) else {}
    return sorted(role for role, reason in excused.items() if reason == UNFINISHED)


@check
def anatomy(chapter: Source, book: Book) -> Found:
    """Every role of the anatomy is present by its label, or excused with a reason."""
    pieces = {*chapter.name.split("-"), chapter.name}
    excused = chapter.meta.get("excused")
    excused = excused if isinstance(excused, dict) else {}
    required = ROLES[chapter.edition]
    for role in required:
        tails = [
            (n, label[len(role) + 1 :])
            for n, label in chapter.labels
            if label.startswith(f"{role}-")
        ]
        # Build and check repeat, once for each piece of the chapter, so their labels may end in that piece.
        own = [
            n
            for n, tail in tails
            if tail in pieces or chapter.name in tail or role in ("build", "check")
        ]
        if role in excused:
            # Of exercises there may be one or two.
            if own and (role, excused[role]) != ("exercises", UNFINISHED):
                yield (
                    own[0],
                    f"`{role}` is excused in the front matter, but the chapter has it: remove the excuse",
                )
            if excused[role] != UNFINISHED and len(str(excused[role] or "")) < 15:
                yield 1, f"excused.{role} needs a reason that a reader understands"
        elif not own:
            yield (
                1,
                f"no label `({role}-{chapter.name})=`: add that role, or excuse it in the front matter",
            )
    for role in set(excused) - {*required, *(set(ELSE) & set(unfinished(chapter)))}:
        yield 1, f"excused.{role} is not a role; the roles are {', '.join(required)}"


@check
def verified(chapter: Source, book: Book) -> Found:
    """A cell after a check label verifies against a reference."""
    if "check" in (chapter.meta.get("excused") or {}):
        return
    for cell in chapter.cells:
        if role_at(chapter, cell.line) == "check" and any(
            name.startswith("verify") for name, _ in calls(tree(cell))
        ):
            return
    yield (
        1,
        "no cell under a `(check-…)=` label calls `verify(…)`: compare what you built with a reference",
    )


def drawing_names(chapter: Source) -> set[str]:
    """Names whose call leaves a figure: llm_learn.notebook.plotting's, and functions of the chapter that draw."""
    names = set()
    for cell in chapter.cells:
        for node in ast.walk(tree(cell)):
            if (
                isinstance(node, ast.ImportFrom)
                and node.module == "llm_learn.notebook.plotting"
            ):
                names |= {alias.asname or alias.name for alias in node.names}
            elif isinstance(node, ast.FunctionDef) and any(
                name in ("subplots", "figure", "subplot_mosaic") for name, _ in calls(node)
            ):
                names.add(node.name)
    return {name for name in names if "style" not in name and not name.isupper()}


@check
def figures(chapter: Source, book: Book) -> Found:
    """There is a figure with a caption, and every picture has alt text."""
    drawing, captioned = drawing_names(chapter), 0
    for cell in chapter.cells:
        options = cell.options.get("mystnb") or {}
        alt = str((options.get("image") or {}).get("alt") or "")
        figure = options.get("figure") or {}
        captioned += bool(figure.get("caption") and figure.get("name"))
        top = [
            n for n in tree(cell).body if not isinstance(n, ast.FunctionDef | ast.ClassDef)
        ]
        called = [(name, call) for node in top for name, call in calls(node)]
        leaves = any(
            name in drawing
            or (
                name in DRAWING
                and getattr(getattr(c.func, "value", None), "id", "") == "plt"
            )
            for name, c in called
        ) and not any(name == "close" for name, _ in called)
        if (leaves or figure) and len(alt) < MIN_ALT:
            yield (
                cell.line,
                f"this cell draws, but mystnb.image.alt has {len(alt)} characters: "
                f"say in at least {MIN_ALT} what the picture shows",
            )
    shown = [
        (n, o.get("alt", "")) for n, *_, o in directives(chapter, "figure|image|diagram")
    ]
    for number, line in chapter.prose:
        shown += [(number, alt) for alt in re.findall(r"!\[([^\]]*)\]\(", line)]
    for number, alt in shown:
        if len(alt) < MIN_ALT:
            yield number, f"give the picture an alt text of at least {MIN_ALT} characters"
    if not captioned and "figure" not in unfinished(chapter):
        yield (
            1,
            "no figure: give a cell that draws `mystnb.figure` with caption and name, and `mystnb.image.alt`",
        )


@check
def png_only(chapter: Source, book: Book) -> Found:
    """Cells draw PNG, which the proof skips: it would fail on an SVG's date. Only `{diagram}` shows an SVG."""
    for cell in chapter.cells:
        for number, line in enumerate(cell.source.split("\n"), cell.line):
            if re.search(
                r"""\.(?:svg|pdf|jpe?g|gif)["']|set_matplotlib_formats|figure_formats?\s*=|["']svg["']""",
                line,
            ):
                yield (
                    number,
                    "draw PNG only: leave the figure to matplotlib's inline output",
                )
    for number, line in chapter.prose:
        if re.search(
            r"(?:\]\(|\{(?:figure|image)\}\s*)[^)\s]+\.(?:svg|pdf|jpe?g|gif)\b", line
        ):
            yield number, "show a PNG picture"


def _needs_no_exercises(chapter: Source) -> bool:
    """A page with fewer than three, which still lacks some, keeps the rules for those that it has."""
    excused = chapter.meta.get("excused") or {}
    return "exercises" in excused and excused["exercises"] != UNFINISHED


@check
def exercises(chapter: Source, book: Book) -> Found:
    """At least three gated exercises, each with a label, a hint and a hidden solution."""
    if _needs_no_exercises(chapter):
        return
    starts = list(directives(chapter, "exercise-start"))
    given = directives(chapter, "solution-start")
    solutions = {label: (n, options) for n, _, label, options in given}
    enough = len(starts) >= MIN_EXERCISES
    if enough and "exercises" in unfinished(chapter):
        yield 1, f"there are {len(starts)} exercises: remove the excuse of the front matter"
    elif not enough and "exercises" not in unfinished(chapter):
        yield (
            (starts[-1][0] if starts else 1),
            f"{len(starts)} exercises: write at least {MIN_EXERCISES}, each with `{{exercise-start}}`",
        )
    for n, kind, *_ in directives(chapter, "exercise|solution"):
        yield n, f"use `{{{kind}-start}}` and `{{{kind}-end}}`, so that code inside runs"
    for kind in ("exercise", "solution"):
        opened = [n for n, *_ in directives(chapter, f"{kind}-start")]
        closed = [n for n, *_ in directives(chapter, f"{kind}-end")]
        if len(opened) != len(closed) or any(
            a > b for a, b in zip(opened, closed, strict=False)
        ):
            yield (
                (opened or closed)[-1],
                f"every `{{{kind}-start}}` needs its `{{{kind}-end}}`",
            )
    ends = [*(n for n, *_ in starts[1:]), len(chapter.lines) + 1]
    for (n, _, _, options), end in zip(starts, ends, strict=False):
        label, kinds = options.get("label", ""), {*options.get("class", "").split()}
        if not label:
            yield n, "give the exercise a `:label:`"
            continue
        solution, folded = solutions.get(label, (None, {}))
        if solution is None:
            yield n, f"exercise `{label}` has no solution: add `{{solution-start}} {label}`"
        elif "dropdown" not in folded.get("class", ""):
            yield solution, "hide the solution: `:class: dropdown`"
        end = solution if solution and n < solution < end else end
        hints = sum(n < m < end for m, *_ in directives(chapter, "hint"))
        needed = 2 if chapter.edition == 2 and kinds & TWO_HINTS else 1
        if hints < needed:
            remedy = f"add a `{{hint}}` before its solution ({needed} in all)"
            yield n, f"exercise `{label}` has {hints or 'no'} hint: {remedy}"


@check
def exercise_code(chapter: Source, book: Book) -> Found:
    """At least one exercise is checked by code: checker, starter and solution, told by their tags."""
    if _needs_no_exercises(chapter):
        return
    lines = {
        role: [c.line for c in chapter.cells if f"exercise-{role}" in c.tags]
        for role in EXERCISE_TAGS
    }
    for role in EXERCISE_TAGS:
        if not lines[role] and "exercises" not in unfinished(chapter):
            yield (
                1,
                f"no cell is tagged `exercise-{role}`: check at least one exercise by a function",
            )
    if len(lines["starter"]) != len(lines["solution"]):
        yield (
            1,
            f"{len(lines['starter'])} starters and {len(lines['solution'])} solutions: pair them",
        )
    opened = [n for n, *_ in directives(chapter, "solution-start")]
    closed = [n for n, *_ in directives(chapter, "solution-end")]
    for line in lines["solution"]:
        if not any(a < line < b for a, b in zip(opened, closed, strict=False)):
            yield (
                line,
                "put the cell tagged `exercise-solution` inside `{solution-start}` … `{solution-end}`",
            )
    labels = {options.get("label") for *_, options in directives(chapter, "exercise-start")}
    for cell in chapter.cells:
        if "exercise-checker" not in cell.tags:
            continue
        names = re.findall(r"^@exercise\(\"([\w-]+)\"\)", cell.source, re.M)
        if not names:
            yield (
                cell.line,
                'decorate the checker with `@exercise("name")` from llm_learn.notebook.exercises',
            )
        for name in names:
            if not labels & {name, f"ex-{name}"}:
                yield cell.line, f"no exercise of this chapter has the label `ex-{name}`"
            for role in ("starter", "solution"):
                if not any(
                    f'check("{name}"' in c.source
                    for c in chapter.cells
                    if f"exercise-{role}" in c.tags
                ):
                    yield (
                        cell.line,
                        f'no cell tagged `exercise-{role}` calls `check("{name}", …)`',
                    )


@check
def citations(chapter: Source, book: Book) -> Found:
    """At least two works are cited, all of them in references.bib."""
    cited = {}
    for number, line in chapter.prose:
        for keys in CITE.findall(line):
            cited |= {key.strip(): number for key in keys.split(",")}
    if len(cited) < MIN_CITATIONS:
        yield (
            1,
            f"{len(cited)} works cited: cite at least {MIN_CITATIONS} with {{cite}}`key`",
        )
    for key, number in cited.items():
        if key not in book.citations:
            yield number, f"`{key}` is not in references.bib: add it there"


@check
def materials(chapter: Source, book: Book) -> Found:
    """Further reading lists the learning plan's materials that help the chapter, from the one data file."""
    for number, _, _, options in directives(chapter, "materials"):
        if options.get("for") == "this chapter":
            if role_at(chapter, number) != "reading":
                yield number, "move `{materials}` below the label `(reading-…)=`"
            return
    if chapter.slug in book.helped:
        yield (
            1,
            "code/book/data/materials.yml has entries for this chapter: list them under Further reading by "
            "`{materials}` with `:for: this chapter`",
        )


@check
def substance(chapter: Source, book: Book) -> Found:
    """There is enough prose to learn from and enough code to run."""
    if "length" in unfinished(chapter):
        return
    words = sum(section.words for section in sections(chapter))
    if words < MIN_WORDS:
        yield 1, f"{words} words of prose: a chapter needs at least {MIN_WORDS}"
    if len(chapter.cells) < MIN_CELLS:
        yield 1, f"{len(chapter.cells)} code cells: a chapter needs at least {MIN_CELLS}"
