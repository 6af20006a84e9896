"""The glossary as an index: each term leads to the chapters that use it."""

import pytest
from smallbook import SmallBook, chapter

from book.pages.glossary import SHOWN, uses
from book.read.chapters import ROOT, Source, find_sources

pytestmark = pytest.mark.filterwarnings("default")

GLOSSARY = """\
# Words

```{glossary}
logit
  A score.

token
tokens
  What a model reads.

vocabulary
  All {term}`tokens <token>`.
```
"""


CELL = "\n\n```{code-cell}\n1 + 1\n```\n"


def source(slug: str, body: str) -> Source:
    return Source(path=None, slug=slug, text=chapter("Title", body + CELL))


@pytest.fixture
def book(tmp_path):
    book = SmallBook(tmp_path)
    conf = (book.root / "conf.py").read_text(encoding="utf-8")
    book.write(
        "conf.py",
        conf.replace(
            '"book.pages.chapter_box"', '"book.pages.chapter_box", "book.pages.glossary"'
        ),
    )
    book.write("chapters/start/words.md", GLOSSARY)
    for slug, title, body in (
        ("attention", "Attention", "No {term}`logit`."),
        ("tokenization", "Cutting", "All {term}`tokens`."),
        ("gpt", "A GPT", "One {term}`token`."),
    ):
        book.write(f"chapters/first-model/{slug}.md", chapter(title, body + CELL))
    book.index(
        "chapters/start/words",
        *(f"chapters/first-model/{n}" for n in ("attention", "tokenization", "gpt")),
    )
    book.warnings = book.build()
    return book


class TestUses:
    def test_both_forms_of_a_link_count_once_a_chapter(self):
        body = "A {term}`token`, {term}`two tokens <token>`, a {term}`Logit`.\n"
        assert uses([source("a/b", body), source("a/c", "{term}`token`")]) == {
            "token": ["a/b", "a/c"],
            "logit": ["a/b"],
        }

    def test_a_link_may_break_over_lines(self):
        assert uses([source("a/b", "{term}`many\ntokens <token>`")]) == {"token": ["a/b"]}

    def test_code_is_no_prose(self):
        body = '```{code-cell}\nx = "{term}`token`"\n```\n'
        assert uses([source("a/b", body)]) == {}

    def test_every_term_that_the_book_links_is_in_its_glossary(self):
        text = (ROOT / "chapters/start/notation.md").read_text(encoding="utf-8")
        entries = {line.lower() for line in text.splitlines()}
        assert set(uses(find_sources())) <= entries


class TestPage:
    def entries(self, book):
        page = book.page("chapters/start/words")
        found = {}
        for term in page.select("dl.glossary dt"):
            definition = term.find_next("dd")
            line = definition.select_one("p.term-chapters")
            found[term.get_text().strip("¶# \n")] = line
        return found

    def test_a_definition_lists_its_chapters_in_the_book_s_order(self, book):
        assert not book.warnings
        entries = self.entries(book)
        assert entries["logit"].get_text() == "In Attention"
        # Two words with one definition share it; tokenization comes before the GPT.
        assert entries["token"].get_text() == "In Cutting, A GPT"
        assert entries["token"].select("a")[1]["href"] == "../first-model/gpt.html"
        assert entries["vocabulary"] is None

    def test_of_many_chapters_there_is_the_number(self, book):
        many = ["datasets", "pretraining", "scaling-laws", "distributed", "stable-training"]
        for name in many:
            text = chapter(name.title(), "A {term}`logit`." + CELL)
            book.write(f"chapters/training/{name}.md", text)
        slugs = [f"training/{name}" for name in many]
        slugs += ["first-model/attention", "first-model/tokenization", "first-model/gpt"]
        book.index("chapters/start/words", *(f"chapters/{slug}" for slug in slugs))
        assert not book.build()
        line = self.entries(book)["logit"]
        assert len(line.select("a")) == SHOWN and line.get_text().endswith(" and 1 more")

    def test_it_follows_a_chapter_that_changes(self, book):
        book.write(
            "chapters/first-model/attention.md",
            chapter("Attention", "A {term}`vocabulary`." + CELL),
        )
        book.build()
        entries = self.entries(book)
        assert entries["logit"] is None
        assert entries["vocabulary"].get_text() == "In Attention"
