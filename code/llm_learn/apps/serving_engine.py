"""A serving engine with a paged KV cache, prefix caching and continuous batching."""

import logging
from array import array
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import KW_ONLY, dataclass, field
from hashlib import sha256
from itertools import accumulate

import torch
from torch import Tensor
from torch.nn import functional as F

from llm_learn.argument_checks import expect
from llm_learn.model.llama import Llama, LlamaBlock, LlamaConfig


class NoFreeBlocks(Exception):
    """Every block is in use."""


class BlockAllocator:
    """Who uses which block, and what stands in it.

    Args:
        num_blocks: how many there are.
        block_size: positions in each.
    """

    def __init__(self, num_blocks: int, block_size: int):
        expect(
            "num_blocks >= 1, block_size >= 1", num_blocks=num_blocks, block_size=block_size
        )
        self.block_size = block_size
        self.ref_counts = [0] * num_blocks
        self.free_blocks = OrderedDict.fromkeys(range(num_blocks))  # the longest free first
        self.hash_of: dict[int, bytes] = {}
        self.block_of: dict[bytes, int] = {}

    def num_blocks_for(self, num_positions: int) -> int:
        """How many blocks so many positions need."""
        return -(-num_positions // self.block_size)

    def allocate(self) -> int:
        """A block for new text. Raises NoFreeBlocks."""
        if not self.free_blocks:
            raise NoFreeBlocks
        block, _ = self.free_blocks.popitem(last=False)
        if (found := self.hash_of.pop(block, None)) is not None:
            del self.block_of[found]
        self.ref_counts[block] = 1
        return block

    def free(self, blocks: Sequence[int]) -> None:
        """One user less for each; the last ones become free first, since beginnings are wanted more often."""
        for block in reversed(blocks):
            self.ref_counts[block] -= 1
            if self.ref_counts[block] == 0:
                self.free_blocks[block] = None

    def hashes(self, ids: Sequence[int], hashes: list[bytes] | None = None) -> list[bytes]:
        """One for each block that these ids fill, of its own ids and the hash before, so of all ids up to its end.

        Args:
            ids: of a text.
            hashes: those of the text that are known already; the missing ones are appended.
        """
        hashes = [] if hashes is None else hashes
        for begin in range(len(hashes) * self.block_size, len(ids), self.block_size):
            own = array("q", ids[begin : begin + self.block_size])
            if len(own) == self.block_size:
                hashes.append(sha256(b"".join([*hashes[-1:], own])).digest())
        return hashes

    def insert(
        self,
        ids: Sequence[int],
        blocks: Sequence[int],
        first: int = 0,
        hashes: list[bytes] | None = None,
    ) -> None:
        """Notes what stands in the blocks that these ids fill, from the block of that number on; see `hashes`."""
        hashes = self.hashes(ids, hashes)
        for i in range(first, len(ids) // self.block_size):
            if blocks[i] not in self.hash_of and hashes[i] not in self.block_of:
                self.hash_of[blocks[i]], self.block_of[hashes[i]] = hashes[i], blocks[i]

    def lookup(self, ids: Sequence[int], hashes: list[bytes] | None = None) -> list[int]:
        """The blocks that hold the beginning of these ids; not of the last, which has to be read for its logits."""
        found: list[int] = []
        for prefix in self.hashes(ids, hashes)[: (len(ids) - 1) // self.block_size]:
            block = self.block_of.get(prefix)
            if block is None:
                break
            found.append(block)
        return found

    def touch(self, blocks: Sequence[int]) -> None:
        """One user more for each."""
        for block in blocks:
            self.free_blocks.pop(block, None)
            self.ref_counts[block] += 1


@dataclass(frozen=True)
class SequenceChunk:
    """What a text gives to a pass."""

    ids: Sequence[int]  # new ones, at least one
    start: int  # position of the first
    blocks: Sequence[int]  # its table, with room for all positions up to the last

    def __post_init__(self):
        expect("len(ids) >= 1, start >= 0", ids=self.ids, start=self.start)


class PagedKVCache:
    """The keys and values of a model, in blocks.

    Args:
        config: of the model.
        num_blocks, block_size: those of the allocator.
        dtype, device: those of the model's weights.

    Attributes:
        keys, values: (layers, slots, K, D)
    """

    def __init__(
        self,
        config: LlamaConfig,
        num_blocks: int,
        block_size: int,
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str | None = None,
    ):
        expect(
            "num_blocks >= 1, block_size >= 1", num_blocks=num_blocks, block_size=block_size
        )
        num_slots = num_blocks * block_size
        shape = (2, config.num_layers, num_slots, config.num_kv_heads, config.head_dim)
        self.keys, self.values = torch.zeros(shape, dtype=dtype, device=device)
        self.block_size = block_size

    def slot_mapping(self, chunk: SequenceChunk) -> Tensor:
        """Where the positions of a row lie, from the first of its text to the last of its new ids: (S,)"""
        size, length = self.block_size, chunk.start + len(chunk.ids)
        expect(
            "len(blocks) * block_size >= length",
            blocks=chunk.blocks,
            block_size=size,
            length=length,
        )
        positions = torch.arange(length, device=self.keys.device)
        table = torch.tensor(chunk.blocks, device=self.keys.device)
        return table[positions // size] * size + positions % size


@torch.no_grad()  # each thread has its own switch, and an engine may run in any
def paged_forward(
    model: Llama, kv_cache: PagedKVCache, chunks: Sequence[SequenceChunk]
) -> Tensor:
    """One pass: writes keys and values of all new ids into the cache.

    Args:
        model: reads.
        kv_cache: of that model, with its dtype and device; changed.
        chunks: texts, at least one, each once.

    Returns:
        (chunks, V) logits for the id after each chunk's last, float32 and on the CPU, where ids are chosen
    """
    # Of a norm, as in `Llama.new_caches`: where weights are stored in fewer bits, a norm's are not.
    weight = model.norm.weight
    expect(
        "len(chunks) >= 1, longest_chunk <= context_length, "
        "kv_cache.keys.dtype == weight.dtype, kv_cache.keys.device == weight.device",
        chunks=chunks,
        longest_chunk=max((chunk.start + len(chunk.ids) for chunk in chunks), default=0),
        context_length=model.config.context_length,
        kv_cache=kv_cache,
        weight=weight,
    )
    ids = [i for chunk in chunks for i in chunk.ids]
    positions = [chunk.start + n for chunk in chunks for n in range(len(chunk.ids))]
    ids, positions = torch.tensor([ids, positions], device=weight.device)  # (N,) each
    slot_mappings = [kv_cache.slot_mapping(chunk) for chunk in chunks]
    new = torch.cat(
        [s[chunk.start :] for s, chunk in zip(slot_mappings, chunks, strict=True)]
    )  # (N,)
    ends = list(accumulate(len(chunk.ids) for chunk in chunks))
    groups = [
        *decode_batches(chunks, slot_mappings, ends),
        *prefill_batches(chunks, slot_mappings, ends),
    ]
    x = model.token_embedding(ids).unsqueeze(0)  # (1, N, C)
    cosines, sines = model.rope(positions)
    rope = cosines.to(x.dtype), sines.to(x.dtype)
    for i, layer in enumerate(model.blocks):
        assert isinstance(layer, LlamaBlock)
        q, k, v = (
            t.squeeze(0).transpose(0, 1)
            for t in layer.attention.heads(layer.norm_1(x), rope)
        )
        kv_cache.keys[i, new], kv_cache.values[i, new] = k, v  # (N, K, D)
        heads = torch.empty_like(q)  # (N, H, D)
        for where, table, mask in groups:
            heads[where] = paged_attention(
                q[where], kv_cache.keys[i, table], kv_cache.values[i, table], mask
            )
        x = x + layer.attention.out(heads.flatten(1).unsqueeze(0))
        x = x + layer.mlp(layer.norm_2(x))
    last = torch.tensor(ends, device=x.device) - 1  # (chunks,)
    return model.logits(model.norm(x[0, last])).float().cpu()


def paged_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    """Attention of R texts with T new ids each over S slots each.

    Args:
        q: (R, T, H, D)
        k, v: (R, S, K, D)
        mask: bool, broadcastable to (R, H, T, S), True = use.

    Returns:
        (R, T, H, D)
    """
    q, k, v = (t.transpose(1, 2) for t in (q, k, v))
    return F.scaled_dot_product_attention(
        q, k, v, attn_mask=mask, enable_gqa=True
    ).transpose(1, 2)


def decode_batches(
    chunks: Sequence[SequenceChunk], slot_mappings: Sequence[Tensor], ends: Sequence[int]
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """All texts with one new id, as one batch: where (R, 1), table (R, S) and mask (R, 1, 1, S)."""
    short = [i for i, chunk in enumerate(chunks) if len(chunk.ids) == 1]
    if short:
        table = torch.nn.utils.rnn.pad_sequence(
            [slot_mappings[i] for i in short], batch_first=True
        )
        where = torch.tensor([[ends[i] - 1] for i in short], device=table.device)
        lengths = torch.tensor(
            [[len(slot_mappings[i])] for i in short], device=table.device
        )
        mask = torch.arange(table.shape[1], device=table.device) < lengths
        yield where, table, mask[:, None, None]


def prefill_batches(
    chunks: Sequence[SequenceChunk], slot_mappings: Sequence[Tensor], ends: Sequence[int]
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Each text with several new ids by itself: where (1, T), table (1, S) and mask (1, 1, T, S)."""
    for chunk, slot_mapping, end in zip(chunks, slot_mappings, ends, strict=True):
        if len(chunk.ids) > 1:
            where = torch.arange(end - len(chunk.ids), end, device=slot_mapping.device)
            positions = torch.arange(len(slot_mapping), device=slot_mapping.device)
            mask = positions <= positions[chunk.start :, None]
            yield where[None], slot_mapping[None], mask[None, None]


LOGGER = logging.getLogger("llm_learn.apps.serving_engine")


@dataclass(eq=False)
class Request:
    """A text to be continued.

    Attributes:
        ids: the prompt, and what was written.
        hashes: of the blocks that its ids fill, as far as the allocator has computed them.
        num_computed_tokens: positions whose keys and values lie in `blocks`.
        finish_reason: why it ended: "stop" for its own end, "length" for the limit, or what `abort` was told; empty while it has not.
    """

    prompt: Sequence[int]
    max_new_tokens: int
    on_token: Callable[[int], None] = lambda _: None  # is called with each id
    on_finish: Callable[[str], None] = lambda _: None  # and once with the reason
    options: dict = field(default_factory=dict)
    ids: list[int] = field(default_factory=list)
    blocks: list[int] = field(default_factory=list)
    hashes: list[bytes] = field(default_factory=list)
    num_computed_tokens: int = 0
    finish_reason: str = ""

    def __post_init__(self):
        self.ids = list(self.prompt)

    def num_uncomputed_tokens(self) -> int:
        """How many of its ids have not been read."""
        return len(self.ids) - self.num_computed_tokens


@dataclass(eq=False)
class Engine:
    """Continues many texts at once."""

    execute_model: Callable[[list[SequenceChunk]], Sequence]  # something for each row
    sample: Callable[[Request, object], int]  # the next id, given that something
    allocator: BlockAllocator  # the blocks
    _: KW_ONLY
    eos_id: int  # ends a text, and is not part of it
    max_num_seqs: int = 16  # texts that run at the same time, at most
    max_num_batched_tokens: int = 128  # tokens in a pass, at most
    max_chunk_size: int = 64  # tokens of one text in a pass, at most
    context_length: int = 2048  # positions that the model can read

    def __post_init__(self):
        expect(
            "max_num_seqs >= 1, max_num_batched_tokens >= 1, max_chunk_size >= 1, context_length >= 1",
            **vars(self),
        )
        self.waiting: deque[Request] = deque()
        self.running: list[Request] = []  # in the order of arrival
        self.num_preemptions = self.num_processed_tokens = self.num_cached_tokens = 0

    def max_output_tokens(self, num_ids: int) -> int:
        """How many ids an answer to so many may have, if it is alone."""
        # The last id is written and never read.
        positions = len(self.allocator.ref_counts) * self.allocator.block_size + 1
        return min(self.context_length, positions) - num_ids

    def check(self, request: Request) -> None:
        """Raises ValueError for a text that is empty, or could not be finished even if it were alone."""
        length, limit = len(request.prompt), self.max_output_tokens(0)
        if not 0 < request.max_new_tokens <= limit - length < limit:
            raise ValueError(
                f"the prompt has {length} tokens and max_new_tokens is {request.max_new_tokens}: "
                f"both must be at least 1, and together at most {limit}"
            )

    def add_request(self, request: Request) -> None:
        """Puts a text into the queue; see `check`."""
        self.check(request)
        self.waiting.append(request)

    def abort(self, request: Request, finish_reason: str) -> None:
        """Ends a text, whatever it is doing; nothing happens if it has ended."""
        if request.finish_reason:
            return
        with suppress(ValueError):
            self.waiting.remove(request)
        self.finish(request, finish_reason)

    def finish(self, request: Request, finish_reason: str) -> None:
        """The text has ended: its blocks go back."""
        if request in self.running:
            self.running.remove(request)
        self.allocator.free(request.blocks)
        request.blocks, request.finish_reason = [], finish_reason
        try:
            request.on_finish(finish_reason)
        except Exception:
            LOGGER.exception("nobody could be told of an end")

    def preempt(self, request: Request) -> None:
        """The text gives up its blocks, and waits at the head of the queue."""
        self.running.remove(request)
        self.allocator.free(request.blocks)
        request.blocks, request.num_computed_tokens = [], 0
        self.waiting.appendleft(request)
        self.num_preemptions += 1

    def allocate_slots(self, request: Request, num_positions: int) -> bool:
        """Blocks for so many positions; texts that came later may lose theirs. False if the text lost its own."""
        while len(request.blocks) < self.allocator.num_blocks_for(num_positions):
            try:
                request.blocks.append(self.allocator.allocate())
            except NoFreeBlocks:
                last = self.running[-1]
                self.preempt(last)
                if last is request:
                    return False
        return True

    def can_admit(self) -> bool:
        """Whether texts that wait may join this pass."""
        return True

    def num_slots_for(self, request: Request, tokens: int) -> int:
        """For how many positions a text needs blocks, if it gives so many tokens to a pass."""
        return request.num_computed_tokens + tokens

    def admit(self, request: Request, token_budget: int) -> int:
        """Lets a waiting text run, if there are blocks; returns how many of its tokens the pass takes, or 0."""
        blocks = self.allocator.lookup(request.ids, request.hashes)
        request.num_computed_tokens = len(blocks) * self.allocator.block_size
        tokens = min(
            len(request.ids) - request.num_computed_tokens,
            self.max_chunk_size,
            token_budget,
        )
        needed = self.allocator.num_blocks_for(self.num_slots_for(request, tokens)) - len(
            blocks
        )
        # A block that it shares and that is free now will not be free to be taken.
        if needed > len(self.allocator.free_blocks) - sum(
            block in self.allocator.free_blocks for block in blocks
        ):
            request.num_computed_tokens = 0
            return 0
        self.waiting.popleft()
        self.running.append(request)
        self.allocator.touch(blocks)
        request.blocks = blocks
        self.num_cached_tokens += request.num_computed_tokens
        return tokens

    def step(self) -> int:
        """One pass; returns how many tokens it had."""
        token_budget, admitting, before = (
            self.max_num_batched_tokens,
            self.can_admit(),
            self.num_preemptions,
        )
        num_scheduled_tokens = {}
        for request in sorted(self.running, key=Request.num_uncomputed_tokens):
            num_scheduled_tokens[request] = min(
                request.num_uncomputed_tokens(), self.max_chunk_size, token_budget
            )
            token_budget -= num_scheduled_tokens[request]
        scheduled = []
        for request in list(self.running):
            tokens = num_scheduled_tokens[request]
            positions = self.num_slots_for(request, tokens)
            # It may have lost its place to one that came earlier.
            if (
                request in self.running
                and tokens
                and self.allocate_slots(request, positions)
            ):
                scheduled.append((request, tokens))
        # After a preemption nobody joins: whoever gave way is the first in line, and would take its blocks back.
        admitting = admitting and self.num_preemptions == before
        while (
            admitting
            and token_budget
            and self.waiting
            and len(self.running) < self.max_num_seqs
        ):
            request = self.waiting[0]
            if not (tokens := self.admit(request, token_budget)):
                break
            _ = self.allocate_slots(request, self.num_slots_for(request, tokens))
            scheduled.append((request, tokens))
            token_budget -= tokens
        if not scheduled:
            return 0
        outputs = self.execute_model(
            [
                SequenceChunk(
                    r.ids[r.num_computed_tokens : r.num_computed_tokens + n],
                    r.num_computed_tokens,
                    r.blocks,
                )
                for r, n in scheduled
            ]
        )
        for (request, tokens), logits in zip(scheduled, outputs, strict=True):
            filled = request.num_computed_tokens // self.allocator.block_size
            request.num_computed_tokens += tokens
            read = request.ids[: request.num_computed_tokens]
            self.allocator.insert(read, request.blocks, filled, request.hashes)
            if not request.num_uncomputed_tokens():
                try:
                    self.append_token(request, self.sample(request, logits))
                except Exception:  # one text must not take the others down with it
                    LOGGER.exception("a text could not go on")
                    self.abort(request, "failed")
        tokens = sum(tokens for _, tokens in scheduled)
        self.num_processed_tokens += tokens
        return tokens

    def append_token(self, request: Request, new: int) -> None:
        """The text goes on with this id, or ends."""
        if new == self.eos_id:
            self.finish(request, "stop")
            return
        request.ids.append(new)
        request.on_token(new)
        if len(request.ids) - len(request.prompt) == request.max_new_tokens:
            self.finish(request, "length")

    def run(self) -> None:
        """Until nobody waits or runs."""
        while self.waiting or self.running:
            self.step()
