"""A chapter that is opened and saved as a notebook is still a chapter."""

import shutil

import yaml
from jupytext import TextFileContentsManager

from book.source import ROOT


def front_matter(path) -> dict:
    return yaml.safe_load(path.read_text(encoding="utf-8").split("---\n")[1])


def test_saving_in_jupyterlab_keeps_the_front_matter(tmp_path):
    original = ROOT / "chapters/basics/attention.md"
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
