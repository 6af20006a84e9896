"""Descriptions, addresses, dates, citations and feed: the functions, and a small book built by Sphinx."""

import datetime
import os
import re
import subprocess
from io import StringIO
from pathlib import Path
from xml.etree import ElementTree

import pytest
from docutils import nodes
from pybtex.database import parse_string
from sphinx.application import Sphinx
from sphinx.errors import ConfigError
from sphinx.util.docutils import docutils_namespace, patch_docutils

from book import cards, discover
from book.repository import named

DAY = datetime.date
BASE = "https://owner.github.io/Book/"


# --- The site's address ---


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


# --- Dates ---


def git(folder: Path, *command: str, day: str = "") -> None:
    when = f"{day}T23:30:00+00:00"
    dates = {"GIT_AUTHOR_DATE": when, "GIT_COMMITTER_DATE": when} if day else {}
    names = ("-c", "user.name=A", "-c", "user.email=a@example.org")
    subprocess.run(
        ["git", *names, *command],
        cwd=folder,
        env=os.environ | dates,
        check=True,
        capture_output=True,
    )


@pytest.fixture
def repository(tmp_path):
    """Two commits: one.md in both, zwei·ü.md in the first; and a file that is not committed."""
    root = tmp_path / "repository"
    (root / "deep").mkdir(parents=True)
    git(root, "init", "--quiet")
    (root / "one.md").write_text("1")
    (root / "deep/zwei ü.md").write_text("2")
    git(root, "add", ".")
    git(root, "commit", "-qm", "first", day="2024-02-28")
    (root / "one.md").write_text("one")
    git(root, "commit", "-qam", "second", day="2025-03-01")
    (root / "new.md").write_text("3")
    return root


def test_dates_are_those_of_the_last_commit(repository):
    expected = {"one.md": DAY(2025, 3, 1), "deep/zwei ü.md": DAY(2024, 2, 28)}
    assert discover.change_dates(repository) == expected
    # A book in a folder of a repository.
    assert discover.change_dates(repository / "deep") == {"zwei ü.md": DAY(2024, 2, 28)}


def test_a_changed_file_has_no_date(repository):
    (repository / "one.md").write_text("not committed")
    assert list(discover.change_dates(repository)) == ["deep/zwei ü.md"]


def test_without_history_there_are_no_dates(repository, tmp_path, monkeypatch):
    git(
        tmp_path,
        "clone",
        "--quiet",
        "--depth=1",
        repository.as_uri(),
        str(tmp_path / "shallow"),
    )
    assert discover.change_dates(tmp_path / "shallow") == {}
    (tmp_path / "plain").mkdir()
    assert discover.change_dates(tmp_path / "plain") == {}
    monkeypatch.setenv("PATH", "")
    assert discover.change_dates(repository) == {}


# --- Descriptions ---


def test_a_description_is_cut_between_words():
    assert discover.shorten("  two\n words ") == "two words"
    assert discover.shorten("one two, three", 9) == "one two…"
    assert len(discover.shorten("word " * 100)) <= discover.DESCRIPTION_CHARACTERS


def test_the_first_real_paragraph_describes_the_page():
    document = nodes.container()
    aside = nodes.note(
        "", nodes.paragraph("", "An aside, which is long enough to be a description.")
    )
    cell = nodes.entry(
        "", nodes.paragraph("", "A cell, which is long enough to be a description.")
    )
    document += [aside, cell, nodes.paragraph("", "Short."), nodes.paragraph("", "x" * 50)]
    assert discover.describe(document) == "x" * 50
    assert discover.describe(nodes.container()) == ""


# --- Citations ---

CITATION = {
    "title": "A & B: 100%",
    "version": "1.2",
    "authors": [
        {"name": "The Makers"},
        {"given-names": "Ada", "family-names": "Love_lace"},
    ],
}


def test_citations_are_valid_bibtex():
    plain, entries = discover.citations(
        CITATION, title="C_1 #2", key="c", year="2026", url=f"{BASE}c.html", book_url=BASE
    )
    assert plain == (
        "The Makers; Love_lace, Ada (2026). “C_1 #2”. In A & B: 100%, version 1.2, "
        f"{BASE}c.html"
    )
    chapter, book = parse_string(entries, "bibtex").entries.values()
    assert (chapter.key, chapter.type) == ("llm-learn-c", "incollection")
    assert (book.key, book.type) == ("llm-learn", "misc")
    assert chapter.fields["title"] == r"{C\_1 \#2}" and book.fields["url"] == BASE
    assert chapter.fields["booktitle"] == book.fields["title"] == r"{A \& B: 100\%}"
    makers, ada = chapter.persons["author"]
    assert str(makers) == "{The Makers}" and str(ada) == r"Love\_lace, Ada"


