"""The recorded experiment of the chapter on a training run: the race at full length, and each ingredient left out.

`make experiment NAME=pretraining` runs the chapter's own code on one thread, in about an hour, and rewrites
experiments/pretraining.json, which the chapter draws. Learning rates are chosen on a seed that is not reported. What an
update of each recipe takes is measured at the end, in turns, so that no recipe meets a busier machine than another.
"""

import math
import time
from dataclasses import replace
from itertools import product
from pathlib import Path

import torch
from common import definitions, head

from llm_learn.atomic_files import write_json
from llm_learn.n_grams import KneserNey

SEEDS, TUNING_SEED = [0, 1, 2], 99
FULL, SHORT = 2000, 500  # updates
MODERN = [500, 650, 1000, 2000]  # updates of the modern recipe
BURSTS, BURST = 5, 120  # rounds, and updates in each; longer than the longest warm-up
ORDERS = [3, 4, 5, 6, 7, 8]  # of the counters
RECORD = Path(__file__).with_suffix(".json")


def raced(chapter, recipe, seed: int, max_steps: int, eval_every: int) -> list[dict]:
    """Updates and loss at each evaluation of the chapter's race."""
    rows = chapter.race(recipe, seed, max_steps, eval_every)
    return [{"updates": row["updates"], "loss": round(row["loss"], 4)} for row in rows]


def update_seconds(chapter, recipes: dict) -> dict[str, list[float]]:
    """The processor's seconds for an update of each recipe, in each of several rounds of all recipes."""
    bursts = {name: [] for name in recipes}
    for _ in range(BURSTS):
        for name, recipe in recipes.items():
            row = chapter.race(recipe, 0, BURST, BURST)[-1]
            bursts[name].append(round(row["seconds"] / BURST, 5))
    return bursts


def best_of(chapter, name: str, candidates: dict, max_steps: int, tuning: list):
    """The recipe with the lowest loss on the seed for tuning; what was tried is added to `tuning`."""
    losses = {}
    for learning_rates, recipe in candidates.items():
        losses[learning_rates] = raced(chapter, recipe, TUNING_SEED, max_steps, max_steps)[
            -1
        ]["loss"]
        entry = {"recipe": name, "rates": learning_rates, "updates": max_steps}
        tuning.append(entry | {"loss": losses[learning_rates]})
        print(tuning[-1], flush=True)
    return candidates[min(losses, key=losses.get)]


def counted(chapter, ids: list[int], order: int) -> dict:
    """A Kneser-Ney counter of characters, asked about the same plays as the racers."""
    began, val = time.process_time(), chapter.VAL.tolist()
    counter = KneserNey(ids, order, chapter.V)
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
    chapter = definitions("training/training-run")
    record = head("Shakespeare's plays in characters, four held out", SEEDS)
    record |= {"tuning_seed": TUNING_SEED}
    started, tuning, runs = time.process_time(), [], []
    nanogpt, modern = chapter.NANOGPT, chapter.MODERN
    small = replace(nanogpt, num_layers=2, d_model=96, num_heads=2, d_ff=192)

    def save() -> None:
        seconds = round(time.process_time() - started)
        write_json(
            RECORD, record | {"cpu_seconds": seconds, "tuning": tuning, "runs": runs}
        )

    def run(name: str, recipe, max_steps: int, evaluations: int = 10) -> None:
        for seed in SEEDS:
            rows = raced(chapter, recipe, seed, max_steps, max_steps // evaluations)
            entry = {"recipe": name, "updates": max_steps, "seed": seed, "rows": rows}
            assert rows[-1]["updates"] == max_steps
            runs.append(entry)
            print(name, max_steps, seed, rows[-1], flush=True)
            save()

    record["counters"] = [
        counted(chapter, ids, order)
        for ids in (chapter.KNOWN.tolist(), spread(chapter.KNOWN, FULL * 12 * 64))
        for order in ORDERS
    ]
    print(record["counters"], flush=True)
    learning_rates = (1e-3, 2e-3, 4e-3, 8e-3, 16e-3)
    for name, recipe in (("nanoGPT", nanogpt), ("nanoGPT, small", small)):
        candidates = {
            f"{learning_rate:g}": replace(recipe, learning_rate=learning_rate)
            for learning_rate in learning_rates
        }
        best = best_of(chapter, name, candidates, FULL, tuning)
        run(f"{name}, tuned", best, FULL)
    run("nanoGPT", nanogpt, FULL)
    grids = {
        "modern": {
            f"Muon {muon:g}, AdamW {learning_rate:g}": replace(
                modern, muon_learning_rate=muon, learning_rate=learning_rate
            )
            for muon, learning_rate in product((0.005, 0.01, 0.02), repeat=2)
        },
        "without Muon": {
            f"matrices {matrix:g}, others {learning_rate:g}, warm-up {warmup}": replace(
                chapter.WITHOUT["Muon"],
                matrix_learning_rate=matrix,
                learning_rate=learning_rate,
                warmup_steps=warmup,
            )
            for matrix, learning_rate, warmup in product(
                (0.001, 0.002, 0.004), (0.02, 0.04, 0.08), (10, 100)
            )
        },
    }
    expected = {"modern": modern, "without Muon": chapter.WITHOUT["Muon"]}
    for name, candidates in grids.items():
        if best_of(chapter, name, candidates, SHORT, tuning) != expected[name]:
            raise SystemExit(f"{name}: the chapter's rates are not the best of these")
    for num_updates in MODERN:
        run("modern", modern, num_updates)
    for num_updates in (SHORT, FULL):
        for name, recipe in chapter.WITHOUT.items():
            run(f"without {name}", recipe, num_updates, evaluations=1)
    without = {f"without {name}": recipe for name, recipe in chapter.WITHOUT.items()}
    timed = {"nanoGPT": nanogpt, "nanoGPT, small": small, "modern": modern} | without
    record["update_seconds"] = update_seconds(chapter, timed)
    print(record["update_seconds"], flush=True)
    save()
