"""The ring adds up what processes give, and counts what it sends; vectors hold tensors and give them back."""

import pytest
import torch

from llm_learn.collectives import Ring, as_vector, split_like
from llm_learn.distributed import launch_processes


def through_the_ring() -> tuple[list, int]:
    ring = Ring()
    x = torch.arange(12.0) * (ring.rank + 1)
    summed, sent = ring.all_reduce(x), ring.bytes_sent
    scattered = ring.reduce_scatter(x)
    gathered = ring.all_gather(torch.full((2,), float(ring.rank)))
    with pytest.raises(ValueError, match="% size == 0"):
        ring.all_reduce(torch.zeros(13))
    return [t.tolist() for t in (summed, scattered, gathered)], sent


@pytest.mark.parametrize("size", [2, 3])
def test_a_ring_sums_scatters_gathers_and_counts(size):
    whole = torch.arange(12.0) * (size * (size + 1) / 2)
    for rank, (found, sent) in enumerate(launch_processes(through_the_ring, size)):
        summed, scattered, gathered = found
        assert summed == whole.tolist()
        assert scattered == whole.chunk(size)[rank].tolist()
        assert gathered == [float(r) for r in range(size) for _ in range(2)]
        assert sent == 2 * (size - 1) * 48 // size


def test_a_vector_gives_its_tensors_back():
    tensors = [torch.randn(2, 3), torch.randn(5)]
    vector = as_vector(tensors, 4)
    assert vector.shape == (12,) and vector[11] == 0
    parts = split_like(vector, tensors)
    assert all(torch.equal(a, b) for a, b in zip(parts, tensors, strict=True))
    assert parts[0].data_ptr() == vector.data_ptr()  # views


def test_a_vector_that_is_too_short_is_refused():
    with pytest.raises(ValueError, match="vector"):
        split_like(torch.zeros(3), [torch.zeros(4)])
