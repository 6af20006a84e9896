"""Sampling equals Hugging Face's filters and the probabilities it claims; generation keeps its promises."""

from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F
from transformers import TopKLogitsWarper, TopPLogitsWarper

from llm_learn.generate import KVCache, filter_logits, generate, pad_left, sample_next
from llm_learn.model import GPT, GPTConfig, Llama, LlamaConfig

INF = float("inf")
V = 6


class Counter(nn.Module):
    """Says that id + 1 (and after V - 1, id 0) follows; remembers what it was shown, and in which mode."""

    def __init__(self, context_length: int = 4):
        super().__init__()
        self.config = SimpleNamespace(context_length=context_length)
        self.seen = []

    def forward(self, ids):
        self.seen.append((ids.tolist(), self.training))
        assert ids.shape[1] <= self.config.context_length
        return 50.0 * F.one_hot(
            (ids + 1) % V, V
        )  # (B, T, V); 50 leaves no chance to the others


class Uniform(Counter):
    """Finds every id equally likely."""

    def forward(self, ids):
        return 0 * super().forward(ids)


def tiny_gpt(**changes) -> GPT:
    torch.manual_seed(0)
    shape = {
        "vocab_size": 11,
        "context_length": 8,
        "d_model": 16,
        "num_layers": 2,
        "num_heads": 2,
    }
    model = GPT(GPTConfig(**(shape | changes)))
    for parameter in model.parameters():
        nn.init.normal_(
            parameter, std=0.5
        )  # far from uniform, so that the likeliest id is clear
    return model


def p_value(counts: torch.Tensor, probabilities: torch.Tensor) -> float:
    """How often a fair sampler differs from `probabilities` at least as much as `counts` do (chi-square)."""
    possible = probabilities > 0
    assert (counts[~possible] == 0).all(), "drew an impossible id"
    expected = probabilities[possible].double() * counts.sum()
    chi_square = ((counts[possible] - expected) ** 2 / expected).sum()
    return torch.special.gammaincc((possible.sum().double() - 1) / 2, chi_square / 2).item()


# Reference


@given(st.integers(1, 12), st.integers(0, 999))
def test_top_k_matches_transformers(top_k, seed):
    torch.manual_seed(seed)
    logits = torch.randn(3, 9, dtype=torch.float64)
    assert torch.equal(
        filter_logits(logits, top_k=top_k), TopKLogitsWarper(top_k)(None, logits)
    )


@given(st.floats(1e-6, 1, exclude_max=True), st.integers(0, 999))
def test_top_p_matches_transformers(top_p, seed):
    torch.manual_seed(seed)
    logits = 3 * torch.randn(
        3, 9, dtype=torch.float64
    )  # float64: no mass is p to the last bit by chance
    assert torch.equal(
        filter_logits(logits, top_p=top_p), TopPLogitsWarper(top_p)(None, logits)
    )


@given(st.integers(1, 9), st.floats(0.05, 0.95), st.integers(0, 999))
def test_top_k_then_top_p_match_transformers(top_k, top_p, seed):
    torch.manual_seed(seed)
    logits = 2 * torch.randn(3, 9, dtype=torch.float64)
    expected = TopPLogitsWarper(top_p)(None, TopKLogitsWarper(top_k)(None, logits))
    assert torch.equal(filter_logits(logits, top_k=top_k, top_p=top_p), expected)


def test_top_p_keeps_the_smallest_set_that_reaches_p():
    probabilities = torch.tensor(
        [[0.125, 0.5, 0.25, 0.125]]
    )  # powers of 2: exact in binary
    for top_p, kept in [(0.1, [1]), (0.5, [1]), (0.51, [1, 2]), (0.75, [1, 2])]:
        filtered = filter_logits(probabilities.log(), top_p=top_p)
        assert filtered.isfinite().nonzero()[:, 1].tolist() == kept, top_p
    assert filter_logits(probabilities.log(), top_p=0.76).isfinite().sum() == 3


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("filters", [{}, {"top_k": 3}, {"top_p": 0.95}])
def test_draws_have_the_promised_frequencies(temperature, filters, generator):
    logits = torch.tensor([[1.0, -1.0, 0.3, 2.0, 0.0, -0.4]])
    expected = filter_logits(logits / temperature, **filters).softmax(-1)[0]
    draws = sample_next(
        logits.expand(20_000, -1), temperature=temperature, generator=generator, **filters
    )
    assert draws.shape == (20_000, 1)
    # A fair sampler falls below this once in a thousand; the seed is fixed.
    assert p_value(draws[:, 0].bincount(minlength=6), expected) > 1e-3


