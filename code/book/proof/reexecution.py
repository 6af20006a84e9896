"""Executes every published notebook once more, and compares every output, by nbval.

They are the files that Colab opens, and their kernels run in an environment that holds the installed package only.

nbval passes a notebook that was never executed, because there is nothing to compare. So such notebooks are
refused first, and at the end the cells compared are counted.
"""

import argparse
import os
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path

import nbformat
import pytest
from nbformat import NotebookNode

from book.contract.registry import allowed_escapes
from book.execute.kernels import kernel_environment
from book.execute.records import read_record
from book.export.notebooks import FOLDER, published_path
from book.proof import offline
from book.proof.clean_environment import KERNEL, CannotPrepare, prepare
from book.read.chapters import Source, book_chapters, find

ESCAPE_TAGS = {"nbval-ignore-output", "nbval-skip", "skip-execution"}
# nbval also obeys comments; a reader of the page would have to read them.
ESCAPE_COMMENTS = (
    "NBVAL_IGNORE_OUTPUT",
    "PYTEST_VALIDATE_IGNORE_OUTPUT",
    "NBVAL_SKIP",
    "NBVAL_RAISES_EXCEPTION",
)
# A warning names the file of its cell, which holds the kernel's process id. Nothing else is forgiven.
SANITIZE = "regex: \\S*ipykernel_\\d+/\\d+\\.py\nreplace: CELL\n"


def refusals(root: Path, chapters: Sequence[Source]) -> list[str]:
    """Why the notebooks cannot be proved: one sentence for each problem."""
    if not chapters:
        return ["there is no chapter to prove"]
    problems = []
    for chapter in chapters:
        path = published_path(root / "_build", chapter.docname)
        if not path.is_file():
            problems.append(
                f"{chapter.slug}: there is no published notebook; build the book first (make book)"
            )
            continue
        install, *cells = code_cells(path) or [None]
        if install is None:
            problems.append(
                f"{chapter.slug}: the published notebook has no code cells; build the book again"
            )
            continue
        if "install" not in install.metadata.get("tags", ()):
            problems.append(
                f"{chapter.slug}: the notebook does not begin with its install cell"
            )
        if [cell.source for cell in cells] != [cell.source for cell in chapter.cells]:
            problems.append(
                f"{chapter.slug}: its cells have changed since the build; build the book again"
            )
        problems.extend(_cell_problems(chapter.slug, cells))
    return problems


def _cell_problems(name: str, cells: Sequence[NotebookNode]) -> list[str]:
    problems = []
    for number, cell in enumerate(cells, 1):
        tags = set(cell.metadata.get("tags", ()))
        if "skip-execution" in tags and "nbval-skip" not in tags:
            problems.append(
                f"{name}, code cell {number}: `skip-execution` needs the tag `nbval-skip` too"
            )
        elif cell.execution_count is None and "skip-execution" not in tags:
            problems.append(
                f"{name}, code cell {number} was not executed: there is nothing to compare"
            )
        for comment in ESCAPE_COMMENTS:
            if comment in cell.source:
                problems.append(
                    f"{name}, code cell {number}: use a tag, not the comment {comment}"
                )
    escaping = [
        n
        for n, cell in enumerate(cells, 1)
        if ESCAPE_TAGS & set(cell.metadata.get("tags", ()))
    ]
    allowed = allowed_escapes(len(cells))
    if len(escaping) > allowed:
        problems.append(
            f"{name}: code cells {escaping} escape comparison; at most {allowed} of {len(cells)} may"
        )
    return problems


def code_cells(path: Path) -> list[NotebookNode]:
    return [
        cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"
    ]


