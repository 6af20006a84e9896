"""The task of the chapters on preferences: answers that end, a taste counted by hand, a judge that errs as often as said."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from llm_learn.tasks import shakespeare_line_preferences as lines
from llm_learn.tasks.shakespeare_line_preferences import (
    ANSWER,
    EOS_ID,
    LONGEST_LINE,
    PROMPT,
    SHARPNESS,
    Pairs,
    RewardModel,
    answer_logits,
    completion_mask,
    judge,
    judged_pairs,
    kl_per_token,
    line_text,
    marks_and_long_words,
    points,
    points_of,
    sample_answers,
    train_and_test,
    train_reward_model,
    words_and_lines,
)

ANSWERS = st.lists(
    st.lists(st.integers(EOS_ID - 3, EOS_ID), min_size=ANSWER, max_size=ANSWER),
    min_size=1,
    max_size=5,
)


def ids_of(*words: str) -> list[int]:
    return [words_and_lines()[0].index(word) for word in words]


def test_lines_hold_known_words_only_and_none_is_both_learned_and_asked():
    words, all_lines = words_and_lines()
    learned, asked = train_and_test()
    assert len(words) == len(set(words)) == EOS_ID
    assert len(all_lines) == len(set(all_lines)) > 10_000
    assert all(5 <= len(line) <= LONGEST_LINE and max(line) < EOS_ID for line in all_lines)
    kept = all_lines[: len(all_lines) - len(learned)]
    assert not set(kept) & set(learned) and len(kept) >= len(asked)
    assert asked.tolist() == [list(line[:PROMPT]) for line in kept[: len(asked)]]


def test_text_of_stops_at_the_end_and_sets_marks_without_a_space():
    assert line_text([*ids_of("my", "lord", "!"), EOS_ID, *ids_of("no")]) == "my lord!"
    assert line_text(torch.tensor(ids_of("o", ",", "no"))) == "o, no"
    assert line_text([EOS_ID]) == ""


@given(ANSWERS)
def test_until_end_is_every_id_up_to_the_first_end(rows):
    for row, mask in zip(rows, completion_mask(torch.tensor(rows)).tolist(), strict=True):
        length = row.index(EOS_ID) + 1 if EOS_ID in row else ANSWER
        assert mask == [True] * length + [False] * (ANSWER - length)


def test_sample_fills_up_with_end_and_depends_on_the_generator_alone(tiny_model_of_lines):
    model, prompts = tiny_model_of_lines(0), train_and_test()[1][:40]
    answers = sample_answers(model, prompts, generator=torch.Generator().manual_seed(3))
    assert answers.shape == (40, ANSWER)
    assert (answers[~completion_mask(answers)] == EOS_ID).all()
    again = sample_answers(model, prompts, generator=torch.Generator().manual_seed(3))
    assert answers.equal(again)


def test_points_count_different_long_words_and_take_off_what_comes_again():
    marks, long_words = marks_and_long_words()
    assert {words_and_lines()[0][i] for i in marks} == set(".,;:!?")
    assert set(ids_of("master", "father")) <= long_words
    assert not long_words & set(ids_of("lord", "i'll", "heart"))
    assert points(ids_of("my", "master", ",", "my", "father", ",")) == 2 - 1
    assert points(ids_of("master", "master", "master")) == 1 - 2
    assert points([EOS_ID] * ANSWER) == 0
    rows = [ids_of("master", "!"), ids_of("lord", "lord")]
    assert points_of(torch.tensor(rows)).tolist() == [1.0, -1.0]


@pytest.mark.parametrize("lead", [-1, 0, 1])
def test_judge_prefers_as_often_as_bradley_and_terry_say(lead):
    better, plain = ids_of("master", "no"), ids_of("lord", "no")
    first, second = (better, plain) if lead > 0 else (plain, better)
    first, second = (torch.tensor([row] * 20_000) for row in (first, second))
    if lead == 0:
        second = first.flip(1)
    prompts = torch.zeros(20_000, PROMPT, dtype=torch.long)
    chosen = judge(
        prompts, first, second, generator=torch.Generator().manual_seed(0)
    ).chosen
    share = float((chosen == first).all(1).float().mean())
    # 20,000 draws: a standard deviation is below .004.
    assert abs(share - 1 / (1 + math.exp(-SHARPNESS * lead))) < 0.016


def test_judge_refuses_answers_that_do_not_belong_together():
    generator, prompts = torch.Generator(), torch.zeros(3, PROMPT, dtype=torch.long)
    answers = torch.zeros(3, ANSWER, dtype=torch.long)
    with pytest.raises(
        ValueError, match=r"second has shape \(2, 10\): expected .* with B = 3, T = 10"
    ):
        judge(prompts, answers, answers[:2], generator=generator)
    with pytest.raises(
        ValueError, match=r"first has shape \(3, 10\): expected \(B, T\) with B = 2"
    ):
        judge(prompts[:2], answers, answers, generator=generator)


def test_pairs_are_the_two_answers_in_either_order(tiny_model_of_lines):
    models = tiny_model_of_lines(0), tiny_model_of_lines(1)
    pairs = judged_pairs(*models, 50, seed=5)
    prompts = lines.draw_prompts(
        50, generator=(generator := torch.Generator().manual_seed(5))
    )
    first, second = (
        sample_answers(model, prompts, generator=generator) for model in models
    )
    assert pairs.prompts.equal(prompts)
    kept = (pairs.chosen == first).all(1) & (pairs.rejected == second).all(1)
    turned = (pairs.chosen == second).all(1) & (pairs.rejected == first).all(1)
    assert (kept | turned).all() and kept.any() and turned.any()
    some = pairs[torch.tensor([3, 1])]
    assert isinstance(some, Pairs)
    for name in ("prompts", "chosen", "rejected"):
        assert getattr(some, name).equal(getattr(pairs, name)[[3, 1]])
    again = judged_pairs(*models, 50, seed=5)
    assert again.chosen.equal(pairs.chosen)


@pytest.mark.parametrize("seed", [0, 3])
def test_a_model_of_lines_is_tuned_to_finish_them(monkeypatch, seed):
    seen = []
    monkeypatch.setattr(lines, "fine_tune", lambda *a, **k: seen.append((a, k)))
    model = lines.model_of_lines(seed)
    (((tuned, examples, _), options),) = seen
    assert tuned is model and options["pad_id"] == EOS_ID
    assert options["generator"].initial_seed() == seed
    assert len(examples) == len(train_and_test()[0])
    for (ids, loss_mask), line in zip(examples[:50], train_and_test()[0], strict=False):
        assert ids == (*line, EOS_ID)
        assert loss_mask == [False, *[True] * len(line)]
    shape = model.config
    assert (shape.vocab_size, shape.context_length) == (EOS_ID + 1, PROMPT + ANSWER)
    torch.manual_seed(seed)
    assert model.token_embedding.weight.equal(type(model)(shape).token_embedding.weight)


def test_a_reward_model_begins_with_zero_and_reads_the_last_id(tiny_model_of_lines):
    model, prompts = tiny_model_of_lines(0), train_and_test()[1][:20]
    answers = sample_answers(model, prompts, generator=torch.Generator().manual_seed(0))
    rewards = RewardModel(model)
    assert not rewards.score(prompts, answers).any()
    assert rewards.body.token_embedding.weight is not model.token_embedding.weight
    torch.nn.init.normal_(rewards.head.weight)
    answers[::2, 3:] = EOS_ID
    lengths = completion_mask(answers).sum(1)
    assert lengths.min() < lengths.max()
    ids = torch.cat([prompts, answers], dim=1)
    for found, row, n in zip(
        rewards.score(prompts, answers), ids, lengths.tolist(), strict=True
    ):
        alone = rewards(row[None, : PROMPT + n])[0, -1]
        torch.testing.assert_close(found, alone, rtol=0, atol=1e-5)


def test_a_trained_reward_model_prefers_what_was_chosen_and_has_scaled_scores(
    tiny_model_of_lines,
):
    model = tiny_model_of_lines(0)
    pairs = judged_pairs(model, model, 128, seed=1)
    before = model.token_embedding.weight.clone()
    rewards = train_reward_model(model, pairs, pairs, seed=0)
    assert model.token_embedding.weight.equal(before)
    with torch.no_grad():
        chosen, rejected = rewards.score_pairs(pairs)
    both = torch.cat([chosen, rejected])
    torch.testing.assert_close(both.mean(), torch.tensor(0.0), rtol=0, atol=1e-4)
    torch.testing.assert_close(both.std(), torch.tensor(1.0), rtol=1e-4, atol=0)
    assert (chosen > rejected).float().mean() > 0.6
    again = train_reward_model(model, pairs, pairs, seed=0)
    assert again.head.weight.equal(rewards.head.weight)


def test_an_optimizer_step_has_clipped_gradients():
    layer = torch.nn.Linear(2, 1, bias=False)
    before = layer.weight.detach().clone()
    optimizer = torch.optim.SGD(layer.parameters(), lr=1.0)
    for _ in range(2):  # the second forgets the gradients of the first
        lines.optimizer_step(100 * layer(torch.ones(1, 2)).sum(), layer, optimizer)
    torch.testing.assert_close(before - layer.weight, torch.full((1, 2), 2 * 0.5**0.5))


def test_answer_logits_stand_before_the_ids_that_they_expect(tiny_model_of_lines):
    model, prompts = tiny_model_of_lines(2), train_and_test()[1][:3]
    answers = sample_answers(model, prompts, generator=torch.Generator().manual_seed(0))
    logits = answer_logits(model, prompts, answers)
    assert logits.shape == (3, ANSWER, EOS_ID + 1)
    for t in range(ANSWER):
        alone = model(torch.cat([prompts, answers[:, :t]], dim=1))[:, -1]
        # float32, one block, logits of size 1.
        torch.testing.assert_close(logits[:, t], alone, rtol=0, atol=1e-5)


def test_kl_at_each_is_torchs_and_nothing_of_a_model_from_itself(tiny_model_of_lines):
    policy, reference = tiny_model_of_lines(3), tiny_model_of_lines(4)
    prompts = train_and_test()[1][:5]
    answers = sample_answers(policy, prompts, generator=torch.Generator().manual_seed(0))
    kl = kl_per_token(policy, reference, prompts, answers)
    with torch.no_grad():
        logps, reference_logps = (
            answer_logits(model, prompts, answers).double().log_softmax(-1)
            for model in (policy, reference)
        )
    wanted = F.kl_div(reference_logps, logps, log_target=True, reduction="none").sum(-1)
    torch.testing.assert_close(kl.double(), wanted, rtol=1e-4, atol=1e-5)
    assert (kl > 0).all() and not kl_per_token(policy, policy, prompts, answers).any()
