"""What the chapter on search defines: the game, its reader, the judge's states, choices among chains, searches."""

import itertools
import math
import random
from fractions import Fraction

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings

SLUG = "reasoning/search"
SEEDS = st.integers(0, 10**6)


def game_of(chapter, seed: int):
    rng = random.Random(seed)
    hand = tuple(rng.choices(range(1, 10), k=4))
    return hand, chapter.random_game(hand, rng)


# --- The game ---


@given(st.integers(0, 40), st.integers(0, 40), st.integers(0, 3))
def test_results_are_those_of_fractions(chapter, a, b, sign):
    a, b = max(a, b), min(a, b)
    sign += chapter.PLUS
    wanted = {
        chapter.PLUS: Fraction(a + b),
        chapter.MINUS: Fraction(a - b),
        chapter.TIMES: Fraction(a * b),
        chapter.DIVIDE: Fraction(a, b) if b else None,
    }[sign]
    allowed = wanted is not None and wanted.denominator == 1 and wanted <= 40
    assert chapter.result_of(a, sign, b) == (wanted if allowed else None)


def test_results_at_the_edges_of_the_rules(chapter):
    P, M, T, D = range(chapter.PLUS, chapter.PLUS + 4)
    cases = {(31, P, 9): 40, (31, P, 10): None, (8, T, 5): 40, (41, D, 1): None}
    cases |= {(7, M, 7): 0, (9, D, 2): None, (9, D, 3): 3, (9, D, 0): None, (0, T, 0): 0}
    for operation, wanted in cases.items():
        assert chapter.result_of(*operation) == wanted, operation


@given(SEEDS)
def test_steps_depend_on_the_numbers_and_not_on_their_order(chapter, seed):
    hand, _ = game_of(chapter, seed)
    assert len(chapter.successors(hand)) == len(chapter.steps_from(hand))
    for other in itertools.permutations(hand):
        assert sorted(chapter.successors(other)) == sorted(chapter.successors(hand))
        assert chapter.steps_from(other).keys() == chapter.steps_from(hand).keys()


@given(SEEDS)
def test_endings_are_a_distribution_over_what_games_reach(chapter, seed):
    hand, game = game_of(chapter, seed)
    endings = chapter.endings(tuple(sorted(hand)))
    assert math.isclose(sum(endings.values()), 1.0)
    assert endings[game[-1][1][0]] > 0


def test_endings_of_two_numbers(chapter):
    assert chapter.endings((3, 8)) == {11: 1 / 3, 5: 1 / 3, 24: 1 / 3}
    assert chapter.endings((2, 6)) == {8: 1 / 4, 4: 1 / 4, 12: 1 / 4, 3: 1 / 4}
    assert chapter.chance((6, 4, 1)) > 0
    assert chapter.chance((1, 1, 1, 1)) == 0


def test_hidden_states_are_the_hands_and_all_that_one_step_makes_of_them(chapter):
    hands, hidden = chapter.deal(3, 20)
    assert len(set(hands)) == 20
    assert hands != chapter.deal(4, 20)[0]
    assert all(chapter.chance(hand) > 0 for hand in hands)
    after = {state for hand in hands for state in chapter.successors(hand)}
    assert hidden == after | set(hands)


# --- Lessons ---


@given(SEEDS)
def test_a_lesson_is_right_and_hides_what_is_hidden(chapter, seed):
    rng = random.Random(seed)
    _, hidden = chapter.deal(0)
    ids = chapter.lesson(hidden, rng)
    assert chapter.read(ids) == (3, True)
    assert 10 <= ids[0] <= 40
    if ids[0] == chapter.GOAL:
        assert tuple(sorted(ids[1:5])) not in hidden
        assert tuple(sorted(ids[10:13])) not in hidden


def test_lessons_of_24_are_dropped_only_where_a_state_is_hidden(chapter):
    rng = random.Random(0)
    goals = [chapter.lesson(set(), rng)[0] for _ in range(600)]
    every = set(chapter.HANDS)
    none = [chapter.lesson(every, rng)[0] for _ in range(600)]
    assert chapter.GOAL in goals
    assert chapter.GOAL not in none
    assert set(none) >= {10, 20, 30}


