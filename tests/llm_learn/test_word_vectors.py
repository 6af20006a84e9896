"""Word vectors by prediction: gradients, pairs, training."""

from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from llm_learn.word_vectors import neighbour_pairs, sgns_gradients, train_skip_gram

MANY = torch.randint(2, 10, (5000,), generator=torch.Generator().manual_seed(0))
SETTINGS = {"num_words": 12, "dim": 6, "learning_rate": 0.5}


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class TestGradients:
    """Reference: PyTorch differentiates the loss."""

    @pytest.mark.parametrize("num_noise", [0, 1, 5])
    def test_they_are_those_of_autograd(self, num_noise):
        v = torch.randn(7, 4, dtype=torch.float64, generator=seeded())
        u = torch.randn(7, 1 + num_noise, 4, dtype=torch.float64, generator=seeded(1))
        leaves = v.clone().requires_grad_(), u.clone().requires_grad_()
        scores = torch.einsum("bd,bkd->bk", *leaves)
        signs = torch.tensor([1.0] + [-1.0] * num_noise)
        loss = -F.logsigmoid(signs * scores).sum()
        expected = torch.autograd.grad(loss, leaves)
        torch.testing.assert_close(sgns_gradients(v, u), expected)

    def test_shapes_that_do_not_match_are_refused(self):
        with pytest.raises(
            ValueError, match=r"u has shape \(2, 6, 4\): .* with B = 3, D = 4"
        ):
            sgns_gradients(torch.zeros(3, 4), torch.zeros(2, 6, 4))


class TestPairs:
    @settings(max_examples=30, deadline=None)
    @given(st.lists(st.integers(1, 12), min_size=1, max_size=4), st.integers(1, 6))
    def test_they_stand_within_the_window_of_one_text(self, lengths, radius):
        """Every occurrence has an id of its own, so that a pair tells where it stood."""
        ids = torch.arange(sum(lengths))
        texts = list(ids.split(lengths))
        if max(lengths) < 2:
            with pytest.raises(ValueError, match="no two words"):
                neighbour_pairs(texts, torch.ones(len(ids)), radius, generator=seeded())
            return
        words, contexts = neighbour_pairs(
            texts, torch.ones(len(ids)), radius, generator=seeded()
        )
        pairs = list(zip(words.tolist(), contexts.tolist(), strict=True))
        assert len(set(pairs)) == len(pairs)
        text_of = [number for number, n in enumerate(lengths) for _ in range(n)]
        for word, context in pairs:
            assert 1 <= abs(word - context) <= radius and text_of[word] == text_of[context]
        # The nearest are in every window.
        for text in texts:
            for a, b in zip(text[:-1].tolist(), text[1:].tolist(), strict=True):
                assert (a, b) in pairs and (b, a) in pairs

    def test_a_distance_is_seen_as_often_as_a_window_reaches_it(self):
        ids, radius = torch.arange(20_000), 4
        words, contexts = neighbour_pairs(
            [ids], torch.ones(len(ids)), radius, generator=seeded()
        )
        seen = Counter((words - contexts).abs().tolist())
        for distance in range(1, radius + 1):
            share = seen[distance] / (2 * len(ids))
            assert share == pytest.approx((radius + 1 - distance) / radius, abs=0.02)

    def test_words_are_dropped_before_windows_are_laid(self):
        """Word 0 never stays; its neighbours on both sides then stand beside each other."""
        text = torch.tensor([1, 0, 0, 0, 2])
        keep = torch.tensor([0.0, 1.0, 2.0])
        words, contexts = neighbour_pairs([text], keep, 1, generator=seeded())
        assert sorted(zip(words.tolist(), contexts.tolist(), strict=True)) == [
            (1, 2),
            (2, 1),
        ]

    def test_a_window_without_width_is_refused(self):
        with pytest.raises(ValueError, match="radius is 0"):
            neighbour_pairs([torch.arange(4)], torch.ones(4), 0, generator=seeded())


