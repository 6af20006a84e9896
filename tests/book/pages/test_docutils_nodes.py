"""The plan page, the part pages and the chapter box, in a small book built by Sphinx."""

import json
from io import StringIO
from pathlib import Path

import pytest
from sphinx.application import Sphinx
from sphinx.util.docutils import docutils_namespace, patch_docutils

from book.read.chapters import load_plan

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("default")]

CONF = """\
extensions = ["myst_nb", "book.pages.docutils_nodes", "book.pages.chapter_box"]
nb_execution_mode = "off"
exclude_patterns = ["_build"]
myst_enable_extensions = ["dollarmath", "colon_fence"]
book_plan = {
    "parts": [
        {"name": "basics", "title": "Basics", "about": "What comes first.", "chapters": [
            {"slug": "basics/one", "title": "One", "builds": "The first thing.", "plan": ["Item A"],
             "prerequisites": []},
            {"slug": "basics/two", "title": "The second", "builds": "Another thing.",
             "plan": ["Item A", "Item B"], "prerequisites": ["basics/one"]},
        ]},
        {"name": "later", "title": "Later", "about": "What comes then.", "chapters": [
            {"slug": "later/three", "title": "Three", "builds": "A third thing.", "plan": [],
             "prerequisites": ["basics/two"]},
        ]},
    ],
    "plan": [{"section": "The old section", "items": ["Item A", "Item B"]}],
}
"""

CHAPTER = """\
---
jupytext: {{text_representation: {{extension: .md, format_name: myst}}}}
kernelspec: {{display_name: Python 3, language: python, name: python3}}
llm_learn:
  prerequisites: {prerequisites}
  hours: {{core: {hours}, all: {hours}}}
---

# {title}

A promise.

```{{code-cell}}
1 + 1
```
"""

PAGES = {
    "index.md": "# Book\n\n```{toctree}\nchapters/start/plan\nchapters/basics/index\n```\n",
    "chapters/start/plan.md": "# The plan\n\n## Parts\n\n```{plan} chapters\n```\n\n## Items\n\n```{plan} items\n```\n",
    "chapters/basics/index.md": "# Basics\n\n```{part} basics\n```\n\n```{toctree}\none\ntwo\n```\n",
    "chapters/basics/one.md": CHAPTER.format(
        title="Chapter one", prerequisites=[], hours=1
    ),
    "chapters/basics/two.md": CHAPTER.format(
        title="Chapter two", prerequisites=["basics/one"], hours=2.5
    ),
}


@pytest.fixture
def book(tmp_path: Path) -> Path:
    (tmp_path / "conf.py").write_text(CONF, encoding="utf-8")
    for name, text in PAGES.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return tmp_path


def record(book: Path, slug: str, cpu_seconds: float, against: list[str]) -> None:
    path = book / f"_build/chapters/{slug}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    checks = [
        {
            "name": "x",
            "against": a,
            "difference": 0.0,
            "tolerance": 1e-6,
            "relative": False,
        }
        for a in against
    ]
    facts = {
        "docname": f"chapters/{slug}",
        "cpu_seconds": cpu_seconds,
        "peak_memory_gib": 0.42,
    }
    path.write_text(json.dumps(facts | {"checks": checks}), encoding="utf-8")


def build(book: Path) -> str:
    """Builds, and returns what Sphinx complained of."""
    warnings = StringIO()
    out = book / "_build"
    with patch_docutils(str(book)), docutils_namespace():
        app = Sphinx(
            book,
            book,
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


def page(book: Path, name: str) -> str:
    return (book / f"_build/html/chapters/{name}.html").read_text(encoding="utf-8")


def test_pages_show_the_plan_and_what_was_measured(book):
    record(book, "basics/one", 12.3, ["torch.softmax", "torch.softmax", "numpy"])
    assert build(book) == ""

    plan = page(book, "start/plan")
    assert 'href="../basics/one.html"><span>Chapter one</span></a>' in plan
    assert "runs in 12 s on one core, 0.4 GiB" in plan and "torch.softmax; numpy" in plan
    assert plan.count("state-planned") == 1 and plan.count("state-published") == 2 + 3
    assert '<span class="planned">Three</span>' in plan and "The second" not in plan
    assert '<section id="part-later">' in plan and "The old section" in plan
    assert 'href="#part-later"' in plan  # the page's own table of contents
    row = plan[plan.index("Item A") : plan.index("Item B")]
    assert "one.html" in row and "two.html" in row

    part = page(book, "basics/index")
    assert (
        "The first thing." in part
        and "runs in 12 s on one core" in part
        and "A third thing." not in part
    )

    one, two = page(book, "basics/one"), page(book, "basics/two")
    for html in (one, two):
        assert html.count("chapter-box") == 1
        assert html.index("</h1>") < html.index("chapter-box") < html.index("A promise.")
    assert (
        "No other chapter." in one
        and "Core: 1 hour." in one
        and "12 seconds of one processor core, 0.4 GiB" in one
    )
    assert (
        'href="one.html"><span>Chapter one</span></a>' in two and "Core: 2.5 hours." in two
    )
    assert "did not execute" in two and "chapter-box" not in plan


def test_a_changed_record_rewrites_what_shows_it_and_nothing_else(book):
    record(book, "basics/one", 12.3, ["torch.softmax"])
    build(book)
    pages = ["start/plan", "basics/index", "basics/one", "basics/two"]
    for name in pages:
        with (book / f"_build/html/chapters/{name}.html").open("a") as file:
            file.write("<!-- as it was -->")

    def rewritten() -> list[str]:
        return [name for name in pages if "<!-- as it was -->" not in page(book, name)]

    assert build(book) == "" and rewritten() == []
    record(book, "basics/one", 45.6, ["torch.softmax"])
    assert build(book) == ""
    assert rewritten() == ["start/plan", "basics/index", "basics/one"]
    assert all("runs in 46 s on one core" in page(book, name) for name in pages[:2])
    assert "46 seconds" in page(book, "basics/one")


def test_a_new_chapter_becomes_published(book):
    build(book)
    assert "Chapter three" not in page(book, "start/plan")
    path = book / "chapters/later/three.md"
    path.parent.mkdir()
    front = CHAPTER.format(title="Chapter three", prerequisites=["basics/two"], hours=1)
    path.write_text(front.replace("---\n\n#", "orphan: true\n---\n\n#"), encoding="utf-8")
    assert build(book) == ""
    assert "Chapter three" in page(book, "start/plan") and "state-planned" not in page(
        book, "start/plan"
    )


def test_an_unknown_part_is_an_error(book):
    (book / "chapters/basics/index.md").write_text(
        "# B\n\n```{part} nowhere\n```\n\n```{toctree}\none\ntwo\n```\n", encoding="utf-8"
    )
    assert "part 'nowhere' is none of basics, later" in build(book)


def test_the_real_plan_is_the_default():
    assert {part["name"] for part in load_plan()["parts"]} >= {"first-model", "capstone"}
