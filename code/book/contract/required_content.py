"""Checks of what every chapter must have; each message names file, line and remedy.

What a chapter must not do is in `book.contract.forbidden_content`; importing this module registers both in CHECKS.
"""

import ast
import re
from collections.abc import Iterator

from book.contract import declared_imports, forbidden_content  # noqa: F401 (register their checks)
from book.contract.registry import CHECKS, Book, Found, calls, check, load_book, tree
from book.execute.budgets import MAX_CPU_SECONDS, MAX_MEMORY_GIB
from book.read.chapters import COMMENT, Source, planned_chapters

__all__ = ["CHECKS", "ROLES", "Book", "load_book"]

ROLES = ["question", "idea", "build", "check", "experiment"]
ROLES += ["wrong", "cost", "scale", "exercises", "reading"]
EXERCISE_TAGS = ("checker", "starter", "solution")
MIN_ALT, MIN_WORDS, MIN_CELLS, MIN_EXERCISES, MIN_CITATIONS = 40, 900, 8, 3, 2

# The reason on a page that came out of a split, for a role that it will get, or for what else it still lacks;
# tests/first_edition/unfinished.yml lists them.
UNFINISHED, ELSE = "second edition", ["figure", "length"]

CITE = re.compile(r"\{cite(?::\w+)?\}`([^`]+)`")
DRAWING = {"subplots", "figure", "subplot_mosaic", "plot", "imshow", "matshow"}
DRAWING |= {"pcolormesh", "scatter", "bar", "hist"}


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
    hours = meta.get("hours")
    if isinstance(hours, bool) or not isinstance(hours, int | float) or not 0 < hours <= 12:
        yield (
            1,
            f"set llm_learn.hours to the reading time, more than 0 and at most 12 (it is {hours!r})",
        )
    budget = meta.get("budget") if isinstance(meta.get("budget"), dict) else {}
    for key, limit in (("cpu_seconds", MAX_CPU_SECONDS), ("memory_gib", MAX_MEMORY_GIB)):
        value = budget.get(key)
        if (
            isinstance(value, bool)
            or not isinstance(value, int | float)
            or not 0 < value <= limit
        ):
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
    for role in ROLES:
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
    for role in set(excused) - {*ROLES, *(set(ELSE) & set(unfinished(chapter)))}:
        yield 1, f"excused.{role} is not a role; the roles are {', '.join(ROLES)}"


def role_at(chapter: Source, line: int) -> str:
    """The anatomy role whose label stands last above `line`."""
    roles = [
        label.split("-")[0]
        for n, label in chapter.labels
        if n < line and label.split("-")[0] in ROLES
    ]
    return roles[-1] if roles else ""


