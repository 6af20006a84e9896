"""A book of three tiny chapters with a package of its own, built in a temporary directory."""

import os
import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]

CONFIG = f"""
title: Tiny
author: Nobody
only_build_toc_files: true
execute: {{execute_notebooks: cache, timeout: -1}}
repository: {{url: https://github.com/Somebody/Tiny, branch: main}}
html: {{use_repository_button: true, baseurl: "https://somebody.github.io/Tiny/"}}
launch_buttons: {{colab_url: https://colab.research.google.com}}
sphinx:
  extra_extensions: [sphinx_exercise, sphinx_design]
  local_extensions: {{book.execute.sphinx_extension: {REPOSITORY / "code"}, book.export.notebooks: {REPOSITORY / "code"}}}
"""

PROJECT = """
[build-system]
requires = ["setuptools"]
build-backend = "setuptools.build_meta"
[project]
name = "llm-learn"
version = "0"
dependencies = []
[project.optional-dependencies]
more = []
[tool.setuptools]
package-dir = { "" = "code" }
packages = ["llm_learn"]
"""

TOC = """
format: jb-book
root: index
chapters:
- file: chapters/part/alpha
- file: chapters/part/beta
- file: chapters/part/gamma
"""

FRONT = """---
jupytext: {text_representation: {extension: .md, format_name: myst}}
kernelspec: {display_name: Python 3, language: python, name: python3}
llm_learn:
  part: part
  budget: {cpu_seconds: 60, memory_gib: 2}
---
"""

MODULES = {
    "__init__": "",
    "low": "def one():\n    return 1\n",
    "high": "from .low import one\n\n\ndef two():\n    return one() + 1\n",
    "other": "THREE = 3\n",
    "assets": "ASSETS = ('words',)\n\n\ndef asset_path(name):\n    return name\n",
}
# alpha reaches `low` through `high`; beta imports `other`; gamma imports nothing of the package.
CELLS = {
    "alpha": ["from llm_learn.high import two", "print(two())"],
    "beta": ["import llm_learn.other as other", "other.THREE"],
    "gamma": ["import random", "print(sum(range(10)))"],
}


def page(title: str, cells: list[str], tags: dict[int, str] | None = None) -> str:
    """A chapter's text: front matter, a title, and code cells, some with a tag."""
    text = f"{FRONT}\n# {title}\n\nSome prose.\n"
    for number, cell in enumerate(cells):
        options = f':tags: ["{tags[number]}"]\n' if tags and number in tags else ""
        text += f"\n```{{code-cell}} ipython3\n{options}{cell}\n```\n"
    return text


class TinyBook:
    """The files of the book, and the commands of its readers."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.write("_config.yml", CONFIG)
        self.write("_toc.yml", TOC)
        self.write("index.md", "# Tiny\n")
        self.write("pyproject.toml", PROJECT)
        for name in ("README.md", "LICENSE", "experiments/none.json"):
            self.write(name, "{}")
        for name, text in MODULES.items():
            self.write(f"code/llm_learn/{name}.py", text)
        for name, cells in CELLS.items():
            self.write(f"chapters/part/{name}.md", page(name.title(), cells))

    def write(self, name: str, text: str) -> Path:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        return path

    def replace(self, name: str, old: str, new: str) -> None:
        path = self.root / name
        text = path.read_text(encoding="utf-8")
        assert old in text
        path.write_text(text.replace(old, new), encoding="utf-8")

    def run(self, *command: str, **environment: str) -> subprocess.CompletedProcess[str]:
        env = {**os.environ, "PYTHONPATH": str(REPOSITORY / "code"), **environment}
        return subprocess.run(
            [sys.executable, *command],
            cwd=self.root,
            env=env,
            capture_output=True,
            text=True,
            check=False,
        )

    def build(self, *options: str) -> subprocess.CompletedProcess[str]:
        return self.run("-m", "book", "build", *options)

    def prove(self, *names: str) -> subprocess.CompletedProcess[str]:
        return self.run("-m", "book", "prove", *names)

    def notebook(self, name: str) -> Path:
        """The executed notebook of a chapter."""
        return self.root / "_build/jupyter_execute/chapters/part" / f"{name}.ipynb"

    def published(self, name: str) -> Path:
        """The notebook that Colab would open."""
        return self.root / "_build/notebooks/chapters/part" / f"{name}.ipynb"
