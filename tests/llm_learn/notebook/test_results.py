"""What a page says is bound to what its cells computed: a false claim, an open question or a blind check fails."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from llm_learn.notebook.results import (
    catches,
    claim,
    mean_and_interval,
    mean_and_range,
    results,
    settle,
    show_table,
    verify_module,
)

# results and spreads


def test_results_store_each_value_under_its_name(screen):
    results(final_loss="2.10", steps=500)
    names = [output.metadata["scrapbook"]["name"] for output in screen.outputs]
    values = [next(iter(output.data.values())) for output in screen.outputs]
    assert names == ["final-loss", "steps"]
    assert values == ["'2.10'", "'500'"]


@pytest.mark.parametrize("value", [2.1, True, None, np.float64(1)])
def test_results_refuse_what_is_not_rounded_and_store_nothing(screen, value):
    with pytest.raises(ValueError, match="loss is"):
        results(fine="1", loss=value)
    assert not screen.outputs


def test_spreads():
    spread = mean_and_range(torch.tensor([2.0, 2.5, 3.0]).tolist(), 1)
    assert spread == "2.5 (2.0–3.0)"
    assert mean_and_interval(2.206, 2.17, 2.26) == "2.21 [2.17, 2.26]"
    with pytest.raises(ValueError, match="values"):
        mean_and_range([1.0])
    with pytest.raises(ValueError, match="low"):
        mean_and_interval(1.0, 2.0, 3.0)


def test_the_first_spread_of_each_kind_is_defined(screen, monkeypatch):
    monkeypatch.setattr("llm_learn.notebook.results._defined", set())
    results(a=mean_and_range([1.0, 2.0]), b=mean_and_range([1.0, 2.0]))
    results(c=mean_and_interval(1, 0, 2, 0), d=mean_and_interval(1, 0, 2, 0))
    assert [next(iter(output.data.values())) for output in screen.outputs] == [
        "'1.50 (1.00–2.00, the range over 2 seeds)'",
        "'1.50 (1.00–2.00)'",
        "'1 [0, 2, a 95 % interval]'",
        "'1 [0, 2]'",
    ]


# settle and claim


def test_settle_records_the_one_option_that_holds(screen):
    settle("attention-key", a=torch.tensor(False), b=np.bool_(True), c=False)
    (output,) = screen.outputs
    assert "text/plain" not in output.data  # the page shows the answer where it was asked
    assert output.metadata["llm_learn_answer"] == {
        "name": "attention-key",
        "key": "b",
        "options": ["a", "b", "c"],
    }


@pytest.mark.parametrize("options", [{"a": True, "b": True}, {"a": False, "b": False}])
def test_settle_refuses_two_answers_and_none(screen, options):
    with pytest.raises(AssertionError, match="exactly one option"):
        settle("attention-key", **options)
    assert not screen.outputs


@pytest.mark.parametrize(
    "value", [1, 0.3, "yes", torch.tensor([True, False]), torch.tensor(1.0)]
)
def test_only_booleans_settle_or_support(screen, value):
    with pytest.raises(ValueError, match="expected True or False"):
        settle("attention-key", a=value, b=False)
    with pytest.raises(ValueError, match="expected True or False"):
        claim("attention-ahead", short=value)


def test_claim_records_its_conditions_and_fails_where_one_is_false(screen):
    claim("attention-ahead", short=True, long=torch.tensor(True))
    (output,) = screen.outputs
    recorded = {"name": "attention-ahead", "conditions": ["short", "long"]}
    assert output.metadata["llm_learn_claim"] == recorded
    with pytest.raises(AssertionError, match="does not hold: long"):
        claim("attention-ahead", short=True, long=False)
    with pytest.raises(ValueError, match="holds"):
        claim("attention-ahead")


# show_table


def test_a_table_is_shown_as_text_and_as_html(screen):
    show_table(
        [["<none>", "2.47"], ["attention", "2.05"]],
        columns=["mixer", "loss"],
        caption="Validation loss",
    )
    (output,) = screen.outputs
    lines = output.data["text/plain"].splitlines()
    assert lines == [
        "Validation loss",
        "mixer      loss",
        "<none>     2.47",
        "attention  2.05",
    ]
    assert '<th scope="row">&lt;none&gt;</th><td>2.47</td>' in output.data["text/html"]


@pytest.mark.parametrize("rows", [[], [["a"]], [["a", 2.5]]])
def test_a_table_of_wrong_rows_is_refused(screen, rows):
    with pytest.raises(ValueError, match="rows"):
        show_table(rows, columns=["mixer", "loss"])


# verify_module


def names_of(screen) -> list[str]:
    checks = [output.metadata.get("llm_learn_check") for output in screen.outputs]
    return [check["name"] for check in checks if check]


def test_modules_are_compared_in_outputs_and_gradients_of_both_precisions(screen):
    ours, reference = nn.Linear(3, 2), nn.Linear(3, 2)
    reference.load_state_dict(ours.state_dict())
    verify_module("Linear", ours, reference, [torch.randn(4, 3)], against="nn.Linear")
    assert names_of(screen) == [
        f"Linear, {kind}{bits}"
        for bits in ("float64", "float32")
        for kind in ("", "gradients, ")
    ]
    assert ours.weight.dtype == torch.float32  # copies were cast
    shown = screen.outputs[-1].data["text/plain"].splitlines()
    assert shown[0] == "✓ Linear = nn.Linear, largest difference"
    assert shown[1].startswith("outputs     float64 ") and "float32" in shown[2]


class Doubled(torch.autograd.Function):
    """A right value with a wrong gradient."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        return 2 * gradient