class Progress:
    """A pytest plugin: one line for each notebook instead of a dot for each cell, and a count of what ran."""

    def __init__(self, expected: dict[str, int]) -> None:
        self.expected = expected
        self.ran: Counter[str] = Counter()
        self.failed: Counter[str] = Counter()
        self.seconds: defaultdict[str, float] = defaultdict(float)

    @pytest.hookimpl(tryfirst=True)
    def pytest_report_teststatus(
        self, report: pytest.TestReport
    ) -> tuple[str, str, str] | None:
        return ("passed", "", "") if report.passed and report.when == "call" else None

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        name = report.nodeid.partition("::")[0].removesuffix(".ipynb")
        self.seconds[name] += report.duration
        self.failed[name] += report.failed
        if report.when != "teardown":
            return
        self.ran[name] += 1
        if self.ran[name] == self.expected.get(name):
            result = f"{self.failed[name]} differ" if self.failed[name] else "all equal"
            spent = f"{self.seconds[name]:.1f} s"
            print(
                f"{name.removeprefix('chapters/')}: {self.ran[name]} cells, {result}, {spent}",
                flush=True,
            )


def compare(root: Path, notebooks: Sequence[str], workers: int) -> bool:
    """Runs nbval over notebooks, named as documents; True when every cell ran and every output is equal."""
    build = root / "_build"
    settings = build / "proof"
    settings.mkdir(parents=True, exist_ok=True)
    (settings / "sanitize.cfg").write_text(SANITIZE, encoding="utf-8")
    # Its own configuration: the repository's turns the warnings of any plugin into errors.
    (settings / "pytest.ini").write_text("[pytest]\n", encoding="utf-8")
    paths = [published_path(build, notebook) for notebook in notebooks]
    plugin = Progress(
        {name: len(code_cells(path)) for name, path in zip(notebooks, paths, strict=True)}
    )
    # All cells of a notebook stay on one worker, in order; the longest notebook comes first.
    options = [
        "--nbval",
        "--nbval-kernel-name",
        KERNEL,
        "--nbval-sanitize-with",
        str(settings / "sanitize.cfg"),
    ]
    options += [
        "-c",
        str(settings / "pytest.ini"),
        "--rootdir",
        str(build / FOLDER),
        "-p",
        "no:cacheprovider",
        "-p",
        "no:asyncio",  # comes with langchain-tests, and only advises on its settings
    ]
    options += [
        "-q",
        "--no-header",
        "-n",
        str(workers),
        "--dist",
        "loadscope",
        "--no-loadscope-reorder",
    ]
    status = pytest.main([*options, *map(str, paths)], plugins=[plugin])
    missing = {
        name: count for name, count in plugin.expected.items() if plugin.ran[name] != count
    }
    for name, count in missing.items():
        print(f"{name}: only {plugin.ran[name]} of {count} cells ran", file=sys.stderr)
    return status == pytest.ExitCode.OK and not missing


def main(names: Sequence[str], root: Path) -> int:
    """`python -m book prove [NAME…]`."""
    start = time.perf_counter()
    every = book_chapters(root)
    chapters = [find(every, name) for name in names] or every
    problems = refusals(root, chapters)
    if problems:
        print("Not proved:", *problems, sep="\n  ", file=sys.stderr)
        return 1
    chapters.sort(
        key=lambda c: (read_record(root, c.slug) or {}).get("wall_seconds", 0.0),
        reverse=True,
    )
    try:
        prepare(root)
    except CannotPrepare as error:
        print(f"Not proved: {error}", file=sys.stderr)
        return 1
    print(f"Proving {len(chapters)} published notebooks in a clean environment", flush=True)
    command = [sys.executable, "-m", "book.proof.reexecution", str(root)]
    command += [chapter.docname for chapter in chapters]
    status = offline.run(command, kernel_environment(root))
    cells = sum(1 + len(chapter.cells) for chapter in chapters)
    result = (
        f"{cells} cells gave the same outputs twice"
        if status == 0
        else "NOT proved, see above"
    )
    print(
        f"{len(chapters)} notebooks, {result}, in {time.perf_counter() - start:.0f} s",
        flush=True,
    )
    return status


def _inside() -> int:
    parser = argparse.ArgumentParser(
        prog="book.proof.reexecution",
        description="The part of the proof that runs offline.",
    )
    parser.add_argument("root", type=Path)
    parser.add_argument("chapters", nargs="+")
    args = parser.parse_args()
    os.environ.pop("PYTEST_ADDOPTS", None)
    return 0 if compare(args.root, args.chapters, workers=min(2, len(args.chapters))) else 1


if __name__ == "__main__":
    sys.exit(_inside())
