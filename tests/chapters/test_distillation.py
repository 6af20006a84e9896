"""What the chapter on distillation defines: against TRL, sums over all texts, and themselves."""

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given

from llm_learn.data import HELD_OUT
from llm_learn.reference.trl import trl_jsd

# Sums of a few dozen float64 numbers of size one: rounding alone is below 1e-14.
TOLERANCE = 1e-12
SLUG = "post-training/distillation"


def logits(seed: int) -> tuple[torch.Tensor, ...]:
    """Logits of a student, which carry a gradient, and of a teacher, float64."""
    generator = torch.Generator().manual_seed(seed)
    student, teacher = 2 * torch.randn(2, 4, 9, generator=generator, dtype=torch.float64)
    return student.requires_grad_(), teacher


@pytest.mark.parametrize("beta", [0, 0.05, 0.5, 0.8, 1])
def test_generalized_jsd_and_its_gradient_match_trl(chapter, beta):
    student, teacher = logits(0)
    ours = chapter.generalized_jsd(student, teacher, beta)
    theirs = trl_jsd(student, teacher, beta=beta, temperature=1.0)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=TOLERANCE)
    slopes = [
        torch.autograd.grad(loss.sum(), student, retain_graph=True)[0]
        for loss in (ours, theirs)
    ]
    torch.testing.assert_close(*slopes, rtol=0, atol=TOLERANCE)


@given(st.integers(0, 10**6), st.floats(0.01, 0.99))
def test_generalized_jsd_is_symmetric_and_bounded(definitions_of, seed, beta):
    chapter = definitions_of(SLUG)
    student, teacher = (each.detach() for each in logits(seed))
    here = chapter.generalized_jsd(student, teacher, beta)
    turned = chapter.generalized_jsd(teacher, student, 1 - beta)
    torch.testing.assert_close(here, turned, rtol=0, atol=1e-9)
    # Never more than the entropy of choosing between the two.
    choice = torch.distributions.Bernoulli(torch.tensor(beta).double()).entropy()
    assert (here >= -1e-12).all() and (here <= choice + 1e-9).all()


@pytest.mark.parametrize(("near", "end"), [(1e-6, 0), (1 - 1e-6, 1)])
def test_generalized_jsd_divided_becomes_its_ends(chapter, near, end):
    student, teacher = (each.detach() for each in logits(1))
    inside = chapter.generalized_jsd(student, teacher, near) / min(near, 1 - near)
    # What is left out is of the order of 1e-6 times a ratio of probabilities.
    torch.testing.assert_close(
        inside, chapter.generalized_jsd(student, teacher, end), rtol=1e-2, atol=0
    )


def test_windows_follow_each_other_and_share_one_character(chapter):
    text = chapter.PLAYS["hamlet"][:1000]
    rows = chapter.windows(text)
    assert rows.shape == (15, chapter.CONTEXT + 1)
    assert (rows[1:, 0] == rows[:-1, -1]).all()
    joined = rows[0, :1].tolist() + rows[:, 1:].flatten().tolist()
    assert chapter.TOKENIZER.decode(joined) == text[: len(joined)]


def test_nobody_learns_from_the_test_and_only_the_student_from_its_play(chapter):
    def text_of(rows: torch.Tensor) -> str:
        return chapter.TOKENIZER.decode(rows[:, :-1].flatten().tolist())

    everything, play = text_of(chapter.ALL_PLAYS), text_of(chapter.ONE_PLAY)
    for name, text in chapter.PLAYS.items():
        passage = text[20_000:20_200]
        own = name == "hamlet"
        assert (passage in play) == own
        assert (passage in everything) == (not own and name not in HELD_OUT), name


