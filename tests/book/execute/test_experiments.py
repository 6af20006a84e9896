"""Recorded experiments can still run the code of their chapters."""

import ast
import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Iterator

import pytest

from book.read.chapters import ROOT

SCRIPTS = sorted(
    path for path in (ROOT / "experiments").glob("*.py") if path.name != "common.py"
)


@pytest.fixture(scope="module")
def common():
    path = ROOT / "experiments/common.py"
    spec = importlib.util.spec_from_file_location("experiments_common", path)
    common = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(common)
    return common


def chapters_of(tree: ast.Module) -> dict[str, str]:
    """The chapters whose definitions a script takes, by the script's name for them."""
    return {target.id: slug for node in ast.walk(tree) for target, slug in _assigned(node)}


def _assigned(node: ast.AST) -> Iterator[tuple[ast.Name, str]]:
    match node:
        case ast.Assign(
            targets=[ast.Name() as target],
            value=ast.Call(
                func=ast.Name(id="definitions"), args=[ast.Constant(value=slug)]
            ),
        ):
            yield target, slug


@pytest.mark.slow
@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_a_script_uses_what_its_chapters_define(common, path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    defined = {name: common.definitions(slug) for name, slug in chapters_of(tree).items()}
    missing = [
        f"{name}.{attribute}"
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)
        for name, attribute in [(node.value.id, node.attr)]
        if name in defined and not hasattr(defined[name], attribute)
    ]
    assert missing == []


SCRIPT = """
from pathlib import Path

from common import record_parts


def half(seed):
    return {"found": seed / 2}


def data(seed):
    return {}


if __name__ == "__main__":
    record_parts((half,), "numbers", [3, 1], Path("record.json"))
    record_parts((half, data), "numbers", [3], Path("other.json"))
"""


def test_a_record_has_its_parts_by_name_and_no_part_hides_what_it_says_of_itself(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT, encoding="utf-8")
    paths = os.pathsep.join((str(ROOT / "experiments"), str(ROOT / "code")))
    run = subprocess.run(
        [sys.executable, script],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": paths},
        capture_output=True,
        text=True,
    )
    record = json.loads((tmp_path / "record.json").read_text(encoding="utf-8"))
    assert record["half"] == [{"found": 1.5}, {"found": 0.5}]
    assert record["data"] == "numbers" and record["seeds"] == [3, 1] and record["commit"]
    assert "parts has ['data']" in run.stderr and run.returncode
    assert not (tmp_path / "other.json").exists()
