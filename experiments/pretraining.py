"""The recorded experiment of the chapter on pre-training: the race at full length, and each ingredient left out.

`make experiment NAME=pretraining` runs the chapter's own code on one thread, in about an hour, and rewrites
experiments/pretraining.json, which the chapter draws. Learning rates are chosen on a seed that is not reported.
"""

import math
import time
from dataclasses import replace
from pathlib import Path

import torch
from common import definitions, head, write

SEEDS, TUNING_SEED = [0, 1, 2], 99
SHORT, MIDDLE, FULL = 500, 1000, 2000  # updates
ORDERS = [3, 4, 5, 6, 7, 8]  # of the counters
RECORD = Path(__file__).with_suffix(".json")


def raced(chapter, recipe, seed: int, num_updates: int, eval_every: int) -> list[dict]:
    """The rows of the chapter's race, rounded."""
    rows = chapter.race(recipe, seed, num_updates, eval_every)
    return [
        row | {"seconds": round(row["seconds"], 2), "loss": round(row["loss"], 4)}
        for row in rows
    ]


def best_rate(chapter, name: str, candidates: dict, num_updates: int, tuning: list) -> str:
    """The candidate with the lowest loss on the seed for tuning; what was tried is added to `tuning`."""
    losses = {}
    for label, recipe in candidates.items():
        row = raced(chapter, recipe, TUNING_SEED, num_updates, num_updates)[-1]
        losses[label] = row["loss"]
        entry = {"recipe": name, "rates": label, "updates": num_updates} | row
        tuning.append(entry)
        print(entry, flush=True)
    return min(losses, key=losses.get)


def counted(chapter, counting, ids: list[int], order: int) -> dict:
    """A Kneser-Ney counter of characters, asked about the same plays as the racers."""
    began, val = time.process_time(), chapter.VAL.tolist()
    counter = counting.KneserNey(ids, order, chapter.V)
    seconds = time.process_time() - began
    nats = [
        -math.log(counter.probability(val[max(0, t - order + 1) : t], val[t]))
        for t in range(1, len(val))
    ]
    row = {"order": order, "characters": len(ids), "seconds": round(seconds, 2)}
    return row | {"loss": round(sum(nats) / len(nats), 4)}


def spread(ids: torch.Tensor, num_characters: int) -> list[int]:
    """About so many characters, in blocks of 1,000 from all over the text."""
    blocks = ids[: len(ids) // 1000 * 1000].view(-1, 1000)
    chosen = torch.linspace(0, len(blocks) - 1, num_characters // 1000).long()
    return blocks[chosen].flatten().tolist()


if __name__ == "__main__":
    torch.set_num_threads(1)
    chapter, counting = definitions("pretraining/pretraining"), definitions("basics/gpt")
    record = head("Shakespeare's plays in characters, four held out", SEEDS)
    record |= {"tuning_seed": TUNING_SEED}
    started, tuning, runs = time.process_time(), [], []
    nanogpt, modern = chapter.NANOGPT, chapter.MODERN
    small = replace(nanogpt, num_layers=2, d_model=96, num_heads=2, d_ff=192)

    def save() -> None:
        seconds = round(time.process_time() - started)
        write(record | {"cpu_seconds": seconds, "tuning": tuning, "runs": runs}, RECORD)

    def run(name: str, recipe, num_updates: int, eval_every: int = 100) -> None:
        for seed in SEEDS:
            rows = raced(chapter, recipe, seed, num_updates, eval_every)
            entry = {"recipe": name, "updates": num_updates, "seed": seed, "rows": rows}
            runs.append(entry)
            print(name, num_updates, seed, rows[-1], flush=True)
            save()

    record["counters"] = [
        counted(chapter, counting, ids, order)
        for ids in (chapter.KNOWN.tolist(), spread(chapter.KNOWN, FULL * 12 * 64))
        for order in ORDERS
    ]
    print(record["counters"], flush=True)
    for name, recipe, rates in (
        ("nanoGPT", nanogpt, (1e-3, 2e-3, 4e-3, 8e-3, 16e-3)),
        ("nanoGPT, small shape", small, (1e-3, 2e-3, 4e-3, 8e-3, 16e-3)),
    ):
        candidates = {f"{rate:g}": replace(recipe, learning_rate=rate) for rate in rates}
        chosen = best_rate(chapter, name, candidates, FULL, tuning)
        run(f"{name}, best rate", candidates[chosen], FULL)
        if recipe is nanogpt:
            run(name, nanogpt, FULL)
            for num_updates in (SHORT, MIDDLE, FULL):
                run("modern", modern, num_updates)
    grids = {
        "modern": {
            f"Muon {muon:g}, AdamW {rate:g}": replace(
                modern, muon_rate=muon, learning_rate=rate
            )
            for muon in (0.005, 0.01, 0.02)
            for rate in (0.005, 0.01, 0.02)
        },
        "without Muon": {
            f"{rate:g}": replace(chapter.WITHOUT["Muon"], learning_rate=rate)
            for rate in (0.001, 0.003, 0.01)
        },
    }
    for name, candidates in grids.items():
        print("best:", best_rate(chapter, name, candidates, SHORT, tuning), flush=True)
    for num_updates in (SHORT, FULL):
        for name, recipe in chapter.WITHOUT.items():
            run(f"without {name}", recipe, num_updates, num_updates)
    save()