def test_greedy_takes_the_argmax_at_every_step():
    model = tiny_gpt().eval()
    ids = torch.randint(11, (3, 5))
    expected = ids
    for _ in range(9):  # past the context length of 8
        expected = torch.cat(
            [expected, model(expected[:, -8:])[:, -1].argmax(-1, keepdim=True)], dim=1
        )
    assert torch.equal(generate(model, ids, 9, temperature=0), expected)
    assert torch.equal(generate(model, ids, 9, top_k=1), expected)


def test_generated_ids_have_the_frequencies_of_the_model(generator):
    model = tiny_gpt().eval()
    prompt = torch.tensor([[3, 1, 4]])
    expected = (model(prompt)[0, -1] / 1.5).softmax(-1)
    draws = generate(
        model, prompt.expand(20_000, -1), 1, temperature=1.5, generator=generator
    )[:, 3]
    # As above.
    assert p_value(draws.bincount(minlength=11), expected.detach()) > 1e-3


# Invariant


def test_filters_leave_their_input_alone_and_do_nothing_unasked():
    logits = torch.randn(2, 5)
    before = logits.clone()
    filter_logits(logits, top_k=2, top_p=0.5)
    assert torch.equal(logits, before)
    assert torch.equal(filter_logits(logits), logits)
    assert torch.equal(filter_logits(logits, top_k=5), logits)
    assert torch.equal(filter_logits(logits, top_k=99), logits)


def test_top_p_of_one_keeps_every_id(generator):
    # A large vocabulary, whose float32 probabilities add up to a little more than 1.
    logits = torch.randn(64, 50_000, generator=generator)
    assert torch.equal(filter_logits(logits, top_p=1.0), logits)


@given(st.floats(1e-9, 1), st.integers(1, 6), st.integers(0, 999))
def test_the_likeliest_id_always_stays(top_p, top_k, seed):
    torch.manual_seed(seed)
    logits = 5 * torch.randn(4, 6)
    filtered = filter_logits(logits, top_k=top_k, top_p=top_p)
    assert torch.equal(filtered.argmax(-1), logits.argmax(-1))
    kept = filtered.isfinite()
    assert (kept.sum(-1) <= top_k).all()
    assert torch.equal(filtered[kept], logits[kept])


def test_temperature_zero_needs_no_generator_and_ignores_filters():
    logits = torch.tensor([[0.0, 3.0, 1.0], [2.0, 1.0, 0.0]])
    state = torch.get_rng_state()
    assert sample_next(logits, temperature=0, top_k=2, top_p=0.1).tolist() == [[1], [0]]
    assert torch.equal(torch.get_rng_state(), state)


def test_generation_continues_every_row_and_keeps_the_prompt():
    ids = torch.tensor([[0, 1], [4, 5]])
    assert generate(Counter(), ids, 3).tolist() == [[0, 1, 2, 3, 4], [4, 5, 0, 1, 2]]
    assert generate(Counter(), ids, 0).tolist() == ids.tolist()
    assert ids.tolist() == [[0, 1], [4, 5]]


def test_the_model_sees_the_most_recent_ids_only():
    model = Counter(context_length=3)
    generate(model, torch.tensor([[0, 1]]), 4)
    assert [ids[0] for ids, _ in model.seen] == [[0, 1], [0, 1, 2], [1, 2, 3], [2, 3, 4]]


