"""What the chapter on chains of thought defines: problems against Python, chains step by step, votes, words."""

import re

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings

from llm_learn.generate import generate

SLUG = "reasoning/chain-of-thought"
pytestmark = pytest.mark.usefixtures("no_gradients")
SEEDS, LENGTHS = st.integers(0, 10**6), st.integers(1, 6)


def problems_of(chapter, seed: int, K: int, number: int = 8):
    return chapter.draw_problems(number, K, generator=torch.Generator().manual_seed(seed))


# --- Problems and chains ---


@given(SEEDS, LENGTHS)
def test_results_are_those_of_python(definitions_of, seed, K):
    chapter = definitions_of(SLUG)
    problems = problems_of(chapter, seed, K)
    rows = zip(problems.prompts.tolist(), problems.values.tolist(), strict=True)
    for prompt, results in rows:
        assert chapter.by_python(chapter.text(prompt)) == results


@given(SEEDS, LENGTHS)
def test_every_form_ends_with_the_result(definitions_of, seed, K):
    chapter = definitions_of(SLUG)
    problems, generator = problems_of(chapter, seed, K), torch.Generator().manual_seed(seed)
    for form in (*chapter.FORMS, chapter.cut_short, chapter.partly_blank):
        answers = form(problems, generator)
        assert (answers[:, -1] == chapter.DONE).all()
        assert torch.equal(chapter.final_digits(answers), problems.values[:, -1]), form
    first = chapter.answer_first(problems)
    assert torch.equal(first[:, 1], problems.values[:, -1])
    assert torch.equal(first[:, 2:], chapter.with_steps(problems))


