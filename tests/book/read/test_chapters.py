"""Chapters are read as myst-nb reads them, or its cache would not find their outputs."""

from pathlib import Path

import nbformat
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from jupyter_cache.cache.main import JupyterCacheBase
from myst_nb.core.read import read_myst_markdown_notebook
from myst_parser.config.main import MdParserConfig
from tinybook import FRONT, TinyBook

from book.read.chapters import ROOT, Source, book_chapters, find, find_sources, read_source

EXTENSIONS = yaml.safe_load((ROOT / "_config.yml").read_text(encoding="utf-8"))["parse"]
CONFIG = MdParserConfig(enable_extensions=set(EXTENSIONS["myst_enable_extensions"]))
CELL = "```{{code-cell}} ipython3\n{}{}\n```"
BLOCKS = [
    "Some prose, `code` and $x$.",
    "(label-page)=\n## A heading",
    "```{note}\nA directive.\n```",
    "````{note}\n```python\nshown = 1\n```\n````",
    ":::{tip}\nWith colons.\n:::",
    "```python\nshown = 2\n```",
    "~~~text\n```{code-cell}\nshown, too\n```\n~~~",
    "- an item\n\n  ```{code-cell}\n  nested = 1\n  ```",
    "```{exercise-start}\n:label: ex-page\n```",
    "$$\na + b\n$$",
    "",
]
OPTIONS = [
    "",
    ':tags: ["hide-input"]\n',
    "---\ntags: [a, b]\nmystnb:\n  image: {alt: x}\n---\n",
]
CODE = ["x = 1", "\nx = 1", "", "# ---\nx = '''\n---\n'''", "%pip list\n\n\ny = 2"]
blocks = st.one_of(
    st.sampled_from(BLOCKS),
    st.builds(CELL.format, st.sampled_from(OPTIONS), st.sampled_from(CODE)),
)


def cells(notebook: nbformat.NotebookNode) -> list[tuple[str, str, dict]]:
    return [(cell.cell_type, cell.source, cell.metadata) for cell in notebook.cells]


def assert_read_alike(page: Source) -> None:
    theirs = read_myst_markdown_notebook(page.text, CONFIG)
    assert cells(page.notebook) == cells(theirs)
    key = JupyterCacheBase.create_hashed_notebook
    assert key(None, page.notebook)[1] == key(None, theirs)[1]
    nbformat.validate(page.notebook)


@pytest.mark.parametrize("chapter", list(find_sources()), ids=lambda chapter: chapter.slug)
def test_a_chapter_of_the_book_is_read_as_myst_nb_reads_it(chapter: Source):
    assert_read_alike(chapter)


@given(st.lists(blocks, max_size=8))
def test_any_page_is_read_as_myst_nb_reads_it(parts: list[str]):
    text = FRONT + "\n" + "\n\n".join(parts) + "\n"
    assert_read_alike(Source(path=Path("page.md"), slug="part/page", text=text))


def test_lines_are_those_of_the_file():
    text = FRONT + CELL.format(OPTIONS[2], "x = 1\ny = 2") + "\n"
    (cell,) = Source(path=Path("page.md"), slug="part/page", text=text).cells
    lines = text.split("\n")
    assert lines[cell.line - 1] == "x = 1"
    assert lines[cell.options_line - 1] == "```{code-cell} ipython3"
    assert lines[cell.last_line - 1] == "```"


@pytest.mark.parametrize(
    "text",
    [
        "````{note}\n" + CELL.format("", "x = 1") + "\n````",
        ":::{tip}\n" + CELL.format("", "x = 1") + "\n:::",
        ":::{code-cell}\nx = 1\n:::",
        CELL.format("", "\n\nx = 1"),
        CELL.format("", "x = 1\n"),
    ],
)
def test_a_cell_that_myst_nb_would_read_otherwise_is_refused(text: str, tmp_path: Path):
    path = tmp_path / "page.md"
    path.write_text(FRONT + text, encoding="utf-8")
    with pytest.raises(ValueError, match=r"page\.md:\d+: a code cell must"):
        _ = read_source(path).cells


@pytest.mark.parametrize(
    ("front", "edition", "hours"),
    [
        ("hours: 2.5", 1, (0, 0)),
        ("part: part", 1, (0, 0)),
        ("edition: 2, hours: {core: 1, all: 3}", 2, (1, 3)),
        ("edition: 3, hours: {core: 1}", 1, (1, 0)),
    ],
)
def test_a_page_says_its_edition_and_its_hours(front, edition, hours):
    text = f"---\nllm_learn: {{{front}}}\n---\n"
    page = Source(path=Path("page.md"), slug="part/page", text=text)
    assert (page.edition, page.hours) == (edition, hours)


def test_the_names_of_chapters_are_unique_slugs_or_paths(tiny_book: TinyBook):
    chapters = book_chapters(tiny_book.root)
    assert [chapter.slug for chapter in chapters] == [
        "part/alpha",
        "part/beta",
        "part/gamma",
    ]
    assert find(chapters, "beta") is find(chapters, "part/beta") is chapters[1]
    assert find(chapters, "chapters/part/beta.md") is chapters[1]
    twice = [*chapters, Source(path=Path("alpha.md"), slug="other/alpha", text="")]
    with pytest.raises(
        ValueError, match=r"more than one chapter is called 'alpha'.*other/alpha"
    ):
        find(twice, "alpha")
    with pytest.raises(ValueError, match=r"no chapter is called 'delta'.*part/gamma"):
        find(chapters, "delta")


def test_code_cells_outside_a_chapter_are_refused(tiny_book: TinyBook):
    tiny_book.write("index.md", "# Tiny\n\n```{code-cell}\n1 + 1\n```\n")
    with pytest.raises(ValueError, match=r"index\.md has code cells"):
        book_chapters(tiny_book.root)
