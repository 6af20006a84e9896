"""Multiple choice by likelihood: the probability of each answer under a model."""

from collections.abc import Sequence

import numpy as np
import torch

from llm_learn.argument_checks import expect
from llm_learn.generate import pad_left
from llm_learn.model import Llama


@torch.no_grad()
def choice_log_probs(
    model: Llama,
    prompts: Sequence[Sequence[int]],
    choices: Sequence[Sequence[Sequence[int]]],
    *,
    pad_id: int,
) -> np.ndarray:
    """log p of each choice after its prompt, (N, choices), in nats.

    Args:
        prompts: N prompts, as token IDs, at least one each.
        choices: as many for each prompt, as token IDs, at least one each.
        pad_id: pads shorter sequences; it changes no result.
    """
    expect(
        "len(prompts) == len(choices) >= 1, all(len(row) == len(choices[0]) >= 1 for row in choices)",
        prompts=prompts,
        choices=choices,
    )
    expect("all(len(choice) for row in choices for choice in row)", choices=choices)
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))  # little padding
    rows = []
    for k in range(0, len(order), 48):
        some = order[k : k + 48]
        batch = [prompts[i] for i in some], [choices[i] for i in some]
        rows.append(_choice_log_probs(model, *batch, pad_id))
    return np.concatenate(rows)[np.argsort(order)]


def _choice_log_probs(
    model: Llama,
    prompts: Sequence[Sequence[int]],
    choices: Sequence[Sequence[Sequence[int]]],
    pad_id: int,
) -> np.ndarray:
    """The same in one batch."""
    ids, padding = pad_left(prompts, pad_id)
    caches = model.new_caches(*ids.shape)
    log_probs = model.logits(model.hidden_states(ids, caches, padding)[:, -1]).log_softmax(
        -1
    )
    first = torch.tensor([[choice[0] for choice in row] for row in choices])
    sums = log_probs.gather(1, first)  # (B, choices)
    longer = [
        (len(choice), i, j, choice)
        for i, row in enumerate(choices)
        for j, choice in enumerate(row)
        if len(choice) > 1
    ]
    for k in range(0, len(longer), 32):  # of nearly equal length
        _, i, j, some = zip(*sorted(longer)[k : k + 32], strict=True)
        width = max(map(len, some)) - 1
        x = torch.tensor([[*c[:-1], *[pad_id] * (width + 1 - len(c))] for c in some])
        copies = model.new_caches(len(i), ids.shape[1] + width)
        for cache, prompt_cache in zip(copies, caches, strict=True):
            cache.extend(prompt_cache.keys[list(i)], prompt_cache.values[list(i)])
        hidden_states = model.hidden_states(x, copies, padding[list(i)])
        # Only where a token follows: the output layer is as much work as all blocks.
        row, place, target = (
            torch.tensor(v)
            for v in zip(
                *((r, t, a) for r, c in enumerate(some) for t, a in enumerate(c[1:])),
                strict=True,
            )
        )
        rest = model.logits(hidden_states[row, place]).log_softmax(-1)
        rest = rest.gather(1, target[:, None])[:, 0]
        sums[list(i), list(j)] += torch.zeros(len(i)).index_add(0, row, rest)
    return sums.numpy()
