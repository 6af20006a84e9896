"""A translation task: the names of numbers, from English into German or French."""

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from num2words import num2words
from torch import Tensor

from llm_learn.argument_checks import expect
from llm_learn.tokenizers import Vocabulary

LARGEST = 999_999
# Longest first, because a part may begin another: "ein" begins "eins".
_GERMAN_PART = re.compile(
    "achtzig|dreißig|fünfzig|hundert|neunzig|sechzig|siebzig|tausend|vierzig|zwanzig|sieben|"
    "sechs|zwölf|acht|drei|eins|fünf|neun|null|sech|sieb|vier|zehn|zwei|ein|elf|und"
)


def number_words(number: int, language: str) -> list[str]:
    """The name of a number as words; German compounds are cut into their parts.

    Args:
        number: from 0 to 999,999.
        language: "en", "de" or "fr".
    """
    expect(
        "isinstance(number, int) and 0 <= number <= LARGEST, language in ('en', 'de', 'fr')",
        number=number,
        language=language,
        LARGEST=LARGEST,
    )
    name = num2words(number, lang=language)
    if language == "de":
        return _GERMAN_PART.findall(name)
    return re.findall(r"\w+", name)


Pair = tuple[list[int], list[int]]  # the token IDs of a name in both languages


@dataclass(frozen=True)
class NumberTranslation:
    """Pairs of names to train on, and others to test on."""

    source: Vocabulary
    target: Vocabulary
    train: list[Pair]
    test: dict[int, list[Pair]]  # by the number of English words


def number_translation(
    language: str,
    *,
    num_train: int = 4000,
    longest_train: int = 8,
    num_test: int = 200,
    seed: int = 0,
) -> NumberTranslation:
    """English names of numbers with their translations, no number twice.

    Args:
        language: "de" or "fr".
        num_train: number of training pairs.
        longest_train: the most English words in them; longer names are for testing only.
        num_test: the most test pairs of each length.
        seed: decides the numbers.
    """
    rule = "num_train >= 1, longest_train >= 1, num_test >= 1"
    expect(rule, num_train=num_train, longest_train=longest_train, num_test=num_test)
    rng = random.Random(seed)
    drawn, pairs = set(), []
    num_short = 0
    # More than the training pairs, so that short names of all usual lengths are left for testing.
    while num_short < num_train + 4 * num_test:
        # Digits with many zeros: uniformly sampled numbers would nearly all have long names.
        digits = (rng.choice("000123456789") for _ in range(rng.randint(1, 6)))
        number = int("".join(digits))
        if number in drawn:
            continue
        drawn.add(number)
        pair = number_words(number, "en"), number_words(number, language)
        num_short += len(pair[0]) <= longest_train
        pairs.append(pair)
    source, target = Vocabulary(a for a, _ in pairs), Vocabulary(b for _, b in pairs)
    train, test = [], {}
    for a, b in pairs:
        pair = source.encode(a), target.encode(b)
        if len(a) <= longest_train and len(train) < num_train:
            train.append(pair)
        elif len(test.setdefault(len(a), [])) < num_test:
            test[len(a)].append(pair)
    return NumberTranslation(source, target, train, dict(sorted(test.items())))


def pad_rows(rows: Sequence[Sequence[int]]) -> Tensor:
    """Rows of token IDs -> (B, T), padded at the end with ID 0."""
    expect("any(map(len, rows))", rows=rows)
    width = max(map(len, rows))
    return torch.tensor([[*row, *[Vocabulary.pad_id] * (width - len(row))] for row in rows])


def translation_batch(pairs: Sequence[Pair]) -> tuple[Tensor, Tensor, Tensor]:
    """Pairs -> source (B, S), the decoder's input (B, T) and its targets (B, T), one word ahead."""
    source = pad_rows([a for a, _ in pairs])
    inputs = pad_rows([[Vocabulary.bos_id, *b] for _, b in pairs])
    targets = pad_rows([[*b, Vocabulary.eos_id] for _, b in pairs])
    return source, inputs, targets


def exact_match(predicted: Tensor, pairs: Sequence[Pair]) -> float:
    """The fraction of rows (B, T) that are the pair's second name, up to their first end."""
    expect("predicted (B, T), len(pairs) == B", predicted=predicted, pairs=pairs)
    right = 0
    for row, (_, b) in zip(predicted.tolist(), pairs, strict=True):
        right += row[: len(b) + 1] == [*b, Vocabulary.eos_id]
    return right / len(pairs)
