"""What is executed when, what fails a build, and what the executed notebooks hold."""

import ast
import copy
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace

import nbformat
import psutil
import pytest
from myst_nb.core.config import NbParserConfig
from tinybook import TinyBook, page

from book.execute import fingerprint, kernels, sphinx_extension
from book.execute.budgets import BOOK_CPU_SECONDS, budget
from book.execute.fingerprint import Package, cell_names, imported_names
from book.read.chapters import Source, book_chapters, find

ROOT = Path(__file__).resolve().parents[3]
ALL = ["alpha", "beta", "gamma"]


def executed(book: TinyBook) -> list[str]:
    summary = json.loads((book.root / "_build" / "last-build.json").read_text())
    return [docname.rpartition("/")[2] for docname in summary["executed"]]


def outputs(book: TinyBook, name: str) -> list[str]:
    """The text of every output of a chapter's executed notebook."""
    texts = []
    for cell in nbformat.read(book.notebook(name), as_version=4).cells:
        for output in cell.get("outputs", ()):
            texts.append(output.get("text") or output.get("data", {}).get("text/plain", ""))
    return texts


def html(book: TinyBook, name: str, folder: str = "html") -> str:
    return (
        book.root / "_build" / folder / "chapters" / "part" / f"{name}.html"
    ).read_text()


# --- builds of a whole small book


@pytest.mark.slow
def test_only_what_an_edit_reaches_is_executed_again(tiny_book: TinyBook) -> None:
    done = tiny_book.build()
    assert done.returncode == 0, done.stdout + done.stderr
    assert executed(tiny_book) == ALL
    assert "3 of 3 chapters to execute" in done.stdout
    assert re.search(
        r"\[\d/3\] part/alpha took [\d.]+ s, [\d.]+ CPU-seconds, [\d.]+ GiB", done.stdout
    )
    assert re.search(r"part/alpha +[\d.]+ +60 +[\d.]+ +2 +executed", done.stdout)
    assert f"Open {tiny_book.root / '_build' / 'html' / 'index.html'}" in done.stdout
    assert outputs(tiny_book, "alpha") == ["2\n"]
    assert outputs(tiny_book, "beta") == ["3"]

    tiny_book.replace("chapters/part/alpha.md", "Some prose.", "Better prose.")
    done = tiny_book.build()
    assert executed(tiny_book) == []
    assert "cached" in done.stdout
    assert "Better prose." in html(tiny_book, "alpha")
    assert outputs(tiny_book, "alpha") == [
        "2\n"
    ]  # myst-nb alone writes none when the cache answers

    tiny_book.replace("code/llm_learn/low.py", "return 1", "return 10")
    tiny_book.build()
    assert executed(tiny_book) == ["alpha"]  # which imports `low` through `high` only
    assert outputs(tiny_book, "alpha") == ["11\n"]
    assert "11" in html(tiny_book, "alpha")

    tiny_book.replace("code/llm_learn/other.py", "3", "4")
    tiny_book.build()
    assert executed(tiny_book) == ["beta"]

    tiny_book.replace("chapters/part/gamma.md", "range(10)", "range(11)")
    tiny_book.build()
    assert executed(tiny_book) == ["gamma"]


@pytest.mark.slow
def test_a_failing_cell_fails_the_build_and_the_others_are_kept(
    tiny_book: TinyBook,
) -> None:
    assert tiny_book.build().returncode == 0
    broken = page("Beta", ["x = 1", "def f():\n    return x / 0\n\nf()", "x"])
    tiny_book.write("chapters/part/beta.md", broken)
    tiny_book.replace("code/llm_learn/low.py", "return 1", "return 10")
    done = tiny_book.build()
    assert done.returncode != 0
    line = broken.splitlines().index("def f():") + 1
    assert f"chapters/part/beta.md, code cell 2, line {line}" in done.stderr
    assert "return x / 0" in done.stderr
    assert "ZeroDivisionError: division by zero" in done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    details = tiny_book.root / "_build" / "chapters" / "part" / "beta.error.txt"
    assert "division by zero" in details.read_text()

    # alpha ran in the build that failed: its page has to follow, although nothing runs again.
    tiny_book.replace("chapters/part/beta.md", "x / 0", "x / 1")
    assert tiny_book.build().returncode == 0
    assert executed(tiny_book) == ["beta"]
    assert "11" in html(tiny_book, "alpha")
    assert not details.exists()


