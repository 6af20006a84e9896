"""The chapter on where a model stores a fact: a run that begins in the middle."""

import pytest
import torch

from llm_learn.activation_hooks import run_with_cache

SLUG = "inside/facts"

pytestmark = pytest.mark.usefixtures("no_gradients")


@pytest.mark.parametrize("layer", [0, 1, 2])
def test_a_run_may_begin_in_the_middle(chapter, tiny_llama, two_texts, layer):
    model = tiny_llama()
    hidden_states, seen = run_with_cache(model, two_texts[0], [("stream", layer)])
    assert torch.equal(chapter.run_from(model, seen["stream", layer], layer), hidden_states)