@given(SEEDS, st.data())
def test_the_reader_finds_the_first_wrong_id(chapter, seed, data):
    hand, game = game_of(chapter, seed)
    ids = chapter.chain_of(hand, game)
    assert chapter.read(ids) == (3, True)
    place = data.draw(st.integers(6, 23))
    other = data.draw(st.integers(0, chapter.ASK))
    step = next(i for i, (_, end) in enumerate(chapter.SPANS) if place < end)
    if other == ids[place]:
        return
    changed = [*ids[:place], other, *ids[place + 1 :]]
    steps, right = chapter.read(changed)
    assert steps >= step
    if place - chapter.SPANS[step][0] >= 3:  # the operation stands: what follows it cannot
        assert (steps, right) == (step, False)
    assert chapter.read([ids[0] + 1, *ids[1:]]) == (3, False)


def test_what_is_left_may_stand_in_any_order(chapter):
    hand, game = game_of(chapter, 1)
    ids = chapter.chain_of(hand, game)
    ids[10:13] = ids[12], ids[10], ids[11]
    assert chapter.read(ids) == (3, True)


# --- The judge ---


@given(SEEDS)
@settings(max_examples=10)
def test_no_rollout_passes_through_a_hidden_state(chapter, seed):
    _, hidden = chapter.deal(seed)
    states, ends = chapter.rollouts(30, hidden, random.Random(seed))
    assert len(states) == len(ends) == 90
    assert ((ends >= 0) & (ends <= chapter.HIGHEST)).all()
    for row in states.tolist():
        numbers = tuple(n for n in row if n != chapter.BLANK)
        assert row[: 4 - len(numbers)] == [chapter.BLANK] * (4 - len(numbers))
        assert list(numbers) == sorted(numbers)
        assert numbers not in hidden
    for triple, pair, end in zip(states[1::3], states[2::3], ends[2::3], strict=True):
        pair = tuple(pair[2:].tolist())
        assert pair in chapter.successors(tuple(triple[1:].tolist()))
        assert (int(end),) in chapter.successors(pair)


def test_a_judge_learns_where_games_end(chapter):
    _, hidden = chapter.deal(0)
    taught = chapter.teach_judge(0, hidden, games=6000, max_steps=500)
    torch.manual_seed(0)
    blank = chapter.Judge()
    triples = [state for state in hidden if len(state) == 3]
    pairs = sorted({pair for triple in triples for pair in chapter.successors(triple)})
    assert chapter.ranks(taught, pairs) > max(0.75, chapter.ranks(blank, pairs) + 0.15)
    thirty = taught.values([(5, 6), (1, 2)], goal=30)
    assert thirty[0] > thirty[1]


def test_ranked_above_counts_pairs(chapter):
    assert chapter.ranked_above([3, 1, 2], [True, False, False]) == 1
    assert chapter.ranked_above([1, 1, 2, 0], [True, False, False, False]) == 0.5


# --- Choices ---


def test_scores_of_chains(chapter):
    hand, game = (4, 6, 7, 9), None
    seed = 0
    while game is None or game[-1][1] != (chapter.GOAL,):
        game = chapter.random_game(hand, random.Random(seed))
        seed += 1
    good = chapter.chain_of(hand, game)
    no_number, elsewhere = good.copy(), good.copy()
    no_number[17] = chapter.ARROW
    elsewhere[-1] = 23
    pool = chapter.pool_of(
        lambda states: [float(sum(state)) for state in states],
        torch.tensor([[good, no_number, elsewhere]]),
    )
    pair, triple = sum(good[17:19]), sum(good[10:13])
    assert pool.scores["pair"].tolist() == [[pair, 0, 0]]
    assert pool.scores["product"].tolist() == [[pair * triple, 0, 0]]
    assert pool.legal.tolist() == [[3, 1, 2]]
    assert pool.right.tolist() == [[True, False, False]]
    assert pool.answers[0][0] == pool.answers[0][1]
    assert sorted(pool.answers[0][0]) == sorted(operation for operation, _ in game)


