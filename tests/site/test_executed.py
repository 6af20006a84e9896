"""The executed chapters: outputs everywhere, exercises that work, checks within tolerance and in their place."""

import re

import pytest

from book.executed import executed_problems, load_executed
from book.source import ROOT, find_sources
from book.verified import check_labels, guarding_test, packaged_module, subject

CHAPTERS = list(find_sources())
each_chapter = pytest.mark.parametrize(
    "chapter", CHAPTERS, ids=lambda chapter: chapter.slug
)


def executed(chapter):
    """The chapter's notebook and record."""
    try:
        return load_executed(chapter)
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
    checks = executed(chapter)[1]["checks"]
    labels = check_labels(chapter, ROOT)
    assert len(labels) == len(checks) > 0 and all(labels)
    for one in checks:
        name = subject(one["name"])[0].partition(".")[0]
        if not name:
            continue  # a phrase, which the page links to the chapter
        module = packaged_module(name, chapter, ROOT)
        defined = re.search(rf"^(?:def|class) {re.escape(name)}\b", chapter.text, re.M)
        assert module or defined, (
            f"{one['name']!r}: neither llm_learn nor {chapter.where} defines {name}; begin the name of a "
            "check with what is verified, as the code calls it, or with a phrase"
        )
        if module:
            test = guarding_test(name, module, ROOT)
            assert test, f"tests/llm_learn/test_{module}.py does not test {name}"
