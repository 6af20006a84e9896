"""The chapter on model editing: worlds, the smallest update, and what an edit is asked."""

import random
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

SLUG = "inside/model-editing"

pytestmark = pytest.mark.usefixtures("no_gradients")


@pytest.fixture(scope="module")
def world(chapter):
    return chapter.draw_world(5)


@pytest.fixture(scope="module")
def untrained(chapter, tiny_llama, world):
    model = tiny_llama(vocab_size=len(chapter.WORDS), context_length=16)
    people = list(dict.fromkeys(person for person, _ in world))
    facts = [(fact, k) for fact in world for k in range(4)]
    asked = [(f, k) for f, k in facts if f[0] in people[: 16 if k else 28]]
    told = [(f, k) for f, k in facts if f[0] in people[28:]]
    return chapter.Planted(world, model.requires_grad_(False), chapter.prompts(asked), told)


def draw(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, dtype=torch.double, generator=generator)


class TestWorld:
    def test_everyone_has_four_facts_and_the_region_follows(self, chapter, world):
        people = {person for person, _ in world}
        silent = len(chapter.NO_REGION)
        assert len(people) == chapter.NUM_PEOPLE and len(world) == 4 * len(people) - silent
        for (person, relation), value in world.items():
            assert value in chapter.VALUES[relation]
            if relation == "region":
                assert value == chapter.region_of(world[person, "home"])
        assert world == chapter.draw_world(5) != chapter.draw_world(6)

    def test_prompts_end_before_the_answer_and_know_where_the_name_is(self, chapter, world):
        facts = [(fact, k) for fact in world for k in range(4)]
        asked = chapter.prompts(facts)
        for i, ((person, relation), k) in enumerate(facts):
            words = [chapter.WORDS[j] for j in asked.ids[i].tolist()]
            sentence = chapter.SENTENCES[relation][k].format(person).split()
            assert words[: asked.last[i] + 1] == ["<s>", *sentence]
            assert set(words[asked.last[i] + 1 :]) <= {"."}
            assert words[asked.name[i]] == person.split()[1]

    def test_edits_are_new_and_a_new_home_lies_in_another_region(self, chapter, untrained):
        edits = chapter.draw_edits(untrained, {"home": 9, "trade": 5}, seed=1)
        assert len(edits) == 14
        assert edits == chapter.draw_edits(untrained, {"home": 9, "trade": 5}, seed=1)
        assert edits != chapter.draw_edits(untrained, {"home": 9, "trade": 5}, seed=2)
        asked = {fact for fact, k in untrained.asked.facts if k > 0}
        for fact, value in edits.items():
            old = untrained.world[fact]
            assert fact in asked and value != old and value in chapter.VALUES[fact[1]]
            if fact[1] == "home":
                assert chapter.region_of(value) != chapter.region_of(old)


class TestScores:
    def test_a_model_that_says_what_is_asked_is_right_in_every_column(
        self, chapter, untrained, monkeypatch
    ):
        edits = chapter.draw_edits(untrained, {"home": 2, "trade": 1}, seed=0)
        new = untrained.world | edits
        for (person, relation), value in edits.items():
            if relation == "home":
                new[person, "region"] = chapter.region_of(value)

        def says(world):
            answers = chapter.truth(untrained.asked.facts, world).tolist()
            monkeypatch.setattr(chapter.Planted, "answers", lambda self: answers)
            return chapter.scores(untrained, edits)

        assert says(new) == dict.fromkeys(says(new), 1.0)
        assert set(says(new)) == set(chapter.GROUPS)
        old = says(untrained.world)
        assert old["sentence"] == old["other words"] == old["what follows"] == 0
        assert old["same person"] == old["same answer"] == old["others"] == 1

    def test_groups_are_about_whom_they_say(self, chapter, untrained, monkeypatch):
        (person, relation), value = next(
            iter(chapter.draw_edits(untrained, {"trade": 1}, seed=3).items())
        )
        fact, old = (person, relation), untrained.world[person, relation]

        def wrong(about):
            right = untrained.world | {fact: value}
            return [
                -1 if about(f) else chapter.INDEX[right[f]]
                for f, _ in untrained.asked.facts
            ]

        for group, about in {
            "same person": lambda f: f[0] == person and f != fact,
            "same answer": lambda f: (
                f[0] != person and f[1] == relation and untrained.world[f] == old
            ),
        }.items():
            answers = wrong(about)
            monkeypatch.setattr(chapter.Planted, "answers", lambda self, a=answers: a)
            result = chapter.scores(untrained, {fact: value})
            assert result.pop(group) == 0 and set(result.values()) == {1.0}

    def test_means_leave_out_what_an_edit_does_not_have(self, chapter):
        means = chapter.mean_scores([{"sentence": 1.0}, {"sentence": 0.0, "others": 0.5}])
        assert means == {"sentence": 0.5, "others": 0.5}


