"""The site's address, and what kept libraries write with it: a small book built by Sphinx."""

import os
import subprocess
from io import StringIO
from pathlib import Path
from xml.etree import ElementTree

import pytest
from sphinx.application import Sphinx
from sphinx.util.docutils import docutils_namespace, patch_docutils

from book.read.chapters import ROOT
from book.read.repository_urls import named
from book.site.publishing_settings import own_files

BASE = "https://owner.github.io/Book/"
LOC = "{http://www.sitemaps.org/schemas/sitemap/0.9}loc"


@pytest.mark.parametrize(
    ("repository", "address"),
    [
        ("https://github.com/Owner/Book", BASE),
        ("https://github.com/Owner/Book.git", BASE),
        ("https://github.com/owner/Book/ ", BASE),
        ("https://github.com/Owner/owner.github.io", "https://owner.github.io/"),
        ("https://gitlab.com/owner/Book", ""),
        ("https://github.com/owner", ""),
        ("", ""),
    ],
)
def test_the_sites_address_follows_from_the_repositorys(repository, address):
    found = named(repository)
    assert (found.site if found else "") == address


def test_a_change_of_what_makes_the_pages_is_noticed():
    names = {path.relative_to(ROOT).as_posix() for path in own_files(ROOT)}
    assert names >= {
        "code/book/pages/plan.py",
        "code/book/site/scripts/ticks.js",
        "code/book/site/styles/palette.css",
    }


CONF = """\
extensions = ["myst_nb", "book.pages.citation"]
html_theme = "sphinx_book_theme"
html_title = "The <Book>"
copyright = "2024"
nb_execution_mode = "off"
exclude_patterns = ["_build"]
html_theme_options = {"repository_url": "https://github.com/Owner/Book.git"}
html_last_updated_fmt = "%Y-%m-%d"
git_last_updated_timezone = "UTC"
sitemap_show_lastmod = True
sitemap_url_scheme = "{link}"
ogp_social_cards = {"enable": False}
suppress_warnings = ["git.command_not_found", "git.subprocess_error", "sitemap.configuration"]
"""
PROMISE = 'You build a "small" thing, and you compare A & B with what others have built.'
FRONT = (
    "file_format: mystnb\nkernelspec: {name: python3, language: python, display_name: Python 3}\n"
    "llm_learn: {hours: 1}"
)
CELL = "```{code-cell}\n1 + 1\n```"
FILES = {
    "conf.py": CONF,
    "CITATION.cff": "title: The Book\nauthors: [{name: The Makers}]\n",
    "index.md": "# The Book\n\n```{toctree}\n:caption: Part <one>\nchapters/part/one\nplain\n```\n",
    "chapters/part/one.md": f"---\n{FRONT}\n---\n\n# One\n\n{PROMISE}\n\n{CELL}\n",
    "plain.md": "---\ndescription: What the author wrote about this page.\n---\n\n# Plain\n\nText.\n",
}


@pytest.fixture
def book(tmp_path):
    root = tmp_path / "book"
    for name, text in FILES.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return root


def commit(folder: Path) -> None:
    dates = {
        f"GIT_{who}_DATE": "2025-03-01T23:30:00+00:00" for who in ("AUTHOR", "COMMITTER")
    }
    names = ("-c", "user.name=A", "-c", "user.email=a@example.org")
    for command in (["init", "-q"], ["add", "."], [*names, "commit", "-qm", "all"]):
        subprocess.run(["git", *command], cwd=folder, env=os.environ | dates, check=True)


def build(root: Path) -> Path:
    warnings, out = StringIO(), root / "_build"
    with patch_docutils(str(root)), docutils_namespace():
        app = Sphinx(
            root, root, out / "html", out / "doctrees", "html", None, None, warnings
        )
        app.build()
    assert app.statuscode == 0 and warnings.getvalue() == ""
    return out / "html"


def addresses(html: Path) -> list[str]:
    return [loc.text for loc in ElementTree.parse(html / "sitemap.xml").iter(LOC)]


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_a_small_book_can_be_found(book):
    commit(book)
    html = build(book)
    one = (html / "chapters/part/one.html").read_text(encoding="utf-8")
    plain = (html / "plain.html").read_text(encoding="utf-8")
    assert f'<link rel="canonical" href="{BASE}chapters/part/one.html" />' in one
    assert (
        'og:description" content="You build a “small” thing, and you compare A &amp; B'
        in one
    )
    for name in ('name="description"', 'property="og:description"'):
        assert plain.count(f'{name} content="What the author wrote about this page."') == 1
    assert "Last updated on 2025-03-01." in one and 'content="noindex"' not in one
    assert one.count("Cite this chapter") == 1 and "(2025)" in one
    assert "Cite this chapter" not in plain
    assert 'content="noindex"' in (html / "search.html").read_text(encoding="utf-8")
    missing = (html / "404.html").read_text(encoding="utf-8")
    assert 'action="/Book/search.html"' in missing
    assert 'href="/Book/chapters/part/one.html"' in missing
    pages = [f"{BASE}{name}.html" for name in ("chapters/part/one", "index", "plain")]
    assert addresses(html) == pages
    # A build that writes one page alone leaves the others in the site map.
    (book / "plain.md").write_text("# Plain\n\nOther text, not committed.\n")
    assert addresses(build(book)) == pages


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("path", [os.environ["PATH"], ""])
def test_without_history_or_address_the_book_is_built_all_the_same(book, monkeypatch, path):
    monkeypatch.setenv("PATH", path)
    (book / "conf.py").write_text(CONF.replace("github.com", "gitlab.com"))
    html = build(book)
    one = (html / "chapters/part/one.html").read_text(encoding="utf-8")
    assert "canonical" not in one and "github.io" not in one
    assert "Last updated" not in one and "Cite this chapter" not in one
    assert not (html / "sitemap.xml").exists()
    assert 'href="/plain.html"' in (html / "404.html").read_text(encoding="utf-8")
    (book / "conf.py").write_text(CONF + 'html_baseurl = "https://book.example.org"\n')
    one = (build(book) / "chapters/part/one.html").read_text(encoding="utf-8")
    assert 'rel="canonical" href="https://book.example.org/chapters/part/one.html"' in one
    assert one.count("Cite this chapter") == 1 and "(2024)" in one
