"""The proof refuses notebooks that say nothing and finds every output that differs; offline is offline."""

import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import nbformat
import pytest
from tinybook import TinyBook, page

from book.proof import clean_environment as environment
from book.proof import offline
from book.proof import reexecution as prove
from book.read.chapters import book_chapters

ROOT = Path(__file__).resolve().parents[3]

# Not on GitHub's Linux runners, which prove what is published: there these tests must run.
PUBLISHES = bool(os.environ.get("GITHUB_ACTIONS")) and sys.platform == "linux"
needs_isolation = pytest.mark.skipif(
    offline.refusal() is not None and not PUBLISHES,
    reason=f"this machine isolates no network: {offline.refusal()}",
)


@pytest.fixture(scope="module")
def built_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    book = TinyBook(tmp_path_factory.mktemp("book"))
    tags = {1: "raises-exception", 2: "nbval-ignore-output"}
    cells = ["6 * 7", "1 / 0", "import time\ntime.time()", "print('same')"]
    book.write("chapters/part/beta.md", page("Beta", cells, tags=tags))
    text = page("Gamma", ["import os, sys\nprint(os.environ['PYTHONHASHSEED'])"])
    book.write("chapters/part/gamma.md", text)
    done = book.build()
    assert done.returncode == 0, done.stdout + done.stderr
    script = f"from pathlib import Path; from book.proof import clean_environment; clean_environment.prepare(Path('{book.root}'))"
    environment = os.environ | {"PYTHONPATH": str(ROOT / "code")}
    # All that it needs is installed here.
    assert offline.run([sys.executable, "-c", script], environment) == 0
    return book.root


@pytest.fixture
def built(built_root: Path, tmp_path: Path) -> TinyBook:
    book = TinyBook(tmp_path / "copy")
    ignore = shutil.ignore_patterns(".clean")
    shutil.copytree(built_root, book.root, dirs_exist_ok=True, ignore=ignore)
    (book.root / "_build" / ".clean").symlink_to(built_root / "_build" / ".clean")
    return book


def change(book: TinyBook, name: str, edit) -> None:
    notebook = nbformat.read(book.published(name), as_version=4)
    edit([cell for cell in notebook.cells if cell.cell_type == "code"][1:])
    nbformat.write(notebook, book.published(name))


@pytest.mark.slow
def test_right_outputs_pass(built: TinyBook) -> None:
    done = built.prove()
    assert done.returncode == 0, done.stdout + done.stderr
    assert "3 notebooks, 10 cells gave the same outputs twice" in done.stdout
    assert "part/beta: 5 cells, all equal" in done.stdout
    assert ("no route to any host but loopback" in done.stdout) != (
        "Offline switches only" in done.stdout
    )


@pytest.mark.slow
def test_a_changed_number_fails(built: TinyBook) -> None:
    def edit(cells):
        assert cells[0].outputs[0].data["text/plain"] == "42"
        cells[0].outputs[0].data["text/plain"] = "43"

    change(built, "beta", edit)
    done = built.prove("beta")
    assert done.returncode != 0
    assert "part/beta: 5 cells, 1 differ" in done.stdout
    assert "42" in done.stdout and "43" in done.stdout
    assert "NOT proved" in done.stdout


@pytest.mark.slow
def test_an_unexecuted_notebook_fails(built: TinyBook) -> None:
    def empty(cells):
        for cell in cells:
            cell.outputs, cell.execution_count = [], None

    change(built, "beta", empty)
    done = built.prove("part/beta")
    assert done.returncode != 0
    assert "part/beta, code cell 1 was not executed" in done.stderr


@pytest.mark.slow
def test_missing_and_outdated_notebooks_are_refused(built: TinyBook) -> None:
    built.published("alpha").unlink()
    built.replace("chapters/part/beta.md", "6 * 7", "6 * 8")
    problems = prove.refusals(built.root, book_chapters(built.root))
    assert [problem.partition(":")[0] for problem in problems] == [
        "part/alpha",
        "part/beta",
    ]
    assert (
        "no published notebook" in problems[0] and "changed since the build" in problems[1]
    )
    assert prove.refusals(built.root, []) == ["there is no chapter to prove"]


