"""Text to token IDs and back: characters, and byte-level byte-pair encoding (BPE)."""

import heapq
import json
import os
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Sequence
from functools import cached_property
from itertools import pairwise
from operator import index
from pathlib import Path
from typing import Self

import regex

from llm_learn.argument_checks import expect
from llm_learn.atomic_files import replacing

# How GPT-4 cuts text into chunks before any merge: contractions, words with one leading mark or space,
# up to three digits, punctuation, whitespace. Written without possessive quantifiers: an engine that reads
# `{1,3}+` as "one or more groups" would swallow long numbers whole.
GPT4_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

# IDs 0-255 stand for the 256 bytes, printable ones first. It is GPT-2's order, and it decides ties between
# equally frequent pairs, so keeping it makes our merges those of the reference library.
PRINTABLE = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
BYTE_ORDER = bytes(PRINTABLE + sorted(set(range(256)) - set(PRINTABLE)))
BYTE_IDS = bytes(BYTE_ORDER.index(byte) for byte in range(256))  # the token ID of each byte


def cut_into_chunks(text: str, pattern: str) -> list[str]:
    """The matches of `pattern` in `text`; raises ValueError where they leave some of it out."""
    if lone := regex.search(r"\p{Cs}", text):
        raise ValueError(
            f"text holds {lone[0]!r}, a lone surrogate: UTF-8 has no bytes for it"
        )
    try:
        compiled = regex.compile(pattern)
    except regex.error as error:
        raise ValueError(f"pattern is {pattern!r}: {error}") from None
    chunks = compiled.findall(text)
    if compiled.groups or sum(map(len, chunks)) < len(text):
        raise ValueError(
            f"pattern is {pattern!r}: its matches must make up the whole text, without groups"
        )
    return chunks


class CharTokenizer:
    """One token for each character of a training text, in sorted order.

    Args:
        text: the text whose characters become the vocabulary; must not be empty.
    """

    def __init__(self, text: str):
        expect("len(text) >= 1", text=text)
        self.chars = sorted(set(text))
        self._ids = {char: i for i, char in enumerate(self.chars)}
        self.vocab_size = len(self.chars)

    def encode(self, text: str) -> list[int]:
        """The token IDs of `text`; raises ValueError for a character that the training text did not have."""
        if unknown := sorted(set(text) - self._ids.keys()):
            raise ValueError(
                f"text has characters outside the vocabulary of {self.vocab_size}: {unknown[:5]}"
            )
        return [self._ids[char] for char in text]

    def decode(self, ids: Iterable[int]) -> str:
        """The text of `ids`; raises ValueError for an ID outside the vocabulary."""
        return "".join(self.chars[i] for i in _checked_ids(ids, self.vocab_size))


class Vocabulary:
    """Words and their IDs. The IDs 0, 1 and 2 stand for padding, begin and end of a sequence."""

    pad_id, bos_id, eos_id = 0, 1, 2

    def __init__(self, texts: Iterable[Sequence[str]]):
        words = sorted({word for text in texts for word in text})
        self.words = ["<pad>", "<bos>", "<eos>", *words]
        self.id_of = {word: i for i, word in enumerate(self.words)}

    def __len__(self) -> int:
        return len(self.words)

    def encode(self, words: Sequence[str]) -> list[int]:
        """Words -> token IDs, without begin and end."""
        if unknown := sorted(set(words) - set(self.id_of)):
            raise ValueError(f"words holds {unknown}, which the vocabulary does not know")
        return [self.id_of[word] for word in words]

    def decode(self, ids: Sequence[int]) -> list[str]:
        """Token IDs -> words, up to the first end, without padding and begin."""
        words = []
        for i in ids:
            if i == self.eos_id:
                break
            if i not in (self.pad_id, self.bos_id):
                words.append(self.words[i])
        return words


def _checked_ids(ids: Iterable[int], vocab_size: int) -> list[int]:
    checked = []
    for i in ids:
        try:
            number = index(
                i
            )  # of every kind of integer, from a tensor too, but not a float
        except TypeError:
            number = -1
        checked.append(number)
        if not 0 <= number < vocab_size:
            raise ValueError(
                f"ids holds {i}, outside the vocabulary: ids go from 0 to {vocab_size - 1}"
            )
    return checked


