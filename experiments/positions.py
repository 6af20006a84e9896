"""The recorded experiment of the chapters on positions and on context length: every scheme, on text that repeats itself.

`make experiment NAME=positions` runs it on one thread and rewrites experiments/positions.json, which both chapters draw.
Models and schemes are the chapters' own. Its short runs are those of the pages, which check that they agree; the long
runs learn from windows of 128 characters, every second one a passage that repeats, and are tested on longer ones.
"""

import copy
import time
from itertools import pairwise
from pathlib import Path

import torch
from common import definitions, head
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from llm_learn.atomic_files import write_json
from llm_learn.data import shakespeare_characters

page = definitions("decoder/positions")
context_length = definitions("scale/context-length")
SEEDS, LENGTH, BATCH, MAX_STEPS, LEARNING_RATE = [0, 1, 2], 128, 16, 2500, 3e-3
FACTOR, TUNING_STEPS = 8, 100
PERIODS = [
    16,
    32,
    64,
    128,
    256,
    512,
]  # the lengths of passages in the test; 64 was the longest learned
EDGES = [0, 32, 64, 128, 256, 512, 1024]
FIRST = 8  # a passage is known to repeat when so many of its characters have come again
RECORD = Path(__file__).with_suffix(".json")


def windows(ids: Tensor, count: int, length: int, *, generator: torch.Generator) -> Tensor:
    starts = torch.randint(len(ids) - length, (count, 1), generator=generator)
    return ids[starts + torch.arange(length + 1)]


def repeated(text: Tensor, periods: Tensor) -> Tensor:
    """Each row (T,) becomes its first `period` characters, again and again."""
    return text.gather(1, torch.arange(text.shape[1]) % periods)


def lesson(ids: Tensor, count: int, length: int, *, generator: torch.Generator) -> Tensor:
    """Windows (count, length + 1) of which every second one repeats a passage of 8 to length / 2 characters."""
    text = windows(ids, count, length, generator=generator)
    periods = torch.randint(8, length // 2 + 1, (count, 1), generator=generator)
    periods[::2] = length + 1
    return repeated(text, periods)


def fit(model, ids, generator, *, length, batch, max_steps, learning_rate) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), betas=(0.9, 0.98), fused=True)
    model.train()
    for step in tqdm(range(max_steps), leave=False):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate * min(1, (step + 1) / 20) * (1 - step / max_steps)
        text = lesson(ids, batch, length, generator=generator)
        loss = F.cross_entropy(model(text[:, :-1]).flatten(0, 1), text[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    model.eval()


@torch.no_grad()
def losses(model: nn.Module, text: Tensor, **how) -> Tensor:
    """(B, T + 1) -> the mean loss at each of T positions, nats a character."""
    rows = [
        F.cross_entropy(model(x[:, :-1], **how).mT, x[:, 1:], reduction="none")
        for x in text.split(4)
    ]
    return torch.cat(rows).mean(0)


def measure(model: nn.Module, held_out: Tensor, **how) -> dict[str, list[float]]:
    generator = torch.Generator().manual_seed(1)
    text = losses(model, windows(held_out, 24, EDGES[-1], generator=generator), **how)
    new = [text[a:b].mean().item() for a, b in pairwise(EDGES)]
    copies = []
    for period in PERIODS:
        passage = windows(held_out, 24, 2 * period - 1, generator=generator)
        twice = repeated(passage, torch.tensor([[period]]))
        copies.append(losses(model, twice, **how)[period - 1 + FIRST :].mean().item())
    return {
        "new": [round(loss, 4) for loss in new],
        "copy": [round(loss, 4) for loss in copies],
    }


def stretchings(head_dim: int) -> dict[str, tuple[Tensor, float]]:
    plain = page.rope_frequencies(head_dim)
    return {
        "as trained": (plain, 1.0),
        "interpolation": (plain / FACTOR, 1.0),
        "NTK": (context_length.ntk(head_dim, FACTOR), 1.0),
        "YaRN": context_length.yarn(head_dim, FACTOR, LENGTH),
    }


def main() -> None:
    torch.set_num_threads(1)
    tokenizer, known, held_out = shakespeare_characters()
    record = head("Shakespeare's plays, four of them held out", SEEDS)
    record |= {"max_steps": MAX_STEPS, "length": LENGTH, "factor": FACTOR}
    record |= {"edges": EDGES, "periods": PERIODS, "tuning_steps": TUNING_STEPS}
    record |= {"short": {}, "long": {}, "stretched": {}, "cpu_seconds": {}}
    x, y = page.long_windows(held_out)
    for scheme in page.SCHEMES:
        began, short, long = time.process_time(), [], []
        for seed in SEEDS:
            model = page.trained_text_model(
                page.SCHEMES[scheme], seed, tokenizer.vocab_size, known
            )
            short.append([round(v, 4) for v in page.loss_by_position(model, x, y).tolist()])
            torch.manual_seed(seed)
            model = page.TextModel(page.SCHEMES[scheme](), tokenizer.vocab_size)
            generator = torch.Generator().manual_seed(seed)
            recipe = {
                "length": LENGTH,
                "batch": BATCH,
                "max_steps": MAX_STEPS,
                "learning_rate": LEARNING_RATE,
            }
            fit(model, known, generator, **recipe)
            long.append(measure(model, held_out))
            print(scheme, seed, short[-1], long[-1], flush=True)
            if scheme != "RoPE":
                continue
            rows = {"window": measure(model, held_out, window=LENGTH)}
            for name, (frequencies, sharpness) in stretchings(16).items():
                stretched = copy.deepcopy(model)
                stretched.scheme.frequencies.copy_(frequencies)
                stretched.scheme.sharpness = sharpness
                rows[name] = measure(stretched, held_out)
                recipe = {
                    "length": FACTOR * LENGTH,
                    "batch": BATCH // FACTOR,
                    "max_steps": TUNING_STEPS,
                    "learning_rate": LEARNING_RATE / 3,
                }
                fit(stretched, known, torch.Generator().manual_seed(seed), **recipe)
                rows[f"{name}, tuned"] = measure(stretched, held_out)
            for name, row in rows.items():
                print("  ", name, row, flush=True)
                record["stretched"].setdefault(name, []).append(row)
        record["short"][scheme], record["long"][scheme] = short, long
        seconds = (time.process_time() - began) / len(SEEDS)
        record["cpu_seconds"][scheme] = round(seconds, 1)
    write_json(RECORD, record)


if __name__ == "__main__":
    main()
