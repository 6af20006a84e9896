"""The recorded experiments of the chapter on mixtures of experts: where tokens go, and the race against an MLP.

`make experiment NAME=mixture-of-experts` runs the chapter's own code on one thread, in about forty minutes, and rewrites
experiments/mixture-of-experts.json, which the chapter shows.
"""

import time
from pathlib import Path

import torch
from common import definitions, head

from llm_learn.atomic_files import write_json
from llm_learn.data import shakespeare_characters
from llm_learn.feedforward import renormalised_gates, softmax_gates, with_aux_loss
from llm_learn.train import evaluate_loss

page = definitions("scale/mixture-of-experts")
SEEDS, UPDATES, LEARNING_RATES = [0, 1, 2], 2000, [7e-3, 1.2e-2, 2e-2]
LONGER = "dense, as long"  # the MLP, trained for as many seconds as its main rival
RECORD = Path(__file__).with_suffix(".json")


def short_runs(size: int, known: torch.Tensor) -> dict[str, list]:
    """Where tokens go in 200 updates: how gates are made, what stays as it was drawn, what the logits get."""
    free = page.log_frequencies(known, size)
    cases = {
        "as it is": (lambda: softmax_gates, (), None),
        "experts frozen": (lambda: softmax_gates, ("experts",), None),
        "router frozen": (lambda: softmax_gates, ("router",), None),
        "both frozen": (lambda: softmax_gates, ("experts", "router"), None),
        "without the common part": (lambda: page.without_common(softmax_gates), (), None),
        "frequencies for free": (lambda: softmax_gates, (), free),
        "weights of 1": (lambda: renormalised_gates, (), None),
        "balanced": (lambda: with_aux_loss(softmax_gates, 0.01), (), None),
    }
    found = {}
    for case, (make_gates, frozen, added) in cases.items():
        runs = [
            page.short_run(make_gates, size, known, seed, frozen, added) for seed in SEEDS
        ]
        found[case] = [page.summary(*run) for run in runs]
        print(case, found[case][0], flush=True)
    return found


def race(size: int, known: torch.Tensor, held_out: torch.Tensor) -> dict:
    """Every kind at its best rate, which is chosen on other passages than those that are reported."""
    chosen_on, reported = (page.validation_ids(held_out, part) for part in (0, 1))

    def run(kind: str, seed: int, learning_rate: float, max_steps: int) -> dict:
        config = page.recipe(max_steps, learning_rate)
        model, steps, losses = page.raced(kind, size, known, reported, seed, config)
        found = {"rate": learning_rate, "steps": steps, "losses": losses}
        found["loss_to_choose_by"] = evaluate_loss(model, chosen_on)
        print(kind, seed, learning_rate, max_steps, round(losses[-1], 4), flush=True)
        return found | {"model": model}

    def at_best_learning_rate(kind: str, max_steps: int) -> list[dict]:
        tried = [
            run(kind, SEEDS[0], learning_rate, max_steps)
            for learning_rate in LEARNING_RATES
        ]
        best = min(tried, key=lambda found: found["loss_to_choose_by"])
        others = [run(kind, seed, best["rate"], max_steps) for seed in SEEDS[1:]]
        by_learning_rate[kind if max_steps == UPDATES else LONGER] = [
            t["losses"][-1] for t in tried
        ]
        return [best, *others]

    by_learning_rate: dict[str, list[float]] = {}
    runs = {kind: at_best_learning_rate(kind, UPDATES) for kind in page.KINDS}
    cost = page.update_seconds({kind: of[0]["model"] for kind, of in runs.items()}, known)
    print(cost, flush=True)
    runs[LONGER] = at_best_learning_rate(
        "dense", round(UPDATES * cost["2 of 8"] / cost["dense"])
    )
    for of in runs.values():
        for found in of:
            del found["model"]
    return {"update_seconds": cost, "by_rate": by_learning_rate, "race": runs}


def main() -> None:
    torch.set_num_threads(1)
    started = time.process_time()
    characters, known, held_out = shakespeare_characters()
    record = head("Shakespeare's plays, four of them held out", SEEDS)
    record |= {"updates": UPDATES, "rates": LEARNING_RATES}
    record["short"] = short_runs(characters.vocab_size, known)
    record |= race(characters.vocab_size, known, held_out)
    record["cpu_seconds"] = round(time.process_time() - started)
    write_json(RECORD, record)


if __name__ == "__main__":
    main()
