"""Text generation: samples the next token from logits, and continues prompts."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from llm_learn.argument_checks import expect
from llm_learn.attention import KVCache

__all__ = ["KVCache", "filter_logits", "generate", "pad_left", "sample_next"]


def filter_logits(
    logits: Tensor, *, top_k: int | None = None, top_p: float | None = None
) -> Tensor:
    """Removes unlikely tokens by setting their logits to -inf.

    Args:
        logits: (B, V)
        top_k: keep the k most likely tokens (Fan et al. 2018, arXiv:1805.04833).
        top_p: keep the smallest set of most likely tokens whose probabilities reach p
            (Holtzman et al. 2020, arXiv:1904.09751).

    Returns:
        (B, V)
    """
    expect("logits (B, V)", logits=logits)
    expect("top_k is None or top_k >= 1", top_k=top_k)
    expect("top_p is None or 0 < top_p <= 1", top_p=top_p)
    if top_k is not None:
        kth_largest = logits.topk(min(top_k, logits.shape[-1])).values[:, -1:]  # (B, 1)
        logits = logits.masked_fill(logits < kth_largest, float("-inf"))
    # At 1 no token is removed; a sum of many float32 probabilities may exceed it.
    if top_p is not None and top_p < 1:
        sorted_logits, order = logits.sort(descending=True)
        probabilities = sorted_logits.softmax(-1)
        # A token stays while those before it have not reached p; the most likely one always stays.
        mass_before = probabilities.cumsum(-1) - probabilities
        remove = torch.zeros_like(order, dtype=torch.bool).scatter(
            -1, order, mass_before >= top_p
        )
        logits = logits.masked_fill(remove, float("-inf"))
    return logits


def sample_next(
    logits: Tensor,
    *,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Samples the next token of each row: (B, V) -> (B, 1). `temperature=0` takes the most likely one."""
    expect("temperature == 0 or temperature >= 1e-6", temperature=temperature)
    # In 16 bits, sums of many probabilities are inexact, and a low temperature overflows.
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    # Greedy decoding filters too: the most likely token remains, and bad arguments are refused alike.
    filtered = filter_logits(logits / (temperature or 1.0), top_k=top_k, top_p=top_p)
    if temperature == 0:
        return filtered.argmax(-1, keepdim=True)
    probabilities = filtered.softmax(-1)
    return torch.multinomial(probabilities, 1, generator=generator)


@torch.no_grad()
def generate(
    model: nn.Module,
    ids: Tensor,
    max_new_tokens: int,
    *,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    eos_id: int | None = None,
    padding: Tensor | None = None,
    use_cache: bool = True,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Continues each row of `ids`, one token at a time.

    Args:
        model: maps token IDs (B, T) to logits (B, T, V), and has `config.context_length`.
        ids: (B, T) prompts, at least one token and at most the context length.
        max_new_tokens: tokens to add.
        temperature, top_k, top_p: see `sample_next` and `filter_logits`.
        eos_id: a row that has sampled it is finished, and is padded with it.
        padding: (B,) number of padding tokens at the start of each row; see `pad_left`.
        use_cache: keep keys and values instead of processing all tokens again, if the model can (a `Llama`), as long
            as the sequence fits its context.
        generator: decides the samples.

    Returns:
        (B, T + new); new is smaller than `max_new_tokens` only if every row finished early.
    """
    context_length = model.config.context_length
    expect("ids (B, T), 1 <= T <= context_length", ids=ids, context_length=context_length)
    expect("max_new_tokens >= 0", max_new_tokens=max_new_tokens)
    num_rows, num_ids = ids.shape
    can_cache = hasattr(model, "new_caches")
    expect("padding (B,) or None", padding=padding, B=num_rows)
    expect("padding is None or can_cache", padding=padding, can_cache=can_cache)
    caches = None
    if use_cache and can_cache and max_new_tokens > 0:
        # The last token is sampled and never processed.
        capacity = min(num_ids + max_new_tokens - 1, context_length)
        caches = model.new_caches(num_rows, capacity)
    was_training = model.training
    model.eval()
    try:
        finished = torch.zeros(num_rows, 1, dtype=torch.bool, device=ids.device)
        for _ in range(max_new_tokens):
            # Past its context length a model gets only the most recent tokens, at new positions: no key can be kept.
            if caches and ids.shape[1] <= context_length:
                new = ids[:, caches[0].length :]  # the prompt, then one token at a time
                logits = model.logits(
                    model.hidden_states(new, caches, padding)[:, -1]
                )  # (B, V)
            elif padding is None:
                logits = model(ids[:, -context_length:])[:, -1]  # (B, V)
            else:
                # Padding is the first to leave the window on the left.
                left = (padding - max(0, ids.shape[1] - context_length)).clamp(min=0)
                logits = model(ids[:, -context_length:], padding=left)[:, -1]  # (B, V)
            next_ids = sample_next(
                logits,
                temperature=temperature,
                top_k=top_k,
                top_p=top_p,
                generator=generator,
            )
            if eos_id is not None:
                next_ids = next_ids.masked_fill(finished, eos_id)
                finished |= next_ids == eos_id
            ids = torch.cat([ids, next_ids], dim=1)
            if eos_id is not None and finished.all():
                break
    finally:
        model.train(was_training)
    return ids


def pad_left(prompts: Sequence[Sequence[int]], pad_id: int) -> tuple[Tensor, Tensor]:
    """Prompts of different lengths as one batch that ends together.

    Args:
        prompts: the token IDs of each prompt, at least one.
        pad_id: pads the shorter rows on the left.

    Returns:
        Token IDs (B, T), and how many of the first are padding, (B,).
    """
    expect("len(prompts) >= 1, all(len(prompt) for prompt in prompts)", prompts=prompts)
    longest = max(len(prompt) for prompt in prompts)
    padding = [longest - len(prompt) for prompt in prompts]
    rows = [[pad_id] * n + list(prompt) for n, prompt in zip(padding, prompts, strict=True)]
    return torch.tensor(rows), torch.tensor(padding)
