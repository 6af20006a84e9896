"""The executed chapters: outputs everywhere, exercises that work, checks within tolerance and in their place."""

import json

import nbformat
import pytest

from book.contract.executed_outputs import executed_problems
from book.execute.records import notebook_path, record_path
from book.pages.reference_comparisons import check_problems
from book.read.chapters import ROOT, find_sources

CHAPTERS = list(find_sources())
each_chapter = pytest.mark.parametrize(
    "chapter", CHAPTERS, ids=lambda chapter: chapter.slug
)


def executed(chapter):
    """The chapter's notebook and record."""
    try:
        path = notebook_path(ROOT / "_build", chapter.docname)
        record = record_path(ROOT, chapter.slug).read_text(encoding="utf-8")
        return nbformat.read(path, as_version=4), json.loads(record)
    except FileNotFoundError:
        pytest.skip(f"{chapter.slug} has not been executed here: run `make book` first")


def test_there_are_chapters():
    assert CHAPTERS


@each_chapter
def test_executed_chapter_shows_what_it_must(chapter):
    problems = executed_problems(chapter, *executed(chapter))
    assert not problems, "\n" + "\n".join(problems)


@each_chapter
def test_every_check_finds_its_place(chapter):
    notebook, record = executed(chapter)
    checks = record["checks"]
    problems = check_problems(chapter, notebook, checks, ROOT)
    assert checks or "check" in (chapter.meta.get("excused") or {})
    assert not problems, "\n" + "\n".join(problems)
