"""Notebooks repeat, and their checks fail when they should: on a difference, a NaN, another shape."""

import json
import random
import subprocess
import sys
import time
from pathlib import Path

import matplotlib as mpl
import nbformat
import numpy as np
import pytest
import torch
from myst_nb.core.variables import format_plain_text
from myst_nb.ext.glue import extract_glue_data

from llm_learn import notebook
from llm_learn.notebook import (
    Stopwatch,
    fastest_seconds,
    fitted_power,
    glue,
    keep_memory,
    over_seeds,
    peak_bytes,
    recorded,
    start,
    verify,
)
from llm_learn.notebook.plotting import COLORS

NAN, INF = float("nan"), float("inf")


def check(screen) -> dict:
    (output,) = screen.outputs
    return output.metadata["llm_learn_check"]


# start and Stopwatch


def test_a_first_optimizer_needs_no_compiler_and_works():
    program = (
        "import sys, torch\n"
        "from llm_learn.notebook import start\n"
        "from llm_learn.optim import AdamW\n"
        "start()\n"
        "weight = torch.nn.Parameter(torch.ones(3))\n"
        "optimizer = AdamW([weight], lr=0.1)\n"
        "weight.sum().backward()\n"
        "optimizer.step()\n"
        "optimizer.zero_grad()\n"
        "optimizer.load_state_dict(optimizer.state_dict())\n"
        "print('torch._dynamo' in sys.modules, bool((weight < 1).all()), weight.grad)"
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert run.stdout.split() == ["False", "True", "None"], run.stderr


def test_start_makes_every_generator_repeat():
    draws = []
    for seed in (3, 3, 4):
        with mpl.rc_context():
            generator = start(seed)
            assert mpl.rcParams["axes.prop_cycle"].by_key()["color"] == COLORS
        draws.append(
            [
                random.random(),
                np.random.rand(),
                torch.rand(()).item(),
                torch.rand((), generator=generator).item(),
            ]
        )
    assert draws[0] == draws[1]
    assert all(a != b for a, b in zip(draws[0], draws[2], strict=True))


def test_start_uses_one_thread():
    torch.set_num_threads(2)
    try:
        with mpl.rc_context():
            start()
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(1)


# In a process of its own: in this one, other tests have left pieces of memory that fit.
COUNT_FAULTS = """
import resource, torch
from llm_learn.notebook import keep_memory
for num_bytes in (2**26, 2**17):
    set_now = keep_memory(num_bytes)
    for _ in range(2):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        for _ in range(4):
            torch.ones(2**21)  # 8 MiB
    print(set_now, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.slow
def test_memory_that_is_kept_needs_no_fresh_pages():
    if not keep_memory(2**26):
        pytest.skip("the C library is not glibc")
    done = subprocess.run(
        [sys.executable, "-c", COUNT_FAULTS], capture_output=True, text=True, check=True
    )
    (kept, few), (given_back, many) = map(str.split, done.stdout.splitlines())
    assert kept == given_back == "True"
    pages = 2**23 // 4096  # of an array
    assert int(few) < pages < 3 * pages < int(many)


def test_start_keeps_memory(monkeypatch):
    limits = []
    monkeypatch.setattr(notebook, "keep_memory", limits.append)
    with mpl.rc_context():
        start()
    assert limits == [2**26]


@pytest.mark.parametrize("num_bytes", [-1, 2**31])
def test_keep_memory_refuses_what_the_c_library_cannot_hold(num_bytes):
    with pytest.raises(ValueError, match=rf"num_bytes is {num_bytes}: .* < 2\*\*31"):
        keep_memory(num_bytes)


def test_keep_memory_says_where_there_is_no_glibc(monkeypatch):
    def nothing(name):
        raise OSError(name)

    for library in (nothing, lambda name: object()):  # none, and one without mallopt
        monkeypatch.setattr("ctypes.CDLL", library)
        assert keep_memory(2**26) is False


def test_stopwatch_tells_work_from_waiting():
    with Stopwatch() as waiting:
        time.sleep(0.1)
    with Stopwatch() as working:
        sum(range(2_000_000))
    # Sleeping uses no processor; a loop uses no less than half of its time, however busy the machine is not.
    assert waiting.seconds >= 0.1 and waiting.cpu_seconds < 0.05
    assert (
        0 < working.cpu_seconds <= working.seconds + 0.05
    )  # two clocks, each with its own resolution


def test_fastest_seconds_takes_the_shortest_run():
    naps = iter((0.15, 0.02, 0.1))
    assert 0.02 <= fastest_seconds(lambda: time.sleep(next(naps)), 3) < 0.1
    assert next(naps, None) is None
    with pytest.raises(ValueError, match="repeats is 0: expected repeats >= 1"):
        fastest_seconds(lambda: None, 0)
    assert fastest_seconds(lambda: None, 1) >= 0


def test_fitted_power_finds_the_exponent():
    sizes = [10, 30, 100]
    for power in (-1.0, 0.5, 2.0):
        values = [7 * size**power for size in sizes]
        assert fitted_power(sizes, values) == pytest.approx(power)
    for wrong, message in (
        (([1, 2], [1]), r"len\(sizes\) is 2, len\(values\) is 1: expected"),
        (([1, 0], [1, 2]), r"min\(\*sizes, \*values\) is 0: expected"),
        (([1, 2], [1, 0]), r"min\(\*sizes, \*values\) is 0: expected"),
        (([3, 3], [1, 2]), r"len\(set\(sizes\)\) is 1: expected len\(set\(sizes\)\) >= 2"),
        (([], []), r"len\(set\(sizes\)\) is 0: expected"),
    ):
        with pytest.raises(ValueError, match=message):
            fitted_power(*wrong)


def test_peak_bytes_counts_what_is_held_at_once(capfd):
    a = torch.ones(1000, 1000)  # 4 MB, held before

    def one_after_the_other():
        for _ in range(3):
            a + 1

    def together():
        return [a + 1 for _ in range(3)]

    for work, expected in ((one_after_the_other, 4e6), (together, 12e6)):
        assert expected <= peak_bytes(work) < expected * 1.01
    assert capfd.readouterr() == ("", "")


# over_seeds


def test_over_seeds_shows_the_mean_and_the_range():
    assert over_seeds([0.5, 0.1, 0.0]) == "0.20 (0.00–0.50)"
    assert over_seeds([0.1234], 3) == "0.123 (0.123–0.123)"
    with pytest.raises(
        ValueError, match=r"len\(values\) is 0: expected len\(values\) >= 1"
    ):
        over_seeds([])


# glue


def test_glue_emits_what_myst_nb_reads(screen):
    glue("loss", 1.5)
    glue("text", "4,096")
    glue("rounded", "1.50")
    cell = nbformat.v4.new_code_cell(
        outputs=[
            nbformat.v4.new_output(
                "display_data", data=output.data, metadata=output.metadata
            )
            for output in screen.outputs
        ]
    )
    nbformat.validate(nbformat.v4.new_notebook(cells=[cell]))
    glued = extract_glue_data(nbformat.v4.new_notebook(cells=[cell]), [0], logger=None)
    shown = {
        name: format_plain_text(o["data"]["text/plain"], "s") for name, o in glued.items()
    }
    assert shown == {"loss": "1.5", "text": "4,096", "rounded": "1.50"}
    # The page shows a glued value where prose asks for it, and nowhere else.
    assert cell.outputs == []


def test_glue_rejects_a_value_without_a_name(screen):
    with pytest.raises(
        ValueError, match=r"name is '': expected isinstance\(name, str\) and name != ''"
    ):
        glue("", 1)


# verify


def test_verify_records_and_shows_the_largest_difference(screen):
    ours, reference = torch.tensor([1.0, 2.0]), torch.tensor([1.0, 2.25])
    verify("Ours", ours, reference, against="torch.theirs", tolerance=0.5)
    assert check(screen) == {
        "name": "Ours",
        "against": "torch.theirs",
        "difference": 0.25,
        "tolerance": 0.5,
        "relative": False,
    }
    assert screen.outputs[0].data == {
        "text/plain": "✓ Ours = torch.theirs: largest difference 2e-01 (allowed 5e-01)"
    }
    json.dumps(screen.outputs[0].metadata, allow_nan=False)  # a notebook is JSON


@pytest.mark.parametrize(
    "value",
    [
        torch.arange(3),
        torch.tensor([True, False]),
        [torch.ones(2), torch.zeros(1, 3)],
        (torch.ones(2, requires_grad=True),),
        [1, 2, 3],
        "text",
        {"a": [1]},
        2.5,
    ],
)
def test_verify_accepts_what_is_equal(screen, value):
    verify("Ours", value, value, against="theirs")
    assert check(screen)["difference"] == 0
    assert screen.outputs[0].data["text/plain"] == "✓ Ours = theirs: exactly equal"


def test_verify_accepts_equal_infinities(screen):
    value = torch.tensor([1.0, -INF, INF])  # logits that were ruled out
    verify("Ours", value, value.clone(), against="theirs")
    assert check(screen)["difference"] == 0


def test_verify_accepts_equal_zeros_relatively(screen):
    verify("Ours", torch.zeros(2), torch.zeros(2), against="theirs", relative=True)
    assert check(screen)["difference"] == 0


def test_verify_accepts_a_difference_up_to_the_tolerance(screen):
    verify("Ours", torch.tensor(1.0), torch.tensor(1.5), against="theirs", tolerance=0.5)
    with pytest.raises(
        AssertionError, match=r"Ours differs from theirs by 5e-01, more than 4e-01"
    ):
        verify(
            "Ours", torch.tensor(1.0), torch.tensor(1.5), against="theirs", tolerance=0.4
        )
    assert len(screen.outputs) == 1


def test_verify_can_compare_relatively(screen):
    ours, reference = (
        [torch.tensor([101.0]), torch.tensor([1.0])],
        [torch.tensor([100.0]), torch.tensor([1.0])],
    )
    verify("Ours", ours, reference, against="theirs", tolerance=0.02, relative=True)
    assert check(screen)["difference"] == 0.01  # 1 of 100, exactly: one float64 division
    assert "largest relative difference 1e-02" in screen.outputs[0].data["text/plain"]
    with pytest.raises(AssertionError):
        verify("Ours", ours, reference, against="theirs", tolerance=0.02)


@pytest.mark.parametrize(
    ("ours", "reference"),
    [
        (torch.tensor([1.0, NAN]), torch.tensor([1.0, 1.0])),
        (torch.tensor([1.0]), torch.tensor([NAN])),
        (torch.tensor([NAN]), torch.tensor([NAN])),
        ([torch.ones(1), torch.tensor([NAN])], [torch.ones(1), torch.ones(1)]),
        ([torch.tensor([NAN]), torch.ones(1)], [torch.ones(1), torch.ones(1)]),
        (torch.tensor([INF]), torch.tensor([1.0])),
        (torch.tensor([INF]), torch.tensor([-INF])),
    ],
)
@pytest.mark.parametrize("relative", [False, True])
def test_verify_rejects_nan_and_infinity(screen, ours, reference, relative):
    with pytest.raises(AssertionError, match=r"Ours differs from theirs by (nan|inf)"):
        verify("Ours", ours, reference, against="theirs", tolerance=1e9, relative=relative)
    assert not screen.outputs


@pytest.mark.parametrize(
    ("ours", "reference"),
    [
        (torch.ones(2), torch.ones(2, 1)),  # would broadcast
        (torch.ones(2), torch.ones(1)),
        ([torch.ones(2), torch.ones(2)], [torch.ones(2), torch.ones(3)]),
    ],
)
def test_verify_rejects_another_shape(screen, ours, reference):
    with pytest.raises(AssertionError, match=r"shapes differ: .*\(2,\).* against .*\("):
        verify("Ours", ours, reference, against="theirs", tolerance=1e9)
    assert not screen.outputs


@pytest.mark.parametrize(
    ("ours", "reference"),
    [([1, 2], [1, 3]), ("a", "b"), ([1], (1,)), (1.0, 1.0 + 1e-9), ([], None), ("1", 1)],
)
def test_verify_compares_anything_else_exactly(screen, ours, reference):
    with pytest.raises(AssertionError, match="Ours differs from theirs"):
        verify("Ours", ours, reference, against="theirs", tolerance=1e-3)
    assert not screen.outputs


@pytest.mark.parametrize(
    ("ours", "reference"),
    [
        ([torch.ones(1)], [torch.ones(1), torch.ones(1)]),  # another number of tensors
        ([torch.ones(1), torch.ones(1)], [torch.ones(1)]),
        (torch.ones(1), None),
        (torch.ones(2), [1.0, 1.0]),
        ([torch.ones(1)], 1.0),
    ],
)
def test_verify_rejects_another_structure(screen, ours, reference):
    with pytest.raises(AssertionError, match=r"Ours differs from theirs|shapes differ"):
        verify("Ours", ours, reference, against="theirs", tolerance=1e9)
    assert not screen.outputs


def test_verify_compares_arrays_of_numpy(screen):
    verify("Ours", np.arange(3), np.arange(3), against="numpy")
    with pytest.raises(AssertionError, match="Ours differs from numpy"):
        verify("Ours", np.arange(3), np.arange(1, 4), against="numpy")
    assert len(screen.outputs) == 1


def test_verify_rejects_tensors_without_elements(screen):
    # Nothing was compared, so nothing was shown.
    with pytest.raises(AssertionError, match="empty"):
        verify("Ours", torch.ones(0), torch.ones(0), against="theirs")
    assert not screen.outputs


# recorded


def test_recorded_reads_the_checkout_and_else_the_installed_package(tmp_path, monkeypatch):
    module = tmp_path / "code" / "llm_learn" / "notebook" / "__init__.py"  # need not exist
    monkeypatch.setattr(notebook, "__file__", str(module))
    installed = tmp_path / "site" / "llm_learn_experiments"
    installed.mkdir(parents=True)
    (installed / "toy.json").write_text('{"where": "installed"}')
    monkeypatch.syspath_prepend(installed.parent)
    monkeypatch.delitem(sys.modules, "llm_learn_experiments", raising=False)
    assert recorded("toy") == {"where": "installed"}
    (tmp_path / "experiments").mkdir()
    (tmp_path / "experiments" / "toy.json").write_text('{"where": "checkout, ü"}', "utf-8")
    assert recorded("toy") == {"where": "checkout, ü"}


def test_every_record_can_be_read():
    names = [
        file.stem for file in (Path(__file__).parents[3] / "experiments").glob("*.json")
    ]
    assert names
    assert all(isinstance(recorded(name), dict) for name in names)


def test_recorded_rejects_an_experiment_without_record():
    with pytest.raises(
        ValueError, match=r"name is 'no such\.json': .*experiments/no such\.json"
    ):
        recorded("no such")
