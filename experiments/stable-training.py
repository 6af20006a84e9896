"""The recorded experiment of the chapter on stable training: ablations, spikes, and the rate against the width.

`make experiment NAME=stable-training` runs the chapter's own code on one thread, in somewhat more than an hour, and rewrites
experiments/stable-training.json, which the chapter draws. The learning rate of each variant is the best of several on a
seed that is not reported; what an update takes is measured at the end, in turns.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from common import definitions, head

from llm_learn.atomic_files import write_json
from llm_learn.data import shakespeare_characters
from llm_learn.model.gpt import init_weights
from llm_learn.tokenizers import BPETokenizer

SEEDS, TUNING_SEED = [0, 1, 2, 3, 4], 99
RAMPS = SPIKES = WIDTH_SEEDS = FORM_SEEDS = [0, 1, 2]  # seeds of the other parts
NUM_UPDATES = 400
LEARNING_RATES = [0.00125, 0.0025, 0.005, 0.01, 0.02, 0.04]
WIDTHS = [32, 64, 128, 256]
WIDTH_LEARNING_RATES = [0.001, 0.002, 0.004, 0.008, 0.016, 0.032, 0.064, 0.128]
ROUNDS, BURST = 5, 30  # rounds of timing, and updates in each
VOCABULARIES = [512, 1024, 2048]
RECORD = Path(__file__).with_suffix(".json")


@dataclass(frozen=True, kw_only=True)
class Variant:
    """What differs from the baseline."""

    config: object
    changes: list[Callable] = field(default_factory=list)
    init_fn: Callable
    weight_decay: float = 0.0


def variants(chapter) -> dict[str, Variant]:
    """The baseline, and one change at a time; shapes of other proportions have as many weights in their blocks."""

    def variant(
        config=None, *changes, init_fn=chapter.init_weights_fan_in, weight_decay=0.0
    ):
        return Variant(
            config=config or chapter.shape(64),
            changes=list(changes),
            init_fn=init_fn,
            weight_decay=weight_decay,
        )

    return {
        "baseline": variant(),
        "no norms": variant(None, chapter.without_norms),
        "no last norm": variant(None, chapter.without_last_norm),
        "no norms in blocks": variant(None, chapter.without_block_norms),
        "last norm begins at 3": variant(None, chapter.with_loud_last_norm),
        "post-norm": variant(None, chapter.with_post_norm),
        "layer norm": variant(None, chapter.with_layer_norm),
        "QK-norm": variant(None, chapter.with_qk_norm),
        "z-loss": variant(None, chapter.with_z_loss),
        "GELU, 4 times as wide": variant(None, chapter.with_gelu),
        "weight decay 0.1": variant(weight_decay=0.1),
        "first weights as GPT-2's": variant(init_fn=init_weights),
        "outputs not divided": variant(init_fn=chapter.init_undivided),
        "d_ff 1.2 C": variant(chapter.shape(80, d_ff=97)),
        "d_ff 5.8 C": variant(chapter.shape(48, d_ff=276)),
        "1 layer": variant(chapter.shape(96, 1, d_ff=213)),
        "4 layers": variant(chapter.shape(48, 4, d_ff=106)),
        "8 layers": variant(chapter.shape(32, 8, d_ff=85)),
        "heads of 64": variant(chapter.shape(64, num_heads=1, num_kv_heads=1)),
        "heads of 32": variant(chapter.shape(64, num_heads=2, num_kv_heads=2)),
        "heads of 8": variant(chapter.shape(64, num_heads=8, num_kv_heads=8)),
    }


def made(chapter, variant: Variant, seed: int):
    return chapter.new_model(variant.config, seed, variant.changes, variant.init_fn)


def loss_of(
    chapter, variant: Variant, learning_rate: float, seed: int, max_steps: int, **how
):
    """The held-out loss of one run; infinite where it broke down."""
    model = made(chapter, variant, seed)
    groups = chapter.decay_groups(model.named_parameters(), variant.weight_decay)
    groups = [group | {"lr": learning_rate} for group in groups]
    loss = chapter.finished_loss(model, groups, seed, max_steps, **how)
    return round(loss, 5) if math.isfinite(loss) else 1e3


def compared(
    chapter, name: str, variant: Variant, max_steps=NUM_UPDATES, seeds=SEEDS, **how
) -> dict:
    """The best of the rates on the seed for tuning, and the losses at it on the others."""
    tuned = {
        r: loss_of(chapter, variant, r, TUNING_SEED, max_steps, **how)
        for r in LEARNING_RATES
    }
    learning_rate = min(tuned, key=tuned.get)
    losses = [
        loss_of(chapter, variant, learning_rate, seed, max_steps, **how) for seed in seeds
    ]
    weights = sum(p.numel() for p in made(chapter, variant, 0).blocks.parameters())
    row = {"name": name, "rate": learning_rate, "weights": weights, "losses": losses}
    print(row, tuned, flush=True)
    return row | {"tuned": list(tuned.values())}


def settings(chapter) -> dict[str, dict]:
    """Where the four forms meet again: with more updates, with more blocks, with those and a longer warm-up."""
    deep = {"config": chapter.shape(64, 8), "max_steps": NUM_UPDATES}
    return {
        "1,600 updates": {"config": chapter.shape(64), "max_steps": 1600},
        "8 layers": deep,
        "8 layers, warm-up 100": deep | {"warmup_steps": 100},
    }


def forms(chapter, setting: str) -> list[dict]:
    """The forms of the chapter in that setting, each at its best rate on the seed for tuning."""
    how = settings(chapter)[setting]
    config = how.pop("config")
    rows = []
    for form, changes in chapter.FORMS.items():
        if "warmup_steps" in how and form not in ("post-norm", "pre-norm"):
            continue
        variant = Variant(
            config=config, changes=changes, init_fn=chapter.init_weights_fan_in
        )
        row = compared(chapter, form, variant, seeds=FORM_SEEDS, **how)
        rows.append({"setting": setting} | row)
    return rows


def vocabularies(chapter) -> list[dict]:
    """The baseline on tokens of byte-pair encodings of several sizes; losses are in nats a character."""
    tokenizer, known, _ = shakespeare_characters()
    texts = [tokenizer.decode(ids.tolist()) for ids in (known, chapter.VAL)]
    variant = variants(chapter)["baseline"]
    rows = [compared(chapter, "characters, 1,000 updates", variant, max_steps=1000)]
    for size in VOCABULARIES:
        bpe = BPETokenizer.train(texts[0], size)
        ids = [torch.tensor(bpe.encode(text)) for text in texts]
        per_token = len(texts[1]) / len(ids[1])
        config = chapter.shape(64, vocab_size=size)
        variant = Variant(config=config, init_fn=chapter.init_weights_fan_in)
        row = compared(chapter, f"{size} tokens", variant, texts=ids)
        row["losses"] = [round(loss / per_token, 5) for loss in row["losses"]]
        rows.append(row | {"characters_per_token": round(per_token, 3)})
    return rows


def update_seconds(chapter, timed: dict[str, Variant]) -> dict[str, list[float]]:
    """The processor's seconds for an update of each variant, in each of several rounds of all variants."""
    seconds = {name: [] for name in timed}
    for _ in range(ROUNDS):
        for name, variant in timed.items():
            model = made(chapter, variant, 0)
            groups = [{"params": list(model.parameters()), "lr": 0.005}]
            # One window to evaluate, so that updates are what takes the time.
            texts = (chapter.KNOWN, chapter.VAL[: chapter.CONTEXT_LENGTH + 1])
            began = time.process_time()
            chapter.finished_loss(model, groups, 0, BURST, texts)
            seconds[name].append(round((time.process_time() - began) / BURST, 5))
    return seconds


