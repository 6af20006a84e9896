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
from llm_learn.llama import Llama, LlamaBlock, LlamaConfig


class NoBlock(Exception):
    """Every block is in use."""


class BlockPool:
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
        self.users = [0] * num_blocks
        self.free = OrderedDict.fromkeys(range(num_blocks))  # the longest free first
        self.hash_of: dict[int, bytes] = {}
        self.block_of: dict[bytes, int] = {}

    def blocks_for(self, num_positions: int) -> int:
        """How many blocks so many positions need."""
        return -(-num_positions // self.block_size)

    def take(self) -> int:
        """A block for new text. Raises NoBlock."""
        if not self.free:
            raise NoBlock
        block, _ = self.free.popitem(last=False)
        if (found := self.hash_of.pop(block, None)) is not None:
            del self.block_of[found]
        self.users[block] = 1
        return block

    def give_back(self, blocks: Sequence[int]) -> None:
        """One user less for each; the last ones become free first, since beginnings are wanted more often."""
        for block in reversed(blocks):
            self.users[block] -= 1
            if self.users[block] == 0:
                self.free[block] = None

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

    def remember(
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

    def known(self, ids: Sequence[int], hashes: list[bytes] | None = None) -> list[int]:
        """The blocks that hold the beginning of these ids; not of the last, which has to be read for its logits."""
        found: list[int] = []
        for prefix in self.hashes(ids, hashes)[: (len(ids) - 1) // self.block_size]:
            block = self.block_of.get(prefix)
            if block is None:
                break
            found.append(block)
        return found

    def share(self, blocks: Sequence[int]) -> None:
        """One user more for each."""
        for block in blocks:
            self.free.pop(block, None)
            self.users[block] += 1


@dataclass(frozen=True)
class Row:
    """What a text gives to a pass."""

    ids: Sequence[int]  # new ones, at least one
    start: int  # position of the first
    blocks: Sequence[int]  # its table, with room for all positions up to the last

    def __post_init__(self):
        expect("len(ids) >= 1, start >= 0", ids=self.ids, start=self.start)


class Pages:
    """The keys and values of a model, in blocks.

    Args:
        config: of the model.
        num_blocks, block_size: those of the pool.
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
        slots = num_blocks * block_size
        shape = (2, config.num_layers, slots, config.num_kv_heads, config.head_dim)
        self.keys, self.values = torch.zeros(shape, dtype=dtype, device=device)
        self.block_size = block_size

    def slots(self, row: Row) -> Tensor:
        """Where the positions of a row lie, from the first of its text to the last of its new ids: (S,)"""
        size, length = self.block_size, row.start + len(row.ids)
        expect(
            "len(blocks) * block_size >= length",
            blocks=row.blocks,
            block_size=size,
            length=length,
        )
        positions = torch.arange(length, device=self.keys.device)
        table = torch.tensor(row.blocks, device=self.keys.device)
        return table[positions // size] * size + positions % size


@torch.no_grad()  # each thread has its own switch, and an engine may run in any
def read_rows(model: Llama, pages: Pages, rows: Sequence[Row]) -> Tensor:
    """One pass: writes keys and values of all new ids into the pages.

    Args:
        model: reads.
        pages: of that model, with its dtype and device; changed.
        rows: texts, at least one, each once.

    Returns:
        (rows, V) logits for the id after each row's last, float32 and on the CPU, where ids are chosen
    """
    # Of a norm, as in `Llama.new_caches`: where weights are stored in fewer bits, a norm's are not.
    weight = model.norm.weight
    expect(
        "len(rows) >= 1, longest_row <= context_length, "
        "pages.keys.dtype == weight.dtype, pages.keys.device == weight.device",
        rows=rows,
        longest_row=max((row.start + len(row.ids) for row in rows), default=0),
        context_length=model.config.context_length,
        pages=pages,
        weight=weight,
    )
    ids = [i for row in rows for i in row.ids]
    positions = [row.start + n for row in rows for n in range(len(row.ids))]
    ids, positions = torch.tensor([ids, positions], device=weight.device)  # (N,) each
    slots = [pages.slots(row) for row in rows]
    new = torch.cat([s[row.start :] for s, row in zip(slots, rows, strict=True)])  # (N,)
    ends = list(accumulate(len(row.ids) for row in rows))
    groups = [*single_ids(rows, slots, ends), *longer(rows, slots, ends)]
    x = model.token_embedding(ids).unsqueeze(0)  # (1, N, C)
    cosines, sines = model.rope(positions)
    rope = cosines.to(x.dtype), sines.to(x.dtype)
    for i, layer in enumerate(model.blocks):
        assert isinstance(layer, LlamaBlock)
        q, k, v = (
            t.squeeze(0).transpose(0, 1)
            for t in layer.attention.heads(layer.norm_1(x), rope)
        )
        pages.keys[i, new], pages.values[i, new] = k, v  # (N, K, D)
        heads = torch.empty_like(q)  # (N, H, D)
        for where, table, mask in groups:
            heads[where] = read_slots(
                q[where], pages.keys[i, table], pages.values[i, table], mask
            )
        x = x + layer.attention.out(heads.flatten(1).unsqueeze(0))
        x = x + layer.mlp(layer.norm_2(x))
    last = torch.tensor(ends, device=x.device) - 1  # (rows,)
    return model.logits(model.norm(x[0, last])).float().cpu()


def read_slots(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
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


def single_ids(
    rows: Sequence[Row], slots: Sequence[Tensor], ends: Sequence[int]
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """All texts with one new id, as one batch: where (R, 1), table (R, S) and mask (R, 1, 1, S)."""
    short = [i for i, row in enumerate(rows) if len(row.ids) == 1]
    if short:
        table = torch.nn.utils.rnn.pad_sequence([slots[i] for i in short], batch_first=True)
        where = torch.tensor([[ends[i] - 1] for i in short], device=table.device)
        lengths = torch.tensor([[len(slots[i])] for i in short], device=table.device)
        mask = torch.arange(table.shape[1], device=table.device) < lengths
        yield where, table, mask[:, None, None]


def longer(
    rows: Sequence[Row], slots: Sequence[Tensor], ends: Sequence[int]
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Each text with several new ids by itself: where (1, T), table (1, S) and mask (1, 1, T, S)."""
    for row, slot, end in zip(rows, slots, ends, strict=True):
        if len(row.ids) > 1:
            where = torch.arange(end - len(row.ids), end, device=slot.device)
            positions = torch.arange(len(slot), device=slot.device)
            mask = positions <= positions[row.start :, None]
            yield where[None], slot[None], mask[None, None]


LOGGER = logging.getLogger("llm_learn.apps.serving_engine")


@dataclass(eq=False)
class Request:
    """A text to be continued.

    Attributes:
        ids: the prompt, and what was written.
        hashes: of the blocks that its ids fill, as far as the pool has computed them.
        num_read: positions whose keys and values lie in `blocks`.
        reason: why it ended: "stop" for its own end, "length" for the limit, or what `take_out` was told; empty while it has not.
    """

    prompt: Sequence[int]
    max_new: int
    on_id: Callable[[int], None] = lambda _: None  # is called with each id
    on_end: Callable[[str], None] = lambda _: None  # and once with the reason
    options: dict = field(default_factory=dict)
    ids: list[int] = field(default_factory=list)
    blocks: list[int] = field(default_factory=list)
    hashes: list[bytes] = field(default_factory=list)
    num_read: int = 0
    reason: str = ""

    def __post_init__(self):
        self.ids = list(self.prompt)

    def num_unread(self) -> int:
        """How many of its ids have not been read."""
        return len(self.ids) - self.num_read


@dataclass(eq=False)
class Engine:
    """Continues many texts at once."""

    read_rows: Callable[[list[Row]], Sequence]  # something for each row
    choose: Callable[[Request, object], int]  # the next id, given that something
    pool: BlockPool  # the blocks
    _: KW_ONLY
    end_id: int  # ends a text, and is not part of it
    max_rows: int = 16  # texts that run at the same time, at most
    max_tokens: int = 128  # tokens in a pass, at most
    max_chunk: int = 64  # tokens of one text in a pass, at most
    context_length: int = 2048  # positions that the model can read

    def __post_init__(self):
        expect(
            "max_rows >= 1, max_tokens >= 1, max_chunk >= 1, context_length >= 1",
            **vars(self),
        )
        self.waiting: deque[Request] = deque()
        self.running: list[Request] = []  # in the order of arrival
        self.preemptions = self.tokens_read = self.tokens_shared = 0

    def room_after(self, num_ids: int) -> int:
        """How many ids an answer to so many may have, if it is alone."""
        # The last id is written and never read.
        positions = len(self.pool.users) * self.pool.block_size + 1
        return min(self.context_length, positions) - num_ids

    def check(self, request: Request) -> None:
        """Raises ValueError for a text that is empty, or could not be finished even if it were alone."""
        expect(
            "len(prompt) >= 1, max_new >= 1, len(prompt) + max_new <= limit",
            prompt=request.prompt,
            max_new=request.max_new,
            limit=self.room_after(0),
        )

    def submit(self, request: Request) -> None:
        """Puts a text into the queue; see `check`."""
        self.check(request)
        self.waiting.append(request)

    def take_out(self, request: Request, reason: str) -> None:
        """Ends a text, whatever it is doing; nothing happens if it has ended."""
        if request.reason:
            return
        with suppress(ValueError):
            self.waiting.remove(request)
        self.end(request, reason)

    def end(self, request: Request, reason: str) -> None:
        """The text has ended: its blocks go back."""
        if request in self.running:
            self.running.remove(request)
        self.pool.give_back(request.blocks)
        request.blocks, request.reason = [], reason
        try:
            request.on_end(reason)
        except Exception:
            LOGGER.exception("nobody could be told of an end")

    def preempt(self, request: Request) -> None:
        """The text gives up its blocks, and waits at the head of the queue."""
        self.running.remove(request)
        self.pool.give_back(request.blocks)
        request.blocks, request.num_read = [], 0
        self.waiting.appendleft(request)
        self.preemptions += 1

    def make_room(self, request: Request, num_positions: int) -> bool:
        """Blocks for so many positions; texts that came later may lose theirs. False if the text lost its own."""
        while len(request.blocks) < self.pool.blocks_for(num_positions):
            try:
                request.blocks.append(self.pool.take())
            except NoBlock:
                last = self.running[-1]
                self.preempt(last)
                if last is request:
                    return False
        return True

    def may_join(self) -> bool:
        """Whether texts that wait may join this pass."""
        return True

    def positions_for(self, request: Request, tokens: int) -> int:
        """For how many positions a text needs blocks, if it gives so many tokens to a pass."""
        return request.num_read + tokens

    def join(self, request: Request, room: int) -> int:
        """Lets a waiting text run, if there are blocks; returns how many of its tokens the pass takes, or 0."""
        blocks = self.pool.known(request.ids, request.hashes)
        request.num_read = len(blocks) * self.pool.block_size
        tokens = min(len(request.ids) - request.num_read, self.max_chunk, room)
        needed = self.pool.blocks_for(self.positions_for(request, tokens)) - len(blocks)
        # A block that it shares and that is free now will not be free to be taken.
        if needed > len(self.pool.free) - sum(block in self.pool.free for block in blocks):
            request.num_read = 0
            return 0
        self.waiting.popleft()
        self.running.append(request)
        self.pool.share(blocks)
        request.blocks = blocks
        self.tokens_shared += request.num_read
        return tokens

    def step(self) -> int:
        """One pass; returns how many tokens it had."""
        room, joining, before = self.max_tokens, self.may_join(), self.preemptions
        parts = {}
        for request in sorted(self.running, key=Request.num_unread):
            parts[request] = min(request.num_unread(), self.max_chunk, room)
            room -= parts[request]
        rows = []
        for request in list(self.running):
            tokens = parts[request]
            positions = self.positions_for(request, tokens)
            # It may have lost its place to one that came earlier.
            if request in self.running and tokens and self.make_room(request, positions):
                rows.append((request, tokens))
        # After a preemption nobody joins: whoever gave way is the first in line, and would take its blocks back.
        joining = joining and self.preemptions == before
        while joining and room and self.waiting and len(self.running) < self.max_rows:
            request = self.waiting[0]
            if not (tokens := self.join(request, room)):
                break
            _ = self.make_room(request, self.positions_for(request, tokens))
            rows.append((request, tokens))
            room -= tokens
        if not rows:
            return 0
        found = self.read_rows(
            [Row(r.ids[r.num_read : r.num_read + n], r.num_read, r.blocks) for r, n in rows]
        )
        for (request, tokens), logits in zip(rows, found, strict=True):
            filled = request.num_read // self.pool.block_size
            request.num_read += tokens
            read = request.ids[: request.num_read]
            self.pool.remember(read, request.blocks, filled, request.hashes)
            if not request.num_unread():
                try:
                    self.write(request, self.choose(request, logits))
                except Exception:  # one text must not take the others down with it
                    LOGGER.exception("a text could not go on")
                    self.take_out(request, "failed")
        tokens = sum(tokens for _, tokens in rows)
        self.tokens_read += tokens
        return tokens

    def write(self, request: Request, new: int) -> None:
        """The text goes on with this id, or ends."""
        if new == self.end_id:
            self.end(request, "stop")
            return
        request.ids.append(new)
        request.on_id(new)
        if len(request.ids) - len(request.prompt) == request.max_new:
            self.end(request, "length")

    def run(self) -> None:
        """Until nobody waits or runs."""
        while self.waiting or self.running:
            self.step()
