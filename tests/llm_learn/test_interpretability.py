"""Instruments: patterns are those with which heads read, heads are replaced alone, slopes and probes are right."""

import pytest
import torch
from torch.nn import functional as F

from llm_learn.activation_hooks import changed, every_place, run_with_cache
from llm_learn.interpretability import (
    activation_gradients,
    attention_patterns,
    linear_probe,
    replace_heads,
    top_heads,
)

pytestmark = pytest.mark.usefixtures("no_gradients")


def metric_of(model):
    return lambda hidden_states: model.logits(hidden_states[:, -1])[:, 5]


@pytest.fixture(scope="module")
def model(tiny_llama):
    return tiny_llama()


class TestPatterns:
    def test_patterns_are_those_with_which_heads_read(self, model, two_texts):
        streams = every_place("stream", model)
        _, seen = run_with_cache(model, two_texts[0], streams + every_place("heads", model))
        patterns = list(attention_patterns(model, two_texts[0]))
        assert len(patterns) == 2
        for layer, pattern in enumerate(patterns):
            block = model.blocks[layer]
            *_, v = block.attention.heads(block.norm_1(seen["stream", layer]))
            read = pattern @ v.repeat_interleave(2, dim=1)
            read = read.transpose(1, 2).flatten(2)
            assert torch.allclose(read, seen["heads", layer], atol=1e-5)


class TestReplacedHeads:
    def test_all_heads_with_what_they_have_change_nothing(self, model, two_texts):
        heads = [(layer, number) for layer in (0, 1) for number in range(4)]
        hidden_states, seen = run_with_cache(
            model, two_texts[0], every_place("heads", model)
        )
        with changed(model, replace_heads(model, heads, seen)):
            assert torch.equal(model.hidden_states(two_texts[0]), hidden_states)

    def test_one_head_is_replaced_and_no_other(self, model, two_texts):
        places = every_place("heads", model)
        (_, ours), (_, theirs) = (run_with_cache(model, t, places) for t in two_texts)
        x, before = ours["heads", 1], ours["heads", 1].clone()
        changes = replace_heads(model, [(1, 2)], theirs)
        assert list(changes) == [("heads", 1)]
        new = changes["heads", 1](x).unflatten(-1, (4, -1))
        old, other = (y.unflatten(-1, (4, -1)) for y in (x, theirs["heads", 1]))
        assert torch.equal(new[:, :, 2], other[:, :, 2])
        assert torch.equal(new[:, :, [0, 1, 3]], old[:, :, [0, 1, 3]])
        assert torch.equal(x, before)

    @pytest.mark.parametrize("head", [(0, 4), (0, -1)])
    def test_that_are_none_are_refused(self, model, two_texts, head):
        with pytest.raises(ValueError, match="number"):
            replace_heads(model, [head], {})


class TestGradients:
    def test_gradients_are_those_of_a_small_step(self, model, two_texts):
        place, metric = ("heads", 0), metric_of(model.double())
        slope = activation_gradients(model, two_texts[0], metric, [place])[place]
        step = 1e-5 * torch.randn_like(slope)
        ups = []
        for sign in (1, -1):
            with changed(model, {place: lambda x, sign=sign: x + sign * step}):
                ups.append(metric(model.hidden_states(two_texts[0])).sum())
        model.float()
        assert torch.isclose((ups[0] - ups[1]) / 2, (slope * step).sum(), rtol=1e-4)

    def test_of_other_places_than_those_with_values_are_refused(self, model, two_texts):
        values = {("mlp", 0): torch.zeros(3, 9, 32)}
        with pytest.raises(ValueError, match="values"):
            activation_gradients(
                model, two_texts[0], metric_of(model), [("mlp", 1)], values
            )


def test_largest_heads_come_in_order():
    scores = torch.tensor([[0.1, 0.9, 0.3], [0.8, 0.2, 0.5]])
    assert top_heads(scores, 4) == [(0, 1), (1, 0), (1, 2), (0, 2)]


def test_a_linear_probe_reads_what_is_linear_and_only_that():
    generator = torch.Generator().manual_seed(0)
    words, new = (torch.randint(16, (400,), generator=generator) for _ in range(2))
    x, new_x = F.one_hot(words, 16).float(), F.one_hot(new, 16).float()
    assert linear_probe(x, words % 4, new_x, new % 4) == 1
    (x, labels), (new_x, new_labels) = (
        (torch.stack([w % 2, w // 2 % 2], 1).float(), w % 2 ^ w // 2 % 2)
        for w in (words, new)
    )
    linear = linear_probe(x, labels, new_x, new_labels)
    assert linear < 0.8  # three of the four words at most


def test_a_probe_needs_a_label_for_each_vector():
    x, labels = torch.zeros(4, 3), torch.zeros(5, dtype=torch.long)
    with pytest.raises(ValueError, match="labels"):
        linear_probe(x, labels, x, labels)