@pytest.mark.slow
def test_jupyter_book_alone_executes_and_writes_glue_and_tags(
    tiny_book: TinyBook,
) -> None:
    glue = 'from myst_nb import glue\nglue("answer", "6 times 7", display=False)'
    cells = [
        glue,
        "1 / 0",
        "undefined",
        "import os\nprint(os.environ['OMP_NUM_THREADS'], os.getcwd())",
    ]
    text = page("Beta", cells, tags={1: "raises-exception", 2: "skip-execution"})
    tiny_book.write("chapters/part/beta.md", text + "\n{glue:text}`answer`\n")
    done = tiny_book.run(
        "-c",
        "from jupyter_book.cli.main import main; main()",
        "build",
        ".",
        "-W",
        "-n",
        "--keep-going",
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "6 times 7" in html(tiny_book, "beta")
    cells = [
        c
        for c in nbformat.read(tiny_book.notebook("beta"), 4).cells
        if c.cell_type == "code"
    ]
    assert [cell.execution_count for cell in cells] == [1, 2, None, 3]
    assert (
        "6 times 7" in cells[0].outputs[0].data["application/papermill.record/text/plain"]
    )
    assert cells[1].outputs[0].ename == "ZeroDivisionError"
    threads, folder = cells[3].outputs[0].text.split()
    assert threads == "1" and not folder.startswith(str(tiny_book.root))


@pytest.mark.slow
def test_a_chapter_over_its_budget_fails_every_build_until_the_budget_fits(
    tiny_book: TinyBook,
) -> None:
    tiny_book.replace("chapters/part/alpha.md", "cpu_seconds: 60", "cpu_seconds: 0.01")
    tiny_book.replace("chapters/part/beta.md", "memory_gib: 2", "memory_gib: 0.001")
    tiny_book.replace(
        "chapters/part/gamma.md", "  budget: {cpu_seconds: 60, memory_gib: 2}\n", ""
    )
    for _ in range(2):
        done = tiny_book.build()
        assert done.returncode != 0
        assert re.search(
            r"alpha.md .* measured [\d.]+ CPU-seconds, declared 0.01", done.stderr
        )
        assert re.search(
            r"beta.md .* measured [\d.]+ GiB of memory, declared 0.001", done.stderr
        )
        assert "gamma.md declares no budget" in done.stderr
        # One measurement of seconds may be the fault of whoever shared the machine.
        assert done.stdout.count("It is measured again, alone.") == 1
    for name in ALL:
        tiny_book.write(f"chapters/part/{name}.md", page(name, ["1 + 1", f"{name!r}"]))
    assert tiny_book.build().returncode == 0


@pytest.mark.slow
def test_a_book_that_declares_too_much_is_not_executed(tiny_book: TinyBook) -> None:
    # The other two chapters declare 60 each: one second more than the book may use.
    declared = f"cpu_seconds: {BOOK_CPU_SECONDS - 119}"
    tiny_book.replace("chapters/part/alpha.md", "cpu_seconds: 60", declared)
    done = tiny_book.build()
    assert done.returncode != 0
    assert f"declare {BOOK_CPU_SECONDS + 1:,} CPU-seconds" in done.stderr
    assert "took" not in done.stdout
    # Whoever writes a chapter may look at it before there is room for it.
    assert tiny_book.build("--chapter", "part/alpha").returncode == 0


@pytest.mark.slow
def test_a_first_build_may_fail(tiny_book: TinyBook) -> None:
    logo = "html_theme_options: {logo: {image_light: logo.svg, image_dark: logo.svg}}"
    tiny_book.replace(
        "_config.yml",
        "sphinx:\n",
        f"sphinx:\n  recursive_update: true\n  config: {{{logo}}}\n",
    )
    tiny_book.write("logo.svg", '<svg xmlns="http://www.w3.org/2000/svg"/>')
    tiny_book.write("chapters/part/beta.md", page("Beta", ["1 / 0"]))
    assert "ZeroDivisionError" in tiny_book.build().stderr
    tiny_book.write("chapters/part/beta.md", page("Beta", ["1 / 1"]))
    done = tiny_book.build()
    assert done.returncode == 0, done.stderr
    assert (tiny_book.root / "_build/html/_static/logo.svg").is_file()


@pytest.mark.slow
def test_one_chapter_is_executed_alone_and_leaves_the_book_as_it_was(
    tiny_book: TinyBook,
) -> None:
    done = tiny_book.build("--chapter", "beta")
    assert done.returncode == 0, done.stdout + done.stderr
    assert executed(tiny_book) == ["beta"]
    assert "WARNING" not in done.stderr
    assert (
        "part/alpha"
        not in done.stdout.partition("updating environment")[2].partition("reading")[0]
    )
    preview = (
        tiny_book.root / "_build" / "preview" / "html" / "chapters" / "part" / "beta.html"
    )
    assert f"Open {preview}" in done.stdout and preview.is_file()
    # What the tests of the site would say of the page is said at once.
    assert "beta.md: its record holds no checks" in done.stderr
    assert not (tiny_book.root / "_build" / "html").exists()

    assert tiny_book.build().returncode == 0
    assert executed(tiny_book) == ["alpha", "gamma"]  # beta comes from the cache they share
    assert outputs(tiny_book, "beta") == ["3"]

    # A warning elsewhere is no business of this page's author; one on this page is.
    tiny_book.replace("chapters/part/alpha.md", "Some prose.", "{ref}`nowhere-a`")
    tiny_book.replace("chapters/part/beta.md", "Some prose.", "{ref}`nowhere-b`")
    done = tiny_book.build("--chapter", "part/beta")
    assert done.returncode == 0
    assert "nowhere-b" in done.stderr and "nowhere-a" not in done.stderr

    done = tiny_book.build("--chapter", "delta")
    assert done.returncode == 2
    assert "'delta'; the names are: part/alpha, part/beta, part/gamma" in done.stderr


@pytest.mark.slow
def test_a_warning_fails_the_second_build_as_it_failed_the_first(
    tiny_book: TinyBook,
) -> None:
    tiny_book.write("_toc.yml", "format: jb-book\nroot: index\n")
    tiny_book.write("index.md", "# Tiny\n\n{ref}`nowhere`\n")
    for _ in range(2):
        done = tiny_book.build()
        assert done.returncode != 0
        assert "nowhere" in done.stderr


# --- what a budget is held to, and when


class Measured:
    """Builds of a book without Sphinx, whose chapters use what the test says instead of being executed."""

    def __init__(self, book: TinyBook, monkeypatch: pytest.MonkeyPatch) -> None:
        self.root = book.root
        self.factor = 1.0  # of what they declare
        self.factors: dict[str, float] = {}
        self.executed: list[str] = []
        monkeypatch.setattr(kernels, "execute", self._execute)

    def _execute(self, chapter: Source, *_: object) -> tuple:
        self.executed.append(chapter.slug)
        factor = self.factors.get(chapter.slug, self.factor)
        notebook = copy.deepcopy(chapter.notebook)
        for number, cell in enumerate(notebook.cells, 1):
            if cell.cell_type == "code":
                cell.execution_count = number
        used = {
            "cpu_seconds": factor * budget(chapter).cpu_seconds,
            "peak_memory_gib": 0.1,
            "wall_seconds": 1.0,
        }
        return notebook, {**used, "checks": []}

    def build(self, only: str | None = None) -> list[str]:
        """The names of the chapters that a build executes."""
        self.executed.clear()
        names = [chapter.docname for chapter in book_chapters(self.root)]
        env = SimpleNamespace(found_docs=set(names), mystnb_config=NbParserConfig())
        out = self.root / "_build" / "html"
        builder = SimpleNamespace(format="html")
        app = SimpleNamespace(srcdir=self.root, outdir=out, env=env, builder=builder)
        book = sphinx_extension.Book(app)
        book.only = f"chapters/{only}" if only else None
        book._hear_only_this_page = lambda: None
        book.configure(app)
        book.execute(app, env)
        return sorted(self.executed)


SIX = [f"part/{name}" for name in ("a", "b", "c", "d", "e", "f")]


@pytest.fixture
def measured(tiny_book: TinyBook, monkeypatch: pytest.MonkeyPatch) -> Measured:
    toc = "".join(f"- file: chapters/{name}\n" for name in SIX)
    tiny_book.write("_toc.yml", f"format: jb-book\nroot: index\nchapters:\n{toc}")
    for name in SIX:
        tiny_book.write(f"chapters/{name}.md", page(name, [f"print({name!r})"]))
    # A build sets the environment of this process.
    for name, value in kernels.kernel_environment(tiny_book.root).items():
        monkeypatch.setenv(name, value)
    return Measured(tiny_book, monkeypatch)


def test_on_a_slow_computer_a_change_of_prose_executes_nothing(
    measured: Measured, tiny_book: TinyBook, capsys: pytest.CaptureFixture[str]
) -> None:
    measured.factor = 1.9
    assert measured.build() == SIX
    tiny_book.replace("chapters/part/b.md", "Some prose.", "Better prose.")
    assert measured.build() == []
    assert measured.build("part/b") == []
    # What is measured later is held to the machine's slowness, not to its own.
    tiny_book.replace("chapters/part/b.md", "print(", "print(1, ")
    assert measured.build("part/b") == ["part/b"]
    assert "over its budget" not in capsys.readouterr().out
    assert measured.build() == []
    # Nor does what was kept change because others have become quicker since.
    measured.factor = 1.0
    for name in ("c", "d", "e", "f"):
        tiny_book.replace(f"chapters/part/{name}.md", "print(", "print(1, ")
    assert measured.build() == SIX[2:]
    assert measured.build() == []


def test_a_preview_alone_on_a_slow_computer_is_executed_once_and_warns(
    measured: Measured, tiny_book: TinyBook, capsys: pytest.CaptureFixture[str]
) -> None:
    measured.factor = 1.9
    for executed_now in (["part/b"], []):
        assert measured.build("part/b") == executed_now
        assert "b.md is over its budget: measured 114.00" in capsys.readouterr().out
        tiny_book.replace("chapters/part/b.md", "prose.", "prose, and more prose.")
    # The book can tell that it is the machine.
    assert measured.build() == [name for name in SIX if name != "part/b"]
    assert "over its budget" not in capsys.readouterr().out


def test_a_chapter_that_failed_its_budget_never_passes_unmeasured(
    measured: Measured, tiny_book: TinyBook
) -> None:
    measured.factors["part/b"] = 1.9
    twice = sorted([*SIX, "part/b"])
    with pytest.raises(sphinx_extension.ChapterError, match=r"b\.md is over its budget"):
        measured.build()
    assert sorted(measured.executed) == twice
    with pytest.raises(sphinx_extension.ChapterError, match=r"b\.md is over its budget"):
        measured.build()
    assert measured.executed == ["part/b"]  # once more, alone
    # A budget that is raised is compared with what has been measured.
    tiny_book.replace("chapters/part/b.md", "cpu_seconds: 60", "cpu_seconds: 80")
    assert measured.build() == []
    # One that is lowered is measured again before it fails.
    tiny_book.replace("chapters/part/b.md", "cpu_seconds: 80", "cpu_seconds: 60")
    measured.factors.clear()
    assert measured.build() == ["part/b"]
    assert measured.build() == []


@pytest.mark.parametrize(
    ("factor", "warns", "fails"),
    [(1.9, False, False), (2.0, True, False), (5.0, True, True)],
)
def test_a_machine_may_be_three_times_slower_and_the_build_warns_from_two(
    measured: Measured,
    capsys: pytest.CaptureFixture[str],
    factor: float,
    warns: bool,
    fails: bool,
) -> None:
    measured.factor = factor
    if fails:
        with pytest.raises(
            sphinx_extension.ChapterError, match=r"more than 4\.5 times as much fails"
        ):
            measured.build()
    else:
        measured.build()
    assert (
        sorted(measured.executed) == SIX
    )  # no second measurement makes the machine quicker
    warning = f"took {factor:.1f} times the CPU-seconds that they declare"
    assert (warning in capsys.readouterr().out) == warns


# --- what is read again


@pytest.mark.slow
def test_after_a_change_of_prose_one_page_and_one_notebook_are_written(
    tiny_book: TinyBook,
) -> None:
    def times() -> dict[str, float]:
        build = tiny_book.root / "_build"
        pages = [build / f"html/chapters/part/{name}.html" for name in ALL]
        paths = [*pages, *map(tiny_book.notebook, ALL)]
        return {f"{path.stem}{path.suffix}": path.stat().st_mtime_ns for path in paths}

    assert tiny_book.build().returncode == 0
    before = times()
    tiny_book.replace("chapters/part/beta.md", "Some prose.", "Better prose.")
    done = tiny_book.build()
    assert done.returncode == 0, done.stderr
    after = times()
    assert {n for n in after if after[n] != before[n]} == {"beta.html", "beta.ipynb"}
    assert "Better prose." in tiny_book.notebook("beta").read_text(encoding="utf-8")
    # When a page is read, myst-nb writes a notebook of its own in the place of this one.
    text = tiny_book.notebook("alpha").read_text(encoding="utf-8")
    tiny_book.notebook("alpha").write_text("{}", encoding="utf-8")
    assert tiny_book.build().returncode == 0
    assert tiny_book.notebook("alpha").read_text(encoding="utf-8") == text
    # What was taken away is written again.
    tiny_book.notebook("alpha").unlink()
    assert tiny_book.build().returncode == 0
    assert outputs(tiny_book, "alpha") == ["2\n"]


# --- parts


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("import llm_learn.a as b", {"llm_learn.a"}),
        ("from llm_learn import a", {"llm_learn", "llm_learn.a"}),
        ("from llm_learn.a import f", {"llm_learn.a", "llm_learn.a.f"}),
        ("def f():\n    from .a import g", {"llm_learn.a", "llm_learn.a.g"}),
        ("from . import a", {"llm_learn", "llm_learn.a"}),
    ],
)
def test_every_form_of_import_is_seen(source: str, expected: set[str]) -> None:
    assert imported_names(ast.walk(ast.parse(source)), "llm_learn") == expected