@pytest.mark.slow
def test_a_notebook_without_code_is_refused(built: TinyBook) -> None:
    nbformat.write(nbformat.v4.new_notebook(), built.published("alpha"))
    problems = prove.refusals(built.root, book_chapters(built.root))
    assert problems == [
        "part/alpha: the published notebook has no code cells; build the book again"
    ]


class TestMadeAgain:
    """What is linked and installed is not looked at here."""

    @pytest.fixture
    def made(self, monkeypatch: pytest.MonkeyPatch) -> list:
        monkeypatch.setattr(environment, "_install_package", lambda root, site: None)
        made: list = []
        monkeypatch.setattr(environment, "_link", lambda *arguments: made.append(arguments))
        return made

    @pytest.mark.parametrize("changed", ["pyproject.toml", "code/llm_learn/other.py", "x"])
    def test_after_a_change_and_only_then(
        self, tiny_book: TinyBook, made: list, monkeypatch, changed: str
    ) -> None:
        for _ in range(2):
            environment.prepare(tiny_book.root)
        assert len(made) == 1
        if changed == "x":  # a distribution, in another version
            installed = [SimpleNamespace(name="x", version="1")]
            monkeypatch.setattr(environment.metadata, "distributions", lambda: installed)
        else:
            path = tiny_book.root / changed
            path.write_text(path.read_text() + "# more\n")
        for _ in range(2):
            environment.prepare(tiny_book.root)
        assert len(made) == 2

    def test_after_an_interruption(
        self, tiny_book: TinyBook, made: list, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        environment.prepare(tiny_book.root)
        tiny_book.replace("pyproject.toml", "[build-system]", "# more\n[build-system]")

        def interrupted(*arguments):
            raise KeyboardInterrupt

        with monkeypatch.context() as during:
            during.setattr(environment, "_link", interrupted)
            with pytest.raises(KeyboardInterrupt):
                environment.prepare(tiny_book.root)
        # What was there before must not pass for installed either.
        tiny_book.replace("pyproject.toml", "# more\n", "")
        environment.prepare(tiny_book.root)
        assert len(made) == 2


class Installed:
    """What importlib.metadata says of a distribution."""

    def __init__(self, name: str) -> None:
        self.name = name


class TestLink:
    """Files of two distributions, which share a folder and a file of it."""

    @pytest.fixture
    def linked(self, tmp_path: Path):
        here, there = tmp_path / "here", tmp_path / "there"
        names = ["shared/__init__.py", "shared/one.py", "shared/two.py", "../bin/command"]
        names += ["shared/__pycache__/one.cpython-311.pyc"]
        for name in names:
            (here / name).parent.mkdir(parents=True, exist_ok=True)
            (here / name).write_text(name)

        def link() -> list[str]:
            for own in ("one", "two"):
                distribution = Installed(own)
                distribution.files = [
                    Path(name)
                    for name in names
                    if own in name or name in (names[0], names[3])
                ]
                distribution.locate_file = lambda file: here / file
                environment._link([distribution], there)
            assert all((here / name).read_text() == name for name in names)
            found = [path for path in there.rglob("*") if path.is_file()]
            assert all(
                path.read_text() == path.relative_to(there).as_posix() for path in found
            )
            return sorted(path.relative_to(there).as_posix() for path in found)

        return link

    def test_what_can_be_imported_is_there_once(self, linked, tmp_path: Path) -> None:
        assert linked() == ["shared/__init__.py", "shared/one.py", "shared/two.py"]
        assert (tmp_path / "there/shared/one.py").samefile(tmp_path / "here/shared/one.py")

    def test_files_are_copied_where_they_cannot_be_linked(
        self, linked, monkeypatch
    ) -> None:
        def refuse(source, target):
            raise OSError("Invalid cross-device link")

        monkeypatch.setattr(environment.os, "link", refuse)
        assert linked() == ["shared/__init__.py", "shared/one.py", "shared/two.py"]

    def test_a_distribution_without_a_list_of_files_is_named(self, tmp_path: Path) -> None:
        distribution = Installed("unlisted")
        distribution.files = None
        with pytest.raises(
            environment.CannotPrepare, match="unlisted has no list of its files"
        ):
            environment._link([distribution], tmp_path)


@pytest.mark.slow
def test_the_environment_holds_what_pip_would_install(built_root: Path) -> None:
    folder = built_root / "_build" / ".clean"
    pip = [sys.executable, "-m", "pip", "--python", str(folder / "bin" / "python")]
    env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}  # as its kernel has it
    check = subprocess.run([*pip, "check"], capture_output=True, text=True, env=env)
    assert check.returncode == 0, check.stdout
    command = [*pip, "list", "--format=json"]
    done = subprocess.run(command, capture_output=True, check=True, env=env)
    names = {entry["name"].lower() for entry in json.loads(done.stdout)}
    assert {"llm-learn", "ipykernel", "ipython", "jupyter-client"} <= {
        name.replace("_", "-") for name in names
    }
    assert not names & {"sphinx", "nbval", "torch"}