@pytest.mark.parametrize(
    "text", [None, "title: x\n", "authors: []\ntitle: x\n", "- x\n", "{"]
)
def test_a_citation_file_that_cannot_be_cited_is_an_error(tmp_path, text):
    path = tmp_path / "CITATION.cff"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ConfigError, match=r"CITATION\.cff must be YAML with"):
        discover.read_citation(path)


# --- Feed and site map ---

ENTRIES = [
    {"date": DAY(2025, 1, 2), "title": "First & <b>", "text": "A *word* & <script>"},
    {"date": DAY(2026, 3, 4), "title": "Second", "text": "[Here](chapters/x.html)."},
]
A = f"{{{discover.ATOM}}}"


def atom_problems(text: str) -> list[str]:
    """What RFC 4287 asks for and the feed lacks."""
    root, problems = ElementTree.fromstring(text), []
    if root.tag != f"{A}feed":
        return [f"the root is {root.tag}"]
    ids = []
    for element in (root, *root.findall(f"{A}entry")):
        for name in ("id", "title", "updated"):
            found = element.findall(f"{A}{name}")
            if len(found) != 1 or not (found[0].text or "").strip():
                problems.append(f"{element.tag} has {len(found)} {name}")
                continue
            if name == "updated":
                moment = datetime.datetime.fromisoformat(found[0].text)
                problems += [] if moment.tzinfo else ["a time without a zone"]
            if name == "id":
                ids.append(found[0].text)
    if len(set(ids)) != len(ids):
        problems.append("an id stands twice")
    if not [link for link in root.findall(f"{A}link") if link.get("rel") == "self"]:
        problems.append("no link to itself")
    if not root.findall(f"{A}author/{A}name"):
        problems.append("no author")
    return problems


def make_feed(entries: list[dict]) -> str:
    return discover.feed(entries, title="T", author="A", base=BASE, page="plan.html")


def test_the_feed_is_atom_with_the_newest_first():
    text = make_feed(ENTRIES)
    assert atom_problems(text) == []
    root = ElementTree.fromstring(text)
    assert root.find(f"{A}updated").text == "2026-03-04T00:00:00Z"
    newest, oldest = root.findall(f"{A}entry")
    assert newest.find(f"{A}id").text == "tag:owner.github.io,2026-03-04:Book/changelog"
    assert newest.find(f"{A}content").text == '<p><a href="chapters/x.html">Here</a>.</p>'
    assert oldest.find(f"{A}title").text == "First & <b>"
    content = oldest.find(f"{A}content")
    assert content.get("type") == "html"
    assert content.text == "<p>A <em>word</em> &amp; &lt;script&gt;</p>"


def test_what_is_wrong_with_a_feed_is_found():
    assert "no author" in atom_problems(make_feed(ENTRIES).replace("author", "writer"))
    twice = make_feed(ENTRIES).replace("2025-01-02:Book", "2026-03-04:Book")
    assert atom_problems(twice) == ["an id stands twice"]


def test_an_entrys_id_outlives_new_entries_and_new_words():
    changed = [{**ENTRIES[0], "title": "Other", "text": "Words"}]
    one = ElementTree.fromstring(make_feed(changed)).find(f"{A}entry/{A}id").text
    assert make_feed(ENTRIES).count(f"<id>{one}</id>") == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- {date: 2025-01-02, title: x}\n", "entry 1 needs date, title and text"),
        ("- 7\n", "entry 1 needs"),
        ("", "must list at least one entry, but holds None"),
        ("date: 2025-01-02\n", "must list at least one entry, but holds {"),
        ("- {date: soon, title: x, text: y}\n", "date is 'soon'"),
        ("- {date: 2025-01-02 10:00:00, title: x, text: y}\n", "date is datetime"),
        (
            "- {date: 2025-01-02, title: x, text: y}\n" * 2,
            "entry 2: 2025-01-02 must be later",
        ),
    ],
)
def test_a_wrong_changelog_is_named(tmp_path, text, message):
    path = tmp_path / "changelog.yml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message):
        discover.read_changelog(path)


def test_the_books_own_changelog_is_right():
    assert len(discover.read_changelog()) >= 3


def test_the_site_map_names_days_where_they_are_known():
    text = discover.sitemap([(BASE, DAY(2026, 1, 2)), (f"{BASE}a&b.html", None)])
    root = ElementTree.fromstring(text)
    urls = [[child.text for child in url] for url in root]
    assert urls == [[BASE, "2026-01-02"], [f"{BASE}a&b.html"]]


# --- Cards ---


