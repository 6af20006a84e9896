"""A book of a few pages, built by Sphinx in a temporary directory without executing anything."""

import json
from io import StringIO
from pathlib import Path

from bs4 import BeautifulSoup
from sphinx.application import Sphinx
from sphinx.util.docutils import docutils_namespace, patch_docutils

REPOSITORY = "https://github.com/someone/a-fork"

CONF = f"""\
extensions = ["myst_nb", "book.pages.chapter_box", "book.pages.reference_comparisons", "book.pages.recommended_links"]
nb_execution_mode = "off"
exclude_patterns = ["_build", "code", "tests", "themes"]
html_baseurl = "https://someone.github.io/a-fork/"
html_theme = "small"
html_theme_path = ["themes"]
html_theme_options = {{"repository_url": "{REPOSITORY}", "repository_branch": "trunk"}}
"""

# The book's own theme has every page written at every build.
THEME = """\
[theme]
inherit = basic
[options]
repository_url =
repository_branch =
"""

CHAPTER = """\
---
jupytext: {{text_representation: {{extension: .md, format_name: myst}}}}
kernelspec: {{display_name: Python 3, language: python, name: python3}}
llm_learn: {meta}
---

# {title}

A promise.

{body}
"""


def chapter(title: str, body: str = "```{code-cell}\n1 + 1\n```", **meta: object) -> str:
    """A chapter's text; `meta` becomes its `llm_learn:` front matter."""
    return CHAPTER.format(
        title=title, body=body, meta=json.dumps({"hours": {"core": 1, "all": 1}} | meta)
    )


class SmallBook:
    """The book's files, and what building them gives."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.write("conf.py", CONF)
        self.write("themes/small/theme.conf", THEME)

    def write(self, name: str, text: str) -> None:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")

    def index(self, *docnames: str) -> None:
        self.write("index.md", "# Book\n\n```{toctree}\n" + "\n".join(docnames) + "\n```\n")

    def record(
        self, slug: str, checks: list[dict], cpu_seconds: float = 12.3, **more: object
    ) -> None:
        facts = {"cpu_seconds": cpu_seconds, "peak_memory_gib": 0.42, "checks": checks}
        facts |= more
        self.write(
            f"_build/chapters/{slug}.json",
            json.dumps({"docname": f"chapters/{slug}"} | facts),
        )

    def build(self) -> str:
        """Builds, and returns what Sphinx complained of."""
        warnings, out = StringIO(), self.root / "_build"
        with patch_docutils(str(self.root)), docutils_namespace():
            app = Sphinx(
                self.root,
                self.root,
                out / "html",
                out / "doctrees",
                "html",
                status=None,
                warning=warnings,
                confoverrides={"nitpicky": True},
            )
            app.build()
        assert app.statuscode == 0
        return warnings.getvalue()

    def path(self, docname: str) -> Path:
        return self.root / f"_build/html/{docname}.html"

    def page(self, docname: str) -> BeautifulSoup:
        return BeautifulSoup(self.path(docname).read_text(encoding="utf-8"), "html.parser")


def check(
    name: str,
    against: str,
    difference: float = 0.0,
    tolerance: float = 1e-6,
    *,
    relative: bool = False,
) -> dict[str, object]:
    """One check as a record keeps it."""
    return {
        "name": name,
        "against": against,
        "difference": difference,
        "tolerance": tolerance,
        "relative": relative,
    }