def merge_pair(ids: Sequence[int], pair: tuple[int, int], new_id: int) -> list[int]:
    """Replaces every occurrence of `pair` in `ids`, from left to right, by `new_id`.

    >>> merge_pair([1, 1, 1, 2], (1, 1), 9)
    [9, 1, 2]
    """
    merged, i = [], 0
    while i < len(ids):
        if i + 1 < len(ids) and (ids[i], ids[i + 1]) == pair:
            merged.append(new_id)
            i += 2
        else:
            merged.append(ids[i])
            i += 1
    return merged


def train_merges(chunk_counts: dict[bytes, int], num_merges: int) -> list[tuple[int, int]]:
    """Learns byte-pair merges (Sennrich et al. 2016, arXiv:1508.07909, Algorithm 1).

    The most frequent pair wins; among equals, the pair with the smaller IDs. Each step touches only the
    chunks that contain the merged pair, and a heap with outdated entries replaces the search for the maximum.

    Args:
        chunk_counts: how often each pre-tokenized chunk (as bytes) occurs.
        num_merges: how many merges to learn, at most; fewer come back when no pair is left.

    Returns:
        The merges in order; merge `i` creates the token `256 + i`.
    """
    expect("num_merges >= 0", num_merges=num_merges)
    chunks = [list(chunk.translate(BYTE_IDS)) for chunk in chunk_counts]
    weights = list(chunk_counts.values())
    pair_counts = defaultdict(int)
    chunks_with = defaultdict(set)
    for c, (ids, weight) in enumerate(zip(chunks, weights, strict=True)):
        for pair in pairwise(ids):
            pair_counts[pair] += weight
            chunks_with[pair].add(c)
    heap = [(-count, pair) for pair, count in pair_counts.items()]
    heapq.heapify(heap)
    merges = []
    while heap and len(merges) < num_merges:
        negative_count, pair = heapq.heappop(heap)
        count = pair_counts[pair]
        if count != -negative_count:
            # The count fell since this entry was pushed: put it where it belongs.
            if count > 0:
                heapq.heappush(heap, (-count, pair))
            continue
        new_id = 256 + len(merges)
        merges.append(pair)
        grown = set()
        for c in chunks_with.pop(pair):
            ids, weight = chunks[c], weights[c]
            merged = merge_pair(ids, pair, new_id)
            if len(merged) == len(ids):
                continue  # An earlier merge had already taken this chunk's occurrence.
            for old in pairwise(ids):
                pair_counts[old] -= weight
            for new in pairwise(merged):
                pair_counts[new] += weight
                if new_id in new:
                    chunks_with[new].add(c)
                    grown.add(new)
            chunks[c] = merged
        for new in grown:
            heapq.heappush(heap, (-pair_counts[new], new))
    return merges


def apply_merges(ids: Sequence[int], ranks: dict[tuple[int, int], int]) -> list[int]:
    """Applies merges to the tokens of one chunk, the earliest first, until none applies.

    Takes O(n log n) steps for n tokens: a heap of pairs replaces the search for the earliest, and links to the
    neighbours replace the copying.

    Args:
        ids: the bytes of the chunk, as token IDs.
        ranks: how early each pair is merged; the pair of rank r becomes the token `256 + r`.
    """
    # -1 marks both ends of the chunk, and tokens that have been merged into the one before: no pair holds it.
    ids, n = [*ids, -1], len(ids)
    left, right = list(range(-1, n)), list(range(1, n + 2))
    heap = [(ranks[pair], i) for i, pair in enumerate(pairwise(ids)) if pair in ranks]
    heapq.heapify(heap)
    while heap:
        rank, i = heapq.heappop(heap)  # of equal ranks the leftmost
        j = right[i]
        if ranks.get((ids[i], ids[j])) != rank:
            continue  # one of the two has been merged since this entry was pushed
        ids[i], ids[j] = 256 + rank, -1
        right[i] = k = right[j]
        left[k] = i
        for first, second in ((left[i], i), (i, k)):
            if (rank := ranks.get((ids[first], ids[second]))) is not None:
                heapq.heappush(heap, (rank, first))
    return [i for i in ids if i != -1]