if __name__ == "__main__":
    torch.set_num_threads(1)
    chapter = definitions("training/stable-training")
    record = head("Shakespeare's plays in characters, four held out", SEEDS)
    record |= {
        "tuning_seed": TUNING_SEED,
        "num_updates": NUM_UPDATES,
        "rates": LEARNING_RATES,
    }
    started = time.process_time()

    def save() -> None:
        write_json(RECORD, record | {"cpu_seconds": round(time.process_time() - started)})

    record["spikes"] = {}
    for name, defence in chapter.DEFENCES.items():
        record["spikes"][name] = [
            chapter.damage(chapter.twins(seed, **defence)) for seed in SPIKES
        ]
        print(name, record["spikes"][name], flush=True)
    save()
    record["widths"] = []
    for seed in WIDTH_SEEDS:
        for d_model in WIDTHS:
            for groups in (chapter.same_groups, chapter.mup_parameter_groups):
                losses = [
                    round(chapter.width_run(groups, d_model, learning_rate, seed), 5)
                    for learning_rate in WIDTH_LEARNING_RATES
                ]
                row = {"seed": seed, "d_model": d_model, "groups": groups.__name__}
                record["widths"].append(row | {"losses": losses})
                print(record["widths"][-1], flush=True)
        save()
    record["width_rates"] = WIDTH_LEARNING_RATES
    record["variants"] = []
    for name, variant in variants(chapter).items():
        row = compared(chapter, name, variant)
        row["edges"] = []
        for seed in RAMPS:
            losses, _ = chapter.ramp(
                made(chapter, variant, seed), seed, variant.weight_decay
            )
            row["edges"].append([round(float(x), 5) for x in chapter.edge(losses)])
        print(row["edges"], flush=True)
        record["variants"].append(row)
        save()
    record["forms"] = []
    for setting in settings(chapter):
        record["forms"] += forms(chapter, setting)
        save()
    record["vocabularies"] = vocabularies(chapter)
    save()
    record["update_seconds"] = update_seconds(chapter, variants(chapter))
    save()
