"""Reads models from GGUF files: settings, vocabulary, and block-quantized weights."""

import math
import mmap
import os
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
import torch
from torch import Tensor

from llm_learn.argument_checks import expect
from llm_learn.tokenizers import PRINTABLE, BPETokenizer

# How each kind of value in the settings is stored, little-endian; 8 is a string, 9 an array.
_VALUES = dict(enumerate("BbHhIif?")) | {10: "Q", 11: "q", 12: "d"}


@dataclass(frozen=True, kw_only=True)
class BlockFormat:
    """How weights are stored in a file: in blocks of equally many weights and bytes."""

    name: str
    numbers: int  # weights in a block
    num_bytes: int  # bytes of a block
    # (blocks, num_bytes) uint8 -> (blocks, numbers) float32
    decode: Callable[[np.ndarray], np.ndarray]


def _halves(blocks: np.ndarray, first: int) -> np.ndarray:
    """The float16 at byte `first` of each block, as a column: (blocks, 1)."""
    return blocks[:, first : first + 2].copy().view(np.float16).astype(np.float32)


def _nibbles(packed: np.ndarray) -> np.ndarray:
    """Two 4-bit codes per byte, the low ones first: (blocks, n) -> (blocks, 2 n)."""
    return np.concatenate([packed & 15, packed >> 4], axis=1)


def decode_q8_0(blocks: np.ndarray) -> np.ndarray:
    """A scale d and 32 signed bytes q: d q."""
    return _halves(blocks, 0) * blocks[:, 2:].view(np.int8)


def decode_q4_0(blocks: np.ndarray) -> np.ndarray:
    """A scale d and 32 codes q of 4 bits: d (q - 8)."""
    return _halves(blocks, 0) * (_nibbles(blocks[:, 2:]).astype(np.int8) - 8)


def decode_q4_1(blocks: np.ndarray) -> np.ndarray:
    """A scale d, an offset m and 32 codes q of 4 bits: d q + m."""
    return _halves(blocks, 0) * _nibbles(blocks[:, 4:]) + _halves(blocks, 2)


BLOCK_FORMATS = {
    0: BlockFormat(name="F32", numbers=1, num_bytes=4, decode=lambda b: b.view(np.float32)),
    1: BlockFormat(name="F16", numbers=1, num_bytes=2, decode=lambda b: _halves(b, 0)),
    2: BlockFormat(name="Q4_0", numbers=32, num_bytes=18, decode=decode_q4_0),
    3: BlockFormat(name="Q4_1", numbers=32, num_bytes=20, decode=decode_q4_1),
    8: BlockFormat(name="Q8_0", numbers=32, num_bytes=34, decode=decode_q8_0),
}


@dataclass(frozen=True, kw_only=True)
class StoredTensor:
    """Where a tensor is in the file, and in which format."""

    shape: tuple[int, ...]  # as in torch: rows first
    format: BlockFormat
    offset: int  # bytes from the start of the file

    @property
    def num_bytes(self) -> int:
        return math.prod(self.shape) // self.format.numbers * self.format.num_bytes


