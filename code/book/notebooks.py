"""The chapters as notebooks: which documents they are, their cells, and the budgets that they declare."""

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

import nbformat
import yaml
from myst_nb.core.config import NbParserConfig
from myst_nb.core.read import create_nb_reader
from myst_parser.config.main import MdParserConfig
from nbformat import NotebookNode

from book.files import write_atomically

# A chapter may exceed what it declares by this factor: two runs on one machine differ.
TOLERANCE = 1.5
# So many chapters have to be measured before they tell how slow the machine is.
ENOUGH_TO_TELL = 5
# Where the machine is slower than the budgets assume, they grow with it, up to this factor: beyond it, a library has
# become slower, or the machine cannot tell. From the smaller one on, the build warns.
SLOWEST, SLOW = 3.0, 2.0
# A chapter is ended after so many times its CPU-seconds by the clock, and not before so many seconds.
TIME_LIMIT, LEAST_TIME_LIMIT = 20, 300.0
# What the chapters may declare together: 43 for each of the 44 that are planned. One execution of the whole book
# then stays a matter of minutes.
BOOK_CPU_SECONDS = 43 * 44


@dataclass(frozen=True)
class Budget:
    """What a chapter declares that one execution needs, on a machine that does nothing else."""

    cpu_seconds: float
    memory_gib: float


@dataclass(frozen=True)
class ChapterNotebook:
    """An executed page: its name in the book, file, cells without outputs, and `llm_learn:` metadata."""

    docname: str
    path: Path
    notebook: NotebookNode
    settings: dict[str, Any]

    @property
    def name(self) -> str:
        """`<part>/<slug>`, as on the command line."""
        return self.docname.removeprefix("chapters/")

    @property
    def code_cells(self) -> list[NotebookNode]:
        return [cell for cell in self.notebook.cells if cell.cell_type == "code"]

    @property
    def budget(self) -> Budget | None:
        """The declared budget, or None where there is no usable one."""
        declared = self.settings.get("budget")
        if not isinstance(declared, dict):
            return None
        values = [declared.get(key) for key in ("cpu_seconds", "memory_gib")]
        if not all(isinstance(value, int | float) and value > 0 for value in values):
            return None
        return Budget(*values)


class NotAChapter(Exception):
    """A document has code cells but does not declare itself as a chapter."""


def read_chapters(
    root: Path,
    docnames: Iterable[str],
    myst_config: MdParserConfig,
    nb_config: NbParserConfig,
) -> list[ChapterNotebook]:
    """Reads the documents that contain code cells, exactly as myst-nb reads them, so that hashes agree.

    Raises:
        NotAChapter: A document has code cells, but stands outside chapters/ or lacks `llm_learn:`. Executing
            it without a budget and a proof would leave a hole that nobody sees.
    """
    chapters, parsed = [], Parsed(root)
    for docname in sorted(docnames):
        path = root / f"{docname}.md"
        if not path.is_file():
            continue
        notebook = parsed.read(docname, path, myst_config, nb_config)
        if notebook is None:
            continue
        chapter = ChapterNotebook(
            docname, path, notebook, notebook.metadata.get("llm_learn") or {}
        )
        if not chapter.code_cells:
            continue
        if not chapter.settings or not docname.startswith("chapters/"):
            raise NotAChapter(
                f"{docname}.md has code cells, so it must be a chapter: a file under chapters/ whose front "
                "matter has `llm_learn:` with at least a budget. Or show the code in a plain ```python block."
            )
        chapters.append(chapter)
    parsed.keep()
    return chapters


class Parsed:
    """The notebooks that documents were read as, by the content of their files, in `_build` where that exists.

    To read the whole book takes longer than all else that a change of one sentence asks for.
    """

    def __init__(self, root: Path) -> None:
        self.file = root / "_build" / ".parsed.json"
        try:
            self.known = json.loads(self.file.read_text(encoding="utf-8"))
        except (OSError, json.JSONDecodeError):
            self.known = {}
        self.used: dict[str, dict[str, Any]] = {}

    def read(
        self, docname: str, path: Path, myst: MdParserConfig, nb: NbParserConfig
    ) -> NotebookNode | None:
        """The document as myst-nb reads it; None where it is no notebook."""
        text = path.read_text(encoding="utf-8")
        settings = [sorted(myst.enable_extensions), nb.custom_formats]
        settings += [nb.cell_metadata_key, nb.metadata_key]
        # The command line reads with fewer settings than Sphinx does: each keeps its own.
        name = f"{docname} {hashlib.sha256(repr(settings).encode()).hexdigest()[:8]}"
        key = hashlib.sha256("\0".join([text, *_readers()]).encode()).hexdigest()
        entry = self.known.get(name)
        if not entry or entry["key"] != key:
            reader = create_nb_reader(str(path), myst, nb, text)
            entry = {"key": key, "notebook": reader and reader.read(text)}
        self.used[name] = entry
        notebook = entry["notebook"]
        return notebook and nbformat.from_dict(notebook)

    def keep(self) -> None:
        """Writes what was read, if any of it is new."""
        if self.file.parent.is_dir() and any(
            self.known.get(name) != entry for name, entry in self.used.items()
        ):
            write_atomically(self.file, json.dumps(self.known | self.used))