def test_learn_takes_no_loss_before_its_beginning(chapter):
    rows = chapter.ONE_PLAY[:32]
    seen, drawn = [], []

    def loss(logits, targets, teacher_logits):
        drawn.append(targets)
        each = chapter.hard(logits, targets, teacher_logits)
        each = each * torch.ones_like(each)
        each.register_hook(seen.append)
        return each

    student = chapter.new_model(24, 0)
    before = [p.clone() for p in student.parameters()]
    losses = chapter.learn(
        student,
        chapter.from_text(rows, 0),
        loss,
        max_steps=21,
        learning_rate=0.01,
        begin=15,
    )
    assert len(losses) == 21 and losses[-1] < losses[0]
    # Targets are the characters that follow: each row's, from its second to its last.
    following = {tuple(row) for row in rows[:, 1:].tolist()}
    assert {tuple(row) for batch in drawn for row in batch.tolist()} <= following
    for gradient in seen:
        assert not gradient[:, :15].any() and gradient[:, 15:].all()
    assert not any(
        torch.equal(*pair) for pair in zip(before, student.parameters(), strict=True)
    )


def test_stored_logits_stay_beside_their_windows(chapter):
    rows = chapter.ONE_PLAY[:50]
    marks = torch.arange(50)[:, None, None].expand(50, chapter.CONTEXT, 3)
    batches = chapter.from_text(rows, 1, marks)
    for _ in range(3):
        ids, asked = next(batches)
        assert torch.equal(rows[asked[:, 0, 0]], ids)


def test_own_texts_begin_as_given_and_are_the_students(chapter):
    student, teacher = chapter.new_model(24, 0), chapter.new_model(24, 1)
    for model in (student, teacher):  # begins at zero, where all models say the same
        torch.nn.init.normal_(model.output.weight)
    prompts = chapter.ONE_PLAY[:8]
    batches = chapter.from_own_texts(student, teacher, prompts, 0)
    for _ in range(5):  # into the second round of texts
        ids, asked = next(batches)
        assert ids.shape == (chapter.BATCH, chapter.CONTEXT + 1)
        starts = {tuple(row[: chapter.GIVEN]) for row in ids.tolist()}
        assert starts <= {tuple(row[: chapter.GIVEN]) for row in prompts.tolist()}
        assert torch.equal(asked, chapter.logits_of(teacher, ids))
        assert not asked.requires_grad


def test_places_of_the_tree_are_what_was_written_before(chapter):
    before = [
        (int(place), tuple(text[:i].tolist()))
        for text, places in zip(chapter.TEXTS, chapter.PLACES, strict=True)
        for i, place in enumerate(places)
    ]
    assert len({place for place, _ in before}) == len(set(before)) == 13
    table = torch.randn(13, 3, generator=torch.Generator().manual_seed(0)).double()
    chances = chapter.character_logps(table).sum(1).exp()
    assert abs(float(chances.sum()) - 1) < TOLERANCE


def test_shuffled_others_keep_what_the_teacher_finds_most_likely(chapter):
    generator = torch.Generator().manual_seed(0)
    before = torch.randn(20, 6, 9, generator=generator)
    after = chapter.shuffled_others(before, generator=generator)
    assert torch.equal(after.argmax(-1), before.argmax(-1))
    assert torch.equal(after.sort(-1).values, before.sort(-1).values)
    # One in eight of the others stays by chance.
    same = (after == before).double().mean()
    assert 1 / 9 < same < 1 / 3


def test_weights_are_how_sure_the_teacher_is(chapter):
    student, teacher = (each.detach()[None] for each in logits(3))
    targets = torch.zeros(1, 4, dtype=torch.long)
    before = chapter.hard(student, targets, None)
    trust = chapter.weighted(student, targets, teacher) / before
    torch.testing.assert_close(trust.mean(), torch.tensor(1.0).double())
    sure = teacher.softmax(-1).amax(-1)
    torch.testing.assert_close(trust, sure / sure.mean())


def test_evened_others_are_the_mean_of_all_orders(chapter):
    generator = torch.Generator().manual_seed(0)
    before = torch.randn(3, 4, generator=generator).double()
    evened = chapter.evened_others(before).softmax(-1)
    orders = [
        chapter.shuffled_others(before, generator=generator).softmax(-1)
        for _ in range(3000)
    ]
    # Deviations of a mean of 3,000 are below 0.006.
    assert (torch.stack(orders).mean(0) - evened).abs().max() < 0.02
    torch.testing.assert_close(evened.sum(-1), torch.ones(3).double())
    torch.testing.assert_close(evened.amax(-1), before.softmax(-1).amax(-1))