class TestSmallestUpdate:
    @given(
        st.integers(1, 6), st.integers(1, 5), st.integers(1, 4), st.integers(0, 2**32 - 1)
    )
    def test_keys_get_their_values_and_no_other_change_costs_less(
        self, chapter, num_facts, num_outputs, more, seed
    ):
        size = num_facts + more
        generator = torch.Generator().manual_seed(seed)
        weight, keys, values, others, move = (
            torch.randn(shape, dtype=torch.double, generator=generator)
            for shape in (
                (num_outputs, size),
                (num_facts, size),
                (num_facts, num_outputs),
                (3 * size, size),
                (num_outputs, size),
            )
        )
        moments = chapter.second_moments(others)
        change = chapter.smallest_update(weight, keys, values, moments) - weight
        assert torch.allclose(keys @ (weight + change).T, values, atol=1e-6)
        assert torch.linalg.matrix_rank(change) <= num_facts
        # A move that no key feels: a change by it keeps the values, and must not be cheaper.
        free = torch.eye(size, dtype=torch.double) - torch.linalg.pinv(keys) @ keys
        for scale in (1e-3, 0.1, 1.0):
            other = change + scale * move @ free
            least, cost = (torch.trace(x @ moments @ x.T) for x in (change, other))
            assert cost >= least * (1 - 1e-9)

    def test_the_soft_update_is_the_exact_one_if_nothing_else_counts(self, chapter):
        weight, keys, values = draw(3, 8), draw(2, 8, seed=1), draw(2, 3, seed=2)
        moments = chapter.second_moments(draw(30, 8, seed=3))
        exact = chapter.smallest_update(weight, keys, values, moments)
        near = chapter.soft_update(weight, keys, values, moments, staying=1e-7)
        assert torch.allclose(near, exact, atol=1e-5)

    def test_the_soft_update_has_the_least_sum_of_errors(self, chapter):
        weight, keys, values = draw(3, 8), draw(2, 8, seed=1), draw(2, 3, seed=2)
        moments = chapter.second_moments(draw(30, 8, seed=3))

        def errors(new):
            change = new - weight
            told = 5 * torch.trace(change @ moments @ change.T)
            return told + (keys @ new.T - values).square().sum()

        best = chapter.soft_update(weight, keys, values, moments, staying=5)
        for seed in range(20):
            other = best + 0.01 * draw(3, 8, seed=10 + seed)
            assert errors(best) < errors(other)
        assert errors(best) < errors(weight)

    def test_moments_are_means_of_products_and_can_be_inverted(self, chapter):
        keys = draw(3, 8)
        moments = chapter.second_moments(keys, decay=0.0)
        assert torch.allclose(moments, sum(torch.outer(k, k) for k in keys) / 3)
        assert torch.linalg.cond(chapter.second_moments(keys)) < 1e5

    def test_a_key_at_right_angles_is_not_moved(self, chapter):
        keys = torch.eye(4, dtype=torch.double)
        moments = chapter.second_moments(keys)
        new = chapter.smallest_update(draw(3, 4), keys[:1], draw(1, 3, seed=1), moments)
        assert torch.allclose(new[:, 1:], draw(3, 4)[:, 1:])