@cache
def _readers() -> list[str]:
    """What decides how a document is read, beside its configuration."""
    versions = [version(name) for name in ("myst-nb", "myst-parser", "markdown-it-py")]
    return [*versions, hashlib.sha256(Path(__file__).read_bytes()).hexdigest()]


def book_chapters(root: Path) -> list[ChapterNotebook]:
    """The chapters that the table of contents lists, read without Sphinx."""
    from sphinx_external_toc.parsing import parse_toc_yaml

    config = yaml.safe_load((root / "_config.yml").read_text(encoding="utf-8")) or {}
    extensions = (config.get("parse") or {}).get("myst_enable_extensions") or []
    docnames = [str(name).removesuffix(".md") for name in parse_toc_yaml(root / "_toc.yml")]
    return read_chapters(
        root, docnames, MdParserConfig(enable_extensions=set(extensions)), NbParserConfig()
    )


def allowed_escapes(num_cells: int) -> int:
    """How many of a chapter's cells the proof may leave uncompared: three, or a fifth where that is more."""
    return max(3, num_cells // 5)


def find(chapters: Iterable[ChapterNotebook], name: str) -> ChapterNotebook:
    """The chapter called `<part>/<slug>`, or `<slug>` where that is unambiguous.

    Raises:
        ValueError: No chapter, or more than one, is called so; the message lists the names.
    """
    chapters = list(chapters)
    wanted = name.removeprefix("chapters/").removesuffix(".md")
    found = [
        chapter
        for chapter in chapters
        if wanted in (chapter.name, chapter.name.rpartition("/")[2])
    ]
    if len(found) == 1:
        return found[0]
    names = ", ".join(chapter.name for chapter in found or chapters) or "none yet"
    problem = "more than one chapter is called" if found else "no chapter is called"
    raise ValueError(f"{problem} {name!r}; the names are: {names}")


def time_limit(budget: Budget | None) -> float:
    """Seconds by the clock after which a chapter is ended, because it hangs."""
    return max(LEAST_TIME_LIMIT, TIME_LIMIT * budget.cpu_seconds if budget else 0.0)


def slowness(measured: Sequence[tuple[ChapterNotebook, dict[str, Any]]]) -> float:
    """How much slower this machine is than the budgets assume; at least 1.

    It is the median over the chapters of measured to declared CPU-seconds: one chapter that has grown does not move
    it, a machine whose cores are shared moves all of them. 1 if too few chapters are measured.
    """
    ratios = [
        record["cpu_seconds"] / chapter.budget.cpu_seconds
        for chapter, record in measured
        if chapter.budget
    ]
    return max(1.0, median(ratios)) if len(ratios) >= ENOUGH_TO_TELL else 1.0


def budget_problems(
    measured: Iterable[tuple[ChapterNotebook, dict[str, Any]]], slow: float = 1.0
) -> list[str]:
    """One sentence for each chapter without a budget or over it.

    Args:
        measured: Chapters with the records of their executions.
        slow: How much slower the machine is than the budgets assume (`slowness`); no more than `SLOWEST` counts.
    """
    problems = []
    for chapter, record in measured:
        used = {
            "cpu_seconds": record["cpu_seconds"],
            "memory_gib": record["peak_memory_gib"],
        }
        if chapter.budget is None:
            problems.append(
                f"{chapter.docname}.md declares no budget: its front matter needs "
                "`budget: {cpu_seconds: …, memory_gib: …}` under `llm_learn:`, two positive numbers; "
                f"this execution used {used['cpu_seconds']:.1f} CPU-seconds and {used['memory_gib']:.2f} GiB"
            )
            continue
        for key, unit, factor in (
            ("cpu_seconds", "CPU-seconds", TOLERANCE * min(slow, SLOWEST)),
            ("memory_gib", "GiB of memory", TOLERANCE),
        ):
            declared = getattr(chapter.budget, key)
            if used[key] > factor * declared:
                problems.append(
                    f"{chapter.docname}.md is over its budget: measured {used[key]:.2f} {unit}, declared "
                    f"{declared:g}, and more than {factor:.3g} times as much fails"
                )
    return problems


def book_problems(chapters: Iterable[ChapterNotebook]) -> list[str]:
    """One sentence if the chapters together declare more than the book may use.

    What they used is not summed: it depends on the machine, and each chapter is held to what it declares.
    """
    total = sum(chapter.budget.cpu_seconds for chapter in chapters if chapter.budget)
    if total <= BOOK_CPU_SECONDS:
        return []
    return [
        f"all chapters together declare {total:,g} CPU-seconds; the book may use {BOOK_CPU_SECONDS:,}: "
        "make some of them leaner"
    ]
