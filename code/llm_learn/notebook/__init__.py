"""Helpers of every notebook: fix seeds, measure time and memory, glue numbers, verify results."""

import ctypes
import json
import logging
import os
import random
import time
import warnings
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from llm_learn.argument_checks import expect
from llm_learn.notebook.plotting import use_book_style

# Where it is installed, PEFT and TRL import it, and it warns of optional kernels; nothing here would use them.
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)

# What a cell stores for its page begins with this type, which is never shown; a trace is JSON, as text.
PREFIX = "application/papermill.record/"
TRACE = PREFIX + "application/json"


def start(seed: int = 0) -> torch.Generator:
    """Makes a notebook repeatable: one thread, seeded generators, memory that is kept, the book's figure style.

    Args:
        seed: seeds `random`, NumPy, torch, and the generator that comes back.

    Returns:
        A seeded generator, for functions that take `generator=`.
    """
    # A library's advice to install widgets is no output of a chapter.
    warnings.filterwarnings("ignore", message="IProgress not found")
    torch.set_num_threads(1)
    # The scores of a small model fit, and its training steps need no fresh pages: up to a third of their time.
    keep_memory(2**26)
    _leave_compiler_unimported()
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    use_book_style()
    return torch.Generator().manual_seed(seed)


def _leave_compiler_unimported() -> None:
    """PyTorch imports its compiler, which takes a second, with the first optimizer; no chapter compiles one.

    The methods that do so keep what they call in an attribute; where a release of PyTorch has none, nothing changes.
    """
    for name in ("add_param_group", "zero_grad", "state_dict", "load_state_dict"):
        plain = getattr(getattr(torch.optim.Optimizer, name), "__wrapped__", None)
        if plain is not None:
            vars(plain).setdefault("__dynamo_disable", plain)


def keep_memory(num_bytes: int) -> bool:
    """Lets arrays of less than so many bytes stay with this process when they are freed, for the next ones.

    The operating system must find and clear every page of a larger one. Without this call, glibc changes the
    limit as it goes, from 128 KiB up to 32 MiB.

    Returns:
        Whether the limit was set: False if the C library is not glibc.

    Raises:
        ValueError: `num_bytes` is negative or does not fit into a C int.
    """
    expect("0 <= num_bytes < 2**31", num_bytes=num_bytes)
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return False
    # M_MMAP_THRESHOLD, and M_TRIM_THRESHOLD: from how much free memory on its end is given back.
    trim = 2**30 if num_bytes > 2**17 else 2**17
    return bool(mallopt(-3, num_bytes) and mallopt(-1, trim))


class Stopwatch:
    """Measures a `with` block: `cpu_seconds` of this process, and `seconds` by the clock."""

    cpu_seconds: float
    seconds: float

    def __enter__(self):
        self._cpu, self._clock = time.process_time(), time.perf_counter()
        return self

    def __exit__(self, *_):
        self.cpu_seconds = time.process_time() - self._cpu
        self.seconds = time.perf_counter() - self._clock


def fastest_seconds(work: Callable[[], object], repeats: int = 3) -> float:
    """The shortest of several runs, by the clock: what disturbs a run only makes it longer."""
    expect("repeats >= 1", repeats=repeats)
    runs = []
    for _ in range(repeats):
        with Stopwatch() as watch:
            work()
        runs.append(watch.seconds)
    return min(runs)


def fitted_power(sizes: Sequence[float], values: Sequence[float]) -> float:
    """The p for which size ** p, times a constant, fits the values best, on logarithmic axes."""
    rule = "len(sizes) == len(values), len(set(sizes)) >= 2, min(*sizes, *values) > 0"
    expect(rule, sizes=sizes, values=values)
    return float(np.polyfit(np.log(sizes), np.log(values), 1)[0])


def peak_bytes(work: Callable[[], object]) -> int:
    """The most memory that torch's CPU allocator held during `work`, beyond what it held before, by its profiler."""
    # Set before the profiler starts for the first time: else it writes a line with the time for each run.
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        work()
    held = peak = 0
    for event in profiler.profiler.kineto_results.events():  # pyrefly: ignore[missing-attribute]
        if event.name() == "[memory]":
            held += event.nbytes()  # negative where memory is given back
            peak = max(peak, held)
    return peak


