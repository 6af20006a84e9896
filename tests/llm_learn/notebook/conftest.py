"""What a notebook's front end receives, for the tests of what notebooks show."""

import pytest
from IPython.core.history import HistoryManager
from IPython.core.interactiveshell import InteractiveShell
from IPython.utils.capture import capture_output


@pytest.fixture(scope="module")
def shell(tmp_path_factory):
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setenv("IPYTHONDIR", str(tmp_path_factory.mktemp("ipython")))
        monkeypatch.setattr(HistoryManager, "enabled", False)
        yield InteractiveShell.instance()
        InteractiveShell.clear_instance()


@pytest.fixture
def screen(shell):
    """What a notebook's front end would receive, collected by IPython itself: `screen.outputs`."""
    with capture_output() as captured:
        yield captured
