"""Interpretability: replacement of heads, attention patterns, gradients of activations, and linear probes."""

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from llm_learn.activation_hooks import Change, Place, changed, every_place, run_with_cache
from llm_learn.argument_checks import expect
from llm_learn.attention import attention_weights, causal_mask
from llm_learn.model.llama import Llama, LlamaBlock

Head = tuple[int, int]  # the block, and the head's number in it
# Hidden states (B, T, C) -> a number for each sequence, (B,).
Metric = Callable[[Tensor], Tensor]


def replace_heads(
    model: Llama, heads: Sequence[Head], source: dict[Place, Tensor]
) -> dict[Place, Change]:
    """Changes that replace each head's output by the source's: (B, T, C), or less, such as (C,) for all positions."""
    D, num_heads = model.config.head_dim, model.config.num_heads
    expect(
        "all(0 <= number < num_heads for _, number in heads)",
        heads=heads,
        num_heads=num_heads,
    )

    def change_in(layer: int) -> Change:
        def change(x: Tensor) -> Tensor:
            x = x.clone()
            for number in (number for at, number in heads if at == layer):
                here = slice(number * D, (number + 1) * D)
                x[..., here] = source["heads", layer][..., here]
            return x

        return change

    return {("heads", layer): change_in(layer) for layer in {at for at, _ in heads}}


def attention_patterns(model: Llama, ids: Tensor) -> Iterator[Tensor]:
    """How much each head attends to each position, (B, H, T, T), block after block."""
    _, seen = run_with_cache(model, ids, every_place("stream", model))
    num_positions = ids.shape[1]
    mask, rope = causal_mask(num_positions), model.rope(torch.arange(num_positions))
    for block, x in zip(model.blocks, seen.values(), strict=True):
        assert isinstance(block, LlamaBlock)
        q, k, _ = block.attention.heads(block.norm_1(x), rope)
        k = k.repeat_interleave(q.shape[1] // k.shape[1], dim=1)  # a key for each query
        yield attention_weights(q, k, mask)


def activation_gradients(
    model: Llama,
    ids: Tensor,
    metric: Metric,
    places: Sequence[Place],
    values: dict[Place, Tensor] | None = None,
) -> dict[Place, Tensor]:
    """Gradients of the metric at each place, (B, T, C).

    Args:
        values: they replace the activations at some of the places, (B, T, C).
    """
    added, values = {}, values or {}
    expect("set(values) <= set(places)", values=values, places=places)

    def open_up(place: Place) -> Change:
        def change(x: Tensor) -> Tensor:
            added[place] = torch.zeros_like(x, requires_grad=True)
            return values.get(place, x) + added[place]

        return change

    with torch.enable_grad(), changed(model, {place: open_up(place) for place in places}):
        total = metric(model.hidden_states(ids)).sum()
        slopes = torch.autograd.grad(total, [added[place] for place in places])
    return dict(zip(places, slopes, strict=True))


def linear_probe(x: Tensor, labels: Tensor, new_x: Tensor, new_labels: Tensor) -> float:
    """Accuracy of a linear map, fitted by least squares, on the labels of new vectors.

    Args:
        x: vectors to fit on, (N, C)
        labels: integers from 0, (N,)
        new_x: vectors to classify, (M, C)
        new_labels: their labels, (M,)
    """
    expect(
        "x (N, C), labels int (N,), new_x (M, C), new_labels int (M,)",
        x=x,
        labels=labels,
        new_x=new_x,
        new_labels=new_labels,
    )
    x, new_x = (F.pad(a.double(), (0, 1), value=1.0) for a in (x, new_x))
    targets = F.one_hot(labels).double()
    decay = 1e-3 * torch.eye(x.shape[1], dtype=torch.double)
    weights = torch.linalg.solve(x.T @ x + decay, x.T @ targets)
    return (new_x @ weights).argmax(-1).eq(new_labels).double().mean().item()


def top_heads(scores: Tensor, count: int) -> list[Head]:
    """The heads with the largest of the scores (L, H), the largest first."""
    expect("scores (L, H), 0 <= count <= L * H", scores=scores, count=count)
    order = scores.flatten().argsort(descending=True)[:count].tolist()
    return [divmod(i, scores.shape[1]) for i in order]
