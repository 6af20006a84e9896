"""Speculative decoding: the model's own texts and distributions, whatever the draft, in fewer passes."""

import math

import numpy as np
import pytest
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_learn.generate import generate
from llm_learn.speculative import (
    accept,
    draft_from_model,
    greedy_probs,
    softmax_probs,
    speculate,
)

pytestmark = pytest.mark.usefixtures("no_gradients")
V = 6
SHAPE = {"vocab_size": V, "context_length": 40, "d_model": 16, "d_ff": 24}


@pytest.fixture(scope="module")
def model(tiny_llama):
    return tiny_llama(**SHAPE)


@pytest.fixture(scope="module")
def small(tiny_llama):
    return tiny_llama(**SHAPE | {"d_model": 8}, num_layers=1)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def distributions(count: int, seed: int) -> torch.Tensor:
    """(count, V), far from even."""
    return (2 * torch.randn(count, V, generator=seeded(seed))).softmax(-1)


class TestAccept:
    @pytest.mark.parametrize("seed", range(4))
    def test_the_id_after_one_guess_is_distributed_as_the_model_says(self, seed):
        p, q = distributions(2, seed), distributions(1, seed + 10)
        found, generator = np.zeros(V), seeded(seed)
        for guess in torch.multinomial(q[0], 2000, True, generator=generator).split(1):
            stay, weights = accept(p, q, guess, generator=generator)
            found[int(stay if len(stay) else torch.multinomial(weights, 1))] += 1
        # The seeds are fixed, so this fails only when the code changes.
        expected = p[0].double() / p[0].double().sum() * 2000
        assert scipy.stats.chisquare(found, expected).pvalue > 1e-3

    def test_a_guess_stays_as_often_as_the_two_overlap(self):
        p, q, generator = distributions(2, 0), distributions(1, 1), seeded()
        guesses = torch.multinomial(q[0], 4000, True, generator=generator).split(1)
        share = np.mean(
            [len(accept(p, q, guess, generator=generator)[0]) for guess in guesses]
        )
        overlap = torch.minimum(p[0], q[0]).sum().item()
        assert share == pytest.approx(overlap, abs=4 * 0.5 / 4000**0.5)

    def test_what_replaces_a_guess_is_drawn_from_the_excess(self):
        p, q = torch.tensor([[0.5, 0.3, 0.2], [0, 0, 1]]), torch.tensor([[0.2, 0.1, 0.7]])
        replaced = [
            weights
            for seed in range(30)
            if not len(
                (found := accept(p, q, torch.tensor([2]), generator=seeded(seed)))[0]
            )
            for weights in [found[1]]
        ]
        assert replaced
        for weights in replaced:
            torch.testing.assert_close(weights, torch.tensor([0.3, 0.2, 0.0]))

    def test_nothing_stays_behind_the_first_that_does_not(self):
        p, q = torch.eye(3)[[0, 1, 2, 0]], torch.eye(3)[[0, 2, 2]]
        stay, weights = accept(p, q, torch.tensor([0, 2, 2]), generator=seeded())
        assert stay.tolist() == [0] and weights.tolist() == [0, 1, 0]

    def test_a_draft_that_agrees_stays_and_the_next_is_the_models(self):
        p = distributions(4, 0)
        stay, weights = accept(p, p[:3], torch.tensor([1, 0, 5]), generator=seeded())
        assert stay.tolist() == [1, 0, 5] and torch.equal(weights, p[3])

    def test_rounding_leaves_something_to_draw_from(self):
        # p is q, rounded down in both places: no excess is left.
        q = torch.tensor([[0.25, 0.75]])
        p = torch.cat([q * 0.9, q])
        for seed in range(50):
            stay, weights = accept(p, q, torch.tensor([1]), generator=seeded(seed))
            assert weights.sum() > 0
            if not len(stay):
                assert torch.equal(weights, p[0])

    @pytest.mark.parametrize(
        ("target", "draft", "drafted", "message"),
        [
            ((2, V), (2, V), 2, r"target has shape .*: expected \(k \+ 1, V\) with k = 2"),
            (
                (3, V),
                (2, V + 1),
                2,
                r"target has shape .*: expected \(k \+ 1, V\) with k = 2",
            ),
            ((3, V), (2, V), 1, r"draft has shape .*: expected \(k, V\) with k = 1"),
        ],
    )
    def test_shapes_that_do_not_fit_are_refused(self, target, draft, drafted, message):
        ids = torch.zeros(drafted, dtype=torch.long)
        with pytest.raises(ValueError, match=message):
            accept(torch.ones(target), torch.ones(draft), ids, generator=seeded())


