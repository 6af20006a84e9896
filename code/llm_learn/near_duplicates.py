"""Pages that are the same or nearly so: normalised text, shingles, MinHash signatures, bands and groups."""

import re
import unicodedata
import zlib
from collections import defaultdict
from collections.abc import Iterable, Sequence
from itertools import combinations

import numpy as np

from llm_learn.argument_checks import expect

SHINGLE = 5  # words
NUM_HASHES = 126


def normalise(text: str) -> str:
    """One spelling for texts that look the same."""
    text = unicodedata.normalize("NFC", text.replace("\r\n", "\n"))
    text = re.sub(r"[^\S\n]+", " ", text)  # any run of spaces, in a line
    return "\n".join(line.strip() for line in text.split("\n")).strip()


def words_of(text: str) -> list[str]:
    """A text's words, without case and punctuation. (Chinese would need characters.)"""
    return re.findall(r"[^\W_]+", text.lower())


def shingles(text: str) -> set[str]:
    """All runs of five words; the whole text where it is shorter."""
    words = words_of(text)
    runs = range(max(1, len(words) - SHINGLE + 1))
    return {" ".join(words[i : i + SHINGLE]) for i in runs}


def jaccard(a: set[str], b: set[str]) -> float:
    """The Jaccard similarity: the part of all elements that both sets contain."""
    return len(a & b) / len(a | b)


def stirred(h: np.ndarray) -> np.ndarray:
    """Spreads each input bit of 32 over all output bits, one to one (MurmurHash3's finalizer)."""
    h = (h ^ (h >> 16)) * np.uint32(0x85EBCA6B)
    h = (h ^ (h >> 13)) * np.uint32(0xC2B2AE35)
    return h ^ (h >> 16)


def random_orders(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """The coefficients a and b of each permutation: (k,), (k,)"""
    numbers = np.random.default_rng(seed).integers(2**32, size=(2, NUM_HASHES))
    a, b = numbers.astype(np.uint32)
    return a | 1, b


def hashes(text: str) -> np.ndarray:
    """A 32-bit hash of each shingle."""
    sums = [zlib.crc32(shingle.encode()) for shingle in shingles(text)]
    return stirred(np.array(sums, dtype=np.uint32))


def signature(hashes: np.ndarray, orders: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    """The first hash in each permutation (MinHash): (k,)"""
    a, b = (numbers[:, None] for numbers in orders)
    return (a * hashes + b).min(1)


def meetings(signatures: np.ndarray, r: int) -> set[tuple[int, int]]:
    """The pairs of pages, of signatures (N, k), that agree in at least one band of r entries."""
    expect("signatures (N, K), r >= 1, K % r == 0", signatures=signatures, r=r)
    pairs = set()
    for band in np.split(signatures, signatures.shape[1] // r, axis=1):
        buckets = defaultdict(list)
        for page, numbers in enumerate(band):
            buckets[numbers.tobytes()].append(page)
        for bucket in buckets.values():
            pairs.update(combinations(bucket, 2))
    return pairs


def groups(num_pages: int, pairs: Iterable[tuple[int, int]]) -> list[int]:
    """For each page the root of its group."""
    points_to = list(range(num_pages))

    def root(page: int) -> int:
        while points_to[page] != page:
            page = points_to[page]
        return page

    for a, b in sorted(pairs):
        points_to[root(b)] = root(a)
    return [root(page) for page in range(num_pages)]


def near_copies(
    signatures: np.ndarray, r: int, threshold: float = 0.3
) -> set[tuple[int, int]]:
    """The pairs that agree in a band of r, and whose estimated similarity reaches the threshold."""
    return {
        (a, b)
        for a, b in meetings(signatures, r)
        if (signatures[a] == signatures[b]).mean() >= threshold
    }


def without_copies(
    hashed: Sequence[np.ndarray], pairs: Iterable[tuple[int, int]]
) -> list[int]:
    """The page with the most shingles of each group."""
    best = {}
    for page, group in enumerate(groups(len(hashed), pairs)):
        best[group] = max(best.get(group, page), page, key=lambda i: len(hashed[i]))
    return sorted(best.values())
