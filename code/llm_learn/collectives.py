"""Collective operations over a ring of processes, and the vectors that they exchange."""

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional as F

from llm_learn.argument_checks import expect


class Ring:
    """The processes in a ring; counts the bytes that this one has sent."""

    def __init__(self):
        self.rank, self.size = dist.get_rank(), dist.get_world_size()
        self.bytes_sent = 0

    def step(self, chunks: Tensor, send: int, receive: int, add: bool) -> None:
        """Sends one of the chunks (R, n) to the next process; the received one is added to another, or replaces it."""
        arriving = torch.empty_like(chunks[receive])
        sending = dist.P2POp(dist.isend, chunks[send], (self.rank + 1) % self.size)
        receiving = dist.P2POp(dist.irecv, arriving, (self.rank - 1) % self.size)
        for request in dist.batch_isend_irecv([sending, receiving]):
            request.wait()
        self.bytes_sent += chunks[send].nbytes
        if add:
            arriving += chunks[receive]
        chunks[receive] = arriving

    def reduce_scatter(self, x: Tensor) -> Tensor:
        """This process's chunk of the sum: (R * n,) -> (n,)"""
        expect("x (N,), N % size == 0", x=x, size=self.size)
        chunks = x.clone().view(self.size, -1)
        for i in range(1, self.size):
            self.step(
                chunks,
                send=(self.rank - i) % self.size,
                receive=(self.rank - i - 1) % self.size,
                add=True,
            )
        return chunks[self.rank].clone()

    def all_gather(self, chunk: Tensor) -> Tensor:
        """The chunks of all processes, by rank: (n,) -> (R * n,)"""
        expect("chunk (N,)", chunk=chunk)
        chunks = chunk.new_empty(self.size, len(chunk))
        chunks[self.rank] = chunk
        for i in range(self.size - 1):
            self.step(
                chunks,
                send=(self.rank - i) % self.size,
                receive=(self.rank - i - 1) % self.size,
                add=False,
            )
        return chunks.flatten()

    def all_reduce(self, x: Tensor) -> Tensor:
        """The sum over all processes: (R * n,) -> (R * n,)"""
        return self.all_gather(self.reduce_scatter(x))


def as_vector(tensors: Sequence[Tensor], size: int) -> Tensor:
    """All entries as one vector, padded with zeros so that `size` divides its length."""
    vector = torch.cat([t.flatten() for t in tensors])
    return F.pad(vector, (0, -len(vector) % size))


def split_like(vector: Tensor, like: Sequence[Tensor]) -> list[Tensor]:
    """Splits a vector of `as_vector` into tensors, shaped like others."""
    sizes = [t.numel() for t in like]
    expect("vector (N,), sum(sizes) <= N", vector=vector, sizes=sizes)
    parts = vector[: sum(sizes)].split(sizes)
    return [part.view_as(t) for part, t in zip(parts, like, strict=True)]
