"""Word vectors: skip-gram with negative sampling."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from llm_learn.argument_checks import expect


def sgns_gradients(v: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of the summed loss of pairs (Mikolov et al. 2013, arXiv:1310.4546, Eq. 4), in closed form.

    Args:
        v: (B, D) vectors of words.
        u: (B, 1 + K, D) of each word's neighbour, then of K noise words.

    Returns:
        (B, D) and (B, 1 + K, D)
    """
    expect("v (B, D), u (B, N, D), N >= 1", v=v, u=u)
    errors = (u * v[:, None]).sum(-1).sigmoid()  # (B, 1 + K)
    errors[:, 0] -= 1
    return (errors[:, :, None] * u).sum(1), errors[:, :, None] * v[:, None]


def neighbour_pairs(
    texts: Sequence[Tensor], keep: Tensor, radius: int, *, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Words and their contexts, in windows of random size, after frequent words have been subsampled.

    Args:
        texts: word IDs of each sequence, (N,) each.
        keep: (V,) the probability with which each occurrence of a word stays; above 1 it always does.
        radius: of the largest window; that of each position is drawn from 1 to it.
        generator: decides what stays, and the windows.

    Returns:
        (N,) and (N,)
    """
    expect("radius >= 1", radius=radius)
    words, contexts = [], []
    for ids in texts:
        ids = ids[torch.rand(len(ids), generator=generator) < keep[ids]]
        reach = torch.randint(1, radius + 1, (len(ids),), generator=generator)
        for distance in range(1, min(radius + 1, len(ids))):
            left, right = ids[:-distance], ids[distance:]
            from_left = reach[:-distance] >= distance
            from_right = reach[distance:] >= distance
            words += [left[from_left], right[from_right]]
            contexts += [right[from_left], left[from_right]]
    if not words:
        raise ValueError("texts holds no two words that stay next to each other")
    return torch.cat(words), torch.cat(contexts)


def train_skip_gram(
    words: Tensor,
    contexts: Tensor,
    noise: Tensor,
    *,
    num_words: int,
    dim: int,
    learning_rate: float,
    num_noise: int = 5,
    batch_size: int = 1024,
    seed: int = 0,
) -> tuple[Tensor, Tensor]:
    """Skip-gram with negative sampling (Mikolov et al. 2013, arXiv:1310.4546, Section 2.2).

    Args:
        words, contexts: (N,) pairs, taken in this order.
        noise: a long list of noise words, sampled in advance; it is repeated as often as needed.
        num_words: V; all IDs are below.
        dim: D, of a vector.
        learning_rate: at the first pair; it falls to zero at the last.
        num_noise: K, noise words for each pair.
        batch_size: pairs at a time, whose steps are summed.
        seed: decides the initial vectors.

    Returns:
        Vectors of words and of contexts, (V, D) each.
    """
    expect(
        "words int (N,), contexts int (N,), N >= 1, noise int (M,), 1 <= num_noise <= M, "
        "0 <= words.min() <= words.max() < num_words, 0 <= contexts.min() <= contexts.max() < num_words, "
        "0 <= noise.min() <= noise.max() < num_words",
        words=words,
        contexts=contexts,
        noise=noise,
        num_noise=num_noise,
        num_words=num_words,
    )
    generator = torch.Generator().manual_seed(seed)
    v = (torch.rand(num_words, dim, generator=generator) - 0.5) / dim
    u = torch.zeros(num_words, dim)
    # They are sampled already: taking them in order is as random, and reads memory in order.
    noise = noise[: len(noise) // num_noise * num_noise].view(-1, num_noise)
    for first in tqdm(range(0, len(words), batch_size), desc="skip-gram", leave=False):
        w = words[first : first + batch_size]  # (B,)
        rows = torch.arange(first, first + len(w)) % len(noise)
        c = torch.cat([contexts[first : first + batch_size, None], noise[rows]], 1)
        # F.embedding(w, v) is v[w], but faster.
        grad_v, grad_u = sgns_gradients(F.embedding(w, v), F.embedding(c, u))
        step = learning_rate * (1 - first / len(words))
        # A word that occurs several times in the batch moves by the sum of its gradients.
        v.index_add_(0, w, grad_v, alpha=-step)
        # For so many rows, scatter_add_ does the same in less time.
        rows = c.flatten()[:, None].expand(-1, dim)
        u.scatter_add_(0, rows, grad_u.flatten(0, 1).mul_(-step))
    return v, u