class BPEVocabulary:
    """The tokens of a byte-level BPE; enough to decode, save and load.

    IDs 0-255 are the bytes in `BYTE_ORDER`, `256 + i` is merge `i`, and special tokens come last, unless
    `numbering` says otherwise.

    Args:
        merges: pairs of token IDs, in the order above, as they were learned.
        special_tokens: strings with an ID of their own, which plain text never produces.
        pattern: the regular expression that cuts text into chunks; no merge crosses a chunk's border.
        numbering: the token ID of each token in the order above, -1 for none: other models number differently.
    """

    _saved = ("merges", "special_tokens", "pattern", "numbering")

    def __init__(
        self,
        merges: Iterable[tuple[int, int]],
        special_tokens: Sequence[str] = (),
        pattern: str = GPT4_PATTERN,
        numbering: Sequence[int] | None = None,
    ):
        expect(
            "not isinstance(special_tokens, str), '' not in special_tokens, "
            "sorted(set(special_tokens)) == sorted(special_tokens)",
            special_tokens=special_tokens,
        )
        cut_into_chunks("", pattern)  # rejects a broken pattern now, not at the first text
        self.merges = [(int(a), int(b)) for a, b in merges]
        self.special_tokens = list(special_tokens)
        self.pattern = pattern
        token_bytes = [BYTE_ORDER[i : i + 1] for i in range(256)]
        for i, (a, b) in enumerate(self.merges):
            if not (0 <= a < 256 + i and 0 <= b < 256 + i):
                raise ValueError(
                    f"merges[{i}] is {(a, b)}: it can join ids from 0 to {255 + i} only"
                )
            token_bytes.append(token_bytes[a] + token_bytes[b])
        if len(set(self.merges)) < len(self.merges):
            twice, _ = Counter(self.merges).most_common(1)[0]
            raise ValueError(f"merges holds {twice} twice: the second could never apply")
        token_bytes += [token.encode() for token in self.special_tokens]
        self.numbering = list(range(len(token_bytes)) if numbering is None else numbering)
        used = sorted(i for i in self.numbering if i != -1)
        special_ids = self.numbering[256 + len(self.merges) :]
        if (
            len(self.numbering) != len(token_bytes)
            or used != list(range(len(used)))
            or -1 in special_ids
        ):
            raise ValueError(
                f"numbering must give each of {len(token_bytes)} tokens an id of its own, without gaps, "
                "or -1 where it is no special token"
            )
        self.vocab_size = len(used)
        numbered = dict(zip(self.numbering, token_bytes, strict=True))
        self.token_bytes = [numbered[i] for i in used]
        self.special_ids = dict(zip(self.special_tokens, special_ids, strict=True))

    def decode(self, ids: Iterable[int]) -> str:
        """The text of `ids`; bytes that form no character become U+FFFD, so every list of IDs decodes."""
        tokens = [self.token_bytes[i] for i in _checked_ids(ids, self.vocab_size)]
        return b"".join(tokens).decode("utf-8", errors="replace")

    def save(self, path: str | os.PathLike) -> None:
        """Writes merges, special tokens, pattern and numbering as JSON, atomically."""
        state = {key: getattr(self, key) for key in self._saved}
        with replacing(Path(path)) as temporary:
            temporary.write_text(json.dumps(state, ensure_ascii=False), encoding="utf-8")

    @classmethod
    def load(cls, path: str | os.PathLike) -> Self:
        """Reads what `save` wrote; raises ValueError if the file is something else."""
        try:
            state = json.loads(Path(path).read_text(encoding="utf-8"))
            return cls(*(state[key] for key in cls._saved))
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"path is {str(path)!r}: not a file written by save()"
            ) from error


MAX_CHUNKS = 1 << 16  # that a tokenizer remembers
MAX_CHUNK_LENGTH = 32  # characters of a chunk that is remembered


