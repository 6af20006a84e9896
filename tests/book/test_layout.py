"""The repository: its requirements and lock, facts that stand in one place, and the scripts of its workflows."""

import ast
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version

from book.read.chapters import ROOT, load_plan

GENERATED = {
    ".git",
    ".venv",
    "_build",
    "build",
    "__pycache__",
    ".pytest_cache",
    ".ruff_cache",
    ".hypothesis",
}
WORKFLOWS = sorted((ROOT / ".github/workflows").glob("*.yml"))
REQUIREMENT = re.compile(r"^(?P<name>[\w.-]+)(?:\[[\w,-]+\])?(?P<range>[^;]*)")


def text(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def project() -> dict:
    return tomllib.loads(text("pyproject.toml"))["project"]


def test_code_is_no_package():
    """The standard library has a module `code`, which pdb and pytest import."""
    assert not (ROOT / "code/__init__.py").exists()


def test_every_dependency_is_a_range():
    extras = [
        r
        for several in project().get("optional-dependencies", {}).values()
        for r in several
    ]
    for requirement in project()["dependencies"] + extras:
        limits = REQUIREMENT.match(requirement)["range"]
        assert ">=" in limits and "==" not in limits, (
            f"{requirement}: give a range, as >=1.2,<2"
        )
        # A version that is a year says nothing of compatibility, so it needs no upper limit.
        assert "<" in limits or re.match(r">=20\d\d\.", limits), (
            f"{requirement}: add an upper limit"
        )


def test_every_requirement_is_limited_and_the_package_included():
    lines = [
        line
        for line in text("requirements.txt").splitlines()
        if line and not line.startswith("#")
    ]
    own = [line for line in lines if line.startswith("-e .")]
    assert len(own) == 1
    assert set(re.findall(r"\w[\w-]*", own[0])) - {"e"} == set(
        project().get("optional-dependencies", {})
    )
    for line in set(lines) - set(own):
        limits = REQUIREMENT.match(line)["range"]
        assert re.search(r"==|<|>=20\d\d\.", limits), f"{line}: name the tested range"


def imported_modules(folders: list[Path]) -> dict[str, str]:
    """The top-level modules that Python files import from elsewhere, each with one file that does."""
    files = [path for folder in folders for path in sorted(folder.rglob("*.py"))]
    own = {path.stem for path in files} | {"book", "llm_learn"}
    found: dict[str, str] = {}
    for path in files:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names: list[str] = []
            match node:
                case ast.Import(names=aliases):
                    names = [alias.name for alias in aliases]
                case ast.ImportFrom(module=str(module), level=0):
                    names = [module]
                case ast.Call(
                    func=ast.Attribute(attr="importorskip" | "import_module"),
                    args=[ast.Constant(value=str(module)), *_],
                ):
                    names = [module]
            for name in names:
                found.setdefault(name.split(".")[0], path.as_posix())
    return {n: f for n, f in found.items() if n not in own | sys.stdlib_module_names}


def unnamed(modules: dict[str, str], required: set[str]) -> list[str]:
    """The modules of distributions that no requirement names."""
    distributions = packages_distributions()
    return [
        f"{file} imports {module} ({', '.join(distributions.get(module, ['?']))})"
        for module, file in sorted(modules.items())
        if not required & {canonicalize_name(d) for d in distributions.get(module, [])}
    ]


def test_every_imported_distribution_is_named_in_the_requirements():
    modules = imported_modules([ROOT / name for name in ("code", "tests", "experiments")])
    assert {"torch", "bs4", "yaml", "docutils"} <= set(modules)
    assert unnamed(modules, {canonicalize_name(r.name) for r in requirements()}) == []


def test_an_import_that_no_requirement_names_is_found(tmp_path):
    (tmp_path / "one.py").write_text("import os\nfrom bs4.element import Tag\nimport two\n")
    (tmp_path / "two.py").write_text("def late():\n    import torch.nn\n    import yaml\n")
    modules = imported_modules([tmp_path])
    assert set(modules) == {"bs4", "torch", "yaml"}
    (bs4, yaml_) = unnamed(modules, {"torch"})
    assert "bs4 (beautifulsoup4)" in bs4 and "yaml (PyYAML)" in yaml_


def test_make_and_pip_accept_the_same_pythons():
    accepted = SpecifierSet(project()["requires-python"])
    low, high = re.search(
        r"\((\d+, \d+)\) <= sys\.version_info\[:2\] <= \((\d+, \d+)\)", text("Makefile")
    ).groups()
    low, high = (tuple(map(int, bound.split(", "))) for bound in (low, high))
    for minor in range(8, 20):
        assert accepted.contains(f"3.{minor}.1") == (low <= (3, minor) <= high), minor
    tested = workflow("test")["jobs"]["test"]["strategy"]["matrix"]["python"]
    assert tested == [f"3.{minor}" for minor in range(low[1], high[1] + 1)]


@pytest.mark.skipif(
    shutil.which("make") is None or shutil.which("awk") is None, reason="no make or no awk"
)
def test_make_help_lists_every_target():
    command = ["make", "--no-print-directory", "help"]
    shown = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    (phony,) = re.findall(r"^\.PHONY: (.+)$", text("Makefile"), re.MULTILINE)
    listed = re.findall(r"^  make (\S+) +\S", shown.stdout, re.MULTILINE)
    assert sorted(listed) == sorted(phony.split())
    assert len(listed) == len(shown.stdout.splitlines())


def test_the_daily_command_is_part_of_everything():
    """`make check` runs what `make test` begins with, without the tests that are marked as slow."""
    recipes = dict(re.findall(r"^(check|test): .*\n((?:\t.*\n)+)", text("Makefile"), re.M))
    check, everything = (
        re.findall(r"\$\(run\) (.+)", recipes[n]) for n in ("check", "test")
    )
    assert "pyrefly check" in check
    assert check[-1] == 'pytest -n 2 -m "not slow"'
    assert [*check[:-1], "pytest -n 2"] == everything[: len(check)]
    assert "`make check`" in text("CONTRIBUTING.md")
    assert "make check" in text("CONTRIBUTING.md").split("```")[1]


@pytest.mark.skipif(shutil.which("git") is None, reason="no git here")
def test_git_ignores_the_runs_of_readers(tmp_path):
    subprocess.run(["git", "init", "--quiet", str(tmp_path)], check=True)
    shutil.copy(ROOT / ".gitignore", tmp_path)
    for name, ignored in (("runs/first/losses.csv", True), ("chapters/runs.md", False)):
        command = ["git", "-C", str(tmp_path), "check-ignore", "--quiet", name]
        assert (subprocess.run(command, check=False).returncode == 0) == ignored, name


def requirements() -> list[Requirement]:
    """What requirements.txt asks for, the package's own dependencies and its extras included."""
    lines = [
        line
        for line in text("requirements.txt").splitlines()
        if line and not line.startswith(("#", "-e"))
    ]
    lines += project()["dependencies"]
    for several in project()["optional-dependencies"].values():
        lines += several
    return [Requirement(line) for line in lines]


def locked() -> list[Requirement]:
    return [Requirement(line) for line in text("requirements.lock").splitlines() if line]


SYSTEMS = [
    {
        "python_version": python,
        "python_full_version": f"{python}.9",
        "sys_platform": sys_platform,
        "platform_system": system,
        "os_name": "nt" if system == "Windows" else "posix",
        "platform_machine": machine,
        "implementation_name": "cpython",
        "platform_python_implementation": "CPython",
    }
    for python in ("3.11", "3.12", "3.13")
    for sys_platform, system, machine in (
        ("linux", "Linux", "x86_64"),
        ("linux", "Linux", "aarch64"),
        ("darwin", "Darwin", "arm64"),
        ("win32", "Windows", "AMD64"),
    )
]


@pytest.mark.parametrize(
    "system", SYSTEMS, ids=lambda s: f"{s['python_version']}-{s['sys_platform']}"
)
def test_the_lock_fulfils_every_requirement_once(system):
    versions: dict[str, list[str]] = {}
    for pin in locked():
        if pin.marker is None or pin.marker.evaluate(system):
            (specifier,) = pin.specifier
            versions.setdefault(canonicalize_name(pin.name), []).append(specifier.version)
    assert {name: found for name, found in versions.items() if len(found) > 1} == {}
    for requirement in requirements():
        if requirement.marker and not requirement.marker.evaluate(system):
            continue
        (version,) = versions.get(canonicalize_name(requirement.name), [None])
        assert version and requirement.specifier.contains(version, prereleases=True), (
            f"requirements.lock has {requirement.name} {version}, but {requirement} is asked for: "
            "run `make lock`"
        )


def test_the_lock_names_public_versions_and_no_place():
    for line in text("requirements.lock").splitlines():
        assert "://" not in line and "@" not in line and not line.startswith("-"), line
    for pin in locked():
        (specifier,) = pin.specifier
        assert specifier.operator == "==" and "*" not in specifier.version, pin
        assert Version(specifier.version).local is None, f"{pin} is a build of one machine"


@pytest.mark.skipif(shutil.which("make") is None, reason="no make here")
def test_make_installs_from_the_lock_where_that_is_asked(tmp_path):
    def plan(*options: str) -> str:
        command = [
            "make",
            "--dry-run",
            "--always-make",
            "book",
            f"VENV={tmp_path}",
            *options,
        ]
        return subprocess.run(
            command, cwd=ROOT, capture_output=True, text=True, check=True
        ).stdout

    assert "--constraint requirements.lock" in plan("LOCKED=1")
    for options in ([], ["LOCKED=0"], ["LOCKED="]):
        assert "--requirement requirements.txt" in plan(*options)
        assert "requirements.lock" not in plan(*options)


def test_the_repositorys_address_stands_once():
    """A fork changes one line. So no badge, citation or clone command repeats it."""
    address = yaml.safe_load(text("_config.yml"))["repository"]["url"]
    name = re.sub(r"^https?://", "", address).removesuffix(".git")
    found = []
    for folder, folders, files in os.walk(ROOT):
        folders[:] = [
            f for f in folders if f not in GENERATED and not f.endswith(".egg-info")
        ]
        for path in (Path(folder, file) for file in files):
            content = path.read_text(encoding="utf-8", errors="ignore").lower()
            found += [path.relative_to(ROOT).as_posix()] * content.count(name.lower())
    assert found == ["_config.yml"]


def test_toc_lists_files_that_exist_and_every_part():
    toc = yaml.safe_load(text("_toc.yml"))
    files = [chapter["file"] for part in toc["parts"] for chapter in part["chapters"]]
    missing = [
        name for name in [toc["root"], *files] if not (ROOT / f"{name}.md").is_file()
    ]
    assert missing == [], (
        "only what exists is listed; the plan page shows the rest as planned"
    )
    assert len(files) == len(set(files))
    parts = {
        chapters[0]["file"]: part["caption"]
        for part in toc["parts"]
        if (chapters := part["chapters"])
    }
    plan = {
        f"chapters/{part['name']}/index": part["title"] for part in load_plan()["parts"]
    }
    assert {name: caption for name, caption in parts.items() if name in plan} == plan
    assert [name for name in parts if name in plan] == list(plan)
    # In the plan's order, and none forgotten.
    order = [c["slug"] for part in load_plan()["parts"] for c in part["chapters"]]
    listed = [name.removeprefix("chapters/") for name in files]
    assert [slug for slug in listed if slug in order] == [
        slug for slug in order if (ROOT / f"chapters/{slug}.md").exists()
    ]


def test_part_pages_list_their_own_part():
    for part in load_plan()["parts"]:
        page = text(f"chapters/{part['name']}/index.md")
        assert (
            page.startswith(f"# {part['title']}\n") and f"{{part}} {part['name']}\n" in page
        )


def test_citation_is_valid():
    citation = yaml.safe_load(text("CITATION.cff"))
    assert citation["cff-version"] == "1.2.0"
    assert citation["authors"] and citation["message"] and citation["title"]
    assert (
        citation["version"] == project()["version"]
        and citation["license"] == project()["license"]
    )


@pytest.mark.parametrize(
    ("schema", "path"),
    [
        *(("github-workflows", path) for path in WORKFLOWS),
        ("dependabot", ROOT / ".github/dependabot.yml"),
    ],
    ids=lambda value: getattr(value, "name", value),
)
def test_workflows_are_valid(schema, path):
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema"]
    command += [f"vendor.{schema}", str(path)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_actions_are_pinned_to_a_commit(path):
    used = re.findall(r"uses: *(\S+)", path.read_text(encoding="utf-8"))
    assert used and [u for u in used if not re.fullmatch(r"\S+@[0-9a-f]{40}", u)] == []


def workflow(name: str) -> dict:
    return yaml.safe_load(text(f".github/workflows/{name}.yml"))


needs_git_and_bash = pytest.mark.skipif(
    not (shutil.which("bash") and shutil.which("git")), reason="no bash or no git here"
)


def shell(job: dict, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs a job's only script as GitHub does: stop at the first error."""
    (script,) = [step["run"] for step in job["steps"] if "run" in step]
    env = {**os.environ, "HOME": str(folder), **environment}
    command = [shutil.which("bash"), "-e", "-c", script]
    return subprocess.run(
        command, cwd=folder, env=env, capture_output=True, text=True, check=False
    )


@needs_git_and_bash
def test_notebooks_become_one_commit_that_replaces_the_last(tmp_path):
    job = workflow("publish")["jobs"]["notebooks"]
    remote = tmp_path / "owner/book"
    subprocess.run(["git", "init", "--quiet", "--bare", str(remote)], check=True)
    where = {"GITHUB_SERVER_URL": tmp_path.as_uri(), "GITHUB_REPOSITORY": "owner/book"}

    def git(*command: str) -> list[str]:
        run = ["git", "--git-dir", str(remote), *command]
        done = subprocess.run(
            run, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
        )
        return done.stdout.splitlines()

    author = ("-c", "user.name=A", "-c", "user.email=a@example.org")
    (tree,) = git("mktree")
    tips = []
    for number in ("1", "2"):
        tips += git(*author, "commit-tree", "-m", number, tree)
        git("update-ref", "refs/heads/main", tips[-1])
        folder = tmp_path / f"run-{number}/notebooks"
        (folder / "chapters/part").mkdir(parents=True)
        (folder / "chapters/part/a.ipynb").write_text(number)
        refused = shell(job, folder, TOKEN="x", GITHUB_SHA=tips[-1], **where)
        assert refused.returncode != 0  # without its README.md it is not what was built
        (folder / "README.md").write_text("# Notebooks\n")
        done = shell(job, folder, TOKEN="secret", GITHUB_SHA=tips[-1], **where)
        assert done.returncode == 0, done.stderr
        assert "secret" not in done.stdout + done.stderr

    again = shell(job, folder, TOKEN="x", GITHUB_SHA=tips[0], **where)
    assert again.returncode != 0 and f"main is at {tips[1]} now" in again.stderr
    assert git("log", "--format=%s", "notebooks") == [f"Executed notebooks of {tips[1]}"]
    assert git("ls-tree", "-r", "--name-only", "notebooks") == [
        "README.md",
        "chapters/part/a.ipynb",
    ]
    assert git("show", "notebooks:chapters/part/a.ipynb") == ["2"]


@needs_git_and_bash
def test_an_old_run_does_not_deploy_its_site_again(tmp_path):
    """A job can be run again alone; main has moved on, and so has the site."""
    job = workflow("publish")["jobs"]["deploy"]
    check, deploy = job["steps"]
    assert "run" in check and "if" not in check and "continue-on-error" not in check
    assert deploy["uses"].startswith("actions/deploy-pages@")
    remote = tmp_path / "owner/book"
    subprocess.run(["git", "init", "--quiet", "--bare", str(remote)], check=True)
    where = {"GITHUB_SERVER_URL": tmp_path.as_uri(), "GITHUB_REPOSITORY": "owner/book"}
    git = ["git", "--git-dir", str(remote), "-c", "user.name=A", "-c", "user.email=a@b.c"]

    def commit(message: str) -> str:
        run = {"capture_output": True, "text": True, "check": True}
        tree = subprocess.run([*git, "mktree"], input="", **run).stdout.strip()
        made = subprocess.run([*git, "commit-tree", "-m", message, tree], **run)
        new = made.stdout.strip()
        subprocess.run([*git, "update-ref", "refs/heads/main", new], **run)
        return new

    old = commit("old")
    current = shell(job, tmp_path, TOKEN="secret", GITHUB_SHA=old, **where)
    assert current.returncode == 0, current.stderr
    new = commit("new")
    again = shell(job, tmp_path, TOKEN="secret", GITHUB_SHA=old, **where)
    assert again.returncode != 0 and f"main is at {new} now" in again.stderr
    assert "secret" not in again.stdout + again.stderr
    # Without an answer nothing is deployed either.
    shutil.rmtree(remote)
    assert shell(job, tmp_path, TOKEN="x", GITHUB_SHA=new, **where).returncode != 0


@pytest.mark.skipif(
    shutil.which("bash") is None or os.name == "nt", reason="no bash here, or no scripts"
)
@pytest.mark.parametrize(
    ("second", "fails"), [("from llm_learn.data import text", 0), ("1 + 1", 1)]
)
def test_the_weekly_run_executes_the_first_cells_of_a_notebook(tmp_path, second, fails):
    job = workflow("weekly")["jobs"]["notebook"]
    sources = ['%pip install "llm-learn"', second, "never()"]
    cells = [{"cell_type": "code", "source": [source]} for source in sources]
    notebook = tmp_path / "chapters/part/a.ipynb"
    notebook.parent.mkdir(parents=True)
    notebook.write_text(json.dumps({"cells": [{"cell_type": "markdown"}, *cells]}))
    bare, fake = tmp_path / "bare/bin", tmp_path / "fake"
    # `python` makes the environment, whose own programs note what they are given.
    for path, body in {
        fake / "python": 'echo "$@" >>"$HOME/calls"',
        bare / "python": f'[ "$1" = - ] || exit 0; exec "{sys.executable}" "$@"',
        bare / "ipython": 'cat "$1" >"$HOME/executed"',
    }.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"#!/bin/sh\n{body}\n")
        path.chmod(0o755)
    done = shell(
        job,
        tmp_path,
        PATH=f"{fake}:/usr/bin:/bin",
        RUNNER_TEMP=str(tmp_path),
        CHAPTER="part/a",
    )
    assert (done.returncode != 0) == fails, done.stderr
    if not fails:
        assert (tmp_path / "calls").read_text().split()[:2] == ["-m", "venv"]
        assert (tmp_path / "executed").read_text() == "\n\n".join(sources[:2]) + "\n"


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash here")
@pytest.mark.parametrize(("open_issue", "expected"), [("", "create"), ("7", "comment 7")])
def test_a_failed_week_opens_one_issue(tmp_path, open_issue, expected):
    job = workflow("weekly")["jobs"]["report"]
    gh = tmp_path / "bin/gh"
    gh.parent.mkdir()
    gh.write_text(
        '#!/bin/sh\necho "$@" >>"$HOME/calls"; [ "$2" != list ] || echo "$OPEN"\n'
    )
    gh.chmod(0o755)
    done = shell(
        job,
        tmp_path,
        PATH=f"{gh.parent}:/usr/bin:/bin",
        OPEN=open_issue,
        TITLE="It fails",
        RUN="https://run",
    )
    assert done.returncode == 0, done.stderr
    asked, call = (tmp_path / "calls").read_text().splitlines()
    assert 'select(.title == "It fails")' in asked and "--state open" in asked
    assert call.startswith(f"issue {expected}") and "https://run" in call
    assert ("--title It fails" in call) == (expected == "create")


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash here")
def test_ci_exits_as_make_does_and_ends_with_pytests_line(tmp_path):
    script = ROOT / ".ci/run"
    assert script.stat().st_mode & 0o111
    fake = tmp_path / "bin"
    fake.mkdir()
    (tmp_path / ".ci").mkdir()
    shutil.copy(script, tmp_path / ".ci/run")
    for name, body in {
        "make": 'echo "== 1 failed, 2 passed in 0.50s =="; echo "make: *** Error 1"; exit 3',
        "chromium-headless-shell": "exit 0",
    }.items():
        (fake / name).write_text(f"#!/bin/sh\n{body}\n")
        (fake / name).chmod(0o755)
    result = subprocess.run(
        [shutil.which("bash"), str(tmp_path / ".ci/run")],
        env={"PATH": f"{fake}:/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 3
    assert result.stdout.splitlines()[-1] == "== 1 failed, 2 passed in 0.50s =="


@pytest.mark.slow
def test_nothing_is_published_where_the_site_cannot_be_tested(tmp_path):
    def collect(**environment: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "pytest", "--collect-only", "-q"]
        clean = {k: v for k, v in os.environ.items() if k != "GITHUB_ACTIONS"}
        return subprocess.run(
            [*command, "-p", "no:cacheprovider", "tests/site/test_executed.py"],
            cwd=ROOT,
            env={**clean, "PATH": str(tmp_path), **environment},  # without a browser
            capture_output=True,
            text=True,
            check=False,
        )

    refused = collect(GITHUB_ACTIONS="true")
    assert refused.returncode == 4 and "the site cannot be tested: " in refused.stderr
    assert collect().returncode == 0


@pytest.mark.slow
def test_all_tests_can_be_collected_together(tmp_path):
    """Tests of the builder and of the site share names of files."""
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-p"]
    found = subprocess.run(
        [
            *command,
            "no:cacheprovider",
            "tests/book/pages/test_docutils_nodes.py",
            "tests/site/test_pages.py",
        ],
        cwd=ROOT,
        env={k: v for k, v in os.environ.items() if k != "GITHUB_ACTIONS"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert found.returncode == 0, found.stdout
