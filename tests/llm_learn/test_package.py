"""The modules of the package import one way, and its wheel holds what they need."""

import ast
import shutil
import subprocess
import sys
import zipfile
from graphlib import TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).parents[2]
CODE = ROOT / "code"
MODULES = {
    ".".join(path.relative_to(CODE).with_suffix("").parts).removesuffix(".__init__"): path
    for path in (CODE / "llm_learn").rglob("*.py")
}
# Each layer may import itself and those before it. The commands stand in the last one, since they import the apps.
LAYERS = ["argument_checks", "notebook", "library", "reference", "tasks", "apps"]
COMMANDS = {"llm_learn.pipeline.__main__", "llm_learn.train.__main__"}


def imports(path: Path) -> set[str]:
    """The package's modules that a module imports, anywhere in its text."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
    return names & MODULES.keys()


def layer(module: str) -> int:
    part = [*module.split("."), ""][1]
    return LAYERS.index(
        "apps" if module in COMMANDS else part if part in LAYERS else "library"
    )


def test_modules_import_one_way():
    used = {name: imports(path) for name, path in MODULES.items()}
    assert len(list(TopologicalSorter(used).static_order())) == len(MODULES) > 40
    up = [(m, n) for m, names in used.items() for n in names if layer(n) > layer(m)]
    assert not up
    assert not [name for names in used.values() for name in names if name in COMMANDS]


def test_the_wheel_is_typed_and_holds_the_records(tmp_path):
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tmp_path)
    for folder in ("code/llm_learn", "experiments"):
        ignore = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=ignore)
    build = "from setuptools import build_meta; build_meta.build_wheel('.')"
    subprocess.run(
        [sys.executable, "-c", build], cwd=tmp_path, check=True, capture_output=True
    )
    (wheel,) = tmp_path.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    modules = {path.relative_to(CODE).as_posix() for path in MODULES.values()}
    assert {"llm_learn/py.typed"} | modules <= names
    records = {f"llm_learn_experiments/{p.name}" for p in ROOT.glob("experiments/*.json")}
    assert records and records <= names
    zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    (tmp_path / "user.py").write_text(
        "from llm_learn.attention import causal_mask\n\ncausal_mask('ten', 1)\n"
    )
    options = ["--skip-interpreter-query", "--site-package-path", "site", "user.py"]
    command = [sys.executable, "-m", "pyrefly", "check", *options]
    found = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert found.returncode == 1 and found.stdout.count("ERROR") == 1, found
    assert "`Literal['ten']` is not assignable to parameter" in found.stdout
