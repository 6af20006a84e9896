"""What the chapter on GRPO defines: against TRL, against sums over all answers, and its loop."""

import copy
import itertools
import math
import random

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given

from llm_learn.losses import group_advantages
from llm_learn.model import Llama, LlamaConfig
from llm_learn.optim import AdamW
from llm_learn.reference.trl import trl_grpo_loss

# Sums of a few dozen float64 numbers of size one: rounding alone is below 1e-14.
TOLERANCE = 1e-12


SLUG = "post-training/grpo"


@pytest.fixture(scope="module")
def untrained(chapter):
    torch.manual_seed(0)
    return Llama(
        LlamaConfig(
            vocab_size=len(chapter.SIGNS),
            context_length=chapter.PROMPT + chapter.ANSWER,
            d_model=16,
            d_ff=32,
            num_layers=1,
            num_heads=2,
            num_kv_heads=2,
        )
    )


def batch(seed: int) -> tuple[torch.Tensor, ...]:
    """Log-probabilities, old ones, those of a reference, advantages and a mask of 4 answers, float64."""
    generator = torch.Generator().manual_seed(seed)
    old = -3 * torch.rand(4, 9, generator=generator).double()
    logps, reference = old + 0.3 * torch.randn(2, 4, 9, generator=generator).double()
    advantages = torch.randn(4, 1, generator=generator).double().expand(4, 9)
    lengths = torch.randint(1, 10, (4, 1), generator=generator)
    return logps.requires_grad_(), old, reference, advantages, torch.arange(9) < lengths


def same_with_gradient(ours: torch.Tensor, theirs: torch.Tensor, logps: torch.Tensor):
    torch.testing.assert_close(ours, theirs, rtol=0, atol=TOLERANCE)
    slopes = [
        torch.autograd.grad(loss, logps, retain_graph=True)[0] for loss in (ours, theirs)
    ]
    torch.testing.assert_close(*slopes, rtol=0, atol=TOLERANCE)
    assert slopes[0].abs().sum() > 0


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("level", ["token", "sequence"])
@pytest.mark.parametrize(
    ("kind", "reduce"),
    [("grpo", "mean_of_answers"), ("bnpo", "mean_of_ids"), ("dr_grpo", "by_longest")],
)
def test_losses_and_their_gradients_match_trl(chapter, kind, reduce, level, seed):
    logps, old, _, advantages, mask = batch(seed)
    ratio = {"token": chapter.of_ids, "sequence": chapter.of_answers}[level]
    losses = chapter.clipped_loss(ratio(logps - old, mask), advantages, 0.05, 0.1)
    theirs = trl_grpo_loss(
        logps,
        old,
        advantages[:, 0],
        mask,
        low=0.05,
        high=0.1,
        kind=kind,
        level=level,
    )
    if level == "sequence" and kind != "grpo":
        # TRL keeps one loss an answer there, which its mask spreads over the ids.
        losses = losses[:, :1].expand_as(mask)
    same_with_gradient(getattr(chapter, reduce)(losses, mask), theirs, logps)


@pytest.mark.parametrize("weigh", [False, True])
def test_the_kl_term_matches_trl_with_and_without_the_ratio(chapter, weigh):
    logps, old, reference, advantages, mask = batch(5)
    losses = chapter.clipped_loss(logps - old, advantages, 0.2, 0.2)
    k3 = chapter.k3_of(reference - logps)
    losses = losses + 0.3 * ((logps - old).exp() * k3 if weigh else k3)
    theirs = trl_grpo_loss(
        logps,
        old,
        advantages[:, 0],
        mask,
        low=0.2,
        high=0.2,
        kind="grpo",
        ref_logps=reference,
        beta=0.3,
        weigh_kl=weigh,
    )
    same_with_gradient(chapter.mean_of_answers(losses, mask), theirs, logps)


def test_k3_with_a_ratio_of_one_has_the_gradient_of_k2_id_for_id(chapter):
    logps, _, reference, _, _ = batch(6)
    ratio = (logps - logps.detach()).exp()
    slopes = [
        torch.autograd.grad(k.sum(), logps, retain_graph=True)[0]
        for k in (
            ratio * chapter.k3_of(reference - logps),
            chapter.k2_of(reference - logps),
        )
    ]
    torch.testing.assert_close(*slopes, rtol=0, atol=TOLERANCE)


