"""Speculative decoding: a draft proposes tokens, and the model verifies them in one forward pass."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from llm_learn.argument_checks import expect
from llm_learn.model.llama import Llama

Probs = Callable[[Tensor], Tensor]  # from logits (T, V) to what is sampled from, (T, V)
# From a sequence and a number to at most that many tokens (n,), and the probabilities from which
# they were sampled, (n, V).
Draft = Callable[[list[int], int], tuple[Tensor, Tensor]]


def accept(
    target: Tensor, draft: Tensor, drafted: Tensor, *, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Which draft tokens stay, and from what the next is sampled (Leviathan et al. 2023, arXiv:2211.17192).

    Args:
        target: (k + 1, V), the model's probabilities p, at the positions of the draft and after it.
        draft: (k, V), the probabilities q from which the draft was sampled.
        drafted: (k,) token IDs; these three on one device.
        generator: decides what stays; it may be on another device.

    Returns:
        (n,) tokens with n <= k, and weights of the next token, (V,), which need not add up to 1.
    """
    rule = "drafted (k,), draft (k, V), target (k + 1, V)"
    expect(rule, target=target, draft=draft, drafted=drafted)
    k = len(drafted)
    places = torch.arange(k, device=drafted.device)
    ratio = target[places, drafted] / draft[places, drafted]
    draws = torch.rand(k, generator=generator, device=generator.device)
    stays = draws.to(ratio.device) < ratio
    n = int(stays.long().cumprod(0).sum())  # up to the first that is rejected
    if n == k:
        return drafted, target[n]
    excess = (target[n] - draft[n]).clamp(min=0)
    # Where p and q differ by rounding only, the residual may be empty.
    return drafted[:n], excess if excess.any() else target[n]


def sample_id(weights: Tensor, *, generator: torch.Generator) -> int:
    """A token sampled in proportion to the weights (V,), on the device of the generator."""
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
    """Generates as the model would, in fewer forward passes: the new tokens, and the number of passes.

    Args:
        model: the target model.
        prompt: token IDs, at least one.
        max_new_tokens: tokens to add.
        draft: proposes the next tokens; see `Draft`.
        k: draft tokens per pass, at most; 0 drafts none.
        probs: from the model's logits to what is sampled from.
        generator: decides the samples.
        eos_id: ends the sequence, and is its last token.
    """
    # The last token is sampled and never processed.
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
            cache.length = len(text) - 1  # rejected tokens are forgotten
    return text[len(prompt) :], passes


def draft_from_model(
    model: Llama, capacity: int, *, probs: Probs, generator: torch.Generator
) -> Draft:
    """Drafts with a smaller model of the same vocabulary.

    Args:
        model: the draft model.
        capacity: tokens of a sequence and its draft, at most.
        probs: from the smaller model's logits to what is sampled from.
        generator: decides the samples.
    """
    caches, read = model.new_caches(1, capacity), []

    def draft(text: list[int], k: int) -> tuple[Tensor, Tensor]:
        nonlocal read
        expect("len(text) + k <= capacity", text=text, k=k, capacity=capacity)
        device = caches[0].keys.device
        ids, q = list(text), [torch.empty(0, model.config.vocab_size, device=device)]
        # The last token must be processed again for its logits; rejected tokens have been processed too.
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
    """Greedy decoding as a distribution: (T, V) -> (T, V), 1 for the most likely token."""
    return F.one_hot(logits.argmax(-1), logits.shape[-1]).float()
