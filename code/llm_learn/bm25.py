"""BM25: ranks passages by the words that they share with a question."""

import math
import re
from collections import Counter, defaultdict
from collections.abc import Sequence

import torch
from torch import Tensor

from llm_learn.argument_checks import expect


def words(text: str) -> list[str]:
    """What counts as a word: letters, digits and underscores, in lower case."""
    return re.findall(r"\w+", text.lower())


class BM25:
    """Scores passages by the words that they share with a query.

    Robertson and Zaragoza 2009, in Lucene's variant.

    Args:
        passages: the words of each, at least one passage.
        k1: how soon repetitions of a word stop adding to the score.
        b: strength of the length normalisation, from 0 to 1.
    """

    def __init__(
        self, passages: Sequence[Sequence[str]], *, k1: float = 1.2, b: float = 0.75
    ):
        expect("any(len(passage) for passage in passages)", passages=passages)
        expect("k1 >= 0, 0 <= b <= 1", k1=k1, b=b)
        self.num_passages = len(passages)
        lengths = torch.tensor([len(passage) for passage in passages]).double()
        norms = k1 * (1 - b + b * lengths / lengths.mean())
        counts = defaultdict(dict)
        for number, passage in enumerate(passages):
            for word, count in Counter(passage).items():
                counts[word][number] = count
        self.postings = {}
        for word, where in counts.items():
            numbers = torch.tensor(list(where))
            often = torch.tensor(list(where.values())).double()
            rare = math.log(1 + (len(passages) - len(where) + 0.5) / (len(where) + 0.5))
            self.postings[word] = numbers, rare * often / (often + norms[numbers])

    def scores(self, query: Sequence[str]) -> Tensor:
        """The score of each passage: (P,)"""
        total = torch.zeros(self.num_passages, dtype=torch.float64)
        for word in query:
            if word in self.postings:
                numbers, summands = self.postings[word]
                total[numbers] += summands
        return total
