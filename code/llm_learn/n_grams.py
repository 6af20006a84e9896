"""N-gram language models with modified Kneser-Ney smoothing."""

import math
from collections.abc import Callable, Sequence

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from llm_learn.argument_checks import expect


def estimate_discounts(counts: np.ndarray) -> np.ndarray:
    """Discounts for counts of 0, 1, 2 and more (Chen and Goodman 1999, Eq. 17).

    Args:
        counts: (G,) how often each of G n-grams was counted, at least once.

    Returns:
        The discounts: (4,)
    """
    expect("counts int (G,)", counts=counts)
    n1, n2, n3, n4 = ((counts == count).sum() for count in (1, 2, 3, 4))
    if not min(n1, n2, n3, n4):
        return np.array([0.0, 0.75, 0.75, 0.75])  # too little text to estimate them
    y = n1 / (n1 + 2 * n2)
    return np.array([0.0, 1 - 2 * y * n2 / n1, 2 - 3 * y * n3 / n2, 3 - 4 * y * n4 / n3])


class KneserNey:
    """Modified, interpolated Kneser-Ney n-grams (Chen and Goodman 1999).

    Args:
        ids: (N,) the token IDs to count.
        order: tokens of an n-gram: those of the context, and the one that is predicted.
        vocab_size: V, different tokens.

    Raises:
        ValueError: `ids` is shorter than an n-gram, an ID is not below V, or V**order does not fit into 64 bits.
    """

    def __init__(self, ids: Sequence[int], order: int, vocab_size: int):
        text = np.asarray(ids)
        expect(
            "ids int (N,), 1 <= order <= N, vocab_size**order <= 2**63, "
            "ids.min() >= 0, ids.max() < vocab_size",
            ids=text,
            order=order,
            vocab_size=vocab_size,
        )
        self.vocab_size = V = vocab_size
        # An n-gram is one integer, whose digits are its token IDs: NumPy counts a million of them at once.
        places = V ** np.arange(order)[::-1]
        grams = sliding_window_view(text, order) @ places
        grams, counts = np.unique(grams, return_counts=True)
        self.levels = []
        for length in reversed(range(order)):  # tokens in the context
            discounts = estimate_discounts(counts)
            contexts, first = np.unique(grams // V, return_index=True)
            total = np.add.reduceat(counts, first).tolist()
            saved = np.add.reduceat(discounts[counts.clip(max=3)], first).tolist()
            of_context = dict(
                zip(contexts.tolist(), zip(total, saved, strict=True), strict=True)
            )
            of_gram = dict(zip(grams.tolist(), counts.tolist(), strict=True))
            self.levels.insert(0, (of_gram, of_context, discounts.tolist()))
            # One token shorter: how many different tokens came before
            grams, counts = np.unique(grams % V**length, return_counts=True)

    def probability(self, context: list[int], token: int) -> float:
        """The probability of a token after a context, from the shortest context to the longest that was seen."""
        p, seen = 1 / self.vocab_size, 0
        for length, (of_gram, of_context, discounts) in enumerate(
            self.levels[: len(context) + 1]
        ):
            if length:  # one more token, in front
                seen += context[-length] * self.vocab_size ** (length - 1)
            if seen not in of_context:
                break
            count = of_gram.get(seen * self.vocab_size + token, 0)
            total, saved = of_context[seen]
            p = (count - discounts[min(count, 3)] + saved * p) / total
        return p


def n_gram_loss(
    probability: Callable[[list[int], int], float], ids: list[int], *, longest: int = 5
) -> float:
    """The mean cross-entropy of a sequence without its first token, in nats per token.

    Args:
        probability: of a token after a context, such as `KneserNey.probability`.
        ids: (N,) token IDs, at least two.
        longest: the highest order that is used; a context has at most one token less.
    """
    expect("len(ids) >= 2, longest >= 1", ids=ids, longest=longest)
    contexts = (ids[max(0, t - longest + 1) : t] for t in range(1, len(ids)))
    asked = zip(contexts, ids[1:], strict=True)
    return -float(np.mean([math.log(probability(context, i)) for context, i in asked]))