@pytest.mark.slow
def test_few_cells_may_escape_comparison_and_none_by_a_comment(built: TinyBook) -> None:
    chapters = [c for c in book_chapters(built.root) if c.slug == "part/beta"]

    def edit(cells):
        cells[0].source += "  # NBVAL_IGNORE_OUTPUT"
        cells[3].metadata["tags"] = ["skip-execution"]

    change(built, "beta", edit)
    problems = "\n".join(prove.refusals(built.root, chapters))
    assert "code cell 1: use a tag, not the comment NBVAL_IGNORE_OUTPUT" in problems
    assert "code cell 4: `skip-execution` needs the tag `nbval-skip` too" in problems
    cell = nbformat.v4.new_code_cell(
        "1", execution_count=1, metadata={"tags": ["nbval-ignore-output"]}
    )
    assert prove._cell_problems("x", [cell] * 3) == []
    (problem,) = prove._cell_problems("x", [cell] * 4)
    assert "at most 3 of 4 may" in problem
    plain = nbformat.v4.new_code_cell("1", execution_count=1)
    assert prove._cell_problems("x", [cell] * 5 + [plain] * 20) == []
    (problem,) = prove._cell_problems("x", [cell] * 6 + [plain] * 20)
    assert "at most 5 of 26 may" in problem


@pytest.mark.slow
def test_a_notebook_without_its_install_cell_is_refused(built: TinyBook) -> None:
    notebook = nbformat.read(built.published("gamma"), as_version=4)
    del notebook.cells[0]
    nbformat.write(notebook, built.published("gamma"))
    chapters = [c for c in book_chapters(built.root) if c.slug == "part/gamma"]
    assert "does not begin with its install cell" in prove.refusals(built.root, chapters)[0]


@pytest.mark.slow
def test_kernels_see_the_installed_package_and_none_of_the_tools(built: TinyBook) -> None:
    """What only the book's environment has cannot be imported: the outputs then differ."""
    lines = [
        "import llm_learn, importlib.util as u",
        "print(u.find_spec('sphinx') is not None)",
    ]
    built.write("chapters/part/gamma.md", page("Gamma", ["\n".join(lines)]))
    assert built.build().returncode == 0
    done = built.prove("gamma")
    assert done.returncode != 0 and "part/gamma: 2 cells, 1 differ" in done.stdout


