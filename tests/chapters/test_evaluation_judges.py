"""What the chapter on judges defines: against brute force, planted values, and themselves."""

import itertools

import numpy as np
import pytest
import torch
from package_fixtures import sharp_llama
from torch.nn.functional import cross_entropy

SLUG = "post-training/evaluation-judges"
pytestmark = pytest.mark.usefixtures("no_gradients")


# --- Ratings ---


def test_strengths_are_found_again(chapter):
    strengths = np.array([1.0, 0.2, -0.3, -0.9])
    odds = 1 / (1 + np.exp(strengths[None] - strengths[:, None]))
    wins = 1000 * odds * (1 - np.eye(4))
    found = chapter.bradley_terry(wins)
    assert np.allclose(found, strengths - strengths.mean(), atol=1e-6)


def test_elo_keeps_its_sum_and_depends_on_the_order(chapter):
    duels = [(0, 1)] * 6 + [(1, 0)] * 6
    one, other = chapter.elo(duels, 2), chapter.elo(duels[::-1], 2)
    assert one.sum() == pytest.approx(0) and one[0] < 0 < other[0]
    assert chapter.elo([(0, 1)], 2, k=16) == pytest.approx([8, -8])


def test_wins_are_counted_by_brute_force(chapter):
    marks = np.random.default_rng(0).integers(0, 2, (3, 2, 10)).astype(float)
    wins = chapter.wins_of(marks)
    for i, j in itertools.product(range(3), repeat=2):
        expected = ((marks[i] == 1) & (marks[j] == 0)).sum()
        assert wins[i, j] == expected


# --- Judges and leaks ---


@pytest.mark.parametrize("name", ["letters", "letters swapped", "letters, chat", "names"])
def test_a_judges_first_answer_is_the_one_that_stands_first(chapter, name):
    judge, encode = chapter.JUDGES[name]
    prompt, answers = judge("Lyon", "France", "Italy")
    assert prompt.index("France") < prompt.index("Italy") and len(answers) == 2
    if name == "names":
        assert answers == [" France", " Italy"]
    else:
        label = answers[0].strip()
        assert f"Answer {label}: France" in prompt
    ids, answer = encode(prompt, answers[0])
    assert chapter.TOKENIZER.decode(answer).strip() == answers[0].strip()
    assert "Lyon" in chapter.TOKENIZER.decode(ids)


def test_verdicts_are_in_both_orders(chapter, monkeypatch):
    seen = []

    def pretend(model, prompts, choices, pad_id):
        seen.extend(chapter.TOKENIZER.decode(prompt) for prompt in prompts)
        return np.array([[k, 0.0] for k in range(len(prompts))])

    monkeypatch.setitem(chapter.verdicts.__globals__, "choice_log_probs", pretend)
    margins = chapter.verdicts(
        None, *chapter.JUDGES["names"], [("x", "P", "Q"), ("y", "R", "S")]
    )
    assert margins.tolist() == [[0, 1], [2, 3]]
    assert ["P or in Q" in seen[0], "Q or in P" in seen[1], "S or in R" in seen[3]] == [
        True
    ] * 3


def test_pairs_are_right_and_wrong(chapter):
    for pairs in (chapter.one_wrong, chapter.wrong_but_longer):
        for (city, right, wrong), q in zip(
            pairs(chapter.QUESTIONS), chapter.QUESTIONS, strict=True
        ):
            assert city == q.city and right == q.choices[q.right]
            assert wrong.removesuffix(chapter.MORE) in set(q.choices) - {right}
    longer = chapter.same_but_longer(chapter.QUESTIONS)
    assert all(b == a + chapter.MORE for _, a, b in longer)


def test_shared_words_see_words_only(chapter):
    assert chapter.shared_words("One, two three!", "zero one TWO three four", 3)
    assert not chapter.shared_words("one two three", "one two and three", 3)
    assert not chapter.shared_words("one two", "one two", 3)


def test_texts_are_learned_by_heart(chapter):
    model = sharp_llama(
        10,
        vocab_size=chapter.TOKENIZER.vocab_size,
        context_length=64,
        d_model=32,
        d_ff=64,
        num_heads=4,
        num_kv_heads=2,
    )
    texts = [chapter.solved(chapter.QUESTION, q) for q in chapter.QUESTIONS[:16]]
    student = chapter.crammed(model, texts, seed=0, epochs=12)
    encoded = [torch.tensor([chapter.TOKENIZER.encode(text)]) for text in texts]
    losses = [
        [cross_entropy(m(ids)[0, :-1], ids[0, 1:]).item() for ids in encoded]
        for m in (model, student)
    ]
    assert np.mean(losses[1]) < np.mean(losses[0])
    assert not student.training
