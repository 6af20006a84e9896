"""Recorded experiments can still run the code of their chapters."""

import importlib.util
import json
import os
import re
import subprocess
import sys

import pytest

from book.read.chapters import ROOT

SCRIPTS = sorted(
    path for path in (ROOT / "experiments").glob("*.py") if path.name != "common.py"
)
USED = sorted(
    {
        slug
        for path in SCRIPTS
        for slug in re.findall(
            r"definitions\(\s*\"([\w/-]+)\"", path.read_text(encoding="utf-8")
        )
    }
)


@pytest.fixture(scope="module")
def common():
    path = ROOT / "experiments/common.py"
    spec = importlib.util.spec_from_file_location("experiments_common", path)
    common = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(common)
    return common


@pytest.mark.slow
@pytest.mark.parametrize("slug", USED)
def test_definitions_of_the_chapter_can_be_executed_without_its_other_cells(common, slug):
    assert vars(common.definitions(slug))


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