def test_a_finished_row_is_filled_with_eos():
    ids = torch.tensor([[1], [3], [4]])
    # Rows reach 5 after 4, 2 and 1 steps.
    assert generate(Counter(), ids, 4, eos_id=5).tolist() == [
        [1, 2, 3, 4, 5],
        [3, 4, 5, 5, 5],
        [4, 5, 5, 5, 5],
    ]


def test_generation_stops_when_every_row_has_finished():
    model = Counter()
    assert generate(model, torch.tensor([[2], [3]]), 100, eos_id=5).tolist() == [
        [2, 3, 4, 5],
        [3, 4, 5, 5],
    ]
    assert len(model.seen) == 3
    # The prompt's own eos starts a text, and finishes nothing.
    assert generate(Counter(), torch.tensor([[5]]), 3, eos_id=5).tolist() == [[5, 0, 1, 2]]
    assert generate(Counter(), torch.tensor([[5]]), 9).shape == (1, 10)


def test_the_same_generator_writes_the_same_text():
    texts = []
    for seed in (3, 3, 4):
        torch.manual_seed(len(texts))  # global state must not matter
        generator = torch.Generator().manual_seed(seed)
        texts.append(
            generate(
                Uniform(), torch.zeros(2, 1, dtype=torch.long), 20, generator=generator
            )
        )
    assert torch.equal(texts[0], texts[1]) and not torch.equal(texts[0], texts[2])
    assert not torch.equal(texts[0][0], texts[0][1])  # rows draw independently


def test_options_reach_the_sampler(generator):
    prompt = torch.zeros(50, 1, dtype=torch.long)
    model = tiny_gpt().eval()
    logits = model(prompt)[0, -1]
    for options in ({"top_k": 2}, {"top_p": 0.5}):
        drawn = set(
            generate(model, prompt, 1, generator=generator, **options)[:, 1].tolist()
        )
        assert drawn <= set(
            filter_logits(logits[None], **options).isfinite().nonzero()[:, 1].tolist()
        )
    assert (
        len(
            set(
                generate(model, prompt, 1, temperature=100.0, generator=generator)[
                    :, 1
                ].tolist()
            )
        )
        > 8
    )


@pytest.mark.parametrize("training", [True, False])
def test_generation_leaves_the_mode_as_it_was_and_runs_without_dropout(training):
    model = Counter().train(training)
    generate(model, torch.tensor([[0]]), 3)
    assert model.training is training
    assert [mode for _, mode in model.seen] == [False] * 3
    gpt = tiny_gpt(dropout=0.5).train(training)
    texts = [generate(gpt, torch.tensor([[1, 2]]), 6, temperature=0) for _ in range(2)]
    assert torch.equal(*texts)
    assert all(module.training is training for module in gpt.modules())


def test_generation_that_fails_leaves_the_mode_as_it_was():
    model = tiny_gpt().train()
    with pytest.raises(ValueError, match=r"ids.max\(\) is 99, vocab_size is"):
        generate(model, torch.tensor([[99]]), 1)
    with pytest.raises(ValueError, match="top_k"):
        generate(model, torch.tensor([[1]]), 1, top_k=0)
    assert model.training


def test_generation_keeps_no_graph():
    assert not generate(tiny_gpt(), torch.tensor([[1]]), 2).requires_grad


# Bad input


@pytest.mark.parametrize("temperature", [1.0, 0])
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"top_k": 0}, "top_k is 0: expected top_k is None or top_k >= 1"),
        ({"top_k": -3}, "top_k is -3"),
        ({"top_p": 0.0}, "top_p is 0.0: expected top_p is None or 0 < top_p <= 1"),
        ({"top_p": 1.1}, "top_p is 1.1"),
        ({"top_p": -0.5}, "top_p is -0.5"),
        ({"top_p": float("nan")}, "top_p is nan"),
    ],
)
def test_sampling_rejects_filters_that_keep_nothing(options, message, temperature):
    with pytest.raises(ValueError, match=message):
        sample_next(torch.randn(1, 4), temperature=temperature, **options)


