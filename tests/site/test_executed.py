"""The executed chapters: outputs everywhere, exercises that work, checks within tolerance."""

import pytest

from book.executed import executed_problems, load_executed, notebook_path, record_path
from book.source import find_sources

CHAPTERS = list(find_sources())


def test_there_are_chapters():
    assert CHAPTERS


@pytest.mark.parametrize("chapter", CHAPTERS, ids=lambda chapter: chapter.slug)
def test_executed_chapter_shows_what_it_must(chapter):
    if not (notebook_path(chapter).is_file() and record_path(chapter).is_file()):
        pytest.skip(f"{chapter.slug} has not been executed here: run `make book` first")
    problems = executed_problems(chapter, *load_executed(chapter))
    assert not problems, "\n" + "\n".join(problems)
