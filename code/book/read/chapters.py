"""Reads chapters: a MyST notebook as front matter, code cells and prose, each with its line number.

myst-nb reads the same pages again while it builds the site. Outputs are found by a hash of the cells, so the two must
agree on every cell; tests compare them on all pages of the book.
"""

import re
import tomllib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path

import nbformat
import yaml
from sphinx.environment import BuildEnvironment

ROOT = Path(__file__).resolve().parents[3]
DATA = Path(__file__).resolve().parents[1] / "data"
PLAN = DATA / "chapters.yml"

FENCE = re.compile(r"^(?P<ticks>`{3,}|~{3,}|:{3,})\s*(?P<info>.*?)\s*$")
LABEL = re.compile(r"^\((?P<label>[\w-]+)\)=\s*$")
VERBATIM = ("{code", "{math}", "{mermaid}", "{eval-rst}", "{raw}", "{literalinclude}")
COMMENT = re.compile(r"<!--.*?-->", re.DOTALL)


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One code cell of a chapter."""

    line: int  # line of the file (from 1) that holds the first line of the source
    source: str
    options: dict = field(default_factory=dict)  # its YAML block: tags, mystnb, …
    options_line: int = 0  # line of the file that opens the cell
    last_line: int = 0  # line of the file that closes it

    @property
    def tags(self) -> list[str]:
        return list(self.options.get("tags") or [])


@dataclass(frozen=True, kw_only=True)
class Source:
    """One chapter's source, read once."""

    path: Path
    slug: str  # part/name
    text: str

    @property
    def docname(self) -> str:
        """The page's name in the book."""
        return f"chapters/{self.slug}"

    @property
    def edition(self) -> int:
        """2 where the page has the form of the second edition, else 1."""
        return 2 if self.meta.get("edition") == 2 else 1

    @property
    def hours(self) -> tuple[float, float]:
        """Hours to read the core, and the whole page; 0 where none are given."""
        hours = self.meta.get("hours")
        hours = hours if isinstance(hours, dict) else {}
        return hours.get("core", 0), hours.get("all", 0)

    @property
    def is_chapter(self) -> bool:
        """Whether it is executed: it has `llm_learn:` front matter and code cells."""
        return bool(self.meta and self.cells)

    @property
    def part(self) -> str:
        return self.slug.split("/")[0]

    @property
    def name(self) -> str:
        return self.slug.split("/")[-1]

    @cached_property
    def lines(self) -> list[str]:
        # Not splitlines(), for which a rare character inside a cell ends a line, too.
        return self.text.removesuffix("\n").split("\n")

    @cached_property
    def _front(self) -> tuple[dict, int]:
        if not self.lines or self.lines[0].strip() != "---":
            return {}, 0
        end = next(
            (i for i, line in enumerate(self.lines[1:], 1) if line.strip() == "---"), None
        )
        if end is None:
            raise ValueError(
                f"{self.path}:1: the front matter is not closed by a line `---`"
            )
        try:
            front = yaml.safe_load("\n".join(self.lines[1:end]))
        except yaml.YAMLError as error:
            raise ValueError(
                f"{self.path}:1: the front matter is not YAML: {error}"
            ) from error
        return (front if isinstance(front, dict) else {}), end + 1

    @property
    def front(self) -> dict:
        """The whole front matter; empty where there is none."""
        return self._front[0]

    @property
    def meta(self) -> dict:
        """The `llm_learn:` part of the front matter; empty for a page that is no chapter."""
        meta = self.front.get("llm_learn")
        return meta if isinstance(meta, dict) else {}

    @cached_property
    def _parsed(self) -> tuple[list[Cell], list[tuple[int, str]]]:
        """Cells, and the lines outside front matter, cells and other verbatim blocks."""
        cells, prose, open_fences, i = [], [], [], self._front[1]
        while i < len(self.lines):
            fence = FENCE.match(self.lines[i])
            ticks, info = (fence["ticks"], fence["info"]) if fence else ("", "")
            closes = not info and open_fences and ticks.startswith(open_fences[-1])
            if closes:
                open_fences.pop()
            elif ticks and info.startswith("{") and not info.startswith(VERBATIM):
                open_fences.append(ticks)
            elif ticks:  # a cell, or a block that is shown as it is
                end = i + 1
                closing = re.compile(rf"^{re.escape(ticks[0])}{{{len(ticks)},}}\s*$")
                while end < len(self.lines) and not closing.match(self.lines[end]):
                    end += 1
                if info.startswith("{code-cell}"):
                    if open_fences or ticks[0] == ":":
                        raise ValueError(
                            f"{self.path}:{i + 1}: a code cell must stand between backticks and outside of every "
                            "other directive, or it is shown and not executed"
                        )
                    cells.append(self._cell(i, end))
                prose.append((i + 1, ""))
                i = end + 1
                continue
            prose.append((i + 1, self.lines[i]))
            i += 1
        return cells, prose

    def _cell(self, start: int, end: int) -> Cell:
        first, options = start + 1, []
        if first < end and self.lines[first].strip() == "---":
            close = next(
                (j for j in range(first + 1, end) if self.lines[j].strip() == "---"), end
            )
            options, first = self.lines[first + 1 : close], close + 1
        else:
            while first < end and re.match(r"^:[\w-]+:", self.lines[first]):
                options.append(self.lines[first][1:])
                first += 1
        try:
            parsed = (yaml.safe_load("\n".join(options)) or {}) if options else {}
        except yaml.YAMLError as error:
            raise ValueError(
                f"{self.path}:{start + 1}: the cell's options are not YAML: {error}"
            ) from error
        if first < end and not self.lines[first].strip():
            first += 1
        if first < end and not (self.lines[first].strip() and self.lines[end - 1].strip()):
            raise ValueError(
                f"{self.path}:{start + 1}: a code cell must not begin or end with blank lines"
            )
        source = "\n".join(self.lines[first:end])
        return Cell(
            line=first + 1,
            source=source,
            options=parsed,
            options_line=start + 1,
            last_line=end + 1,
        )

    @property
    def cells(self) -> list[Cell]:
        return self._parsed[0]

    @property
    def prose(self) -> list[tuple[int, str]]:
        """(line number, text) of everything that is read, not run."""
        return self._parsed[1]

    @cached_property
    def notebook(self) -> nbformat.NotebookNode:
        """The cells without outputs, and what stands between them as Markdown cells."""
        cells, begin = [], self._front[1]

        def add(kind: str, source: str, **more: object) -> None:
            cell = {"cell_type": kind, "id": f"cell-{len(cells)}", "source": source}
            cells.append({"metadata": {}, **cell, **more})

        for cell in [*self.cells, None]:
            text = "\n".join(self.lines[begin : cell.options_line - 1 if cell else None])
            if text.strip():
                add("markdown", text.rstrip().lstrip("\n"))
            if cell:
                made = {"metadata": cell.options, "execution_count": None, "outputs": []}
                add("code", cell.source, **made)
                begin = cell.last_line
        return nbformat.from_dict(
            {"nbformat": 4, "nbformat_minor": 5, "metadata": self.front, "cells": cells}
        )

    @cached_property
    def labels(self) -> list[tuple[int, str]]:
        """(line number, name) of every `(name)=`."""
        return [
            (n, match["label"]) for n, line in self.prose if (match := LABEL.match(line))
        ]

    @property
    def where(self) -> str:
        """The file as messages name it: relative to the repository where it lies in one."""
        parts = self.path.parts
        return (
            "/".join(parts[parts.index("chapters") :])
            if "chapters" in parts
            else self.path.name
        )


