"""The notebooks of the site: every button leads to one, and each is plain Markdown, code and outputs."""

import re

import nbformat
import pytest
import site_server as site

from book.export.notebook_cells import raw_syntax
from book.read.chapters import find_sources

NOTEBOOKS = site.ROOT / "_build" / "notebooks"
COLAB = re.compile(
    r'https://colab\.research\.google\.com/github/[^/"]+/[^/"]+/blob/([^/"]+)/([^"#?]+)'
)
CHAPTERS = [source.slug for source in find_sources()]
pytestmark = pytest.mark.skipif(
    not (site.HTML / "index.html").is_file(), reason=site.missing() or ""
)


@pytest.mark.parametrize("name", site.pages())
def test_colab_links_lead_to_published_notebooks(name):
    links = COLAB.findall((site.HTML / f"{name}.html").read_text(encoding="utf-8"))
    assert bool(links) == (name.removeprefix("chapters/") in CHAPTERS)
    for branch, path in links:
        assert branch == "notebooks"
        assert path == f"{name}.ipynb" and (NOTEBOOKS / path).is_file()


@pytest.mark.parametrize("slug", CHAPTERS)
def test_notebook_is_plain_and_offered_for_download(slug):
    path = NOTEBOOKS / "chapters" / f"{slug}.ipynb"
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert notebook.cells[0].metadata["tags"] == ["install"]
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            assert raw_syntax(cell.source) == []
    offered = site.HTML / "notebooks" / "chapters" / f"{slug}.ipynb"
    assert offered.read_bytes() == path.read_bytes()