class TestSpeculate:
    @pytest.mark.parametrize("k", [0, 1, 4])
    def test_the_text_ends_with_its_end(self, model, small, k):
        """As it would have been without one, up to the first that stands there."""
        for seed in range(12):
            found = {}
            for eos_id in (None, 3):
                options = {"probs": softmax_probs, "generator": seeded(seed)}
                draft = draft_from_model(small, 40, **options)
                found[eos_id] = speculate(
                    model, [1, 2], 12, draft, k=k, eos_id=eos_id, **options
                )
            whole, passes = found[None]
            end = whole.index(3) + 1 if 3 in whole else len(whole)
            assert found[3][0] == whole[:end]
            assert found[3][1] <= passes

    @settings(max_examples=25)
    @given(
        prompt=st.lists(st.integers(0, V - 1), min_size=1, max_size=8),
        new=st.integers(0, 24),
        k=st.integers(0, 5),
        same=st.booleans(),
    )
    def test_greedy_text_is_that_of_generate(self, model, small, prompt, new, k, same):
        options = {"probs": greedy_probs, "generator": seeded()}
        draft = draft_from_model(model if same else small, 40, **options)
        with torch.no_grad():
            ours, passes = speculate(model, prompt, new, draft, k=k, **options)
        plain = generate(model, torch.tensor([prompt]), new, temperature=0)[0].tolist()
        assert prompt + ours == plain
        if same:  # every guess is right
            assert passes == math.ceil(new / (k + 1))
        assert math.ceil(new / (k + 1)) <= passes <= new

    @pytest.mark.slow
    def test_drawn_texts_have_the_models_distribution(self, tiny_llama):
        shape = SHAPE | {"vocab_size": 3}
        model, small = tiny_llama(**shape), tiny_llama(**shape, num_layers=1)
        texts = torch.cartesian_prod(*[torch.arange(3)] * 3)  # (27, 3)
        whole = torch.cat([torch.tensor([[0, 1]]).expand(27, -1), texts], 1)
        steps = model(whole)[:, 1:-1].log_softmax(-1).gather(2, texts[..., None])
        exact = steps.double().sum(1).exp()[:, 0].numpy()
        found, passes = np.zeros(27), 0
        options = {"probs": softmax_probs, "generator": seeded()}
        for _ in range(1000):
            draft = draft_from_model(small, 5, **options)
            ids, took = speculate(model, [0, 1], 3, draft, k=2, **options)
            found[int(np.dot(ids, [9, 3, 1]))] += 1
            passes += took
        assert 1000 < passes < 3000  # guesses are kept, and guesses are refused
        often = exact > 0.005
        seen = [*found[often], found[~often].sum()]
        expected = np.array([*exact[often], exact[~often].sum()])
        expected *= 1000 / expected.sum()
        assert scipy.stats.chisquare(seen, expected).pvalue > 1e-3

    def test_no_gradients_are_kept(self, model):
        with torch.enable_grad():
            options = {"probs": softmax_probs, "generator": seeded()}
            watched = []

            def probs(logits: torch.Tensor) -> torch.Tensor:
                watched.append(logits.requires_grad)
                return softmax_probs(logits)

            draft = draft_from_model(model, 9, **options)
            speculate(model, [1], 5, draft, k=2, probs=probs, generator=seeded())
        assert watched and not any(watched)

    def test_a_text_may_fill_the_context_and_one_more(self, small):
        options = {"probs": greedy_probs, "generator": seeded()}
        draft = draft_from_model(small, 41, **options)
        ids, _ = speculate(small, [1, 2], 39, draft, k=3, **options)
        assert len(ids) == 39

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"prompt": []}, r"len\(prompt\) is 0: expected len\(prompt\) >= 1"),
            (
                {"max_new_tokens": 41},
                "max_new_tokens is 41, context_length is 40: expected ",
            ),
            ({"max_new_tokens": -1}, "max_new_tokens is -1: expected max_new_tokens >= 0"),
            ({"k": -1}, "k is -1: expected k >= 0"),
        ],
    )
    def test_what_cannot_be_written_is_refused(self, model, small, change, message):
        options = {"probs": greedy_probs, "generator": seeded()}
        given = {"prompt": [1], "max_new_tokens": 3, "k": 2} | change
        with pytest.raises(ValueError, match=message):
            speculate(
                model, draft=draft_from_model(small, 40, **options), **options, **given
            )

    def test_a_draft_that_gives_more_than_was_asked_for_is_refused(self, model):
        def draft(text: list[int], k: int) -> tuple[torch.Tensor, torch.Tensor]:
            return torch.zeros(k + 1, dtype=torch.long), torch.eye(V)[:1].expand(k + 1, -1)

        options = {"probs": greedy_probs, "generator": seeded()}
        with pytest.raises(ValueError, match=r"len\(drafted\) is 3, asked is 2: expected"):
            speculate(model, [1], 5, draft, k=2, **options)


