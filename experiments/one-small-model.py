"""The recorded experiment of the chapter on one small model: the whole way with three seeds, and with a stage left out.

`make experiment NAME=one-small-model` runs the chapter's own code in two processes of one thread each, in about ten
minutes, and rewrites experiments/one-small-model.json, which the chapter prints and draws.
"""

from collections import Counter
from dataclasses import asdict, replace
from pathlib import Path

import torch
from common import definitions, record_parts

SEEDS = [0, 1, 2]
RECORD = Path(__file__).with_suffix(".json")
BETAS = (0.0, 0.02, 0.05, 0.1, 0.2)
chapter = definitions("capstone/one-small-model")


def plain(row: object) -> dict:
    """A row as a record keeps it: the replies are counted."""
    found = asdict(row)
    replies = Counter(found.pop("replies"))
    (commonest, times), *_ = replies.most_common(1)
    return found | {"commonest": commonest, "times": times, "replies": replies.total()}


def distilled(teacher: chapter.Llama, seed: int) -> chapter.Llama:
    """A student of a teacher's replies."""
    written = chapter.distillation_batches(teacher, chapter.TASK, chapter.PLAN, seed)
    return chapter.distilled(teacher, written, seed)


def whole(seed: int) -> dict:
    """Every stage, one after another."""
    torch.set_num_threads(1)
    model = chapter.new(seed)
    rows = {"random weights": chapter.measured(model)}
    model = chapter.pretrained(seed)
    rows["pre-training"] = chapter.measured(model)
    chapter.tune(model, seed)
    rows["tuning"] = chapter.measured(model)
    tuned = chapter.copy.deepcopy(model)
    _ = list(chapter.reinforce(model, chapter.TASK, chapter.PLAN, seed))
    rows["reinforcement"] = chapter.measured(model)
    student, twin = distilled(model, seed), chapter.without_teacher(seed)
    rows["student"], rows["twin, no teacher"] = map(chapter.measured, (student, twin))
    for name, layer in (
        ("eight bits", chapter.Int8Linear),
        ("four bits", chapter.Int4Linear),
    ):
        rows[name] = chapter.measured(chapter.quantize_model(model, layer))
    fresh = distilled(tuned, seed)
    drafts = {
        "student": (model, student),
        "twin": (model, twin),
        "of the tuned model, for itself": (tuned, fresh),
        "of the tuned model, stale": (model, fresh),
    }
    passes = {name: chapter.tokens_per_pass(*pair) for name, pair in drafts.items()}
    best = chapter.best_of(tuned, 16)
    print(seed, {name: round(row.all_rules, 3) for name, row in rows.items()}, flush=True)
    rows = {name: plain(row) for name, row in rows.items()}
    return rows | {"ids_a_pass": passes, "best_of_16": best}


def no_pretraining(seed: int) -> dict:
    """Tuned and reinforced from random weights."""
    torch.set_num_threads(1)
    model, rows = chapter.new(seed), {}
    chapter.tune(model, seed)
    rows["tuning"] = plain(chapter.measured(model))
    _ = list(chapter.reinforce(model, chapter.TASK, chapter.PLAN, seed))
    rows["reinforcement"] = plain(chapter.measured(model))
    return rows


def no_tuning(seed: int) -> dict:
    """Reinforced from the pre-trained model."""
    torch.set_num_threads(1)
    model = chapter.pretrained(seed)
    _ = list(chapter.reinforce(model, chapter.TASK, chapter.PLAN, seed))
    return {"reinforcement": plain(chapter.measured(model))}


def leash(seed: int) -> dict:
    """Reinforced at several prices of distance, for three times as many rounds."""
    torch.set_num_threads(1)
    tuned = chapter.pretrained(seed)
    chapter.tune(tuned, seed)
    rows = {}
    for beta in BETAS:
        model = chapter.copy.deepcopy(tuned)
        plan = replace(chapter.PLAN, beta=beta, rl_rounds=3 * chapter.PLAN.rl_rounds)
        rounds = list(chapter.reinforce(model, chapter.TASK, plan, seed))
        rows[str(beta)] = plain(chapter.measured(model)) | {"kl": rounds[-1].kl}
    return rows


if __name__ == "__main__":
    parts = [whole, no_pretraining, no_tuning, leash]
    record_parts(parts, "38 plays; turns of four of them held out", SEEDS, RECORD)