# A build asks a thousand times for what is in fifty chapters.
@lru_cache(maxsize=256)
def _parsed_once(path: Path, slug: str, text: str) -> Source:
    return Source(path=path, slug=slug, text=text)


def read_source(path: Path, slug: str | None = None) -> Source:
    """The chapter in `path`; its slug is the last folder and the file's name unless given."""
    slug = slug or f"{path.parent.name}/{path.stem}"
    return _parsed_once(path, slug, path.read_text(encoding="utf-8"))


def find_sources(root: Path = ROOT) -> Iterator[Source]:
    """Every chapter under `root`/chapters: a document with `llm_learn:` front matter and code cells."""
    for path in sorted((root / "chapters").glob("*/*.md")):
        chapter = read_source(path)
        if chapter.is_chapter:
            yield chapter


def chapter_source(env: BuildEnvironment, docname: str) -> Source | None:
    """The chapter behind `docname`; None for every other page."""
    if not docname.startswith("chapters/"):
        return None
    path = Path(env.doc2path(docname))
    if path.suffix != ".md" or not path.is_file():
        return None
    source = read_source(path, docname.removeprefix("chapters/"))
    return source if source.is_chapter else None


def read_chapters(root: Path, docnames: Iterable[str]) -> list[Source]:
    """The documents that contain code cells.

    Raises:
        ValueError: A document has code cells, but stands outside chapters/ or lacks `llm_learn:`. Executing it without
            a budget and a proof would leave a hole that nobody sees.
    """
    chapters = []
    for docname in sorted(docnames):
        path = root / f"{docname}.md"
        if not path.is_file():
            continue
        page = read_source(path, docname.removeprefix("chapters/"))
        if not page.cells:
            continue
        if not page.meta or not docname.startswith("chapters/"):
            raise ValueError(
                f"{docname}.md has code cells, so it must be a chapter: a file under chapters/ whose front "
                "matter has `llm_learn:` with at least a budget. Or show the code in a plain ```python block."
            )
        chapters.append(page)
    return chapters


def book_chapters(root: Path) -> list[Source]:
    """The chapters that the table of contents lists."""
    from sphinx_external_toc.parsing import parse_toc_yaml

    names = parse_toc_yaml(root / "_toc.yml")
    return read_chapters(root, (str(name).removesuffix(".md") for name in names))


def find(chapters: Iterable[Source], name: str) -> Source:
    """The chapter called `<part>/<name>`, or `<name>` where that is unambiguous.

    Raises:
        ValueError: No chapter, or more than one, is called so; the message lists the names.
    """
    chapters = list(chapters)
    wanted = name.removeprefix("chapters/").removesuffix(".md")
    found = [chapter for chapter in chapters if wanted in (chapter.slug, chapter.name)]
    if len(found) == 1:
        return found[0]
    names = ", ".join(chapter.slug for chapter in found or chapters) or "none yet"
    problem = "more than one chapter is called" if found else "no chapter is called"
    raise ValueError(f"{problem} {name!r}; the names are: {names}")


def project(root: Path = ROOT) -> dict:
    """The `project` table of pyproject.toml."""
    return tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def load_plan(path: Path = PLAN) -> dict:
    """chapters.yml: `parts`, each with its chapters, and `plan`, the learning plan's sections and items."""
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def planned_chapters(plan: dict) -> dict[str, dict]:
    """slug -> its entry in chapters.yml, in the book's order."""
    return {
        chapter["slug"]: chapter for part in plan["parts"] for chapter in part["chapters"]
    }