class BPETokenizer(BPEVocabulary):
    """Byte-level BPE (Radford et al. 2019): any text that UTF-8 can represent encodes, and decodes to itself."""

    @classmethod
    def train(
        cls,
        text: str,
        vocab_size: int,
        special_tokens: Sequence[str] = (),
        pattern: str = GPT4_PATTERN,
    ) -> Self:
        """Learns a vocabulary of at most `vocab_size` tokens, special tokens included, from `text`."""
        expect(
            "len(text) >= 1, not isinstance(special_tokens, str), vocab_size >= 256 + len(special_tokens)",
            text=text,
            special_tokens=special_tokens,
            vocab_size=vocab_size,
        )
        counts = Counter(cut_into_chunks(text, pattern))
        num_merges = vocab_size - 256 - len(special_tokens)
        merges = train_merges(
            {chunk.encode(): n for chunk, n in counts.items()}, num_merges
        )
        return cls(merges, special_tokens, pattern)

    def encode(self, text: str, allowed_special: Collection[str] = ()) -> list[int]:
        """The token IDs of `text`.

        Args:
            text: any string.
            allowed_special: special tokens that `text` may contain as such. Any other is spelled out like
                ordinary text, so that what a user types cannot act as control.
        """
        allowed_special = set(allowed_special)
        if unknown := allowed_special - self.special_ids.keys():
            raise ValueError(
                f"allowed_special holds {sorted(unknown)}, not in {self.special_tokens}"
            )
        pieces = [text]
        if allowed_special:
            longest_first = sorted(allowed_special, key=len, reverse=True)
            pieces = regex.split(
                "(" + "|".join(map(regex.escape, longest_first)) + ")", text
            )
        ids = []
        for piece in pieces:
            if piece in allowed_special:
                ids.append(self.special_ids[piece])
            else:
                for chunk in cut_into_chunks(piece, self.pattern):
                    known = self._chunk_ids.get(chunk)
                    ids += self._new_chunk(chunk) if known is None else known
        return ids

    @cached_property
    def _ranks(self) -> dict[tuple[int, int], int]:
        return {pair: rank for rank, pair in enumerate(self.merges)}

    @cached_property
    def _chunk_ids(self) -> dict[str, list[int]]:
        return {}  # Words repeat: remember the tokens of those already seen.

    def _new_chunk(self, chunk: str) -> list[int]:
        ids = self._merge_chunk(chunk)
        if len(chunk) <= MAX_CHUNK_LENGTH:
            if len(self._chunk_ids) >= MAX_CHUNKS:
                self._chunk_ids.clear()  # The text may come from many users, for weeks.
            self._chunk_ids[chunk] = ids
        return ids

    def _merge_chunk(self, chunk: str) -> list[int]:
        ids = apply_merges(chunk.encode().translate(BYTE_IDS), self._ranks)
        ids = [self.numbering[i] for i in ids]
        if -1 in ids:
            raise ValueError(f"text holds {chunk!r}, for which this vocabulary has no ids")
        return ids


def encode_chat(
    tokenizer: BPETokenizer,
    messages: Sequence[dict[str, str]],
    *,
    add_generation_prompt: bool = True,
) -> list[int]:
    """The token IDs of a conversation in ChatML, SmolLM2's template, with its default system message.

    The messages are ordinary text: a special token spelled in them does not act as one.

    Args:
        tokenizer: has the special tokens <|im_start|> and <|im_end|>.
        messages: each with a "role" (system, user or assistant) and a "content".
        add_generation_prompt: end where the assistant's answer begins.
    """
    expect("len(messages) >= 1", messages=messages)
    for message in messages:
        expect(
            "message.get('role') in ('system', 'user', 'assistant'), 'content' in message",
            message=message,
        )
    if messages[0]["role"] != "system":
        default = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"
        messages = [{"role": "system", "content": default}, *messages]
    begin, end = (tokenizer.special_ids[token] for token in ("<|im_start|>", "<|im_end|>"))
    newline = tokenizer.encode("\n")
    ids = []
    for message in messages:
        text = f"{message['role']}\n{message['content']}"
        ids += [begin, *tokenizer.encode(text), end, *newline]
    if add_generation_prompt:
        ids += [begin, *tokenizer.encode("assistant\n")]
    return ids
