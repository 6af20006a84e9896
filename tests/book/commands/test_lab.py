"""JupyterLab on the chapters: it stays in the foreground, and a saved notebook is still a chapter."""

import os
import shutil
import subprocess
import sys

import pytest
import yaml
from jupytext import TextFileContentsManager

from book.commands import lab
from book.read.chapters import ROOT


def front_matter(path) -> dict:
    return yaml.safe_load(path.read_text(encoding="utf-8").split("---\n")[1])


def test_saving_in_jupyterlab_keeps_the_front_matter(tmp_path):
    original = ROOT / "chapters/first-model/attention.md"
    for path in (ROOT / "chapters/jupytext.toml", original):
        shutil.copy(path, tmp_path)
    manager = TextFileContentsManager()
    manager.root_dir = str(tmp_path)
    notebook = manager.get("attention.md", type="notebook", content=True)
    notebook["content"]["cells"][0]["source"] += "\n\nOne more sentence."
    manager.save(notebook, "attention.md")
    saved = tmp_path / "attention.md"
    assert "One more sentence." in saved.read_text(encoding="utf-8")
    assert front_matter(saved)["llm_learn"] == front_matter(original)["llm_learn"]


def test_on_windows_the_prompt_waits_for_jupyterlab(tmp_path, monkeypatch):
    """There, `os.execve` returns to the prompt at once and leaves JupyterLab without a terminal."""
    called = []

    def run(command, **options):
        called.append((command, options["env"]))
        return subprocess.CompletedProcess(command, 7)

    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setattr(os, "execve", lambda *_: pytest.fail("the process was replaced"))
    monkeypatch.setattr(subprocess, "run", run)
    assert lab.main(["--no-browser"], tmp_path) == 7
    ((command, environment),) = called
    assert command[:3] == [sys.executable, "-m", "jupyterlab"]
    assert command[-1] == "--no-browser"
    # A reader in JupyterLab may go online and sees progress bars.
    assert "HF_HUB_OFFLINE" not in environment and "TQDM_DISABLE" not in environment
