"""The budgets of CPU time and memory that chapters declare, and whether they keep to them."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from book.read.chapters import Source

# What one chapter may declare at most, and what all chapters may declare together: one execution of the whole book
# then stays a matter of minutes.
MAX_CPU_SECONDS, MAX_MEMORY_GIB, BOOK_CPU_SECONDS = 90, 3, 2300
# A chapter may exceed what it declares by this factor: two runs on one machine differ.
TOLERANCE = 1.5
# So many chapters have to be measured before they tell how slow the machine is.
ENOUGH_TO_TELL = 5
# Where the machine is slower than the budgets assume, they grow with it, up to this factor: beyond it, a library has
# become slower, or the machine cannot tell. From the smaller one on, the build warns.
SLOWEST, SLOW = 3.0, 2.0
# A chapter is ended after so many times its CPU-seconds by the clock, and not before so many seconds.
TIME_LIMIT, LEAST_TIME_LIMIT = 20, 300.0

Measured = tuple[Source, dict[str, Any]]  # a chapter, and the record of its execution


@dataclass(frozen=True)
class Budget:
    """What a chapter declares that one execution needs, on a machine that does nothing else."""

    cpu_seconds: float
    memory_gib: float


def budget(chapter: Source) -> Budget | None:
    """The declared budget, or None where there is no usable one."""
    declared = chapter.meta.get("budget")
    if not isinstance(declared, dict):
        return None
    values = [declared.get(key) for key in ("cpu_seconds", "memory_gib")]
    usable = [
        value
        for value in values
        if isinstance(value, int | float) and not isinstance(value, bool) and value > 0
    ]
    return Budget(*usable) if len(usable) == len(values) else None


def time_limit(chapter: Source) -> float:
    """Seconds by the clock after which a chapter is ended, because it hangs."""
    declared = budget(chapter)
    return max(LEAST_TIME_LIMIT, TIME_LIMIT * declared.cpu_seconds if declared else 0.0)


def slowness(measured: Sequence[Measured]) -> float:
    """How much slower this machine is than the budgets assume; at least 1.

    It is the median over the chapters of measured to declared CPU-seconds: one chapter that has grown does not move
    it, a machine whose cores are shared moves all of them. 1 if too few chapters are measured.
    """
    ratios = [
        record["cpu_seconds"] / declared.cpu_seconds
        for chapter, record in measured
        if (declared := budget(chapter))
    ]
    return max(1.0, median(ratios)) if len(ratios) >= ENOUGH_TO_TELL else 1.0


def budget_problems(measured: Iterable[Measured], slow: float = 1.0) -> list[str]:
    """One sentence for each chapter without a budget or over it.

    Args:
        measured: Chapters with the records of their executions.
        slow: How much slower the machine is than the budgets assume (`slowness`); no more than `SLOWEST` counts.
    """
    problems = []
    for chapter, record in measured:
        used = Budget(record["cpu_seconds"], record["peak_memory_gib"])
        declared = budget(chapter)
        if declared is None:
            problems.append(
                f"{chapter.docname}.md declares no budget: its front matter needs "
                "`budget: {cpu_seconds: …, memory_gib: …}` under `llm_learn:`, two positive numbers; "
                f"this execution used {used.cpu_seconds:.1f} CPU-seconds and {used.memory_gib:.2f} GiB"
            )
            continue
        for name, unit, factor in (
            ("cpu_seconds", "CPU-seconds", TOLERANCE * min(slow, SLOWEST)),
            ("memory_gib", "GiB of memory", TOLERANCE),
        ):
            limit = getattr(declared, name)
            if getattr(used, name) > factor * limit:
                problems.append(
                    f"{chapter.docname}.md is over its budget: measured {getattr(used, name):.2f} {unit}, declared "
                    f"{limit:g}, and more than {factor:.3g} times as much fails"
                )
    return problems


def book_problems(chapters: Iterable[Source]) -> list[str]:
    """One sentence if the chapters together declare more than the book may use.

    What they used is not summed: it depends on the machine, and each chapter is held to what it declares.
    """
    declared = [found for chapter in chapters if (found := budget(chapter))]
    total = sum(each.cpu_seconds for each in declared)
    if total <= BOOK_CPU_SECONDS:
        return []
    return [
        f"all chapters together declare {total:,g} CPU-seconds; the book may use {BOOK_CPU_SECONDS:,}: "
        "make some of them leaner"
    ]
