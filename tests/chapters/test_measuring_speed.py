"""The chapter on benchmarks: its race, its simulated machines, and the forms that it races."""

import copy
import gc

import pytest
import torch
from torch.nn import functional as F

from llm_learn.attention import causal_mask
from llm_learn.model import GPT, GPTConfig

SLUG = "capstone/measuring-speed"


def quiet(now, rng):
    return 1.0


class TestRace:
    def test_everybody_runs_in_each_round_and_each_begins_in_turn(self, chapter):
        called = []
        contestants = {name: lambda name=name: called.append(name) for name in "abc"}
        seconds = chapter.race(contestants, 5)
        assert "".join(called) == "abcbcacababcbca"
        assert {name: len(runs) for name, runs in seconds.items()} == dict.fromkeys(
            "abc", 5
        )

    def test_each_gets_the_time_that_passed_while_it_ran(self, chapter):
        now = 0.0

        def takes(seconds):
            nonlocal now
            now += seconds

        contestants = {"ours": lambda: takes(2.0), "theirs": lambda: takes(3.0)}
        assert chapter.race(contestants, 2, lambda: now) == {
            "ours": [2.0, 2.0],
            "theirs": [3.0, 3.0],
        }

    def test_a_speed_up_is_the_median_of_the_rounds_not_the_ratio_of_medians(self, chapter):
        seconds = {"ours": [1.0, 2.0, 4.0], "theirs": [3.0, 2.0, 2.0]}
        assert chapter.speedup(seconds, "ours", "theirs") == [1.0, 0.5, 3.0]
        assert chapter.speedup(seconds, "theirs", "ours") == [1.0, 1 / 3, 2.0]

    def test_a_tie_is_what_a_fair_coin_does_more_than_once_in_twenty(self, chapter):
        ties = [(5, 5), (5, 6), (1, 6), (7, 9), (9, 12), (3, 12)]
        assert all(chapter.is_tie(*found) for found in ties)
        no_ties = [(6, 6), (0, 6), (8, 9), (10, 12), (2, 12)]
        assert not any(chapter.is_tie(*found) for found in no_ties)

    def test_a_race_counts_the_rounds_that_each_has_won(self, chapter, monkeypatch):
        runs = {"ours": [1.0] * 6, "theirs": [2.0] * 6, "best": [2.0] + [0.5] * 5}
        monkeypatch.setitem(chapter.hold.__globals__, "race", lambda *_: runs)
        _ = chapter.hold("some", dict.fromkeys(runs), 6, "theirs", {"ours": "best"})
        gc.unfreeze()
        assert chapter.WON["some", "ours"] == [(6, 6), (1, 6)]
        assert chapter.rounds_won("some", "ours") == "faster in 6 of 6 rounds"
        assert chapter.rounds_won("some", "ours", 1) == "faster in 1 of 6 rounds, a tie"

    def test_a_bar_is_met_by_all_rounds_and_missed_by_all(self, chapter):
        found = [1.2, 1.0, 1.5]
        verdicts = [chapter.verdict_on(found, bar) for bar in (0.9, 1.0, 1.1, 1.4, 1.6)]
        assert verdicts == ["met", "met", "open", "open", "missed"]


class TestMachines:
    def test_the_clock_shows_the_work(self, chapter):
        machine = chapter.Machine(lambda now, rng: 2.0, seed=0)
        machine.work(3.0)
        assert 6.0 <= machine.clock() <= 6.06

    def test_a_seed_repeats_itself(self, chapter):
        slowness = chapter.MACHINES["interrupted"]
        one, same, other = (
            chapter.race(chapter.contestants_on(m), 6, m.clock)
            for m in (chapter.Machine(slowness, seed) for seed in (1, 1, 2))
        )
        assert one == same != other

    @pytest.mark.parametrize("kind", ["quiet", "slowing down", "sometimes fast"])
    def test_in_turns_the_median_finds_the_truth(self, chapter, kind):
        found = chapter.simulated(
            "in turns, median of ratios", chapter.MACHINES[kind], times=40
        )
        assert found.median().item() == pytest.approx(chapter.TRUTH, rel=0.02)

    def test_one_after_the_other_is_wrong_where_the_machine_slows_down(self, chapter):
        way = "one after the other, means"
        found = chapter.simulated(way, chapter.MACHINES["slowing down"], times=20)
        assert found.min() > 1.3 * chapter.TRUTH
        assert chapter.simulated(way, quiet, times=20).max() < 1.02 * chapter.TRUTH

    def test_one_alone_has_all_its_rounds_before_the_next_begins(self, chapter):
        called = []
        contestants = {name: lambda name=name: called.append(name) for name in "ab"}
        _ = chapter.one_after_the_other(contestants, 3, lambda: 0.0)
        assert "".join(called) == "aaabbb"