@pytest.mark.slow
def test_a_changed_package_is_installed_again(built: TinyBook) -> None:
    built.replace("code/llm_learn/other.py", "THREE = 3", "THREE = 4")
    (built.root / "_build" / ".clean").unlink()
    environment.prepare(built.root)
    python = environment.prepare(built.root)
    built.replace("code/llm_learn/other.py", "THREE = 4", "THREE = 5")
    environment.prepare(built.root)
    script = "import llm_learn.other as o; print(o.THREE, o.__file__)"
    env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}  # as its kernel has it
    done = subprocess.run(
        [python, "-c", script], capture_output=True, text=True, cwd="/", env=env
    )
    assert done.returncode == 0, done.stderr
    three, path = done.stdout.split()
    assert three == "5" and Path(path).is_relative_to(built.root / "_build" / ".clean")


@pytest.mark.slow
def test_an_environment_that_cannot_be_made_says_why(built: TinyBook) -> None:
    built.replace(
        "pyproject.toml", "dependencies = []", 'dependencies = ["no-such-thing==9"]'
    )
    (built.root / "_build" / ".clean").unlink()
    with pytest.raises(environment.CannotPrepare, match="no-such-thing"):
        environment.prepare(built.root)


@needs_isolation
def test_offline_reaches_loopback_and_nothing_else() -> None:
    script = """if True:
        import socket, time
        server = socket.create_server(("127.0.0.1", 0))
        socket.create_connection(server.getsockname(), timeout=5).close()
        start = time.perf_counter()
        for address in ("192.0.2.1", "1.1.1.1"):
            try:
                socket.create_connection((address, 80), timeout=20)
            except OSError as error:
                print(error.strerror)
        print(time.perf_counter() - start < 2)
    """
    done = subprocess.run(
        [*offline.WRAPPER, sys.executable, "-c", script],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.splitlines() == ["Network is unreachable"] * 2 + ["True"]


@needs_isolation
def test_servers_of_the_machine_cannot_be_reached_either() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        script = (
            f"import socket; socket.create_connection({server.getsockname()}, timeout=5)"
        )
        command = [*offline.WRAPPER, sys.executable, "-c", script]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        socket.create_connection(server.getsockname(), timeout=5).close()
    assert done.returncode != 0 and "ConnectionRefusedError" in done.stderr


def test_a_machine_that_refuses_gets_switches_and_a_sentence(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(offline, "refusal", lambda: "Operation not permitted")
    monkeypatch.delenv("GITHUB_ACTIONS", raising=False)
    script = "import os; print(os.environ['PIP_NO_INDEX'], os.environ['https_proxy'])"
    assert offline.run([sys.executable, "-c", script], {}) == 0
    out = capfd.readouterr().out
    assert (
        "Offline switches only: this machine isolates no network (Operation not permitted)."
        in out
    )
    assert out.splitlines()[-1] == "1 http://127.0.0.1:9"


def test_where_the_site_is_published_nothing_runs_without_isolation(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    monkeypatch.setattr(offline, "refusal", lambda: "Operation not permitted")
    monkeypatch.setattr(sys, "platform", "linux")
    command = [sys.executable, "-c", "print('it ran')"]
    assert offline.run(command, {}) == 1
    out, err = capfd.readouterr()
    assert "it ran" not in out
    assert "isolates no network (Operation not permitted)" in err
    assert "apparmor_restrict_unprivileged_userns=0" in err
    # Other systems have no such thing; nothing is published from them.
    monkeypatch.setattr(sys, "platform", "darwin")
    assert offline.run(command, {}) == 0
    assert "Offline switches only" in capfd.readouterr().out


@pytest.mark.parametrize(
    ("platform", "wrapper", "reason"),
    [
        ("darwin", offline.WRAPPER, "darwin has no network namespaces"),
        ("linux", ["no-such-unshare"], "`unshare` of util-linux is missing"),
        ("linux", ["sh", "-c", "echo no >&2; exit 1"], "no"),
    ],
)
def test_a_refusal_has_its_reason(monkeypatch, platform, wrapper, reason) -> None:
    monkeypatch.setattr(sys, "platform", platform)
    monkeypatch.setattr(offline, "WRAPPER", wrapper)
    assert reason in offline.refusal()