def test_cells_may_hold_magics_commands_and_broken_python() -> None:
    assert "llm_learn.a" in cell_names("%time import llm_learn.a")
    assert "llm_learn.train" in cell_names("!python -m llm_learn.train --steps 3")
    assert "llm_learn.train" in cell_names('run(["python", "-m", "llm_learn.train"])')
    assert "llm_learn.a" in cell_names("from llm_learn.a import (")


def test_fingerprints_follow_modules_reached_and_nothing_else(tmp_path: Path) -> None:
    folder = tmp_path / "llm_learn"
    folder.mkdir()
    for name, text in {
        "__init__": "",
        "a": "from .b import c",
        "b": "c = 1",
        "d": "import numpy",
    }.items():
        (folder / f"{name}.py").write_text(text)

    def fingerprint(cell: str) -> str:
        return Package(folder).fingerprint("hash", [cell])

    cells = ["from llm_learn import a", "from llm_learn.d import x", "import math"]
    before = [fingerprint(cell) for cell in cells]
    assert Package(folder).reached(["llm_learn.a"])[0] == {
        "llm_learn",
        "llm_learn.a",
        "llm_learn.b",
    }
    (folder / "b.py").write_text("c = 2")
    after = [fingerprint(cell) for cell in cells]
    assert [x == y for x, y in zip(before, after, strict=True)] == [False, True, True]
    (folder / "__init__.py").write_text("# runs with every import")
    assert [x == y for x, y in zip(after, map(fingerprint, cells), strict=True)] == [
        False,
        False,
        True,
    ]


