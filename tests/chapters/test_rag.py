"""The chapter on retrieval: what is cut, scored, joined, asked and smuggled in, against slow and plain computations."""

import itertools
import math
import random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

SLUG = "applications/rag"
pytestmark = pytest.mark.usefixtures("no_gradients")
WORDS = st.lists(st.sampled_from(["a", "bb", "ccc", "dd", "e"]), max_size=8)


# --- Passages ---


def test_pieces_are_counted_without_filling_up(chapter):
    assert chapter.num_pieces("hi") == 3
    assert chapter.num_pieces("word " * 300) == 302


@settings(max_examples=30)
@given(
    st.lists(
        st.sampled_from(["One two three. ", "Four! ", "five six ", "\n\n", "seven\n", "x"]),
        max_size=40,
    ).map("".join),
    st.integers(6, 30),
)
def test_a_text_is_cut_into_small_parts_and_nothing_is_lost(chapter, text, longest):
    parts = chapter.cut(text, longest)
    assert "".join("".join(parts).split()) == "".join(text.split())
    assert all(chapter.num_pieces(part) <= longest for part in parts)


def test_cuts_are_made_at_the_largest_breaks(chapter):
    paragraphs = ["One two three four. Five six seven.", "Eight nine ten eleven twelve."]
    text = "\n\n".join(paragraphs)
    longest = max(map(chapter.num_pieces, paragraphs))
    assert chapter.cut(text, longest) == paragraphs
    assert chapter.cut(text, longest - 3)[:2] == ["One two three four.", "Five six seven."]
    assert chapter.cut(text, 100) == [text]


def test_passages_begin_with_their_name_and_fit(chapter):
    for passage in chapter.PASSAGES:
        assert passage.text.startswith(f"{passage.name}: ")
        assert chapter.num_pieces(passage.text) <= chapter.LONGEST
    assert {passage.name for passage in chapter.PASSAGES} == set(chapter.DOCUMENTS)


@settings(max_examples=20)
@given(st.integers(1, 40), st.integers(2, 9), st.integers(0, 1))
def test_windows_hold_every_word_and_overlap(chapter, count, size, overlap):
    text = " ".join(random.Random(count).choices(["red", "green", "blue"], k=count))
    parts = chapter.windows(text, size, overlap)
    tokens = [part.split() for part in parts]
    assert all(len(part) <= size for part in tokens)
    joined = tokens[0] + [word for part in tokens[1:] for word in part[overlap:]]
    assert joined == text.split()


# --- Scores ---


def test_token_vectors_do_not_depend_on_the_batch(chapter):
    texts = [
        "a longer text about lists and sets",
        "yes",
        "",
        "how to sort a list of names?",
    ]
    together = chapter.token_vectors(texts, batch_size=3)
    for text, vectors in zip(texts, together, strict=True):
        assert len(vectors) == chapter.num_pieces(text)
        torch.testing.assert_close(
            vectors, chapter.token_vectors([text])[0], atol=1e-5, rtol=0
        )
    lengths = chapter.text_vectors(together).norm(dim=-1)
    torch.testing.assert_close(lengths, torch.ones(4))


def test_the_encoder_does_not_see_the_end_of_a_long_text(chapter):
    begin = "word " * 300
    one, other = chapter.token_vectors([begin + "red", begin + "blue sky"])
    assert len(one) == chapter.LIMIT and torch.equal(one, other)


def test_a_document_has_the_score_of_its_best_passage(chapter):
    scores = torch.randn(2, len(chapter.PASSAGES), dtype=torch.float64)
    values, numbers = chapter.best_documents(scores)
    for row in range(2):
        best = {}
        for passage, score in zip(chapter.PASSAGES, scores[row].tolist(), strict=True):
            best[passage.name] = max(best.get(passage.name, -math.inf), score)
        expected = sorted(best, key=best.get, reverse=True)
        assert [chapter.NAMES[i] for i in numbers[row].tolist()] == expected
        assert values[row].tolist() == sorted(best.values(), reverse=True)


# --- Lists ---


def ranked(scores: list[float]) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.tensor([scores], dtype=torch.float64).sort(descending=True, stable=True)