def glue(name: str, value: object) -> None:
    """Stores a measured value under `name`, so that prose shows it instead of repeating it by hand.

    Args:
        name: the key that the page's `{glue:text}` asks for.
        value: a number or string, already rounded as it should be read.
    """
    expect("isinstance(name, str) and name != ''", name=name)
    metadata = {"scrapbook": {"name": name, "mime_prefix": PREFIX}}
    # Quoted: myst-nb evaluates what it finds, and would show 1.50 as 1.5.
    _display({PREFIX + "text/plain": repr(str(value))}, metadata)


def trace_figure(figure: str, kind: str, **data: object) -> None:
    """Records what a figure shows step by step: on the page it runs, and elsewhere its picture stays.

    Args:
        figure: the name of the figure, which the same cell or a later one draws.
        kind: `tokenizer` or `beam`: how it is drawn.
        data: what this kind draws, as JSON. `steps` are 2 to 80, and each says in `say` what happens.
    """
    text = json.dumps({"kind": kind, "data": data}, allow_nan=False)
    expect("figure.startswith('fig-'), len(text) <= 40_000", figure=figure, text=text)
    if "steps" in data:
        rule = "2 <= len(steps) <= 80, all(10 <= len(s['say']) <= 160 for s in steps)"
        expect(rule, steps=data["steps"])
    metadata = {"scrapbook": {"name": figure, "mime_prefix": PREFIX}}
    _display({TRACE: text}, metadata)


def over_seeds(values: Sequence[float], decimals: int = 2) -> str:
    """The mean, and in brackets the smallest and the largest, as text.

    Args:
        values: one for each seed.
        decimals: digits after the decimal point.
    """
    expect("len(values) >= 1", values=values)
    mean = sum(values) / len(values)
    return f"{mean:.{decimals}f} ({min(values):.{decimals}f}–{max(values):.{decimals}f})"


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
        "relative": relative,
    }
    _display(
        {"text/plain": f"✓ {name} = {against}: {shown}{allowed}"},
        {"llm_learn_check": check},
    )


def _largest_difference(ours: object, reference: object, relative: bool) -> float:
    pairs = _tensor_pairs(ours, reference)
    if pairs is None:
        return 0.0 if ours == reference else float("inf")
    differences, magnitudes = [], []
    for a, b in pairs:
        if a.shape != b.shape:
            raise AssertionError(
                f"shapes differ: {tuple(a.shape)} against {tuple(b.shape)}"
            )
        if not a.numel():
            raise AssertionError("an empty tensor was given: there is nothing to compare")
        a, b = a.detach().double(), b.detach().double()
        # Equal infinities differ by nothing, though their difference is NaN.
        differences.append(torch.where(a == b, 0.0, (a - b).abs()).max())
        magnitudes.append(b.abs().max())
    # Not Python's max(): it would drop a NaN that is not the first.
    largest = torch.stack(differences).max()
    if relative and largest > 0:
        largest = largest / torch.stack(magnitudes).max()
    return largest.item()


def _tensor_pairs(ours: object, reference: object) -> list[tuple[Tensor, Tensor]] | None:
    """Pairs of tensors to compare; None for what is to be compared with `==`."""
    both = []
    for value in (ours, reference):
        values = list(value) if isinstance(value, (list, tuple)) else [value]
        values = [torch.from_numpy(x) if isinstance(x, np.ndarray) else x for x in values]
        both.append(
            values if all(isinstance(x, Tensor) for x in values) and values else None
        )
    if both[0] is None and both[1] is None:
        return None
    if both[0] is None or both[1] is None or len(both[0]) != len(both[1]):
        raise AssertionError(
            f"shapes differ: {type(ours).__name__} against {type(reference).__name__}"
        )
    return list(zip(*both, strict=True))


def recorded(name: str) -> dict:
    """The record of an experiment that is too long for a page, as `make experiment` wrote it.

    Args:
        name: the experiment's name, such as `gpt` for experiments/gpt.json.
    """
    return json.loads(recorded_file(f"{name}.json").read_text(encoding="utf-8"))


def recorded_file(name: str) -> Path:
    """Where a file lies that an experiment wrote, such as gpt.json, or the weights in gpt.safetensors."""
    folders = [Path(__file__).parents[3] / "experiments"]  # a checkout
    if installed := find_spec("llm_learn_experiments"):
        folders += map(Path, installed.submodule_search_locations or ())
    path = next((path for folder in folders if (path := folder / name).is_file()), None)
    if path is None:
        raise ValueError(f"name is {name!r}: there is no record experiments/{name}")
    return path


def _display(data: dict[str, str], metadata: dict) -> None:
    # Imported late: the package serves plain scripts too, where IPython may be absent.
    from IPython.display import display

    display(data, raw=True, metadata=metadata)