@given(SEEDS, LENGTHS, st.data())
def test_a_changed_id_is_found_where_it_stands(definitions_of, seed, K, data):
    chapter = definitions_of(SLUG)
    problems = problems_of(chapter, seed, K, 1)
    answers = chapter.with_steps(problems)
    assert chapter.right_steps(answers, problems).all()
    place = data.draw(st.integers(0, answers.shape[1] - 1))
    other = data.draw(st.integers(0, len(chapter.SIGNS) - 1))
    if other == answers[0, place]:
        return
    answers[0, place] = other
    # The first number belongs to the first step, the end to the last one.
    at = min(max(place - 1, 0) // 5, K - 1)
    assert not chapter.right_steps(answers, problems)[0, at]
    assert chapter.right_steps(answers, problems)[0, :at].all()


@given(SEEDS, st.integers(2, 6), st.data())
def test_a_chain_that_goes_on_from_a_wrong_value_has_one_wrong_step(
    definitions_of, seed, K, data
):
    chapter = definitions_of(SLUG)
    problems = problems_of(chapter, seed, K, 1)
    j = data.draw(st.integers(1, K - 1))
    wrong = (problems.values[:, j - 1 : j] + data.draw(st.integers(1, 6))) % chapter.HOURS
    numbers = torch.cat([wrong, problems.numbers[:, j + 1 :]], 1)
    rest = chapter.Problems(numbers, problems.signs[:, j:])
    answers = chapter.with_steps(problems)
    answers[:, 5 * j] = wrong[:, 0]
    answers[:, 5 * j + 5 :: 5] = rest.values
    expected = [step != j - 1 for step in range(K)]
    assert chapter.right_steps(answers, problems)[0].tolist() == expected
    # No operation sends two values to the same one.
    assert chapter.final_digits(answers) != problems.values[:, -1]


def test_digits_at_the_end(chapter):
    E, D = chapter.EQUALS, chapter.DONE
    rows = [
        [3, E, 4, D, D],
        [E, 4, D, E, 5],
        [4, D, E, 2, D],
        [E, 4, 4, 4, 4],
        [E, D, D, D, D],
        [D, E, 4, D, D],
        [E, 3, 4, D, D],
    ]
    assert chapter.final_digits(torch.tensor(rows)).tolist() == [4, 4] + 5 * [-1]
    assert chapter.final_digits(torch.tensor([[E, chapter.A, D]])).tolist() == [-1]


@given(SEEDS, LENGTHS, st.data())
def test_gaps_hide_results_and_nothing_else(definitions_of, seed, K, data):
    chapter = definitions_of(SLUG)
    problems, m = problems_of(chapter, seed, K), data.draw(st.integers(0, K - 1))
    whole = chapter.with_steps(problems)
    blank = chapter.blank_after(problems, m)
    hidden = [5 * k for k in range(m + 1, K)]
    assert (blank[:, hidden] == chapter.DOT).all()
    kept = [i for i in range(whole.shape[1]) if i not in hidden]
    assert torch.equal(blank[:, kept], whole[:, kept])
    cut = chapter.cut_after(problems, m)
    assert cut.shape[1] == (5 * m + 5 if m else 3)
    assert torch.equal(cut[:, : 5 * m + 1 if m else 0], whole[:, : 5 * m + 1 if m else 0])


def test_a_model_that_believes_what_is_written_follows_a_change(chapter, monkeypatch):
    def believer(model, prompts, length):
        """Goes on as the program does, from the last value written."""
        steps_left = length // 5
        before = 3 * 6 + 2
        letters = torch.arange(6 - steps_left, 6)
        operations = prompts[:, 1 : before - 1].unflatten(1, (6, 3))[:, letters]
        rest = chapter.Problems(
            torch.cat([prompts[:, -1:], operations[..., 2]], 1), operations[..., 1]
        )
        return chapter.with_steps(rest)[:, 1:]

    def knower(model, prompts, length):
        """Ends with what the problem gives, whatever is written."""
        operations = prompts[:, 1:19].unflatten(1, (6, 3))
        numbers = torch.cat([prompts[:, :1], operations[..., 2]], 1)
        answers = believer(model, prompts, length)
        answers[:, -2] = chapter.Problems(numbers, operations[..., 1]).values[:, -1]
        return answers

    for writer, expected in ((believer, (1.0, 0.0)), (knower, (0.0, 1.0))):
        monkeypatch.setitem(chapter.after_change.__globals__, "write", writer)
        for j in range(1, 6):
            generator = torch.Generator().manual_seed(j)
            assert chapter.after_change(None, 6, j, generator) == expected


def test_an_answer_before_its_steps_is_held_against_them(chapter, monkeypatch):
    def consistent(model, prompts, length):
        return chapter.answer_first(chapter.test_problems(length // 5))

    def guessing(model, prompts, length):
        answers = consistent(model, prompts, length)
        answers[:, 1] = (answers[:, 1] + 1) % chapter.HOURS
        return answers

    def bending(model, prompts, length):
        """A wrong answer, and a last step that leads to it."""
        answers = guessing(model, prompts, length)
        answers[:, -2] = answers[:, 1]
        return answers

    for writer, expected in (
        (consistent, (1, 1, 1)),
        (guessing, (0, 1, 0)),
        (bending, (0, 0, 1)),
    ):
        monkeypatch.setitem(chapter.explained.__globals__, "write", writer)
        found = chapter.explained(None)
        for what, share in zip(("answer", "steps", "agree"), expected, strict=True):
            assert found[what] == [share] * 6, (writer.__name__, what)


def test_gaps_are_asked_right_before_the_result(chapter):
    K = 4
    results = chapter.test_problems(K).values

    def reader(ids):
        """Repeats the last digit that stands in the text, as its answer."""
        assert (ids[:, -1] == chapter.EQUALS).all()
        logits = torch.zeros(*ids.shape, len(chapter.SIGNS))
        for row, each in zip(logits, ids, strict=True):
            before = each[:-1][each[:-1] < chapter.HOURS]
            row[-1, before[-1]] = 1
        return logits

    number = chapter.test_problems(K).numbers
    right = [
        (results[:, -1] == last).float().mean().item()
        for last in (number[:, -1], results[:, 1])
    ]
    # A cut chain ends in its last result, or in the problem's last number; one with blanks in that of the last step.
    assert chapter.with_gaps(reader, chapter.cut_after, K)[::2] == pytest.approx(right)
    assert chapter.with_gaps(reader, chapter.blank_after, K) == pytest.approx(
        [right[0]] * K
    )


# --- Learning ---


@pytest.mark.slow
def test_a_single_operation_is_learned(chapter):
    with torch.enable_grad():
        model = chapter.teach(chapter.new_model(1), chapter.at_once, 1)
    assert chapter.right(model, 1, chapter.at_once) > 0.8
    assert chapter.right(chapter.new_model(1), 1, chapter.at_once) < 0.3


# --- Guesses and votes ---


def test_chances_after_an_operation_are_counted_right(chapter):
    generator = torch.Generator().manual_seed(0)
    values = chapter.draw_problems(200_000, 3, generator=generator).values
    chances = torch.tensor([0.0] + 6 * [1 / 6])
    for step in range(3):
        chances = chapter.after_one(chances)
        shares = torch.bincount(values[:, step], minlength=7) / len(values)
        assert (shares - chances).abs().max() < 0.005
    assert chances.sum() == pytest.approx(1)


def test_votes_of_known_answers(chapter):
    generator, true = torch.Generator().manual_seed(0), torch.zeros(2000, dtype=torch.long)

    def vote(*chances: float, count: int) -> float:
        rows = torch.tensor(chances).expand(2000, -1)
        rows = torch.nn.functional.pad(rows, (0, chapter.HOURS - rows.shape[1]))
        return chapter.vote(rows, true, count, generator=generator)

    assert vote(1.0, count=3) == 1
    assert vote(0.0, 1.0, count=3) == 0
    assert vote(0.0, count=5) == 0  # nobody votes
    assert vote(0.7, 0.3, count=1) == pytest.approx(0.7, abs=0.01)
    assert vote(0.7, 0.3, count=3) == pytest.approx(0.784, abs=0.01)
    assert vote(0.7, 0.3, count=2) == pytest.approx(
        0.7, abs=0.01
    )  # a tie is decided by lot
    # Of three, of whom one does not vote with the chance 0.2.
    assert vote(0.8, count=3) == pytest.approx(1 - 0.2**3, abs=0.01)


# --- Words ---


@given(SEEDS, st.integers(1, 3))
@settings(max_examples=60)
def test_a_problem_in_words_comes_to_its_result(definitions_of, seed, operations):
    chapter = definitions_of(SLUG)
    question, steps, result = chapter.in_words(chapter.random.Random(seed), operations)
    value = int(re.search(r"has (\d+)", question)[1])
    for more, by in re.findall(r"(buys|gives) (\d+)", question):
        value += int(by) if more == "buys" else -int(by)
        assert value > 0
    assert value == result and steps.endswith(f"= {result}")
    for step in steps.split(", "):
        left, right = step.split(" = ")
        assert eval(left) == int(right)
    assert len(steps.split(", ")) == operations


def test_examples_do_not_give_a_problem_away(chapter):
    for seed in range(5):
        examples, asked = chapter.draw_words(seed, 1, 40)
        assert len(examples) == 3 and len(asked) == 40
        assert not {steps for _, steps, _ in examples} & {steps for _, steps, _ in asked}


def test_an_answer_is_read_from_its_sentence(chapter):
    assert chapter.answer_in(" 8 + 3 = 11. The answer is 12.") == 12
    assert chapter.answer_in(" 8 + 3 = 11, 11") is None


@pytest.mark.slow
def test_texts_that_share_a_beginning_are_continued_as_alone(chapter):
    examples, asked = chapter.draw_words(3, 1, 3)
    shown = "".join(
        f"{question} {steps}. The answer is {result}.\n\n"
        for question, steps, result in examples
    )
    shared = chapter.TOKENIZER.encode(shown)
    rows = [chapter.TOKENIZER.encode(question) for question, _, _ in asked]
    texts = chapter.continued(shared, rows, 24)
    for row, text in zip(rows, texts, strict=True):
        ids = torch.tensor([[*shared, *row]])
        whole = generate(chapter.SMOLLM2, ids, 24, temperature=0)[0, ids.shape[1] :]
        assert chapter.TOKENIZER.decode(whole.tolist()).partition("\n")[0] == text
