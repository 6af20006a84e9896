"""Self-checking exercises: `check("attention-window", answer)` says whether it is correct, or what is missing."""

from collections.abc import Callable, Iterator

Checker = Callable[..., Iterator[tuple[bool, str]]]

# Chapters register theirs: a checker is next to its exercise, where readers can look at it.
_CHECKERS: dict[str, Checker] = {}


def exercise(name: str) -> Callable[[Checker], Checker]:
    """Registers the checker of an exercise, a generator of `(passed, message)`.

    Args:
        name: the exercise's name, which is its label without `ex-`. Registering it again replaces the checker,
            so that its cell may be run again.
    """
    if not isinstance(name, str) or not name:
        raise ValueError(
            f"name is {name!r}: write the exercise's name, as in @exercise('attention-window')"
        )

    def register(checker: Checker) -> Checker:
        _CHECKERS[name] = checker
        return checker

    return register


def check(name: str, *answer: object) -> bool:
    """Judges an answer: prints "Correct." when it passes, else "Not yet" with the first thing that is missing.

    An unfinished answer that raises is a reason like any other, so that a notebook runs on to its end.

    Args:
        name: the exercise's name, such as `attention-window`.
        answer: what the exercise asks for, usually a function.

    Returns:
        Whether the answer passed.

    Raises:
        ValueError: no checker has that name.
    """
    if name not in _CHECKERS:
        known = ", ".join(sorted(_CHECKERS)) or "none yet"
        raise ValueError(
            f"name is {name!r}, but this notebook knows the exercises: {known}; run the cell with "
            f"@exercise({name!r}) first"
        )
    try:
        for passed, message in _CHECKERS[name](*answer):
            if not passed:
                print(f"Not yet: {message}")
                return False
    except Exception as error:
        # An answer that runs in processes of its own fails in the second way.
        if NotImplementedError in (type(error), type(error.__cause__)):
            print(
                "Not yet: replace the `raise` line with your answer, then run this cell again."
            )
            return False
        print(f"Not yet: your answer raised {type(error).__name__}: {error}")
        return False
    print("Correct.")
    return True
