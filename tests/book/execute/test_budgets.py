"""What chapters may use, and what is said of those that use more."""

import json
from pathlib import Path

import pytest

from book.execute.budgets import (
    BOOK_CPU_SECONDS,
    book_problems,
    budget_problems,
    slowness,
    time_limit,
)
from book.read.chapters import ROOT, Source, book_chapters


def chapter(**budget: float) -> Source:
    text = f"---\nllm_learn: {json.dumps({'budget': budget})}\n---\n"
    return Source(path=Path("x.md"), slug="part/x", text=text)


def record(cpu_seconds: float, peak_memory_gib: float = 0.5) -> dict[str, float]:
    return {"cpu_seconds": cpu_seconds, "peak_memory_gib": peak_memory_gib}


def test_budgets_allow_one_and_a_half_times() -> None:
    declared = chapter(cpu_seconds=10, memory_gib=1)
    assert budget_problems([(declared, record(15, 1.5))]) == []
    (problem,) = budget_problems([(declared, record(15.1))])
    assert (
        "chapters/part/x.md" in problem
        and "measured 15.10 CPU-seconds, declared 10" in problem
    )
    (problem,) = budget_problems([(declared, record(1, 1.6))])
    assert "measured 1.60 GiB of memory, declared 1" in problem


def test_a_slow_machine_is_told_from_a_chapter_that_grew() -> None:
    declared = chapter(cpu_seconds=10, memory_gib=1)
    slow = [(declared, record(seconds)) for seconds in (11, 14, 14, 14, 18)]
    assert slowness(slow) == 1.4
    assert budget_problems(slow, slowness(slow)) == []
    grown = [(declared, record(seconds)) for seconds in (9, 9, 9, 9, 18)]
    assert slowness(grown) == 1  # a quick machine gets no stricter limit
    (problem,) = budget_problems(grown, slowness(grown))
    assert "measured 18.00 CPU-seconds" in problem
    assert slowness(slow[:4]) == 1  # too few to tell
    # Memory does not depend on who shares the machine.
    assert budget_problems([(declared, record(1, 1.6))], slow=3)


def test_budgets_grow_with_the_machine_no_further_than_three_times() -> None:
    declared = chapter(cpu_seconds=10, memory_gib=1)
    crawling = [(declared, record(46))] * 5
    assert slowness(crawling) == 4.6
    problems = budget_problems(crawling, slowness(crawling))
    assert len(problems) == 5 and "more than 4.5 times as much fails" in problems[0]
    assert budget_problems([(declared, record(45))] * 5, slowness(crawling)) == []


@pytest.mark.parametrize(
    "budget",
    [
        {},
        {"cpu_seconds": 1},
        {"cpu_seconds": "many", "memory_gib": 1},
        {"cpu_seconds": 0, "memory_gib": 1},
        {"cpu_seconds": True, "memory_gib": 1},
    ],
)
def test_a_budget_is_two_positive_numbers(budget: dict[str, float]) -> None:
    (problem,) = budget_problems([(chapter(**budget), record(3.21))])
    assert "declares no budget" in problem and "used 3.2 CPU-seconds" in problem


def test_the_whole_book_has_a_budget() -> None:
    declared = [chapter(cpu_seconds=BOOK_CPU_SECONDS / 2, memory_gib=1)] * 2
    assert book_problems(declared) == []
    (problem,) = book_problems([*declared, chapter(cpu_seconds=1, memory_gib=1), chapter()])
    assert f"declare {BOOK_CPU_SECONDS + 1:,} CPU-seconds" in problem
    assert f"the book may use {BOOK_CPU_SECONDS:,}" in problem


def test_the_chapters_fit_into_the_budget_of_the_book() -> None:
    assert book_problems(book_chapters(ROOT)) == []


def test_a_chapter_is_ended_after_twenty_times_its_budget_and_not_before_five_minutes() -> (
    None
):
    assert time_limit(chapter(cpu_seconds=90, memory_gib=1)) == 1800
    assert time_limit(chapter(cpu_seconds=2, memory_gib=1)) == 300
    assert time_limit(chapter()) == 300
