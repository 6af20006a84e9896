"""Recorded experiments can still run the code of their chapters."""

import importlib.util
import re

import pytest

from book.source import ROOT

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


@pytest.mark.parametrize("slug", USED)
def test_definitions_of_the_chapter_can_be_executed_without_its_other_cells(slug):
    path = ROOT / "experiments/common.py"
    spec = importlib.util.spec_from_file_location("experiments_common", path)
    common = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(common)
    assert vars(common.definitions(slug))