class WrongBias(nn.Linear):
    def forward(self, x):
        return F.linear(x, self.weight) + Doubled.apply(self.bias)


def test_a_wrong_gradient_of_an_input_or_of_a_parameter_is_found(screen):
    x = torch.randn(4, 3)
    with pytest.raises(AssertionError, match=r"double, gradients, float64"):
        verify_module("double", Doubled.apply, torch.clone, [x], against="torch.clone")
    ours, reference = WrongBias(3, 2), nn.Linear(3, 2)
    reference.load_state_dict(ours.state_dict())
    with pytest.raises(AssertionError, match=r"biased, gradients, float64"):
        verify_module("biased", ours, reference, [x], against="nn.Linear")


def test_the_reference_may_be_called_in_its_own_way_and_masks_pass(screen):
    mask = torch.ones(3, 3, dtype=torch.bool).tril()
    verify_module(
        "masked",
        lambda x, mask: x.masked_fill(~mask, 0.0),
        torch.where,
        [torch.randn(3, 3), mask],
        against="torch.where",
        call=lambda where, x, mask: where(mask, x, torch.zeros((), dtype=x.dtype)),
    )
    assert len(names_of(screen)) == 4


def test_what_is_imprecise_in_float32_only_is_found(screen):
    def imprecise(x):
        return x * (1 + 1e-4) if x.dtype == torch.float32 else x

    with pytest.raises(AssertionError, match="float32"):
        verify_module(
            "scale", imprecise, torch.clone, [torch.randn(5)], against="torch.clone"
        )


# catches


def no_negative(values):
    assert min(values) >= 0, f"negative: {min(values)}"


def test_a_check_that_notices_the_bug_says_how(screen):
    catches("a sign", no_negative, [1, -2])
    (output,) = screen.outputs
    assert output.data["text/plain"] == "✓ caught: a sign: negative: -2"


def test_a_check_that_is_blind_fails(screen):
    with pytest.raises(AssertionError, match="does not notice: a sign"):
        catches("a sign", no_negative, [1, 2])


def test_other_errors_are_not_taken_for_a_catch(screen):
    with pytest.raises(TypeError):
        catches("a sign", no_negative, [None, "x"])