def test_fusion_adds_up_places_and_skips_what_was_not_found(chapter):
    one, other = ranked([0.0, 5.0, 3.0, 0.0]), ranked([0.9, 0.1, 0.2, 0.8])
    values, numbers = chapter.fused([one, other], k=60)
    expected = {0: 1 / 61, 1: 1 / 61 + 1 / 64, 2: 1 / 62 + 1 / 63, 3: 1 / 62}
    assert numbers[0].tolist() == sorted(expected, key=expected.get, reverse=True)
    np.testing.assert_allclose(values[0], sorted(expected.values(), reverse=True))


def test_fusion_counts_only_the_first_of_each_list(chapter):
    one, other = ranked([0.0, 5.0, 3.0, 0.0]), ranked([0.9, 0.1, 0.2, 0.8])
    values, numbers = chapter.fused([one, other], k=60, depth=1)
    assert set(numbers[0, :2].tolist()) == {0, 1}
    np.testing.assert_allclose(values[0], [1 / 61, 1 / 61, 0, 0])
    for whole, deep in zip(
        chapter.fused([one, other]), chapter.fused([one, other], depth=4), strict=True
    ):
        assert torch.equal(whole, deep)


@given(st.lists(st.floats(-9, 9), min_size=2, max_size=9), st.floats(0, 1))
def test_a_weighted_sum_runs_from_one_list_to_the_other(chapter, scores, weight):
    one = torch.tensor([scores], dtype=torch.float64)
    other = one.flip(1) ** 3
    total = chapter.weighted(one, other, weight)
    assert total.min() >= -1e-9 and total.max() <= 1 + 1e-9
    if one.max() - one.min() > 1e-3:
        first = (one - one.min()) / (one.max() - one.min())
        torch.testing.assert_close(chapter.weighted(one, other, 0.0), first)


def test_max_sim_lets_each_token_of_the_query_choose(chapter):
    query, passage = torch.randn(3, 5), torch.randn(7, 5)
    expected = sum(max(F.cosine_similarity(u, v, dim=0) for v in passage) for u in query)
    torch.testing.assert_close(chapter.max_sim(query, passage), expected)
    assert chapter.max_sim(query, passage) != pytest.approx(
        chapter.max_sim(passage, query).item()
    )


def test_places_are_those_of_the_first_helpful_document(chapter):
    found = ranked([3.0, 2.0, 1.0, 0.0])
    assert chapter.places(found, [{1, 2}]).tolist() == [2]
    assert chapter.places(found, [{3}]).tolist() == [math.inf]


def test_every_query_has_a_text_that_helps(chapter):
    assert len(chapter.NEEDS) == len(chapter.HELPFUL) and all(chapter.HELPFUL)
    assert all(len(need) == 2 for need in chapter.NEEDS)
    assert len({text for need in chapter.NEEDS for text in need}) == 2 * len(chapter.NEEDS)


# --- Notes and answers ---


@pytest.mark.parametrize("seed", [0, 1, 2, 7])
def test_questions_have_their_answer_in_one_note_alone(chapter, seed):
    notes = chapter.guide(seed)
    assert notes == chapter.guide(seed) != chapter.guide(seed + 1)
    assert len({(note.kind, note.place) for note in notes}) == len(notes)
    asked = chapter.questions_about(notes)
    assert len(asked) == 2 * len(notes)
    for a in asked:
        note, other = notes[a.note], notes[a.other]
        assert chapter.holds(note.text, a.wanted) and note.place in a.question
        assert a.other != a.note and not chapter.holds(other.text, a.wanted)
        assert a.lie != a.wanted and not chapter.holds(note.text, a.lie)


def test_an_answer_must_have_the_whole_word(chapter):
    assert chapter.holds("It is made of Oak.", "oak") and chapter.holds("In 1874.", "1874")
    assert not chapter.holds("It is made of oaken boards.", "oak")
    assert not chapter.holds("It has 1,874 visitors", "1874")


def test_the_right_note_is_found_by_words_by_meaning_and_by_both(chapter):
    notes = chapter.guide(3)
    asked = chapter.questions_about(notes)[::9]
    texts, questions = [note.text for note in notes], [a.question for a in asked]
    for weight in (0.0, 0.8, 1.0):
        found = chapter.retrieve(questions, texts, 2, weight=weight)
        assert [numbers[0] for numbers in found] == [a.note for a in asked]
        assert all(len(set(numbers)) == 2 for numbers in found)