def test_elections(chapter):
    answers = ["a", "b", "b", "c", "a"]
    assert chapter.elected(answers, [1] * 5) == 0
    assert chapter.elected(answers, [1, 1, 2, 0, 1]) == 1
    assert chapter.elected(answers, [0, 0, 0, 1, 0.5]) == 3


@given(SEEDS, st.integers(1, 7))
def test_the_best_of_n_is_the_mean_over_all_groups(chapter, seed, n):
    rng = random.Random(seed)
    scores = torch.tensor([rng.sample(range(50), 7) for _ in range(2)]).float()
    what = torch.tensor([[rng.random() < 0.4 for _ in range(7)] for _ in range(2)])
    groups = list(itertools.combinations(range(7), n))
    wanted = sum(
        what[row, max(group, key=lambda i: scores[row, i])].item()
        for row in range(2)
        for group in groups
    ) / (2 * len(groups))
    assert math.isclose(chapter.best_of(n, scores, what), wanted, abs_tol=1e-5)


def test_a_choice_with_a_perfect_score_is_coverage(chapter):
    right = torch.rand(5, 16, generator=torch.Generator().manual_seed(0)) < 0.2
    answers = [[(i,) for i in range(16)] for _ in range(5)]
    scores = {"pair": right.float(), "product": right.float()}
    pool = chapter.Pool(answers, torch.full((5, 16), 3), right, scores)
    found = chapter.choices(pool, 16)
    any_right = right.any(1).float().mean().item()
    for name in ("best of n, pair", "best of n, legal", "weighted vote", "coverage"):
        assert math.isclose(found[name], any_right, abs_tol=1e-6), name
    assert math.isclose(
        chapter.choices(pool, 1)["majority"], right.float().mean().item(), abs_tol=1e-6
    )


def test_the_best_legal_chain_is_chosen_among_legal_ones(chapter):
    pool = chapter.Pool(
        [[("a",), ("b",), ("c",)]],
        torch.tensor([[0, 3, 3]]),
        torch.tensor([[False, True, False]]),
        {k: torch.tensor([[0.9, 0.5, 0.1]]) for k in ("pair", "product")},
    )
    found = chapter.choices(pool, 3)
    assert found["best of n, legal"] == 1
    assert found["best of n, pair"] == 0


# --- Searches ---


def counted(chapter, hands):
    return chapter.values_below(lambda states: [chapter.chance(s) for s in states], hands)


@given(SEEDS)
@settings(max_examples=20)
def test_with_a_perfect_judge_no_search_turns_back(chapter, seed):
    hand = random.Random(seed).choice(chapter.SOLVABLE)
    values = counted(chapter, [hand])
    solved, tokens = chapter.beam_of_steps(hand, 1, values)
    assert solved
    first = chapter.best_first(hand, values)
    assert first <= tokens
    assert chapter.widest_beam(hand, values, tokens)
    assert not chapter.widest_beam(hand, values, tokens - 1)


@given(SEEDS)
@settings(max_examples=20)
def test_searches_find_what_there_is(chapter, seed):
    rng = random.Random(seed)
    hand = rng.choice(chapter.HANDS)
    values = counted(chapter, [hand])
    values = chapter.shuffled(values, (2, 3), rng)
    possible = chapter.chance(hand) > 0
    assert (chapter.best_first(hand, values) < math.inf) == possible
    assert (chapter.depth_first(hand, rng) < math.inf) == possible
    assert chapter.widest_beam(hand, values, 10**9) == possible


@given(SEEDS)
@settings(max_examples=20)
def test_tokens_are_those_of_what_was_written(chapter, seed):
    rng = random.Random(seed)
    hand = rng.choice([hand for hand in chapter.HANDS if not chapter.chance(hand)])
    values = counted(chapter, [hand])
    # Without a solution, everything is written: by depth-first as often as it is reached, by best-first once a state.
    triples = chapter.successors(hand)
    pairs = [pair for triple in triples for pair in chapter.successors(triple)]
    ends = [end for pair in pairs for end in chapter.successors(pair)]
    whole = 7 * len(triples) + 6 * len(pairs) + 5 * len(ends)
    assert chapter.tokens_below(hand) == whole
    different = 10 * len(triples)
    different += sum(8 * len(chapter.successors(triple)) for triple in set(triples))
    different += sum(5 * len(chapter.successors(pair)) for pair in set(pairs))
    assert chapter.best_first(hand, values) == math.inf
    assert chapter.beam_of_steps(hand, 10**6, values) == (False, different)


