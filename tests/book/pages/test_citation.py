"""The citation of a chapter: valid BibTeX, from a CITATION.cff that names authors and title."""

import pytest
from pybtex.database import parse_string
from sphinx.errors import ConfigError

from book.pages import citation

BASE = "https://owner.github.io/Book/"
CITATION = {
    "title": "A & B: 100%",
    "version": "1.2",
    "authors": [
        {"name": "The Makers"},
        {"given-names": "Ada", "family-names": "Love_lace"},
    ],
}


def test_citations_are_valid_bibtex():
    plain, entries = citation.citations(
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
        citation.read_citation(path)