@given(st.floats(0.01, 0.99), st.integers(2, 8))
def test_the_weight_of_a_problem_is_a_sum_over_all_ways_to_be_right(
    definitions_of, chance, group
):
    chapter = definitions_of(SLUG)  # as an argument, hypothesis would print its tensors
    total = 0.0
    for way in itertools.product((0.0, 1.0), repeat=group):
        right = torch.tensor([way]).double()
        probability = math.prod(chance if r else 1 - chance for r in way)
        # The slope of log p by P: 1/P for a right answer, -1/(1 - P) for a wrong one.
        slopes = right / chance - (1 - right) / (1 - chance)
        total += probability * float((group_advantages(right) * slopes).mean())
    weight = chapter.weight_of(chance, group, group_advantages)
    assert weight == pytest.approx(total, rel=1e-9)
    assert chapter.weight_of(chance, group, chapter.centred) == pytest.approx(
        (group - 1) / group, rel=1e-9
    )


def test_the_weight_comes_near_its_limit_in_large_groups(chapter):
    for chance in (0.2, 0.5, 0.7):
        weight = chapter.weight_of(chance, 400, group_advantages)
        assert weight == pytest.approx(1 / math.sqrt(chance * (1 - chance)), rel=0.02)


def test_the_tree_has_fifteen_answers_whose_chances_sum_to_one(chapter):
    theta = torch.randn(7, 3, generator=torch.Generator().manual_seed(1)).double()
    logps = chapter.leaf_logps(theta)
    assert logps.shape == (15, 3) and len(set(chapter.LEAVES)) == 15
    assert float(logps.sum(1).exp().sum()) == pytest.approx(1)
    table = theta.log_softmax(-1)
    spelled = table[0, 1] + table[2, 1] + table[6, 0]  # b, then b after b, then a after bb
    assert float(logps.sum(1)[chapter.LEAVES.index("bba")]) == pytest.approx(float(spelled))


@given(st.floats(0.01, 0.5), st.floats(0.1, 1.0), st.floats(0.05, 2.0), st.booleans())
def test_the_best_share_is_where_gain_and_penalty_balance(
    definitions_of, start, gain, beta, forward
):
    best = definitions_of(SLUG).best_share(start, gain, beta, forward)
    share = torch.tensor(best, dtype=torch.float64, requires_grad=True)
    p, q = (share, torch.tensor(start).double())[:: 1 - 2 * forward]
    kl = p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()
    (slope,) = torch.autograd.grad(gain * share - beta * kl, share)
    share = share.detach()
    assert start <= float(share) < 1
    # By the log-odds, whose slope stays finite near a share of 1.
    assert float(slope * share * (1 - share)) == pytest.approx(0, abs=1e-6)


def test_answers_of_both_kinds_are_right_and_spoiled_ones_are_not(chapter):
    for problem in chapter.TEST[:50]:
        a, first, b, second, c, _ = problem
        signs = {chapter.PLUS: "+", chapter.MINUS: "-", chapter.TIMES: "*"}
        wanted = eval(f"(({a} {signs[first]} {b}) {signs[second]} {c}) % 7")
        assert chapter.direct(problem)[1] == wanted
        good = [chapter.direct(problem), chapter.with_steps(problem)]
        wrong = (wanted + 1) % 7
        bad = [
            (chapter.EQUALS, wrong, chapter.DONE),
            (*chapter.with_steps(problem)[:-2], wrong, chapter.DONE),
            (wanted, chapter.DONE),  # no sign =
            (chapter.EQUALS, wanted, wanted, chapter.DONE),
            (chapter.DONE,),
            tuple([chapter.EQUALS, wanted] * 7)[: chapter.ANSWER],  # no end
        ]
        rows = torch.tensor(
            [(*row, *[chapter.DONE] * (chapter.ANSWER - len(row))) for row in good + bad]
        )
        right = chapter.is_right([problem] * len(rows), rows)
        assert right.tolist() == [1.0] * len(good) + [0.0] * len(bad)


def test_an_answer_without_an_end_is_wrong_even_if_filled_up(chapter):
    problem = chapter.TEST[0]
    row = [chapter.PLUS] * (chapter.ANSWER - 2) + list(chapter.direct(problem)[:2])
    assert chapter.is_right([problem], torch.tensor([row])).tolist() == [0.0]