def test_best_first_goes_on_from_a_state_once(chapter, monkeypatch):
    visited, successors = [], chapter.successors

    def counting(numbers):
        visited.append(numbers)
        return successors(numbers)

    monkeypatch.setitem(chapter.best_first.__globals__, "successors", counting)
    for hand in [hand for hand in chapter.HANDS if not chapter.chance(hand)][::10]:
        values = counted(chapter, [hand])
        visited.clear()
        assert chapter.best_first(hand, values) == math.inf
        assert len(visited) == len(set(visited))


@given(SEEDS)
@settings(max_examples=20)
def test_depth_first_pays_for_a_path_at_least(chapter, seed):
    rng = random.Random(seed)
    hand = rng.choice(chapter.SOLVABLE)
    tokens = chapter.depth_first(hand, rng)
    assert chapter.WRITES <= tokens <= chapter.tokens_below(hand)


def test_shuffled_values_stay_within_their_size(chapter):
    values = counted(chapter, chapter.SOLVABLE[::40])
    found = chapter.shuffled(values, (3,), random.Random(0))
    for size, same in ((2, True), (3, False)):
        old = [v for s, v in values.items() if len(s) == size]
        new = [v for s, v in found.items() if len(s) == size]
        assert sorted(old) == sorted(new)
        assert (old == new) == same


@pytest.mark.parametrize("admitted", ["all_admitted", "legal_admitted"])
def test_a_beam_of_one_chain_is_a_chain(chapter, admitted):
    player = chapter.new_player(0).eval()
    hands = chapter.SOLVABLE[:4]
    generator = torch.Generator().manual_seed(0)
    score = chapter.Judge().values
    found = chapter.beam(player, score, hands, 1, 1, generator, getattr(chapter, admitted))
    assert found.shape == (4, 24)
    assert torch.equal(found[:, :6], chapter.prompts(hands))
    found = chapter.beam(player, score, hands, 3, 2, generator, getattr(chapter, admitted))
    assert found.shape == (4, 24)


def test_a_beam_believes_the_judge_unless_rules_are_checked(chapter, monkeypatch):
    hand = (4, 6, 7, 9)
    seed, game = 0, None
    while game is None or game[-1][1] != (chapter.GOAL,):
        game = chapter.random_game(hand, random.Random(seed))
        seed += 1
    good = chapter.chain_of(hand, game)
    bad = [*good[:10], 1, 3, 8, 1, chapter.TIMES, 3, chapter.ARROW, 8, 3]
    bad += [8, chapter.TIMES, 3, chapter.ARROW, chapter.GOAL]
    assert chapter.read(bad) == (0, False)

    def proposed(player, ids, length, generator):
        """From the hand both chains by turns, from there on the one that was begun."""
        end = ids.shape[1] + length
        rows = [
            (bad if i % 2 else good)
            if ids.shape[1] == 6
            else next(row for row in (good, bad) if row[: ids.shape[1]] == begun)
            for i, begun in enumerate(ids.tolist())
        ]
        return torch.tensor([row[:end] for row in rows])

    monkeypatch.setitem(chapter.beam.__globals__, "generate", proposed)

    def score(states):
        return [0.9 if {3, 8} <= set(state) else 0.2 for state in states]

    for width, proposals in ((1, 2), (2, 2)):
        free = chapter.beam(None, score, [hand], width, proposals, None)
        ruled = chapter.beam(
            None, score, [hand], width, proposals, None, chapter.legal_admitted
        )
        assert free.tolist() == [bad]
        assert ruled.tolist() == [good]
    assert chapter.share_right(torch.tensor([good, bad])) == 0.5
