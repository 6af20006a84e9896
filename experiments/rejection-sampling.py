"""The recorded experiment of the chapter on rejection sampling: what is kept, by which checker, from which start.

`make experiment NAME=rejection-sampling` runs the chapter's own code in two processes of one thread each, in about
twenty-five minutes, and rewrites experiments/rejection-sampling.json, which the chapter prints and draws.
"""

import copy
import random
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from common import definitions, head

from llm_learn.atomic_files import write_json

SEEDS = [0, 1, 2]
ROUNDS = 8
RECORD = Path(__file__).with_suffix(".json")
chapter = definitions("post-training/rejection-sampling")

STARTS = {"weak": (500, 150), "middle": (1000, 200), "strong": (2000, 300)}


def measured(model: torch.nn.Module, whole: bool) -> dict:
    """What is recorded of a model after each round; whole: also what has to be sampled."""
    chances = chapter.path_probs(model, chapter.TEST)
    row = {
        "pass": {k: round(chapter.pass_at(chances, k), 4) for k in chapter.KS},
        "differ": round(chapter.differ([chances[i] for i in chapter.FORKED]), 4),
    }
    if not whole:
        return row
    generator = torch.Generator().manual_seed(0)
    greedy = paired(chapter.TEST, chapter.sample(model, chapter.TEST, 1, temperature=0))
    drawn = paired(
        chapter.TEST, chapter.sample(model, chapter.TEST, 8, generator=generator)
    )
    return row | {
        "greedy": share(chapter.walks, greedy),
        "reaches": share(chapter.reaches, drawn),
        "has_length": share(chapter.has_length, drawn),
        "steps": round(
            float(np.mean([len(a) - (a[-1] == chapter.END) for _, a in drawn])), 3
        ),
    }


def paired(mazes: list, answers: list) -> list:
    return [(maze, a) for maze, each in zip(mazes, answers, strict=True) for a in each]


def share(check, pairs: list) -> float:
    return round(float(np.mean([check(*pair) for pair in pairs])), 4)


def ended(maze, answer: tuple) -> bool:
    """No verifier at all, but what comes to no end cannot be learned."""
    return answer[-1] == chapter.END


def run(name: str, start: str, kind: str, seed: int) -> list[dict]:
    """One start, and what becomes of it in some rounds."""
    torch.set_num_threads(1)
    num_solved, updates = STARTS[start]
    examples, unsolved = chapter.data_of(seed, num_solved)
    model = chapter.trained(examples, updates, seed)
    first = copy.deepcopy(model.state_dict())
    generator, rng = torch.Generator().manual_seed(seed), random.Random(1000 + seed)
    learning_rate = 0.0002 if "slow" in kind else 0.001
    config = replace(
        chapter.recipe(60, learning_rate), weight_decay=0.0 if "no decay" in kind else 0.1
    )
    rows, kept = [measured(model, True)], []
    for number in range(1, ROUNDS + 1):
        found = {}
        if "solutions" in kind:
            learned = chapter.solved(unsolved, rng)
        elif "solved" in kind:
            learned = examples
        else:
            if kind.endswith(", fresh") and number > 1:
                unsolved = chapter.draw_mazes(1000, rng, without=chapter.TEST)
            if "once" not in kind or number == 1:
                check, keep = kind.split(", ")[:2]
                chances = chapter.path_probs(model, unsolved)
                found["drawn"] = round(chapter.pass_at(chances, 1), 4)
                check = ended if check == "unchecked" else getattr(chapter, check)
                kept = chapter.accepted(
                    model, unsolved, check, getattr(chapter, keep), generator=generator
                )
                found |= {"kept": len(kept), "truly": share(chapter.walks, kept)}
            learned = [chapter.example_of(*pair) for pair in kept]
        if "afresh" in kind:
            _ = model.load_state_dict(first)
        chapter.fine_tune(model, learned, config, pad_id=chapter.END, generator=generator)
        sampled = number == ROUNDS or kind.startswith(("reaches", "has_length"))
        rows.append(measured(model, sampled) | found)
    if kind == "reaches, distinct":
        few = chapter.sample(model, chapter.SHOWN, 8, generator=generator)
        rows[-1]["answers"] = [[" ".join(map(str, a)) for a in each] for each in few]
    print(
        f"{name:<40}{seed} {rows[0]['pass'][1]:.2f} {rows[-1]['pass'][1]:.2f}", flush=True
    )
    return rows


if __name__ == "__main__":
    rules = ("distinct", "every", "one")
    jobs = [("middle", f"walks, {keep}") for keep in rules]
    for other in ("fresh", "once", "afresh"):
        jobs.append(("middle", f"walks, distinct, {other}"))
    jobs += [("middle", "the solved mazes again"), ("middle", "solutions")]
    jobs += [("middle", f"unchecked, every{how}") for how in ("", ", slow", ", no decay")]
    jobs += [("middle", f"reaches, {keep}") for keep in ("distinct", "every")]
    for start in STARTS:
        jobs += [(start, f"has_length, {keep}") for keep in rules]
    jobs += [
        (start, f"walks, {keep}") for start in ("weak", "strong") for keep in rules[:2]
    ]
    with ProcessPoolExecutor(2) as pool:
        futures = {
            f"{start}: {kind}": [
                pool.submit(run, f"{start}: {kind}", start, kind, seed) for seed in SEEDS
            ]
            for start, kind in jobs
        }
        record = head("mazes of 4 x 4 cells, drawn by the chapter", SEEDS)
        record["runs"] = {
            name: [future.result() for future in each] for name, each in futures.items()
        }
    write_json(RECORD, record)
