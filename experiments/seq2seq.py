"""The recorded experiment of the chapter on sequence to sequence: three times the updates for every translator.

`make experiment NAME=seq2seq` runs it on one thread and rewrites experiments/seq2seq.json, which the chapter shows.
"""

import random
import time
from pathlib import Path

import torch
from common import head
from torch import Tensor, nn
from torch.nn import functional as F

from llm_learn.atomic_files import write_json
from llm_learn.seq2seq import AttentionSeq2Seq, Seq2Seq, dot_scores, greedy_translation
from llm_learn.tasks.number_name_translation import (
    NumberTranslation,
    exact_match,
    number_translation,
    translation_batch,
)
from llm_learn.tokenizers import Vocabulary

SEEDS, MAX_STEPS = [0, 1, 2], 1200
KINDS = [
    "no attention",
    "no attention, reversed",
    "additive",
    "dot",
    "no attention, all lengths",
]
RECORD = Path(__file__).with_suffix(".json")


class AdditiveScores(nn.Module):
    """A network of one hidden layer scores each pair (Bahdanau et al. 2015, A.1.2)."""

    def __init__(self, hidden_size: int, attention_size: int = 64):
        super().__init__()
        self.W = nn.Linear(hidden_size, attention_size, bias=False)
        self.U = nn.Linear(hidden_size, attention_size, bias=False)
        self.v = nn.Linear(attention_size, 1, bias=False)

    def forward(self, queries: Tensor, keys: Tensor) -> Tensor:
        hidden = torch.tanh(self.W(queries)[:, :, None] + self.U(keys)[:, None])
        return self.v(hidden).squeeze(-1)


def backwards(data: NumberTranslation) -> NumberTranslation:
    """The same pairs, each source from its last word to its first."""
    return NumberTranslation(
        data.source,
        data.target,
        [(a[::-1], b) for a, b in data.train],
        {n: [(a[::-1], b) for a, b in pairs] for n, pairs in data.test.items()},
    )


def make(kind: str, data: NumberTranslation) -> nn.Module:
    sizes = len(data.source), len(data.target)
    if kind.startswith("no attention"):
        return Seq2Seq(*sizes, hidden_size=80)
    scores = dot_scores if kind == "dot" else AdditiveScores(64)
    return AttentionSeq2Seq(*sizes, hidden_size=64, scores=scores)


def fit(model: nn.Module, data: NumberTranslation, seed: int) -> None:
    rng = random.Random(seed)
    optimizer = torch.optim.Adam(model.parameters())
    for step in range(MAX_STEPS):
        for group in optimizer.param_groups:
            group["lr"] = 7e-3 * min(1, (step + 1) / 50) * (1 - step / MAX_STEPS)
        source, inputs, targets = translation_batch(rng.sample(data.train, 32))
        logits = model(source, inputs).flatten(0, 1)
        loss = F.cross_entropy(logits, targets.flatten(), ignore_index=Vocabulary.pad_id)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()


def main() -> None:
    torch.set_num_threads(1)
    german = number_translation("de")
    courses = {
        "no attention, reversed": backwards(german),
        "no attention, all lengths": number_translation("de", longest_train=11, seed=1),
    }
    record = head("num2words, German, as number_translation draws it", list(SEEDS)) | {
        "max_steps": MAX_STEPS,
        "right": {},
        "cpu_seconds": {},
    }
    for kind in KINDS:
        data = courses.get(kind, german)
        groups = [[pair for n in range(4, 9) for pair in data.test[n]]]
        groups += [data.test[n] for n in (9, 10, 11)]
        rows, began = [], time.process_time()
        for seed in SEEDS:
            torch.manual_seed(seed)
            model = make(kind, data)
            fit(model, data, seed)
            right = [
                exact_match(greedy_translation(model, translation_batch(g)[0]), g)
                for g in groups
            ]
            rows.append([round(share, 4) for share in right])
            print(kind, seed, rows[-1], flush=True)
        record["right"][kind] = rows
        record["cpu_seconds"][kind] = round((time.process_time() - began) / len(SEEDS), 1)
    write_json(RECORD, record)


if __name__ == "__main__":
    main()
