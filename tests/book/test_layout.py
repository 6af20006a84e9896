"""The repository's layout: files that must exist, names that must not, and facts that stand in one place."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

from book.source import ROOT, load_plan

LIGHT = {"torch", "numpy", "matplotlib", "tqdm", "safetensors", "regex", "num2words"}
FILES = [
    *(
        "README.md",
        "index.md",
        "_config.yml",
        "_toc.yml",
        "references.bib",
        "requirements.txt",
        "pyproject.toml",
    ),
    *(
        "Makefile",
        "LICENSE",
        "LICENSE-text",
        "CONTRIBUTING.md",
        "CITATION.cff",
        ".ci/run",
        ".gitignore",
    ),
    *(".github/workflows/test.yml", ".github/workflows/publish.yml"),
    *(
        "chapters/start/plan.md",
        "chapters/start/how-to-run.md",
        "chapters/start/notation.md",
    ),
    *("code/book/template.md", "code/book/chapters.yml", "code/book/taught.yml"),
]
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


@pytest.mark.parametrize("name", FILES)
def test_file_exists(name):
    assert (ROOT / name).is_file(), f"{name} is missing"


def test_code_is_no_package():
    """The standard library has a module `code`, which pdb and pytest import."""
    assert not (ROOT / "code/__init__.py").exists()


def test_runtime_dependencies_are_the_light_ones():
    assert {REQUIREMENT.match(r)["name"] for r in project()["dependencies"]} == LIGHT


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


def test_licences_say_what_they_cover():
    assert text("LICENSE").startswith("MIT License")
    assert "creativecommons.org/licenses/by/4.0" in text("LICENSE-text")


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_workflow_follows_githubs_schema(path):
    command = [
        sys.executable,
        "-m",
        "check_jsonschema",
        "--builtin-schema",
        "vendor.github-workflows",
        str(path),
    ]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_workflow_is_thin_pinned_and_unprivileged(path):
    workflow = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert workflow["permissions"] == {"contents": "read"} and "concurrency" in workflow
    steps = [step for job in workflow["jobs"].values() for step in job["steps"]]
    assert any(step.get("run") == "make test" for step in steps)
    for step in steps:
        assert re.fullmatch(
            r"actions/[\w-]+@[0-9a-f]{40}", step.get("uses", f"actions/none@{'0' * 40}")
        )


def test_only_a_proved_site_is_published():
    jobs = yaml.safe_load(text(".github/workflows/publish.yml"))["jobs"]
    assert jobs["deploy"]["needs"] == "prove"
    assert jobs["deploy"]["permissions"] == {"pages": "write", "id-token": "write"}
    names = [step.get("run", step.get("uses", "")) for step in jobs["prove"]["steps"]]
    upload = next(i for i, name in enumerate(names) if "upload-pages-artifact" in name)
    assert names.index("make test") < upload and "continue-on-error" not in str(jobs)


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
        "chromium": "exit 0",
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
