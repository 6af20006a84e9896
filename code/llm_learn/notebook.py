"""What every notebook does around its subject: start, time, glue, verify, exercises."""

import functools
import random
import time
import warnings
from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor

from llm_learn.plotting import use_book_style


def start(seed: int = 0) -> torch.Generator:
    """Makes a notebook repeatable: one thread, seeded generators, the book's figure style.

    Args:
        seed: seeds `random`, NumPy, torch, and the generator that comes back.

    Returns:
        A seeded generator, for functions that take `generator=`.
    """
    # A library's advice to install widgets is no output of a chapter.
    warnings.filterwarnings("ignore", message="IProgress not found")
    torch.set_num_threads(1)
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    use_book_style()
    return torch.Generator().manual_seed(seed)


class Stopwatch:
    """Measures a `with` block: `cpu_seconds` of this process, and `seconds` by the clock."""

    cpu_seconds: float
    seconds: float

    def __enter__(self):
        self._cpu, self._clock = time.process_time(), time.perf_counter()
        return self

    def __exit__(self, *_):
        self.cpu_seconds, self.seconds = (
            time.process_time() - self._cpu,
            time.perf_counter() - self._clock,
        )


def glue(name: str, value: object) -> None:
    """Stores a measured value under `name`, so that prose shows it instead of repeating it by hand.

    Args:
        name: the key that the page's `{glue:text}` asks for.
        value: a number or string, already rounded as it should be read.
    """
    prefix = "application/papermill.record/"
    metadata = {"scrapbook": {"name": name, "mime_prefix": prefix}}
    _display({prefix + "text/plain": str(value)}, metadata)


def verify(
    name: str,
    ours: object,
    reference: object,
    *,
    against: str,
    tolerance: float = 0.0,
    relative: bool = False,
) -> None:
    """Asserts that our result equals a reference library's, and shows and records the largest difference.

    Args:
        name: what is verified, such as `MultiHeadAttention, forward`.
        ours: a tensor, a sequence of tensors, or anything that compares with `==` (then exactly).
        reference: the same from the reference library.
        against: the library's function, as the reader would import it.
        tolerance: the largest difference allowed.
        relative: divide the difference by the reference's largest magnitude.

    Raises:
        AssertionError: where the two differ by more than `tolerance`, or in shape.
    """
    difference = _largest_difference(ours, reference, relative)
    if not difference <= tolerance:  # NaN must fail too.
        raise AssertionError(
            f"{name} differs from {against} by {difference:.0e}, more than {tolerance:.0e}"
        )
    shown = (
        "exactly equal"
        if difference == 0
        else f"largest {'relative ' * relative}difference {difference:.0e}"
    )
    allowed = f" (allowed {tolerance:.0e})" if tolerance else ""
    check = {
        "name": name,
        "against": against,
        "difference": difference,
        "tolerance": tolerance,
    }
    _display(
        {"text/plain": f"✓ {name} = {against}: {shown}{allowed}"},
        {"llm_learn_check": check},
    )


def _largest_difference(ours: object, reference: object, relative: bool) -> float:
    if isinstance(ours, Tensor):
        ours, reference = [ours], [reference]
    if not (
        isinstance(ours, (list, tuple))
        and ours
        and all(isinstance(x, Tensor) for x in ours)
    ):
        return 0.0 if ours == reference else float("inf")
    pairs = list(zip(ours, reference, strict=True))
    for a, b in pairs:
        if a.shape != b.shape:
            raise AssertionError(
                f"shapes differ: {tuple(a.shape)} against {tuple(b.shape)}"
            )
    # Not max(): it would drop a NaN that is not the first.
    largest = torch.stack(
        [(a.detach().double() - b.detach().double()).abs().max() for a, b in pairs]
    ).max()
    if relative:
        largest = (
            largest / torch.stack([b.detach().double().abs().max() for _, b in pairs]).max()
        )
    return largest.item()


def exercise(checker: Callable[..., Iterator[tuple[bool, str]]]) -> Callable[..., bool]:
    """Turns a generator of `(passed, message)` into a checker that prints the first message that failed.

    It prints "Correct" when all passed, and "Not yet" with the reason otherwise; an unfinished answer that
    raises is a reason like any other, so that a notebook runs on to its end.
    """

    @functools.wraps(checker)
    def check(*answer) -> bool:
        try:
            for passed, message in checker(*answer):
                if not passed:
                    print(f"Not yet: {message}")
                    return False
        except NotImplementedError:
            print(
                "Not yet: replace the `raise` line by your answer, then run this cell again."
            )
            return False
        except Exception as error:
            print(f"Not yet: your answer raised {type(error).__name__}: {error}")
            return False
        print("Correct.")
        return True

    return check


def _display(data: dict[str, str], metadata: dict) -> None:
    # Imported late: the package serves plain scripts too, where IPython may be absent.
    from IPython.display import display

    display(data, raw=True, metadata=metadata)