@pytest.mark.parametrize("changes", [{}, {"passes": 3, "mixed_only": True}, {"beta": 0.01}])
def test_the_loop_makes_more_likely_what_is_rewarded(chapter, untrained, changes):
    method = chapter.Method(learning_rate=0.02, prompts=8, samples=8, **changes)

    def begins_with_equals(problems, answers):
        return (answers[:, 0] == chapter.EQUALS).float()

    rounds = chapter.reinforced(untrained, method, 0, reward=begins_with_equals)
    means = [float(rewards.mean()) for _, rewards in itertools.islice(rounds, 1, 25)]
    assert means[0] < 0.4 and means[-1] > 0.8


def test_the_loop_stands_still_where_all_rewards_are_equal(chapter, untrained):
    rounds = chapter.reinforced(
        untrained,
        chapter.Method(prompts=2, samples=4, mixed_only=True),
        0,
        reward=lambda problems, answers: torch.ones(len(answers)),
    )
    policy, _ = next(itertools.islice(rounds, 3, 4))
    for ours, first in zip(policy.parameters(), untrained.parameters(), strict=True):
        assert torch.equal(ours, first)


@pytest.mark.parametrize("in_loss", [False, True])
@pytest.mark.parametrize("mixed_only", [False, True])
def test_the_loop_takes_the_steps_of_reinforce(chapter, untrained, in_loss, mixed_only):
    """Two rounds of one step, against the policy gradient written out, with the penalty in either place."""
    method = chapter.Method(
        advantages=chapter.centred,
        reduce=chapter.mean_of_ids,
        prompts=3,
        samples=4,
        beta=0.2,
        kl_loss=chapter.k3_of if in_loss else None,
        mixed_only=mixed_only,
        learning_rate=0.01,
    )

    def short(problems, answers):
        """Nothing for the first group, and less for longer answers for the others."""
        return (torch.arange(12) >= 4) / chapter.until_done(answers).sum(1)

    rounds = chapter.reinforced(untrained, method, 5, reward=short)
    theirs, _ = next(itertools.islice(rounds, 2, 3))

    policy = copy.deepcopy(untrained)
    optimizer = AdamW(policy.parameters(), lr=0.01, betas=(0.9, 0.95))
    generator, rng = torch.Generator().manual_seed(5), random.Random(5)
    for _ in range(2):
        problems = [p for p in rng.choices(chapter.TRAIN, k=3) for _ in range(4)]
        answers = chapter.sample(policy, problems, generator=generator)
        both = torch.cat([torch.tensor(problems), answers], dim=1)
        logps, start_logps = (
            -torch.nn.functional.cross_entropy(
                model(both[:, :-1]).mT, both[:, 1:], reduction="none"
            )[:, chapter.PROMPT - 1 :]
            for model in (policy, untrained)
        )
        mask = chapter.until_done(answers)
        log_ratio = (logps - start_logps) * mask
        rewards = short(problems, answers)
        if not in_loss:
            rewards = rewards - 0.2 * log_ratio.detach().sum(1)
        advantages = rewards - rewards.view(3, 4).mean(1).repeat_interleave(4)
        losses = -advantages.unsqueeze(1) * logps
        if in_loss:
            losses = losses + 0.2 * ((-log_ratio).exp() - 1 + log_ratio)
        # With the penalty in the rewards, all groups are mixed from the second round on.
        if mixed_only:
            mixed = [len(set(group)) > 1 for group in rewards.view(3, 4).tolist()]
            mask = mask & torch.tensor(mixed).repeat_interleave(4).unsqueeze(1)
        optimizer.zero_grad()
        (losses * mask).sum().div(mask.sum()).backward()
        torch.nn.utils.clip_grad_norm_(policy.parameters(), 1.0)
        optimizer.step()
    moved = 0.0
    for ours, other, first in zip(
        policy.parameters(), theirs.parameters(), untrained.parameters(), strict=True
    ):
        # AdamW's first steps are of size 0.01 each, whatever rounding does to tiny gradients.
        torch.testing.assert_close(ours, other, rtol=0, atol=1e-4)
        moved = max(moved, float((ours - first).detach().abs().max()))
    assert moved > 0.01