class TestForms:
    @pytest.mark.parametrize("length", [1, 5, 16, 37])
    @pytest.mark.parametrize("size", [1, 8, 64])
    def test_bands_are_the_whole_attention(self, chapter, length, size):
        generator = torch.Generator().manual_seed(length)
        q, k, v = torch.randn(3, 2, 3, length, 8, dtype=torch.float64, generator=generator)
        whole = F.scaled_dot_product_attention(q, k, v, causal_mask(length))
        torch.testing.assert_close(chapter.in_bands(q, k, v, size), whole)

    def test_fused_attention_changes_no_score_and_no_model(self, chapter):
        torch.manual_seed(0)
        shape = {"vocab_size": 19, "context_length": 9, "d_model": 16, "num_layers": 2}
        model, ids = GPT(GPTConfig(**shape, num_heads=2)), torch.randint(19, (3, 9))
        kind = type(model.blocks[0].attention)
        torch.testing.assert_close(chapter.with_fused_attention(model)(ids), model(ids))
        assert type(model.blocks[0].attention) is kind


@pytest.mark.usefixtures("no_gradients")
class TestDecoder:
    @pytest.fixture
    def model(self, tiny_llama):
        model = tiny_llama(d_model=32, d_ff=64, vocab_size=48, num_kv_heads=2)
        for parameter in model.parameters():
            parameter.normal_(std=0.2)  # norms too: ones would hide a forgotten one
        return model.eval()

    @pytest.mark.slow
    @pytest.mark.parametrize("product", ["in_float32", "plain"])
    def test_its_scores_are_the_model_s(self, chapter, model, product):
        make = getattr(chapter, product, lambda weight: lambda x: F.linear(x, weight))
        ids = torch.randint(48, (12,), generator=torch.Generator().manual_seed(0)).tolist()
        decoder = chapter.Decoder(model, 16, make)
        whole = model(torch.tensor([ids]))[0]
        for _ in range(2):  # from the beginning again: nothing is left of the first time
            decoder.length = 0
            scores = torch.cat([decoder(token) for token in ids])
            torch.testing.assert_close(scores, whole, rtol=0, atol=1e-4)

    def test_the_model_keeps_its_weights(self, chapter, model):
        before = copy.deepcopy(model.state_dict())
        decoder = chapter.Decoder(model, 8, chapter.in_float32)
        _ = chapter.write(decoder, [3, 5], 4)
        assert all(torch.equal(model.state_dict()[name], before[name]) for name in before)

    def test_it_writes_the_most_likely(self, chapter, model):
        decoder = chapter.Decoder(model, 16, chapter.in_float32)
        ids = [7, 2, 9]
        for _ in range(5):
            ids.append(model(torch.tensor([ids]))[0, -1].argmax().item())
        assert chapter.write(decoder, ids[:3], 5) == ids

    def test_eight_bits_are_near(self, chapter):
        generator = torch.Generator().manual_seed(0)
        weight, x = (
            torch.randn(48, 64, generator=generator),
            torch.randn(1, 64, generator=generator),
        )
        exact = x @ weight.T
        off = (chapter.in_eight_bits(weight)(x) - exact).norm() / exact.norm()
        assert 0 < off < 0.03
