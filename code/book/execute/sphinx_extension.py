"""Sphinx extension: executes the chapters before their pages are read.

Stale chapters run two at a time, each in one thread; the others come from the cache. Afterwards myst-nb finds
every notebook in the cache, and the executed notebooks are written with all their outputs. It works with
`python -m book build` and with a plain `jupyter-book build .` alike.
"""

import json
import logging
import os
import re
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import asdict
from hashlib import sha256
from pathlib import Path
from typing import Any

import nbformat
from jupyter_cache import get_cache
from jupyter_cache.base import CacheBundleIn
from jupyter_cache.cache.db import NbCacheRecord
from sphinx.application import Sphinx
from sphinx.config import Config
from sphinx.environment import BuildEnvironment
from sphinx.errors import SphinxError

from book.atomic_files import write_atomically
from book.execute import kernels
from book.execute.budgets import (
    SLOW,
    SLOWEST,
    book_problems,
    budget,
    budget_problems,
    slowness,
)
from book.execute.fingerprint import PACKAGE, Package
from book.execute.records import notebook_path, record_path, records_folder
from book.read.chapters import Source, read_chapters

# Set by `python -m book build --chapter`: the only chapter to execute.
ONLY = "LLM_LEARN_CHAPTER"
WORKERS = 2


class ChapterError(SphinxError):
    """One or more chapters failed, or used more than they may."""

    category = "The chapters cannot be published"

    def __init__(self, message: str) -> None:
        super().__init__(message)
        # It ends the build. Jupyter Book would add a traceback of its own insides to the message.
        sys.tracebacklimit = 0


