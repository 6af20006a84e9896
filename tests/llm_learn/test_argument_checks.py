"""`expect` accepts what its description says, refuses the rest, and names argument, value and what is accepted."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from llm_learn.argument_checks import expect

Q, K, IDS = torch.zeros(2, 3, 4, 8), torch.zeros(2, 3, 5, 8), torch.tensor([[3, 9]])


@pytest.mark.parametrize(
    ("description", "arguments"),
    [
        ("q (..., T, D), k (..., S, D)", {"q": Q, "k": K}),
        ("q (B, H, T, D), 2 * T == D", {"q": Q}),
        ("x (C,), c (2 * C,)", {"x": torch.zeros(3), "c": np.zeros(6)}),
        ("ids int (B, T), 0 <= ids.min() <= ids.max() < V", {"ids": IDS, "V": 10}),
        ("ids int (N,)", {"ids": np.zeros(3, dtype=np.uint16)}),
        ("x float (N,), y float (N,)", {"x": torch.zeros(2).bfloat16(), "y": np.zeros(2)}),
        ("mask bool (T, S) or None", {"mask": None}),
        ("mask bool (..., T, S) or None", {"mask": torch.ones(1, 4, 5).bool()}),
        ("d_model % num_heads == 0", {"d_model": 8, "num_heads": 2}),
        ("kind in ('gpt', 'llama'), n is None or n > 0", {"kind": "gpt", "n": None}),
        ("all(len(p) for p in prompts)", {"prompts": [[1], [2, 3]]}),
        ("x (B, ..., D), y (B, D), z (...)", {"x": Q, "y": Q[:, 0, 0], "z": Q}),
        ("x (T, S), y (max(T, S), 1)", {"x": torch.zeros(2, 3), "y": torch.zeros(3, 1)}),
        ("x (), mark != ',', not (n and mark)", {"x": np.float64(1), "mark": "(", "n": 0}),
    ],
)
def test_what_is_as_described_is_accepted(description, arguments):
    expect(description, **arguments)


@pytest.mark.parametrize(
    ("description", "arguments", "message"),
    [
        (
            "q (..., T, D), k (..., S, D)",
            {"q": Q, "k": K[..., :4]},
            "k has shape (2, 3, 5, 4): expected (..., S, D) with D = 8",
        ),
        (
            "x (..., C)",
            {"x": Q, "C": 5},
            "x has shape (2, 3, 4, 8): expected (..., C) with C = 5",
        ),
        ("x (T, T)", {"x": IDS}, "x has shape (1, 2): expected (T, T)"),
        ("x (B, T)", {"x": Q}, "x has shape (2, 3, 4, 8): expected (B, T)"),
        ("x (..., T, D)", {"x": torch.zeros(4)}, "x has shape (4,): expected (..., T, D)"),
        ("x (B, T)", {"x": [1]}, "x is [1]: expected (B, T)"),
        (
            "ids int (B, T)",
            {"ids": Q[0, 0]},
            "ids has shape (4, 8) and dtype torch.float32: expected integers (B, T)",
        ),
        (
            "mask bool (T, S) or None",
            {"mask": IDS},
            "mask has shape (1, 2) and dtype torch.int64: expected booleans (T, S)",
        ),
        (
            "ids (B, T), 1 <= T <= context_length",
            {"ids": torch.zeros(1, 5), "context_length": 4},
            "ids has shape (1, 5), context_length is 4: expected (B, T) with 1 <= T <= context_length",
        ),
        (
            "0 <= ids.min() <= ids.max() < V",
            {"ids": IDS, "V": 9},
            "ids.min() is 3, ids.max() is 9, V is 9: expected 0 <= ids.min() <= ids.max() < V",
        ),
        (
            "max_steps >= 1, b >= 1",
            {"max_steps": 0, "b": 0},
            "max_steps is 0: expected max_steps >= 1",
        ),
        (
            "kind in ('gpt', 'llama')",
            {"kind": "rnn"},
            "kind is 'rnn': expected kind in ('gpt', 'llama')",
        ),
        (
            "len(prompt) + new <= limit",
            {"prompt": [7] * 30, "new": 5, "limit": 8},
            "len(prompt) is 30, new is 5, limit is 8: expected len(prompt) + new <= limit",
        ),
        ("isinstance(n, int)", {"n": 2.5}, "n is 2.5: expected isinstance(n, int)"),
        (
            "all(len(p) for p in prompts)",
            {"prompts": [[1], []]},
            "prompts is [[1], []]: expected all(len(p) for p in prompts)",
        ),
        ("x >= 0", {"x": float("nan")}, "x is nan: expected x >= 0"),
        ("x (B, ..., D)", {"x": Q[0, 0, 0]}, "x has shape (8,): expected (B, ..., D)"),
        ("x (B, ..., 4)", {"x": Q}, "x has shape (2, 3, 4, 8): expected (B, ..., 4)"),
        (
            "q (T, D), k (S, D), T < S",
            {"q": IDS, "k": IDS},
            "q has shape (1, 2), k has shape (1, 2): expected (T, D) and (S, D) with T < S",
        ),
        (
            "isinstance(n, list) and len(n) > 0",
            {"n": 5},
            "n is 5: expected isinstance(n, list) and len(n) > 0",
        ),
        (
            "max(len(p) for p in prompts) <= type",
            {"prompts": [[7] * 9], "type": 8},
            "max(len(p) for p in prompts) is 9, type is 8: "
            "expected max(len(p) for p in prompts) <= type",
        ),
        ("mark in (',', '(')", {"mark": ";"}, "mark is ';': expected mark in (',', '(')"),
    ],
)
def test_an_error_names_the_argument_its_value_and_what_is_accepted(
    description, arguments, message
):
    with pytest.raises(ValueError) as raised:
        expect(description, **arguments)
    assert str(raised.value) == message


@given(st.lists(st.integers(0, 4), max_size=4), st.lists(st.integers(0, 4), max_size=4))
def test_two_arrays_of_one_description_have_one_shape(first, second):
    sizes = ", ".join("ABCD"[: len(first)])
    arrays = {"x": np.zeros(first), "y": np.zeros(second)}
    try:
        expect(f"x ({sizes}), y ({sizes})", **arrays)
    except ValueError:
        assert first != second
    else:
        assert first == second


def test_a_failed_description_says_the_same_when_it_is_used_again():
    for _ in range(2):
        with pytest.raises(
            ValueError, match=r"y has shape \(2,\): expected \(N,\) with N = 3"
        ):
            expect("x (N,), y (N,)", x=np.zeros(3), y=np.zeros(2))


def test_compiled_code_is_not_interrupted():
    @torch.compile(backend="eager", fullgraph=True)
    def double(x):
        expect("x (N,)", x=x)
        return 2 * x

    assert double(torch.ones(3)).tolist() == [2, 2, 2]