def test_fingerprints_follow_every_record_that_cells_read(tmp_path: Path) -> None:
    def fingerprint(cell: str) -> str:
        return Package(tmp_path).fingerprint("hash", [cell], tmp_path)

    cells = [
        'record = recorded("gpt")["passes"]',
        "notebook.recorded(name='gpt')",
        "recorded(f'{which}')",  # any of them
        'recorded("other")',
        'print("gpt")',
    ]
    changes = []
    before = [fingerprint(cell) for cell in cells]
    for text in ("1", "2"):  # it appears, and it changes
        (tmp_path / "gpt.json").write_text(text)
        after = [fingerprint(cell) for cell in cells]
        changes.append([x != y for x, y in zip(before, after, strict=True)])
        before = after
    assert changes == [[True, True, True, False, False]] * 2


def test_the_fingerprint_of_each_chapter_knows_its_records() -> None:
    package, experiments = Package(ROOT / "code" / "llm_learn"), ROOT / "experiments"
    several = {}
    for chapter in book_chapters(ROOT):
        sources = [cell.source for cell in chapter.cells]
        named = set(re.findall(r"""\brecorded\(\s*["']([\w-]+)["']""", "\n".join(sources)))
        assert all((experiments / f"{name}.json").is_file() for name in named)
        inputs = package.inputs("hash", sources, experiments)
        lines = [line.split() for line in inputs if ".json" in line]
        assert {name.removesuffix(".json") for name, _ in lines} == named, chapter.slug
        if len(named) > 1:
            several[chapter.slug] = named
    assert several["reasoning/chain-of-thought"] == {"chain-of-thought", "zero-shot"}
    assert several["post-training/dpo"] == {"dpo", "reward-models"}