@check
def verified(chapter: Source, book: Book) -> Found:
    """A cell after a check label verifies against a reference."""
    if "check" in (chapter.meta.get("excused") or {}):
        return
    for cell in chapter.cells:
        if role_at(chapter, cell.line) == "check" and any(
            name == "verify" for name, _ in calls(tree(cell))
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
    for number, line in chapter.prose:
        if re.match(r"^[`:]{3,}\{(?:figure|image)\}", line):
            following = "\n".join(chapter.lines[number : number + 8])
            alt = re.search(r"^:alt:\s*(.+)$|^alt:\s*(.+)$", following, re.M)
            if not alt or len(alt[0]) < MIN_ALT:
                yield (
                    number,
                    f"give the picture an alt text of at least {MIN_ALT} characters",
                )
        for alt in re.findall(r"!\[([^\]]*)\]\(", line):
            if len(alt) < MIN_ALT:
                yield (
                    number,
                    f"give the picture an alt text of at least {MIN_ALT} characters",
                )
    if not captioned and "figure" not in unfinished(chapter):
        yield (
            1,
            "no figure: give a cell that draws `mystnb.figure` with caption and name, and `mystnb.image.alt`",
        )


@check
def png_only(chapter: Source, book: Book) -> Found:
    """Pictures are PNG: the proof skips those, and would fail on an SVG's date."""
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


def gates(chapter: Source) -> Iterator[tuple[int, str, str, dict[str, str]]]:
    """(line, directive, argument, options) of every exercise and solution directive."""
    for number, line in chapter.prose:
        if match := re.match(
            r"^[`:]{3,}\{((?:exercise|solution)(?:-start|-end)?)\}\s*(.*)$", line
        ):
            options = {}
            for following in chapter.lines[number:]:
                option = re.match(r"^:(\w+):\s*(.*)$", following)
                if not option:
                    break
                options[option[1]] = option[2]
            yield number, match[1], match[2].strip(), options


def _needs_no_exercises(chapter: Source) -> bool:
    """A page with fewer than three, which still lacks some, keeps the rules for those that it has."""
    excused = chapter.meta.get("excused") or {}
    return "exercises" in excused and excused["exercises"] != UNFINISHED


@check
def exercises(chapter: Source, book: Book) -> Found:
    """At least three gated exercises, each with a label, a hint and a hidden solution."""
    if _needs_no_exercises(chapter):
        return
    found = list(gates(chapter))
    starts = [
        (n, options.get("label", ""))
        for n, kind, _, options in found
        if kind == "exercise-start"
    ]
    solutions = {
        argument: (n, options)
        for n, kind, argument, options in found
        if kind == "solution-start"
    }
    enough = len(starts) >= MIN_EXERCISES
    if enough and "exercises" in unfinished(chapter):
        yield 1, f"there are {len(starts)} exercises: remove the excuse of the front matter"
    elif not enough and "exercises" not in unfinished(chapter):
        yield (
            (starts[-1][0] if starts else 1),
            f"{len(starts)} exercises: write at least {MIN_EXERCISES}, each with `{{exercise-start}}`",
        )
    for n, kind, _, _ in found:
        if kind in ("exercise", "solution"):
            yield (
                n,
                f"use `{{{kind}-start}}` and `{{{kind}-end}}`, so that code inside runs",
            )
    for kind in ("exercise", "solution"):
        opened = [n for n, k, _, _ in found if k == f"{kind}-start"]
        closed = [n for n, k, _, _ in found if k == f"{kind}-end"]
        if len(opened) != len(closed) or any(
            a > b for a, b in zip(opened, closed, strict=False)
        ):
            yield (
                (opened or closed)[-1],
                f"every `{{{kind}-start}}` needs its `{{{kind}-end}}`",
            )
    for position, (n, label) in enumerate(starts):
        if not label:
            yield n, "give the exercise a `:label:`"
            continue
        solution, options = solutions.get(label, (None, {}))
        if solution is None:
            yield n, f"exercise `{label}` has no solution: add `{{solution-start}} {label}`"
        elif "dropdown" not in options.get("class", ""):
            yield solution, "hide the solution: `:class: dropdown`"
        following = (
            starts[position + 1][0]
            if position + 1 < len(starts)
            else len(chapter.lines) + 1
        )
        end = solution if solution and n < solution < following else following
        if not any(
            n < m < end and re.match(r"^[`:]{3,}\{hint\}|.*\} Hint", line)
            for m, line in chapter.prose
        ):
            yield (
                n,
                f"exercise `{label}` has no hint: add a `{{hint}}` before its solution",
            )


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
    found = list(gates(chapter))
    opened = [n for n, kind, _, _ in found if kind == "solution-start"]
    closed = [n for n, kind, _, _ in found if kind == "solution-end"]
    for line in lines["solution"]:
        if not any(a < line < b for a, b in zip(opened, closed, strict=False)):
            yield (
                line,
                "put the cell tagged `exercise-solution` inside `{solution-start}` … `{solution-end}`",
            )
    labels = {
        options.get("label", "")
        for _, kind, _, options in found
        if kind == "exercise-start"
    }
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
    for number, line in chapter.prose:
        listed = re.match(r"^[`:]{3,}\{materials\}", line)
        options = chapter.lines[number : number + 1]  # none where the file ends here
        if listed and [line.strip() for line in options] == [":for: this chapter"]:
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
    text = re.sub(
        r"\$\$.*?\$\$",
        " ",
        COMMENT.sub(" ", "\n".join(line for _, line in chapter.prose)),
        flags=re.S,
    )
    words = re.findall(
        r"[^\W\d_]+(?:['’-]\w+)*",
        re.sub(r"(?m)^(?:[`:]{3,}.*|:\w+:.*|\([\w-]+\)=)$", " ", text),
    )
    if "length" in unfinished(chapter):
        return
    if len(words) < MIN_WORDS:
        yield 1, f"{len(words)} words of prose: a chapter needs at least {MIN_WORDS}"
    if len(chapter.cells) < MIN_CELLS:
        yield 1, f"{len(chapter.cells)} code cells: a chapter needs at least {MIN_CELLS}"
