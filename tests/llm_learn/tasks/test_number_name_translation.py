"""Number names: taken apart without loss, paired, split by length, padded."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from num2words import num2words

from llm_learn.tasks.number_name_translation import (
    LARGEST,
    NumberTranslation,
    exact_match,
    number_translation,
    number_words,
    pad_rows,
    translation_batch,
)
from llm_learn.tokenizers import Vocabulary

numbers = st.integers(0, LARGEST)
texts = st.lists(
    st.lists(st.sampled_from("abcdef"), min_size=1, max_size=6), min_size=1, max_size=5
)


@pytest.fixture(scope="module")
def german() -> NumberTranslation:
    return number_translation("de", num_train=400, longest_train=6, num_test=20)


# Reference: num2words itself.


@given(numbers)
@settings(max_examples=300, deadline=None)
def test_german_parts_join_to_the_name(number):
    assert "".join(number_words(number, "de")) == num2words(number, lang="de")


@given(numbers, st.sampled_from(["en", "fr"]))
@settings(max_examples=200, deadline=None)
def test_words_are_the_name_without_its_punctuation(number, language):
    name = num2words(number, lang=language)
    assert "".join(number_words(number, language)) == "".join(
        c for c in name if c.isalpha()
    )


def test_names_of_three_languages():
    assert number_words(21, "en") == ["twenty", "one"]
    assert number_words(342, "de") == ["drei", "hundert", "zwei", "und", "vierzig"]
    assert number_words(16017, "de") == ["sech", "zehn", "tausend", "sieb", "zehn"]
    assert number_words(97, "fr") == ["quatre", "vingt", "dix", "sept"]
    assert number_words(0, "de") == ["null"]


# Invariants.


@given(texts)
def test_vocabulary_gives_words_back(rows):
    vocabulary = Vocabulary(rows)
    for row in rows:
        ids = vocabulary.encode(row)
        assert min(ids) > Vocabulary.eos_id
        padded = [Vocabulary.bos_id, *ids, Vocabulary.eos_id, Vocabulary.pad_id, *ids]
        assert vocabulary.decode(padded) == row
    assert len(vocabulary) == 3 + len({word for row in rows for word in row})


@given(st.lists(st.lists(st.integers(1, 9), max_size=5), min_size=1).filter(any))
def test_padding_stands_at_the_end_and_loses_nothing(rows):
    padded = pad_rows(rows)
    assert padded.shape == (len(rows), max(map(len, rows)))
    for row, out in zip(rows, padded.tolist(), strict=True):
        assert out == row + [0] * (padded.shape[1] - len(row))


@given(
    st.lists(
        st.tuples(*[st.lists(st.integers(3, 9), min_size=1, max_size=5)] * 2), min_size=1
    )
)
def test_targets_are_the_inputs_one_word_ahead(pairs):
    source, inputs, targets = translation_batch(pairs)
    assert source.shape[0] == len(pairs) and inputs.shape == targets.shape
    for (a, b), row, given_row, asked in zip(pairs, source, inputs, targets, strict=True):
        assert row.tolist()[: len(a)] == a
        assert given_row.tolist()[: len(b) + 1] == [Vocabulary.bos_id, *b]
        assert asked.tolist()[: len(b) + 1] == [*b, Vocabulary.eos_id]
        assert not asked[len(b) + 1 :].any() and not given_row[len(b) + 1 :].any()


def test_no_pair_is_both_learned_and_tested(german):
    learned = {tuple(a) for a, _ in german.train}
    tested = [tuple(a) for pairs in german.test.values() for a, _ in pairs]
    assert len(learned) == len(german.train) == 400
    assert len(set(tested)) == len(tested) and not learned & set(tested)


def test_long_names_are_for_testing_only(german):
    assert max(len(a) for a, _ in german.train) == 6
    assert all(len(a) == length for length, pairs in german.test.items() for a, _ in pairs)
    assert all(len(german.test[length]) == 20 for length in (9, 10, 11))
    assert max(map(len, german.test.values())) == 20


def test_pairs_are_translations(german):
    german_of = {tuple(number_words(n, "en")): number_words(n, "de") for n in range(2000)}
    seen = 0
    for a, b in german.train:
        if (name := tuple(german.source.decode(a))) in german_of:
            assert german.target.decode(b) == german_of[name]
            seen += 1
    assert seen > 50


def test_the_seed_decides_the_numbers(german):
    again = number_translation("de", num_train=400, longest_train=6, num_test=20)
    other = number_translation("de", num_train=400, longest_train=6, num_test=20, seed=1)
    assert again.train == german.train and again.test == german.test
    names = [[tuple(d.source.decode(a)) for a, _ in d.train] for d in (german, other)]
    assert names[0] != names[1]


def test_exact_match_counts_whole_rows():
    pairs = [([3], [4, 5]), ([3], [4, 5]), ([3], [4, 5]), ([3], [4, 5])]
    rows = [[4, 5, 2, 0], [4, 5, 2, 7], [4, 5, 5, 2], [4, 2, 0, 0]]
    # Right; right up to its first end; too long; too short.
    assert exact_match(torch.tensor(rows), pairs) == 0.5
    assert exact_match(torch.tensor([[4, 5]]), pairs[:1]) == 0  # it has not ended


# Errors name the argument, what it got and what it accepts.


@pytest.mark.parametrize("number", [-1, LARGEST + 1, 2.0, "7"])
def test_numbers_outside_the_range_are_refused(number):
    with pytest.raises(
        ValueError,
        match=rf"number is {number!r}, LARGEST is 999999: expected .* 0 <= number <= LARGEST",
    ):
        number_words(number, "en")


def test_other_errors():
    with pytest.raises(ValueError, match=r"language is 'xx': .* in \('en', 'de', 'fr'\)"):
        number_words(3, "xx")
    with pytest.raises(ValueError, match=r"words holds \['z'\]"):
        Vocabulary([["a"]]).encode(["a", "z"])
    with pytest.raises(
        ValueError, match=r"rows is \[\[\], \[\]\]: expected any\(map\(len, rows\)\)"
    ):
        pad_rows([[], []])
    for name in ("num_train", "longest_train", "num_test"):
        with pytest.raises(ValueError, match=f"^{name} is 0: expected {name} >= 1"):
            number_translation("de", **{name: 0})
    with pytest.raises(
        ValueError, match=r"len\(pairs\) is 2, predicted has shape \(1, 1\): expected"
    ):
        exact_match(torch.tensor([[2]]), [([3], [4]), ([3], [4])])