class Book:
    """The chapters of one build: which are stale, their execution, their records and notebooks."""

    def __init__(self, app: Sphinx) -> None:
        self.root = Path(app.srcdir)
        self.build = self.root / "_build"
        self.only = os.environ.get(ONLY)
        self.chapters: list[Source] = []
        # docname -> record, of the chapters that are up to date
        self.records: dict[str, dict[str, Any]] = {}
        self.executed: list[str] = []
        self._print_lock = threading.Lock()

    def configure(self, app: Sphinx) -> None:
        """Points myst-nb to the one cache of the book, wherever the build is started and its output goes."""
        # Kernels' connection files are written by this process.
        os.environ.update(kernels.kernel_environment(self.root))
        path = self.build / ".jupyter_cache"
        # jupyter-cache does not keep connections over threads; it is used from the main thread only.
        self.cache = get_cache(path)
        app.env.mystnb_config = app.env.mystnb_config.copy(execution_cache_path=str(path))
        # When a first build fails, the theme still copies its logo, into a file of this name where no folder is.
        (Path(app.outdir) / "_static").mkdir(parents=True, exist_ok=True)
        if self.only:
            self._hear_only_this_page()

    def execute(self, app: Sphinx, env: BuildEnvironment, *_: Any) -> list[str]:
        """Executes what is stale, and returns the documents whose outputs differ from those last read."""
        try:
            self.chapters = read_chapters(self.root, env.found_docs)
        except ValueError as error:
            raise ChapterError(str(error)) from None
        if not self.only and (too_much := book_problems(self.chapters)):
            raise ChapterError("\n\n".join(too_much))
        package = Package(self.root / "code" / PACKAGE)
        stale, fingerprints = [], {}
        for chapter in self.chapters:
            cells_hash = self.cache.create_hashed_notebook(chapter.notebook)[1]
            sources = [cell.source for cell in chapter.cells]
            fingerprints[chapter.docname] = package.fingerprint(
                cells_hash, sources, self.root / "experiments", kernels.SETTINGS
            )
            if not self._cached(chapter, cells_hash, fingerprints[chapter.docname]):
                stale.append(chapter)
        if app.builder.format != "html":
            if stale:
                names = ", ".join(chapter.slug for chapter in stale)
                raise ChapterError(
                    f"the builder {app.builder.name} executes nothing, but these chapters must be: {names}. "
                    "Run `python -m book build` first"
                )
            return []
        chosen = [chapter for chapter in stale if self.only in (None, chapter.docname)]
        failures = self._run(chosen, fingerprints)
        failures += self._judge(fingerprints)
        self._write_records()
        if failures:
            raise ChapterError("\n\n".join(failures))

        # Whatever was not executed must not be executed by myst-nb either, without measure and proof.
        left = [f"{chapter.docname}.md" for chapter in stale if chapter not in chosen]
        env.mystnb_config = env.mystnb_config.copy(execution_excludepatterns=left)
        # Kept with the pages: a build that fails after executing must not leave old outputs on them.
        shown = getattr(env, "book_fingerprints", {})
        # With what each used, since two executions of the same chapter measure different times.
        now = {
            docname: [record[key] for key in ("fingerprint", "cpu_seconds", "wall_seconds")]
            for docname, record in self.records.items()
        }
        env.book_fingerprints = now
        names = [chapter.docname for chapter in self.chapters]
        return [name for name in names if shown.get(name) != now.get(name)]

    def write_notebooks(self, app: Sphinx, env: BuildEnvironment) -> None:
        """Writes the executed notebooks; myst-nb's own lack what came from the cache or was glued."""
        if app.builder.format != "html":
            return
        before = getattr(env, "book_notebooks", {})
        env.book_notebooks = {}
        for chapter in self.chapters:
            if chapter.docname not in self.records:
                continue
            path = notebook_path(Path(app.outdir).parent, chapter.docname)
            text = json.dumps(chapter.notebook, sort_keys=True).encode()
            written = [*env.book_fingerprints[chapter.docname], sha256(text).hexdigest()]
            # When its page is read, myst-nb writes its own in this one's place.
            kept = [*written, path.stat().st_mtime_ns] if path.is_file() else None
            if kept and before.get(chapter.docname) == kept:
                env.book_notebooks[chapter.docname] = kept
                continue
            _, notebook = self.cache.merge_match_into_notebook(chapter.notebook)
            for index, cell in enumerate(notebook.cells):
                cell["id"] = f"cell-{index}"
                unexecuted = cell.cell_type == "code" and cell.execution_count is None
                if unexecuted and "skip-execution" not in cell.metadata.get("tags", ()):
                    raise ChapterError(
                        f"{chapter.docname}.md: cell {index} of the notebook is not executed"
                    )
            notebook.nbformat, notebook.nbformat_minor = 4, 5
            _write(path, nbformat.writes(notebook) + "\n")
            env.book_notebooks[chapter.docname] = [*written, path.stat().st_mtime_ns]

    def _cached(self, chapter: Source, cells_hash: str, fingerprint: str) -> bool:
        """Whether the cache holds what this chapter would give now. An older execution is forgotten."""
        try:
            # match_cache_notebook() would hash the cells again, get_cache_bundle() read the outputs.
            entry = NbCacheRecord.record_from_hashkey(cells_hash, self.cache.db)
            kept = self.cache._get_notebook_path_cache(entry.hashkey).is_file()
        except KeyError:
            return False
        if kept and (entry.data or {}).get("fingerprint") == fingerprint:
            self.records[chapter.docname] = {**entry.data, "docname": chapter.docname}
            return True
        if self.only in (None, chapter.docname):
            self.cache.remove_cache(entry.pk)
        return False

    def _run(self, chapters: list[Source], fingerprints: dict[str, str]) -> list[str]:
        """Executes chapters, the longest first, and returns a message for each that failed."""
        self._say(f"\n{len(chapters)} of {len(self.chapters)} chapters to execute")
        chapters = sorted(
            chapters, key=lambda c: -(_declared(c) or {"cpu_seconds": 0.0})["cpu_seconds"]
        )
        numbers = {chapter.docname: number for number, chapter in enumerate(chapters, 1)}
        failures = []
        pool = ThreadPoolExecutor(WORKERS)
        try:
            jobs = {
                pool.submit(self._one, c, f"[{numbers[c.docname]}/{len(chapters)}]"): c
                for c in chapters
            }
            for job in _as_completed(jobs):
                chapter, error = jobs[job], job.exception()
                if error is None:
                    self._keep(chapter, fingerprints[chapter.docname], *job.result())
                elif isinstance(error, kernels.ChapterFailed):
                    failures.append(self._explain(chapter, error))
                else:
                    raise error
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            kernels.stop_all()
            raise
        pool.shutdown()
        return failures

    def _judge(self, fingerprints: dict[str, str]) -> list[str]:
        """Holds to its budget what has been measured and not yet passed, and returns a message for each failure.

        A chapter that passes is not judged again before it is executed again or declares another budget. One that
        uses too many seconds is executed once more, alone: whoever shared the machine may have been the cause. A
        preview says what is over its budget, and shows it all the same.
        """
        judged = [
            chapter
            for chapter in self.chapters
            if self.only in (None, chapter.docname)
            and chapter.docname in self.records
            and not self._passed(chapter)
        ]
        if not judged:
            return []
        slow = self._slowness()
        if slow >= SLOW:
            self._say(
                f"\nWarning: the chapters took {slow:.1f} times the CPU-seconds that they declare (the median). Either "
                "this machine is slow, or a library has become slower. Budgets allow for "
                f"{SLOWEST:g} times at most."
            )
        failures = []
        if not self.only and slow <= SLOWEST:
            for chapter in judged:
                # Memory does not depend on who shares the machine.
                seconds_only = self.records[chapter.docname] | {"peak_memory_gib": 0.0}
                over = budget(chapter) and budget_problems([(chapter, seconds_only)], slow)
                if over:
                    self._say(f"\n{over[0]}.\nIt is measured again, alone.")
                    failures += self._run([chapter], fingerprints)
            slow = self._slowness()
        for chapter in judged:
            record = self.records[chapter.docname]
            problems = budget_problems([(chapter, record)], slow)
            if problems and self.only and budget(chapter):
                self._say(f"\nWarning: {problems[0]}. `make book` judges it.")
            elif problems:
                failures += problems
            elif not self.only:
                self._pass(chapter)
        return failures

    def _slowness(self) -> float:
        known = self.records
        return slowness(
            [(c, known[c.docname]) for c in self.chapters if c.docname in known]
        )

    def _passed(self, chapter: Source) -> bool:
        """Whether the chapter's last execution has kept to the budget that it declares now."""
        declared = _declared(chapter)
        return bool(declared) and self.records[chapter.docname].get("passed") == declared

    def _pass(self, chapter: Source) -> None:
        """Notes in the cache that the chapter has kept to what it declares."""
        record = self.records[chapter.docname]
        record["passed"] = _declared(chapter)
        entry = self.cache.match_cache_notebook(chapter.notebook)
        notebook = self.cache.get_cache_bundle(entry.pk).nb
        self._store(chapter, notebook, record)

    def _one(
        self, chapter: Source, number: str
    ) -> tuple[nbformat.NotebookNode, dict[str, Any]]:
        self._say(f"{number} {chapter.slug} …")
        start = time.perf_counter()
        try:
            notebook, record = kernels.execute(
                chapter, kernels.kernel_environment(self.root)
            )
        except kernels.ChapterFailed:
            self._say(
                f"{number} {chapter.slug} failed after {time.perf_counter() - start:.1f} s"
            )
            raise
        self._say(
            f"{number} {chapter.slug} took {record['wall_seconds']:.1f} s, "
            f"{record['cpu_seconds']:.1f} CPU-seconds, {record['peak_memory_gib']:.2f} GiB"
        )
        return notebook, record

    def _keep(
        self, chapter: Source, fingerprint: str, notebook: nbformat.NotebookNode, used: dict
    ) -> None:
        record = {"docname": chapter.docname, "fingerprint": fingerprint, **used}
        self._store(chapter, notebook, record)
        self.records[chapter.docname] = record
        self.executed.append(chapter.docname)
        with suppress(FileNotFoundError):
            self._error_file(chapter).unlink()

    def _store(
        self, chapter: Source, notebook: nbformat.NotebookNode, record: dict
    ) -> None:
        bundle = CacheBundleIn(notebook, str(chapter.path), data=record)
        self.cache.cache_notebook_bundle(bundle, check_validity=False, overwrite=True)

    def _explain(self, chapter: Source, error: kernels.ChapterFailed) -> str:
        path = self._error_file(chapter)
        _write(path, re.sub(r"\x1b\[[0-9;]*m", "", error.details) + "\n")
        return f"{error}\n  The traceback is in {path.relative_to(self.root)}."

    def _error_file(self, chapter: Source) -> Path:
        return record_path(self.root, chapter.slug).with_suffix(".error.txt")

    def _write_records(self) -> None:
        folder = records_folder(self.root)
        for record in self.records.values():
            path = record_path(self.root, record["docname"].removeprefix("chapters/"))
            _write(path, json.dumps(record, indent=1, ensure_ascii=False) + "\n")
        if not self.only:
            known = {
                chapter.slug for chapter in self.chapters if chapter.docname in self.records
            }
            for path in folder.rglob("*.json"):
                if path.relative_to(folder).with_suffix("").as_posix() not in known:
                    path.unlink()
        summary = {"chapters": sorted(self.records), "executed": sorted(set(self.executed))}
        _write(self.build / "last-build.json", json.dumps(summary))

    def _say(self, text: str) -> None:
        # Sphinx leaves its line open here, and its logger is not meant for threads.
        with self._print_lock:
            print(text, flush=True)

    def _hear_only_this_page(self) -> None:
        """Warnings about other pages, whose cells did not run, tell the author of this one nothing."""
        page = str(self.root / f"{self.only}.md")

        def about_it(record: logging.LogRecord) -> bool:
            return str(getattr(record, "location", None) or page).startswith(page)

        for handler in logging.getLogger("sphinx").handlers:
            if handler.level == logging.WARNING:
                handler.addFilter(about_it)


def _declared(chapter: Source) -> dict[str, float] | None:
    return asdict(declared) if (declared := budget(chapter)) else None


def _as_completed(jobs: Iterable[Future]) -> Iterator[Future]:
    """Like concurrent.futures.as_completed, which may sleep through a signal that another thread has received."""
    left = set(jobs)
    while left:
        done, left = wait(left, timeout=1, return_when=FIRST_COMPLETED)
        yield from done


def _write(path: Path, text: str) -> None:
    if path.is_file() and path.read_text(encoding="utf-8") == text:
        return
    write_atomically(path, text)


def _preview_without_tooltips(app: Sphinx, config: Config) -> None:
    """The tooltips of citations format every paper once more."""
    if os.environ.get(ONLY) and "bibtex_tooltips" in config:
        config.bibtex_tooltips = False


def setup(app: Sphinx) -> dict[str, Any]:
    book = Book(app)
    app.connect("config-inited", _preview_without_tooltips)
    # After myst-nb's own handler (500), which makes its configuration; before others look at the records.
    app.connect("builder-inited", book.configure, priority=600)
    app.connect("env-get-outdated", book.execute, priority=400)
    app.connect("env-updated", book.write_notebooks)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
