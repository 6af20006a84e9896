"""Speculative decoding: a draft proposes ids, and the model verifies them in one pass."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from llm_learn.argument_checks import expect
from llm_learn.model.llama import Llama

Probs = Callable[[Tensor], Tensor]  # from logits (T, V) to what is drawn from, (T, V)
# From a text and a number to at most that many ids (n,), and the probabilities from which
# they were drawn, (n, V).
Draft = Callable[[list[int], int], tuple[Tensor, Tensor]]


def accept(
    target: Tensor, draft: Tensor, drafted: Tensor, *, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Which drafted ids stay, and from what the next is drawn (Leviathan et al. 2023, arXiv:2211.17192).

    Args:
        target: (k + 1, V), the model's probabilities p, at the places of the draft and behind.
        draft: (k, V), the probabilities q from which the draft was drawn.
        drafted: (k,) ids; these three on one device.
        generator: decides what stays; it may be on another device.

    Returns:
        (n,) ids with n <= k, and weights of the next id, (V,), which need not add up to 1.
    """
    rule = "drafted (k,), draft (k, V), target (k + 1, V)"
    expect(rule, target=target, draft=draft, drafted=drafted)
    k = len(drafted)
    places = torch.arange(k, device=drafted.device)
    ratio = target[places, drafted] / draft[places, drafted]
    draws = torch.rand(k, generator=generator, device=generator.device)
    stays = draws.to(ratio.device) < ratio
    n = int(stays.long().cumprod(0).sum())  # up to the first that does not
    if n == k:
        return drafted, target[n]
    excess = (target[n] - draft[n]).clamp(min=0)
    # Where p and q differ by rounding only, nothing may be left of the excess.
    return drafted[:n], excess if excess.any() else target[n]


def sample_id(weights: Tensor, *, generator: torch.Generator) -> int:
    """An id sampled in proportion to the weights (V,), on the device of the generator."""
    return int(torch.multinomial(weights.to(generator.device), 1, generator=generator))


@torch.no_grad()
def speculate(
    model: Llama,
    prompt: Sequence[int],
    max_new_tokens: int,
    draft: Draft,
    *,
    k: int,
    probs: Probs,
    generator: torch.Generator,
    eos_id: int | None = None,
) -> tuple[list[int], int]:
    """Writes as the model would, in fewer passes: the new ids, and the number of passes.

    Args:
        model: writes.
        prompt: ids, at least one.
        max_new_tokens: ids to add.
        draft: guesses how the text goes on; see `Draft`.
        k: ids that are drafted at a time, at most; 0 drafts none.
        probs: from the model's logits to what is drawn from.
        generator: decides the draws.
        eos_id: ends the text, and is its last id.
    """
    # The last id is written and never read.
    expect(
        "max_new_tokens >= 0, k >= 0, len(prompt) >= 1, len(prompt) + max_new_tokens <= context_length + 1",
        prompt=prompt,
        max_new_tokens=max_new_tokens,
        k=k,
        context_length=model.config.context_length,
    )
    whole = len(prompt) + max_new_tokens
    text, passes = list(prompt), 0
    caches = model.new_caches(1, whole)
    while (left := whole - len(text)) > 0:
        asked = min(k, left - 1)
        drafted, q = draft(text, asked)
        expect("len(drafted) <= asked", drafted=drafted, asked=asked)
        unread = [*text[caches[0].length :], *drafted.tolist()]
        device = caches[0].keys.device
        hidden_states = model.hidden_states(torch.tensor([unread], device=device), caches)
        p = probs(model.logits(hidden_states[0, -len(drafted) - 1 :]).float())
        stay, weights = accept(p, q.to(device), drafted.to(device), generator=generator)
        new = [*stay.tolist(), sample_id(weights, generator=generator)]
        passes += 1
        if eos_id in new:
            text += new[: new.index(eos_id) + 1]
            break
        text += new
        for cache in caches:
            cache.length = len(text) - 1  # what was not accepted is forgotten
    return text[len(prompt) :], passes


def draft_from_model(
    model: Llama, capacity: int, *, probs: Probs, generator: torch.Generator
) -> Draft:
    """Drafts with a smaller model of the same vocabulary.

    Args:
        model: guesses.
        capacity: ids of a text and its draft, at most.
        probs: from the smaller model's logits to what is drawn from.
        generator: decides the draws.
    """
    caches, read = model.new_caches(1, capacity), []

    def draft(text: list[int], k: int) -> tuple[Tensor, Tensor]:
        nonlocal read
        expect("len(text) + k <= capacity", text=text, k=k, capacity=capacity)
        device = caches[0].keys.device
        ids, q = list(text), [torch.empty(0, model.config.vocab_size, device=device)]
        # The last id must be read again for its logits; refused guesses have been read too.
        same = 0
        while same < min(len(read), len(text) - 1) and read[same] == text[same]:
            same += 1
        read = read[:same]
        for _ in range(k):
            for cache in caches:
                cache.length = len(read)
            logits = model(torch.tensor([ids[len(read) :]], device=device), caches)[0, -1:]
            read = list(ids)
            q.append(probs(logits.float()))
            ids.append(sample_id(q[-1][0], generator=generator))
        drafted = torch.tensor(ids[len(text) :], dtype=torch.long, device=device)
        return drafted, torch.cat(q)

    return draft


def softmax_probs(logits: Tensor) -> Tensor:
    """Sampling from the model as it is: (T, V) -> (T, V)"""
    return logits.softmax(-1)


def greedy_probs(logits: Tensor) -> Tensor:
    """Greedy decoding as a distribution: (T, V) -> (T, V), 1 for the likeliest id."""
    return F.one_hot(logits.argmax(-1), logits.shape[-1]).float()
