"""The recorded experiments of the chapter on mixtures of experts: where tokens go, and the race against an MLP.

`make experiment NAME=mixture-of-experts` runs the chapter's own code on one thread, in about thirty-five minutes, and rewrites
experiments/mixture-of-experts.json, which the chapter shows.
"""

import time
from pathlib import Path

import torch
from common import definitions, head, write

from llm_learn.data import shakespeare_characters
from llm_learn.feedforward import balanced, softmax_gates

page = definitions("architecture/mixture-of-experts")
SEEDS, UPDATES, RATES = [0, 1, 2], 2000, [5e-3, 1e-2, 2e-2, 4e-2]
LONGER = "dense, as long"  # the MLP, trained for as many seconds as its main rival
SHORT_RUNS = {  # how the gates are made, and which parameters stay as they were born
    "as it is": (lambda: softmax_gates, "nothing"),
    "experts frozen": (lambda: softmax_gates, "experts"),
    "router frozen": (lambda: softmax_gates, "router"),
    "without the common part": (lambda: page.without_common(softmax_gates), "nothing"),
    "balanced": (lambda: balanced(softmax_gates, 0.01), "nothing"),
}
RECORD = Path(__file__).with_suffix(".json")


def main() -> None:
    torch.set_num_threads(1)
    started = time.process_time()
    characters, known, held_out = shakespeare_characters()
    size, val_ids = characters.vocab_size, page.validation_ids(held_out)
    record = head("Shakespeare's plays, four of them held out", SEEDS)
    record |= {"updates": UPDATES, "rates": RATES}

    record["short"] = {}
    for kind, (make_gates, frozen) in SHORT_RUNS.items():
        runs = [page.short_run(make_gates, size, known, seed, frozen) for seed in SEEDS]
        record["short"][kind] = [page.summary(*run) for run in runs]
        print(kind, record["short"][kind][0], flush=True)

    record["update_seconds"] = page.update_seconds(list(page.KINDS), known, size)
    print(record["update_seconds"], flush=True)

    def run(kind: str, seed: int, rate: float, updates: int = UPDATES) -> dict:
        found = page.raced(kind, size, known, val_ids, seed, page.recipe(updates, rate))
        print(kind, seed, rate, updates, round(found["losses"][-1], 4), flush=True)
        return found

    record |= {"by_rate": {}, "best_rate": {}, "race": {}}
    for kind in page.KINDS:
        tried = {rate: run(kind, SEEDS[0], rate) for rate in RATES}
        record["by_rate"][kind] = [tried[rate]["losses"][-1] for rate in RATES]
        best = min(RATES, key=lambda rate: tried[rate]["losses"][-1])
        record["best_rate"][kind] = best
        others = [run(kind, seed, best) for seed in SEEDS[1:]]
        record["race"][kind] = [tried[best], *others]
    cost = record["update_seconds"]
    updates = round(UPDATES * cost["2 of 8"] / cost["dense"])
    rate = record["best_rate"]["dense"]
    record["race"][LONGER] = [run("dense", seed, rate, updates) for seed in SEEDS]
    record["cpu_seconds"] = round(time.process_time() - started)
    write(record, RECORD)


if __name__ == "__main__":
    main()