def test_a_card_is_the_same_each_time_and_has_the_size_that_networks_ask_for(tmp_path):
    from matplotlib.image import imread

    title = r"A title of $\nosuchmath$ words that cannot stand in one line or in two, nor in three"
    for name in ("one.png", "two.png"):
        cards.draw(tmp_path / name, title=title, text="word " * 90, book="B", address="a.b")
    first = (tmp_path / "one.png").read_bytes()
    assert first == (tmp_path / "two.png").read_bytes()
    assert imread(tmp_path / "one.png").shape[:2] == cards.SIZE[::-1]
    cards.draw(tmp_path / "three.png", title="A", text="B", figure=tmp_path / "one.png")
    cards.draw(tmp_path / "four.png", title="A", text="B", figure=tmp_path / "none.png")
    assert (tmp_path / "three.png").read_bytes() != (tmp_path / "four.png").read_bytes()


# --- A small book ---

CONF = """\
extensions = ["myst_nb", "book.discover"]
html_theme = "sphinx_book_theme"
html_title = "The <Book>"
copyright = "2024"
nb_execution_mode = "off"
exclude_patterns = ["_build"]
html_theme_options = {"repository_url": "https://github.com/Owner/Book.git"}
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
    git(root, "init", "--quiet")
    git(root, "add", ".")
    git(root, "commit", "-qm", "all", day="2025-03-01")
    return root


def build(root: Path, to: str = "html") -> Path:
    warnings, out = StringIO(), root / "_build"
    with patch_docutils(str(root)), docutils_namespace():
        app = Sphinx(
            root,
            root,
            out / to,
            out / f"{to}-doctrees",
            "html",
            status=None,
            warning=warnings,
        )
        app.build()
    assert app.statuscode == 0 and warnings.getvalue() == ""
    return out / to


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_a_small_book_can_be_found(book):
    html = build(book)
    one = (html / "chapters/part/one.html").read_text(encoding="utf-8")
    plain = (html / "plain.html").read_text(encoding="utf-8")
    index = (html / "index.html").read_text(encoding="utf-8")
    assert f'<link rel="canonical" href="{BASE}chapters/part/one.html" />' in one
    assert f'<link rel="canonical" href="{BASE}" />' in index
    assert 'href="../../feed.xml"' in one and 'title="The &lt;Book&gt;: changes"' in one
    assert (
        re.search(r'og:description"[^>]*compare A &amp; B with', one)
        and 'name="description"' in one
    )
    assert 'content="What the author wrote about this page." name="description"' in plain
    assert "The Book: a page of The &lt;Book&gt;" in index
    assert f'property="og:image" content="{BASE}_images/cards/chapters-part-one.png"' in one
    assert f'property="og:image" content="{BASE}_images/cards/index.png"' in plain
    assert {p.name for p in (html / "_images/cards").iterdir()} == {
        "chapters-part-one.png",
        "index.png",
    }
    assert "Last updated on 2025-03-01." in one
    assert one.count("Cite this chapter") == 1 and "(2025)" in one and BASE in one
    assert "Cite this chapter" not in plain + index
    missing = (html / "404.html").read_text(encoding="utf-8")
    assert 'href="/Book/chapters/part/one.html">One</a>' in missing
    assert "Part &lt;one&gt;" in missing
    assert f"Sitemap: {BASE}sitemap.xml" in (html / "robots.txt").read_text()
    sitemap = (html / "sitemap.xml").read_text()
    assert sitemap.count("<loc>") == sitemap.count("2025-03-01") == 3
    assert atom_problems((html / "feed.xml").read_text()) == []


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_two_builds_are_the_same_and_a_new_date_rewrites_its_page(book):
    first, second = build(book), build(book, "again")
    names = {p.relative_to(first) for p in first.rglob("*") if p.is_file()}
    assert names == {p.relative_to(second) for p in second.rglob("*") if p.is_file()}
    chosen = [n for n in names if n.suffix in (".html", ".xml", ".txt", ".png")]
    assert [
        n for n in chosen if (first / n).read_bytes() != (second / n).read_bytes()
    ] == []
    # The text stays as it is, the history does not.
    git(book, "commit", "-q", "--amend", "-m", "later", day="2026-05-06")
    page = (build(book) / "plain.html").read_text(encoding="utf-8")
    assert "Last updated on 2026-05-06." in page


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_elsewhere_no_address_is_invented(book):
    conf = book / "conf.py"
    conf.write_text(CONF.replace("github.com", "gitlab.com"))
    html = build(book)
    one = (html / "chapters/part/one.html").read_text(encoding="utf-8")
    assert "canonical" not in one and "github.io" not in one and "feed.xml" not in one
    assert not (html / "feed.xml").exists() and not (html / "sitemap.xml").exists()
    assert 'href="/chapters/part/one.html"' in (html / "404.html").read_text()
    conf.write_text(CONF + 'html_baseurl = "https://book.example.org"\n')
    one = (build(book) / "chapters/part/one.html").read_text(encoding="utf-8")
    assert 'rel="canonical" href="https://book.example.org/chapters/part/one.html"' in one