def test_support_is_the_probability_of_the_answer_alone(chapter):
    texts, question = ["The mill is red.", "A long text about some other thing."], "Colour?"
    answer = "It is red."
    said = chapter.TOKENIZER.encode(answer)
    found = chapter.support(question, answer, texts)
    for text, value in zip(texts, found.tolist(), strict=True):
        row = chapter.message(chapter.prompt_with([text], question))
        logps = chapter.SMOLLM2(torch.tensor([row + said]))[0].log_softmax(-1)
        expected = sum(
            logps[len(row) - 1 + i, token].item() for i, token in enumerate(said)
        )
        assert value == pytest.approx(expected, abs=1e-3)
    assert found.argmax() == 0


@pytest.mark.slow
def test_answers_come_in_the_order_of_their_prompts(chapter):
    texts = [
        "Say yes.",
        "Which town has the red mill, and who has painted it?",
        "Count to 3.",
    ]
    assert chapter.written(texts) == [chapter.written([text])[0] for text in texts]


def test_the_best_text_is_read_last_and_one_that_was_read_is_the_source(
    chapter, monkeypatch
):
    notes = chapter.guide(0)
    texts, a = [note.text for note in notes], chapter.questions_about(notes)[4]
    said = f"{texts[a.note]}"
    prompts = []

    def written(rows):
        prompts.extend(rows)
        return [said for _ in rows]

    monkeypatch.setitem(chapter.ask.__globals__, "written", written)
    (answer,) = chapter.ask([a.question], texts, count=3)
    places = [prompts[0].index(texts[i]) for i in answer.read]
    assert answer.read[0] == a.note and places == sorted(places, reverse=True)
    assert answer.text == said and answer.source == a.note


def test_a_second_look_changes_the_order_of_the_first_alone(chapter, monkeypatch):
    vectors = [torch.randn(4, 384) for _ in chapter.PASSAGES]
    monkeypatch.setitem(chapter.reranked.__globals__, "passage_tokens", vectors)
    # Those of several passages first.
    counts = torch.tensor([len(passages) for passages in chapter.PASSAGES_OF])
    numbers = counts.argsort(descending=True)[None]
    (new,) = chapter.reranked(["sort a list"], numbers, count=5).tolist()
    old, query = numbers[0].tolist(), chapter.token_vectors(["sort a list"])[0]
    assert sorted(new[:5]) == sorted(old[:5]) and new[5:] == old[5:]
    scores = [
        max(
            chapter.max_sim(query, vectors[p])
            for p, passage in enumerate(chapter.PASSAGES)
            if passage.name == chapter.NAMES[number]
        )
        for number in new[:5]
    ]
    assert scores == sorted(scores, reverse=True)


def test_only_one_string_lets_a_stranger_end_the_users_turn(chapter):
    clean = chapter.prompt_with(["The mill is red."], "Which colour has the mill?")
    assert chapter.as_one_string(clean) == chapter.message(clean)
    ends = chapter.message(clean).count(chapter.END)
    attacked = clean + chapter.TURN
    assert chapter.message(attacked).count(chapter.END) == ends
    assert chapter.as_one_string(attacked).count(chapter.END) == ends + 2
    assert chapter.TOKENIZER.decode(chapter.message(attacked)) == chapter.TOKENIZER.decode(
        chapter.as_one_string(attacked)
    )


def test_attacks_differ_from_their_controls_in_what_was_added_alone(chapter):
    notes = chapter.guide(0)
    asked = chapter.questions_about(notes)[:3]
    prompts = chapter.attacks(asked, [note.text for note in notes])
    texts = {
        name: list(map(chapter.TOKENIZER.decode, rows)) for name, rows in prompts.items()
    }
    for name, rows in texts.items():
        for a, text in zip(asked, rows, strict=True):
            assert (notes[a.note].text in text) == (name != "lie alone")
    for place in ("question last", "text last"):
        for clean, added in zip(
            texts[f"nothing, {place}"], texts[f"order, {place}"], strict=True
        ):
            assert added.replace(chapter.ORDER, "") == clean
    assert texts["turn as text, text last"] == texts["turn as one string, text last"]
    for a, lie, both in zip(
        asked, texts["lie alone"], texts["note, then lie"], strict=True
    ):
        assert notes[a.note].text not in lie and notes[a.note].text in both
        assert all(chapter.holds(text, a.lie) for text in (lie, both))
    for one, other in itertools.pairwise(["note, then lie", "warning, note, then lie"]):
        for clean, warned in zip(texts[one], texts[other], strict=True):
            assert warned.replace(chapter.WARNING, "") == clean
