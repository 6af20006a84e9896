"""What the tests of the built site share."""

import os
from pathlib import Path

import pytest
import site_server as site


def pytest_configure() -> None:
    """Nothing is published by a run whose tests of the site were all skipped."""
    if os.environ.get("GITHUB_ACTIONS") and (reason := site.missing()):
        raise pytest.UsageError(f"the site cannot be tested: {reason}")


@pytest.fixture(scope="module")
def address():
    with site.serve() as where:
        yield where


@pytest.fixture(scope="module")
def chromium():
    with site.browser() as browser:
        yield browser


@pytest.fixture(scope="module")
def axe_script():
    import axe_playwright_python

    folder = Path(axe_playwright_python.__file__).parent
    return (folder / "axe.min.js").read_text(encoding="utf-8")