@pytest.mark.parametrize("temperature", [-0.1, -INF, float("nan"), 1e-40])
def test_sampling_rejects_temperatures_that_it_cannot_divide_by(temperature):
    with pytest.raises(
        ValueError,
        match=f"temperature is {temperature}: expected temperature == 0 or temperature >= 1e-6",
    ):
        sample_next(torch.randn(1, 4), temperature=temperature)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_logits_of_16_bits_are_drawn_from_as_exactly_as_any(dtype):
    logits = torch.randn(1, 50, generator=torch.Generator().manual_seed(0)).to(dtype) * 9
    # Divided in float16 they would be infinite.
    assert sample_next(logits, temperature=1e-5) == logits.argmax()
    draws = [
        sample_next(x.expand(500, -1), generator=torch.Generator().manual_seed(1))
        for x in (logits, logits.float())
    ]
    assert torch.equal(*draws)


@pytest.mark.parametrize("shape", [(4,), (2, 3, 4)])
def test_filters_reject_logits_that_are_no_matrix(shape):
    with pytest.raises(ValueError, match=rf"logits has shape \({shape[0]},.*\(B, V\)"):
        filter_logits(torch.randn(shape), top_k=2)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        (
            (1, 0),
            r"ids has shape \(1, 0\), context_length is 4: .*1 <= T <= context_length",
        ),
        (
            (1, 5),
            r"ids has shape \(1, 5\), context_length is 4: .*1 <= T <= context_length",
        ),
        ((3,), r"ids has shape \(3,\): expected \(B, T\)"),
        ((1, 2, 3), r"ids has shape \(1, 2, 3\): expected \(B, T\)"),
    ],
)
def test_generation_rejects_prompts_that_do_not_fit(shape, message):
    with pytest.raises(ValueError, match=message):
        generate(Counter(), torch.zeros(shape, dtype=torch.long), 2)


def test_generation_rejects_a_negative_length():
    with pytest.raises(
        ValueError, match="max_new_tokens is -1: expected max_new_tokens >= 0"
    ):
        generate(Counter(), torch.zeros(1, 1, dtype=torch.long), -1)


# With a cache


def tiny_llama(context_length: int = 24) -> Llama:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=31,
        context_length=context_length,
        d_model=16,
        d_ff=24,
        num_layers=2,
        num_heads=4,
        num_kv_heads=2,
    )
    model = Llama(config).double()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.5)
    return model


PROMPTS = st.lists(
    st.lists(st.integers(0, 30), min_size=1, max_size=7), min_size=1, max_size=4
)


@given(
    length=st.integers(1, 9),
    rows=st.integers(1, 3),
    new=st.integers(0, 9),
    context=st.integers(9, 20),
)
def test_cached_text_is_the_text_without_a_cache(length, rows, new, context):
    model = tiny_llama(context)
    ids = torch.randint(31, (rows, length))
    cached = generate(model, ids, new, temperature=0)
    assert torch.equal(cached, generate(model, ids, new, temperature=0, use_cache=False))


def test_cached_draws_are_the_draws_without_a_cache():
    model, ids = tiny_llama(), torch.randint(31, (2, 5))
    texts = [
        generate(model, ids, 9, use_cache=use, generator=torch.Generator().manual_seed(3))
        for use in (True, False)
    ]
    assert torch.equal(*texts)


@given(prompts=PROMPTS, use_cache=st.booleans())
def test_padded_prompts_go_on_as_they_do_alone(prompts, use_cache):
    model = tiny_llama()
    ids, padding = pad_left(prompts, 0)
    together = generate(model, ids, 6, temperature=0, padding=padding, use_cache=use_cache)
    for row, skipped, prompt in zip(together, padding.tolist(), prompts, strict=True):
        alone = generate(model, torch.tensor([prompt]), 6, temperature=0)[0]
        assert torch.equal(row[skipped:], alone)