class TestTraining:
    def test_one_batch_is_one_step_along_the_gradient(self):
        words, contexts = torch.tensor([0, 1, 0]), torch.tensor([2, 3, 2])
        noise = torch.tensor([4, 5, 6, 7, 8, 9])
        v, u = train_skip_gram(
            words, contexts, noise, **SETTINGS, num_noise=2, batch_size=3
        )
        before = (torch.rand(12, 6, generator=seeded()) - 0.5) / 6
        start, others = before.clone().requires_grad_(), torch.zeros(12, 6).requires_grad_()
        rows = torch.cat([contexts[:, None], noise.view(3, 2)], 1)
        scores = torch.einsum("bd,bkd->bk", start[words], others[rows])
        loss = -F.logsigmoid(torch.tensor([1.0, -1.0, -1.0]) * scores).sum()
        loss.backward()
        torch.testing.assert_close(v, before - 0.5 * start.grad)
        torch.testing.assert_close(u, -0.5 * others.grad)

    def test_noise_is_gone_through_in_order_and_again(self):
        """Three pairs, two rows of noise: the third pair gets the first row."""
        words, contexts = torch.tensor([0, 0, 0]), torch.tensor([1, 1, 1])
        noise = torch.tensor([4, 5, 6, 7, 11])  # the last fills no row
        _, u = train_skip_gram(words, contexts, noise, **SETTINGS, num_noise=2)
        moved = u.abs().sum(1) > 0
        assert moved.nonzero().flatten().tolist() == [1, 4, 5, 6, 7]
        assert u[4].norm() > 1.9 * u[6].norm()

    def test_the_rate_falls_to_zero(self):
        """The second half of the pairs moves half as far in its batch, the first being nothing."""
        words, contexts = torch.tensor([0, 3]), torch.tensor([1, 4])
        noise = torch.tensor([7, 8])
        _, u = train_skip_gram(
            words, contexts, noise, **SETTINGS, num_noise=1, batch_size=1
        )
        v = (torch.rand(12, 6, generator=seeded()) - 0.5) / 6
        torch.testing.assert_close(u[1], 0.5 * 0.5 * v[0])
        torch.testing.assert_close(u[4], 0.25 * 0.5 * v[3])

    def test_learning_words_of_one_topic_get_one_direction(self):
        """Two topics of six words that never meet."""
        generator = seeded()
        topic = torch.randint(2, (12_000,), generator=generator)
        words, contexts = (
            6 * topic + torch.randint(6, (12_000,), generator=generator) for _ in range(2)
        )
        noise = torch.randint(12, (10_000,), generator=generator)
        v, _ = train_skip_gram(
            words, contexts, noise, num_words=12, dim=6, learning_rate=0.05, batch_size=64
        )
        cosines = F.normalize(v, dim=1) @ F.normalize(v, dim=1).T
        same = torch.block_diag(torch.ones(6, 6), torch.ones(6, 6)).bool()
        assert cosines[same].min() > cosines[~same].max() + 0.3

    def test_a_seed_repeats_itself(self):
        pairs = MANY[:100], MANY[100:200]
        one, same, other = (
            train_skip_gram(*pairs, MANY, **SETTINGS, seed=seed) for seed in (0, 0, 1)
        )
        assert torch.equal(one[0], same[0]) and not torch.equal(one[0], other[0])

    @pytest.mark.parametrize(
        ("changed", "message"),
        [
            ({"words": torch.arange(3)}, r"contexts has shape \(2,\) .*with N = 3"),
            (
                {"words": MANY[:0], "contexts": MANY[:0]},
                r"words has shape \(0,\): expected \(N,\) with N >= 1",
            ),
            ({"num_noise": 0}, "num_noise is 0"),
            (
                {"num_noise": 9},
                r"num_noise is 9, noise has shape \(4,\): .*1 <= num_noise <= M",
            ),
            (
                {"contexts": torch.tensor([1, 12])},
                r"contexts.min\(\) is 1, contexts.max\(\) is 12, num_words is 12: expected",
            ),
            (
                {"noise": torch.tensor([-1, 2, 3, 4])},
                r"noise.min\(\) is -1, noise.max\(\) is 4",
            ),
        ],
    )
    def test_what_cannot_work_is_refused(self, changed, message):
        given = {
            "words": torch.tensor([0, 1]),
            "contexts": torch.tensor([2, 3]),
            "noise": torch.tensor([4, 5, 6, 7]),
            "num_noise": 2,
        }
        with pytest.raises(ValueError, match=message):
            train_skip_gram(**given | changed, **SETTINGS)