class TestEdits:
    def test_the_value_that_was_searched_brings_the_answer(self, chapter, untrained):
        facts = [(fact, 0) for fact in list(untrained.world)[:3]]
        asked, model = chapter.prompts(facts), untrained.model
        answers = torch.tensor([chapter.INDEX[w] for w in ("Lima", "nurse", "harp")])
        values, reached = chapter.values_for(
            model,
            asked,
            answers,
            1,
            asked.last,
            learning_rate=1.0,
            max_steps=300,
            enough=0.2,
        )
        assert reached.all()
        rows = torch.arange(3)

        def put(x):
            x = x.clone()
            x[rows, asked.last] = values
            return x

        with chapter.changed(model, {("mlp", 1): put}):
            logits = chapter.next_logits(model, asked.ids, asked.last)
        assert (logits.softmax(-1)[rows, answers] > 0.2).all()

    def test_each_value_is_searched_for_itself(self, chapter, untrained):
        facts = [(fact, 0) for fact in list(untrained.world)[:3]]
        answers = torch.tensor([chapter.INDEX[w] for w in ("Lima", "nurse", "harp")])
        how = {"learning_rate": 1.0, "max_steps": 300, "enough": 0.2}

        def search(which):
            asked = chapter.prompts([facts[i] for i in which])
            return chapter.values_for(
                untrained.model, asked, answers[which], 1, asked.last, **how
            )[0]

        together, alone = search([0, 1, 2]), torch.cat([search([i]) for i in range(3)])
        assert torch.allclose(together, alone, atol=1e-2)

    def test_an_edit_of_a_value_that_it_has_changes_nothing(self, chapter, untrained):
        facts = [(fact, 0) for fact in list(untrained.world)[:3]]
        asked = chapter.prompts(facts)
        values, _ = chapter.values_for(
            untrained.model, asked, torch.zeros(3, dtype=int), 1, asked.name, enough=1e-9
        )
        keys = chapter.keys_of(untrained.model, asked, 1, asked.name)
        weight = chapter.weight_of(untrained.model, 1)
        assert torch.allclose(values, keys @ weight.T, atol=1e-5)

    @pytest.mark.parametrize("spot", ["last", "name"])
    def test_the_model_is_left_as_it_was(self, chapter, untrained, spot):
        before = {k: v.clone() for k, v in untrained.model.state_dict().items()}
        edits = chapter.draw_edits(untrained, {"trade": 2}, seed=0)
        moments = chapter.told_moments(untrained, 1)
        results, _ = chapter.rank_one(untrained, edits, 1, spot, moments)
        _ = chapter.all_at_once(untrained, edits, chapter.UPDATES)
        _ = chapter.tune(untrained, edits, rehearse=True)
        assert len(results) == 2
        after = untrained.model.state_dict()
        assert all(torch.equal(after[k], v) for k, v in before.items())

    def test_what_is_told_is_what_is_rehearsed(self, chapter, untrained):
        edits = chapter.draw_edits(untrained, {"trade": 1}, seed=0)
        trained = [
            chapter.tune(replace(untrained, told=[sentence] * 16), edits, rehearse=True)[0]
            for sentence in (*untrained.told[:2], untrained.told[0])
        ]
        one, other, again = (p.model.token_embedding.weight for p in trained)
        assert torch.equal(one, again) and not torch.equal(one, other)

    def test_training_brings_the_answer(self, chapter, untrained):
        edits = chapter.draw_edits(untrained, {"trade": 1, "home": 1}, seed=0)
        trained, steps = chapter.tune(untrained, edits, rehearse=True, learning_rate=3e-3)
        assert 0 < steps < 79
        assert chapter.scores(trained, edits)["sentence"] == 1


class TestTrace:
    def test_all_that_is_given_back_brings_all_back(self, chapter, untrained):
        generator = torch.Generator().manual_seed(0)
        back = chapter.trace(untrained, "stream", generator=generator)
        assert back.shape == (3, untrained.model.config.num_layers)
        mlp = chapter.trace(untrained, "mlp", generator=generator)
        # Before the first block only the name is drowned: it gives back all, other words nothing.
        assert torch.allclose(back[:, 0], torch.tensor([1.0, 0, 0]), atol=1e-4)
        # After the last feed-forward layer, nobody reads any word but the last.
        assert torch.allclose(mlp[:2, -1], torch.zeros(2), atol=1e-4)


class TestNameAndBeginnings:
    def test_without_a_step_the_value_is_what_the_layer_writes(
        self, chapter, untrained, world
    ):
        fact = next(fact for fact in world if fact[1] == "trade")
        rng = random.Random(0)
        key, value = chapter.name_and_beginnings(untrained, fact, 3, rng, max_steps=0)
        asked = chapter.prompts([(fact, 0)])
        places = [("mlp", 0), ("neurons", 0)]
        _, seen = chapter.run_with_cache(untrained.model, asked.ids, places)
        written = seen["mlp", 0][0, asked.name[0]]
        torch.testing.assert_close(value, written, rtol=0, atol=1e-5)
        assert key.shape == seen["neurons", 0].shape[-1:]
        assert not torch.allclose(key, seen["neurons", 0][0, asked.name[0]])  # a mean

    def test_the_value_makes_the_answer_more_likely(self, chapter, untrained, world):
        fact = next(fact for fact in world if fact[1] == "trade")
        _, value = chapter.name_and_beginnings(untrained, fact, 3, random.Random(0))
        asked, chances = chapter.prompts([(fact, 0)]), []
        for change in ({}, {("mlp", 0): lambda x: put(x, asked.name[0], value)}):
            with chapter.changed(untrained.model, change):
                logits = chapter.next_logits(untrained.model, asked.ids, asked.last)
            chances.append(logits.softmax(-1)[0, 3].item())
        assert chances[1] > 1.5 * chances[0]


def put(x, position, value):
    """x, (1, T, C), with a value at a position."""
    x = x.clone()
    x[0, position] = value
    return x