def test_past_the_context_the_most_recent_ids_are_read_padded_or_not():
    model = tiny_llama(context_length=8)
    prompts = [[1, 2, 3, 4, 5, 6], [7, 8]]
    ids, padding = pad_left(prompts, 0)
    together = generate(model, ids, 9, temperature=0, padding=padding)
    for row, skipped, prompt in zip(together, padding.tolist(), prompts, strict=True):
        # A padded row has fewer ids of its own in the window, so it follows a text without its earliest.
        text = list(prompt)
        for _ in range(9):
            seen = text[-(8 - max(0, skipped - max(0, skipped + len(text) - 8))) :]
            text.append(model(torch.tensor([seen]))[0, -1].argmax().item())
        assert row[skipped:].tolist() == text


def test_each_call_has_caches_of_its_own():
    model, ids = tiny_llama(), torch.randint(31, (1, 5))
    first = generate(model, ids, 5, temperature=0)
    generate(model, torch.randint(31, (1, 9)), 5, temperature=0)
    assert torch.equal(generate(model, ids, 5, temperature=0), first)


def test_the_cache_makes_the_model_read_each_id_once(monkeypatch):
    model, lengths = tiny_llama(), []
    hidden_states = model.hidden_states
    monkeypatch.setattr(
        model,
        "hidden_states",
        lambda ids, *rest: (lengths.append(ids.shape[1]), hidden_states(ids, *rest))[1],
    )
    generate(model, torch.randint(31, (1, 5)), 4, temperature=0)
    assert lengths == [5, 1, 1, 1]


def test_the_cache_serves_until_the_context_is_full(monkeypatch):
    """The last id is never read, so 4 and 5 fit into 8; of 4 and 7, two do not."""
    model, lengths = tiny_llama(context_length=8), []
    hidden_states = model.hidden_states
    monkeypatch.setattr(
        model,
        "hidden_states",
        lambda ids, *rest: (lengths.append(ids.shape[1]), hidden_states(ids, *rest))[1],
    )
    ids = torch.randint(31, (1, 4))
    generate(model, ids, 5, temperature=0)
    assert lengths == [4, 1, 1, 1, 1]
    lengths.clear()
    generate(model, ids, 7, temperature=0)
    assert lengths == [4, 1, 1, 1, 1, 8, 8]


def test_no_rows_get_as_many_ids_as_others():
    ids = torch.zeros(0, 3, dtype=torch.long)
    assert generate(tiny_llama(), ids, 4, temperature=0).shape == (0, 7)


def test_without_a_cache_none_is_made(monkeypatch):
    model = tiny_llama()
    monkeypatch.setattr(model, "new_caches", lambda *_: pytest.fail("a cache was made"))
    assert generate(model, torch.randint(31, (1, 5)), 3, use_cache=False).shape == (1, 8)


@given(prompts=PROMPTS)
def test_padding_stands_on_the_left(prompts):
    ids, padding = pad_left(prompts, 99)
    assert ids.shape == (len(prompts), max(map(len, prompts)))
    for row, skipped, prompt in zip(ids.tolist(), padding.tolist(), prompts, strict=True):
        assert row == [99] * skipped + prompt


def test_the_cache_of_the_design_is_found_here():
    assert KVCache(1, 2, 3, 4).length == 0


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        ([], r"len\(prompts\) is 0: expected len\(prompts\) >= 1"),
        ([[1], []], r"prompts is \[\[1\], \[\]\]: expected all"),
    ],
)
def test_padding_rejects_empty_prompts(prompts, message):
    with pytest.raises(ValueError, match=message):
        pad_left(prompts, 0)


def test_padding_needs_a_model_that_skips_it_and_one_number_a_row():
    with pytest.raises(
        ValueError, match=r"padding has shape \(1,\), can_cache is False: expected"
    ):
        generate(
            tiny_gpt(), torch.zeros(1, 3, dtype=torch.long), 2, padding=torch.tensor([1])
        )
    with pytest.raises(
        ValueError, match=r"padding has shape \(2,\): expected \(B,\) with B = 1"
    ):
        generate(
            tiny_llama(),
            torch.zeros(1, 3, dtype=torch.long),
            2,
            padding=torch.tensor([1, 0]),
        )
