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
    """Tracks which sequences use each block, and its contents.

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
        """How many blocks that many positions need."""
        return -(-num_positions // self.block_size)

    def allocate(self) -> int:
        """A block for new tokens. Raises NoFreeBlocks."""
        if not self.free_blocks:
            raise NoFreeBlocks
        block, _ = self.free_blocks.popitem(last=False)
        if (found := self.hash_of.pop(block, None)) is not None:
            del self.block_of[found]
        self.ref_counts[block] = 1
        return block

    def free(self, blocks: Sequence[int]) -> None:
        """One user less for each; the last ones become free first, since prefixes are needed more often."""
        for block in reversed(blocks):
            self.ref_counts[block] -= 1
            if self.ref_counts[block] == 0:
                self.free_blocks[block] = None

    def hashes(self, ids: Sequence[int], hashes: list[bytes] | None = None) -> list[bytes]:
        """A hash of each block that these tokens fill, with the hash before: it stands for all tokens up to its end.

        Args:
            ids: token IDs of a sequence.
            hashes: those of the sequence that are known already; the missing ones are appended.
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
        """Registers the contents of the blocks that these tokens fill, from that block number on; see `hashes`."""
        hashes = self.hashes(ids, hashes)
        for i in range(first, len(ids) // self.block_size):
            if blocks[i] not in self.hash_of and hashes[i] not in self.block_of:
                self.hash_of[blocks[i]], self.block_of[hashes[i]] = hashes[i], blocks[i]

    def lookup(self, ids: Sequence[int], hashes: list[bytes] | None = None) -> list[int]:
        """The blocks that hold a prefix of these tokens; without the last, which must be processed for its logits."""
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
    """The tokens that a sequence contributes to a forward pass."""

    ids: Sequence[int]  # new token IDs, at least one
    start: int  # position of the first
    blocks: Sequence[int]  # its block table, with room for all positions up to the last

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
        """The slots of a sequence's positions, from the first to the last of its new tokens: (S,)"""
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
    """One forward pass: writes keys and values of all new tokens into the cache.

    Args:
        model: computes the pass.
        kv_cache: of that model, with its dtype and device; changed.
        chunks: of different sequences, at least one.

    Returns:
        (chunks, V) logits for the token after each chunk's last, float32 and on the CPU, where tokens are sampled
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
    """Attention of R sequences with T new tokens each over S slots each.

    Args:
        q: (R, T, H, D)
        k, v: (R, S, K, D)
        mask: bool, broadcastable to (R, H, T, S), True = may be attended to.

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
    """All sequences with one new token, as one batch: where (R, 1), table (R, S) and mask (R, 1, 1, S)."""
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
    """Each sequence with several new tokens by itself: where (1, T), table (1, S) and mask (1, 1, T, S)."""
    for chunk, slot_mapping, end in zip(chunks, slot_mappings, ends, strict=True):
        if len(chunk.ids) > 1:
            where = torch.arange(end - len(chunk.ids), end, device=slot_mapping.device)
            positions = torch.arange(len(slot_mapping), device=slot_mapping.device)
            mask = positions <= positions[chunk.start :, None]
            yield where[None], slot_mapping[None], mask[None, None]


LOGGER = logging.getLogger("llm_learn.apps.serving_engine")


@dataclass(eq=False)
class Request:
    """A request to continue a prompt.

    Attributes:
        ids: the prompt, and the generated tokens.
        hashes: of the blocks that its tokens fill, as far as the allocator has computed them.
        num_computed_tokens: positions whose keys and values are in `blocks`.
        finish_reason: why it ended: "stop" for the end token, "length" for the limit, or the reason given to `abort`;
            empty until then.
    """

    prompt: Sequence[int]
    max_new_tokens: int
    on_token: Callable[[int], None] = lambda _: None  # is called with each token
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
        """How many of its tokens have not been processed."""
        return len(self.ids) - self.num_computed_tokens


@dataclass(eq=False)
class Engine:
    """Continues many requests at once."""

    execute_model: Callable[[list[SequenceChunk]], Sequence]  # something for each chunk
    sample: Callable[[Request, object], int]  # the next token, given that something
    allocator: BlockAllocator  # the blocks
    _: KW_ONLY
    eos_id: int  # ends a sequence, and is not part of it
    max_num_seqs: int = 16  # requests that run at the same time, at most
    max_num_batched_tokens: int = 128  # tokens in a step, at most
    max_chunk_size: int = 64  # tokens of one request in a step, at most
    context_length: int = 2048  # positions that the model can process

    def __post_init__(self):
        expect(
            "max_num_seqs >= 1, max_num_batched_tokens >= 1, max_chunk_size >= 1, context_length >= 1",
            **vars(self),
        )
        self.waiting: deque[Request] = deque()
        self.running: list[Request] = []  # in the order of arrival
        self.num_preemptions = self.num_processed_tokens = self.num_cached_tokens = 0

    def max_output_tokens(self, num_ids: int) -> int:
        """How many tokens an answer to so many may have, if no other request runs."""
        # The last token is sampled and never processed.
        positions = len(self.allocator.ref_counts) * self.allocator.block_size + 1
        return min(self.context_length, positions) - num_ids

    def check(self, request: Request) -> None:
        """Raises ValueError for a request that is empty, or could not be finished even if no other ran."""
        length, limit = len(request.prompt), self.max_output_tokens(0)
        if not 0 < request.max_new_tokens <= limit - length < limit:
            raise ValueError(
                f"the prompt has {length} tokens and max_new_tokens is {request.max_new_tokens}: "
                f"both must be at least 1, and together at most {limit}"
            )

    def add_request(self, request: Request) -> None:
        """Puts a request into the queue; see `check`."""
        self.check(request)
        self.waiting.append(request)

    def abort(self, request: Request, finish_reason: str) -> None:
        """Ends a request, whatever it is doing; nothing happens if it has ended."""
        if request.finish_reason:
            return
        with suppress(ValueError):
            self.waiting.remove(request)
        self.finish(request, finish_reason)

    def finish(self, request: Request, finish_reason: str) -> None:
        """The request has ended: its blocks are freed."""
        if request in self.running:
            self.running.remove(request)
        self.allocator.free(request.blocks)
        request.blocks, request.finish_reason = [], finish_reason
        try:
            request.on_finish(finish_reason)
        except Exception:
            LOGGER.exception("the end of a request could not be reported")

    def preempt(self, request: Request) -> None:
        """The request gives up its blocks, and waits at the head of the queue."""
        self.running.remove(request)
        self.allocator.free(request.blocks)
        request.blocks, request.num_computed_tokens = [], 0
        self.waiting.appendleft(request)
        self.num_preemptions += 1

    def allocate_slots(self, request: Request, num_positions: int) -> bool:
        """Blocks for so many positions; later requests may lose theirs. False if the request lost its own."""
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
        """Whether waiting requests can join this step."""
        return True

    def num_slots_for(self, request: Request, tokens: int) -> int:
        """For how many positions a request needs blocks, if it contributes so many tokens to a step."""
        return request.num_computed_tokens + tokens

    def admit(self, request: Request, token_budget: int) -> int:
        """Lets a waiting request run, if there are blocks; returns how many of its tokens the step takes, or 0."""
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
        # A shared block that is free now will no longer be free to be taken.
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
        """One step; returns how many tokens it processed."""
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
            # An earlier request may have preempted it.
            if (
                request in self.running
                and tokens
                and self.allocate_slots(request, positions)
            ):
                scheduled.append((request, tokens))
        # After a preemption none is admitted: the preempted request is first in line, and would take its blocks back.
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
                except Exception:  # one request must not stop the others
                    LOGGER.exception("a request could not go on")
                    self.abort(request, "failed")
        tokens = sum(tokens for _, tokens in scheduled)
        self.num_processed_tokens += tokens
        return tokens

    def append_token(self, request: Request, new: int) -> None:
        """The request continues with this token, or ends."""
        if new == self.eos_id:
            self.finish(request, "stop")
            return
        request.ids.append(new)
        request.on_token(new)
        if len(request.ids) - len(request.prompt) == request.max_new_tokens:
            self.finish(request, "length")

    def run(self) -> None:
        """Steps until no request waits or runs."""
        while self.waiting or self.running:
            self.step()