def test_fingerprints_follow_the_versions_of_libraries_and_of_what_they_import(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fingerprints() -> list[str]:
        cells = ["import transformers", "import yaml", "import json"]
        return [Package(tmp_path).fingerprint("hash", [cell]) for cell in cells]

    def changed_by(name: str) -> list[bool]:
        def newer(each: str) -> str:
            return "0.0" if each == name else version(each)

        with monkeypatch.context() as patch:
            patch.setattr(fingerprint, "_version", newer)
            fingerprint._versions.cache_clear()
            after = fingerprints()
        fingerprint._versions.cache_clear()
        return [x != y for x, y in zip(before, after, strict=True)]

    before = fingerprints()
    assert changed_by("pyyaml") == [True, True, False]
    assert changed_by("tokenizers") == [True, False, False]
    # Every cell is run by these two.
    assert changed_by("ipython") == changed_by("ipykernel") == [True, True, True]
    monkeypatch.setattr(fingerprint, "python_version", lambda: "3.11.0")
    assert not set(before) & set(fingerprints())


def test_fingerprints_follow_what_every_kernel_sets(tmp_path: Path) -> None:
    def fingerprint(settings: dict[str, str]) -> str:
        return Package(tmp_path).fingerprint("hash", [], settings=settings)

    wider = kernels.SETTINGS | {"COLUMNS": "100"}
    assert fingerprint(kernels.SETTINGS) != fingerprint(wider)
    environment = kernels.kernel_environment(tmp_path)
    assert kernels.SETTINGS.items() <= environment.items()


def test_kernels_write_inside_the_book_and_import_its_package(tmp_path: Path) -> None:
    environment = kernels.kernel_environment(tmp_path)
    folders = [
        "IPYTHONDIR",
        "JUPYTER_CONFIG_DIR",
        "JUPYTER_DATA_DIR",
        "JUPYTER_RUNTIME_DIR",
        "MPLCONFIGDIR",
    ]
    assert all(
        Path(environment[name]).is_relative_to(tmp_path / "_build") for name in folders
    )
    assert environment["PYTHONPATH"].split(":")[0] == str(tmp_path / "code")
    assert environment["OMP_NUM_THREADS"] == "1" and environment["PYTHONHASHSEED"] == "0"


def test_kernels_keep_what_they_compile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    assert "PYTHONDONTWRITEBYTECODE" not in kernels.kernel_environment(tmp_path)


def test_a_signal_that_a_working_thread_receives_is_not_slept_through() -> None:
    class Rung(Exception):
        pass

    def ring(*_: object) -> None:
        raise Rung

    def work() -> None:
        time.sleep(0.5)  # until the main thread waits
        signal.pthread_kill(threading.get_ident(), signal.SIGUSR1)
        answered.wait(60)
        ended.append(True)

    ended: list[bool] = []
    answered, before = threading.Event(), signal.signal(signal.SIGUSR1, ring)
    try:
        with ThreadPoolExecutor(1) as pool:
            try:
                with pytest.raises(Rung):
                    list(sphinx_extension._as_completed([pool.submit(work)]))
                assert not ended
            finally:
                answered.set()
    finally:
        signal.signal(signal.SIGUSR1, before)


def test_a_dying_kernel_names_the_cell(tiny_book: TinyBook) -> None:
    tiny_book.write(
        "chapters/part/beta.md", page("Beta", ["x = 1", "import os\nos._exit(1)"])
    )
    beta = find(book_chapters(tiny_book.root), "beta")
    with pytest.raises(
        kernels.ChapterFailed, match=r"(?s)beta.md, code cell 2.*the kernel died"
    ):
        kernels.execute(beta, kernels.kernel_environment(tiny_book.root))


def test_a_chapter_that_hangs_is_ended_with_its_name_and_cell(
    tiny_book: TinyBook, tmp_path: Path
) -> None:
    hangs = f"""import os
from pathlib import Path
_ = (Path("{tmp_path}") / "pid").write_text(str(os.getpid()))
while True:
    try:
        while True:
            pass
    except KeyboardInterrupt:
        pass"""
    text = page("Beta", ["import time\ntime.sleep(1)", hangs, "1"])
    tiny_book.write("chapters/part/beta.md", text)
    beta = find(book_chapters(tiny_book.root), "beta")
    start = time.perf_counter()
    with pytest.raises(
        kernels.ChapterFailed,
        match=r"(?s)beta.md, code cell 2, line \d+.*was ended here, after 15 seconds",
    ):
        # The limit is the chapter's, not a cell's.
        kernels.execute(beta, kernels.kernel_environment(tiny_book.root), limit=15)
    assert 14 < time.perf_counter() - start < 60
    pid = int((tmp_path / "pid").read_text())
    assert wait_until(lambda: not psutil.pid_exists(pid))


@pytest.mark.slow
def test_a_build_that_is_ended_leaves_no_kernel(
    tiny_book: TinyBook, tmp_path: Path
) -> None:
    tell = f"""import os, time
from pathlib import Path
_ = (Path("{tmp_path}") / "NAME").write_text(str(os.getpid()))
time.sleep(600)"""
    for name in ("beta", "gamma"):
        cells = [tell.replace("NAME", name)]
        tiny_book.write(f"chapters/part/{name}.md", page(name.title(), cells))
    building = psutil.Popen(
        [sys.executable, "-m", "book", "build"],
        cwd=tiny_book.root,
        env={**os.environ, "PYTHONPATH": str(ROOT / "code")},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    told, running = [tmp_path / "beta", tmp_path / "gamma"], [building]
    try:
        assert wait_until(lambda: all(p.exists() and p.read_text() for p in told), 120)
        running += [psutil.Process(int(path.read_text())) for path in told]
        building.terminate()
        assert building.wait(60) != 0
        assert wait_until(lambda: not any(process.is_running() for process in running))
    finally:
        kernels._kill(running)


def wait_until(happens, seconds: float = 20) -> bool:
    deadline = time.monotonic() + seconds
    while not happens() and time.monotonic() < deadline:
        time.sleep(0.005)
    return happens()


class ShyKernel:
    """A client whose kernel dies a number of times before it answers."""

    km = None

    def __init__(self, deaths: int) -> None:
        self.deaths, self.starts = deaths, 0

    @contextmanager
    def setup_kernel(self, **_):
        self.starts += 1
        if self.starts <= self.deaths:
            raise RuntimeError("Kernel died before replying to kernel_info")
        yield


def test_a_kernel_that_dies_before_it_answers_is_started_again() -> None:
    client = ShyKernel(deaths=2)
    with kernels._kernel(client, {}, "."):
        assert client.starts == 3 and client in kernels._running
    assert client not in kernels._running


def test_a_kernel_that_never_answers_is_given_up() -> None:
    client = ShyKernel(deaths=3)
    with (
        pytest.raises(RuntimeError, match="died before replying"),
        kernels._kernel(client, {}, "."),
    ):
        pytest.fail("there is no kernel")
    assert client.starts == 3 and client not in kernels._running