class TestDevices:
    """On `meta` no number can be read, so the test stops, or pretends, where one is."""

    def test_accept_works_where_its_tensors_are(self, one_device):
        target, draft = torch.ones(3, V, device="meta"), torch.ones(2, V, device="meta")
        drafted = torch.zeros(2, dtype=torch.long, device="meta")
        with pytest.raises(RuntimeError, match="meta tensors"):
            accept(target, draft, drafted, generator=seeded())

    def test_models_read_where_they_are(self, tiny_llama, one_device, monkeypatch):
        monkeypatch.setattr("llm_learn.model.llama.check_ids", lambda *_: None)
        monkeypatch.setattr("llm_learn.speculative.sample_id", lambda *_, **__: 1)
        given = []

        def pretend(target, draft, drafted, generator):
            given.extend([target, draft, drafted])
            return torch.tensor([1]), target[0]

        monkeypatch.setattr("llm_learn.speculative.accept", pretend)
        model = tiny_llama(**SHAPE).to("meta")
        options = {"probs": softmax_probs, "generator": seeded()}
        ids, q = draft_from_model(model, 20, **options)([1, 2, 3], 4)
        assert ids.device.type == q.device.type == "meta" and q.shape == (4, V)

        def draft(text, k):  # as from a look-up, whose ids are on the CPU
            return torch.ones(k, dtype=torch.long), torch.eye(V)[[1] * k]

        ids, _ = speculate(model, [1, 2], 4, draft, k=1, **options)
        assert ids == [1] * 4
        assert {x.device.type for x in given} == {"meta"}

    def test_half_precision_is_drafted_and_checked_in_float32(self, tiny_llama):
        model = tiny_llama(**SHAPE).to(torch.bfloat16)
        options = {"probs": softmax_probs, "generator": seeded()}
        draft = draft_from_model(model, 20, **options)
        assert draft([1, 2], 3)[1].dtype == torch.float32
        watched = []

        def probs(logits):
            watched.append(logits.dtype)
            return greedy_probs(logits)

        options = {"probs": probs, "generator": seeded()}
        ours, _ = speculate(model, [1, 2], 12, draft, k=2, **options)
        assert len(ours) == 12 and set(watched) == {torch.float32}


class TestFromModel:
    @settings(max_examples=25)
    @given(
        texts=st.lists(
            st.lists(st.integers(0, 1), min_size=1, max_size=6), min_size=1, max_size=5
        ),
        k=st.integers(0, 4),
    )
    def test_it_drafts_as_without_a_cache_whatever_it_read_before(self, small, texts, k):
        """Texts of few different ids, so that many begin alike."""
        with torch.no_grad():
            draft = draft_from_model(small, 10, probs=softmax_probs, generator=seeded())
            for text in texts:
                ids, q = draft(text, k)
                assert ids.shape == (k,) and q.shape == (k, V)
                logits = small(torch.tensor([[*text, *ids.tolist()]]))[0]
                expected = softmax_probs(logits[len(text) - 1 : -1])
                torch.testing.assert_close(q, expected, rtol=0, atol=1e-5)

    def test_ids_are_drawn_from_what_it_returns(self, small):
        draft = draft_from_model(small, 10, probs=greedy_probs, generator=seeded())
        ids, q = draft([1, 2], 4)
        assert torch.equal(q.argmax(-1), ids) and (q.sum(-1) == 1).all()

    def test_a_text_beyond_its_capacity_is_refused(self, small):
        draft = draft_from_model(small, 5, probs=softmax_probs, generator=seeded())
        with pytest.raises(
            ValueError, match=r"len\(text\) is 3, k is 3, capacity is 5: expected"
        ):
            draft([1, 2, 3], 3)


def test_all_on_best_is_the_limit_of_a_low_temperature():
    logits = torch.randn(5, V, generator=seeded())
    torch.testing.assert_close(greedy_probs(logits), softmax_probs(logits / 1e-4))