class GGUF:
    """A model file in the GGUF format (version 2 or 3, little-endian), opened without reading the weights.

    The file stays open until `close`, or until the object is deleted; it can be used in a `with` statement. Tensors
    that have been read do not need it.

    Args:
        path: the file.

    Attributes:
        settings: name -> value, as stored in the file; arrays are lists.
        tensors: name -> `StoredTensor`.

    Raises:
        ValueError: the file is not a GGUF file, is truncated, contradicts itself, or holds a format that is not in
            `BLOCK_FORMATS`.
    """

    _max_depth = 8  # of arrays in arrays

    def __init__(self, path: str | os.PathLike):
        self.path = Path(path)
        with self.path.open("rb") as file:
            if self.path.stat().st_size < 24:
                raise self._wrong("it is too short for a GGUF file")
            self._bytes = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        try:
            self._read()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Closes the file; no tensor can be read after that."""
        self._bytes.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _read(self) -> None:
        self._at = 0
        if self._take(4) != b"GGUF" or self._number("I") not in (2, 3):
            raise self._wrong("it is no GGUF file of version 2 or 3")
        num_tensors, num_settings = self._number("Q"), self._number("Q")
        self.settings = {}
        for _ in range(num_settings):
            name = self._string()
            self.settings[name] = self._value(self._number("I"))
        headers = [self._header() for _ in range(num_tensors)]
        alignment = self.settings.get("general.alignment", 32)
        if not isinstance(alignment, int) or alignment < 1:
            raise self._wrong(
                f"its general.alignment is {alignment!r}: expected an integer of at least 1"
            )
        data = -(-self._at // alignment) * alignment
        self.tensors = {
            name: StoredTensor(shape=shape, format=kind, offset=data + offset)
            for name, shape, kind, offset in headers
        }
        for name, stored in self.tensors.items():
            if math.prod(stored.shape[-1:]) % stored.format.numbers:
                raise self._wrong(
                    f"{name} has shape {stored.shape}: "
                    f"{stored.format.name} stores rows of {stored.format.numbers} weights, or a multiple"
                )
            if stored.offset + stored.num_bytes > len(self._bytes):
                raise self._wrong(f"it ends inside of {name}, cut off")

    def tensor(self, name: str) -> Tensor:
        """The weights of that name, de-quantized: float32, in the stored shape."""
        expect("name in tensors", name=name, tensors=[*self.tensors])
        stored = self.tensors[name]
        raw = np.frombuffer(self._bytes, np.uint8, stored.num_bytes, stored.offset)
        weights = np.empty(
            (raw.size // stored.format.num_bytes, stored.format.numbers), np.float32
        )
        blocks = raw.reshape(len(weights), stored.format.num_bytes)
        step = 1 << 11  # blocks at a time: intermediate results stay in the CPU's cache
        for i in range(0, len(blocks), step):
            weights[i : i + step] = stored.format.decode(blocks[i : i + step])
        return torch.from_numpy(weights.reshape(stored.shape))

    def _wrong(self, what: str) -> ValueError:
        return ValueError(f"path is {str(self.path)!r}: {what}")

    def _take(self, count: int) -> bytes:
        if self._at + count > len(self._bytes):
            raise self._wrong("it ends in its header, cut off")
        self._at += count
        return self._bytes[self._at - count : self._at]

    def _number(self, kind: str):
        return struct.unpack(f"<{kind}", self._take(struct.calcsize(kind)))[0]

    def _string(self) -> str:
        return self._take(self._number("Q")).decode("utf-8")

    def _value(self, kind: int, depth: int = 0):
        if kind == 8:
            return self._string()
        if kind == 9:
            if depth == self._max_depth:
                raise self._wrong(
                    f"it holds arrays in arrays, more than {self._max_depth} deep"
                )
            element, count = self._number("I"), self._number("Q")
            return [self._value(element, depth + 1) for _ in range(count)]
        if kind not in _VALUES:
            raise self._wrong(f"it holds a value of kind {kind}")
        return self._number(_VALUES[kind])

    def _header(self) -> tuple[str, tuple[int, ...], BlockFormat, int]:
        name = self._string()
        # GGUF names the fastest dimension first, torch last.
        shape = tuple(self._number("Q") for _ in range(self._number("I")))[::-1]
        kind, offset = self._number("I"), self._number("Q")
        if kind not in BLOCK_FORMATS:
            known = ", ".join(f"{number} ({f.name})" for number, f in BLOCK_FORMATS.items())
            raise self._wrong(
                f"{name} is stored in format {kind}: this reader knows {known}"
            )
        return name, shape, BLOCK_FORMATS[kind], offset


# How SmolLM2 splits text: like GPT-2, but every digit is a chunk, and all the space before it is one.
SMOLLM2_PATTERN = (
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+|\s+(?=\p{N})|\s+(?!\S)|\s+"
)


def tokenizer_from_gguf(file: GGUF) -> BPETokenizer:
    """The tokenizer in a GGUF file spelled like GPT-2's, which splits text like SmolLM2's.

    Such vocabularies spell each byte as one visible character (Radford et al. 2019, as released): printable bytes
    as themselves, the others as the characters from U+0100 on.

    Raises:
        ValueError: the file holds another kind of tokenizer, or impossible merges.
    """
    kind = [file.settings.get(f"tokenizer.ggml.{name}") for name in ("model", "pre")]
    if kind != ["gpt2", "smollm"]:
        raise ValueError(
            f"file holds a tokenizer of kind {kind}: expected ['gpt2', 'smollm']"
        )
    tokens, kinds, merges = (
        file.settings[f"tokenizer.ggml.{name}"]
        for name in ("tokens", "token_type", "merges")
    )
    spelled = [chr(b) for b in PRINTABLE]
    spelled += [chr(256 + i) for i in range(256 - len(PRINTABLE))]
    pairs, ours = [], {char: i for i, char in enumerate(spelled)}
    for merge in merges:
        first, _, second = merge.partition(" ")
        if first not in ours or second not in ours:
            raise ValueError(
                f"file holds the merge {merge!r}: no earlier merge makes both of its parts"
            )
        ours[first + second] = 256 + len(pairs)
        pairs.append((ours[first], ours[second]))
    special = [token for token, kind in zip(tokens, kinds, strict=True) if kind == 3]
    published = {token: i for i, token in enumerate(tokens)}
    numbering = [published.get(token, -1) for token in [*ours, *special]]
    return BPETokenizer(pairs, special, SMOLLM2_PATTERN, numbering)
