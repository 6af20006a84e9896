"""The recorded experiment of the chapter on rejection sampling: what is kept, by which checker, from which start.

`make experiment NAME=rejection-sampling` runs the chapter's own code in two processes of one thread each, in about
twenty minutes, and rewrites experiments/rejection-sampling.json, which the chapter prints and draws.
"""

import copy
import random
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import torch
from common import definitions, head, write

SEEDS = [0, 1, 2]
ROUNDS = 8
RECORD = Path(__file__).with_suffix(".json")
chapter = definitions("post-training/rejection-sampling")

STARTS = {"weak": (500, 150), "middle": (1000, 200), "strong": (2000, 300)}


def measured(model: torch.nn.Module) -> dict:
    """What is recorded of a model after each round."""
    chances = chapter.path_chances(model, chapter.TEST)
    draw = torch.Generator().manual_seed(0)
    answers = chapter.sample(model, chapter.TEST, 8, generator=draw)
    greedy = chapter.sample(model, chapter.TEST, 1, temperature=0)
    pairs = [
        (maze, a) for maze, each in zip(chapter.TEST, answers, strict=True) for a in each
    ]
    firsts = [(maze, each[0]) for maze, each in zip(chapter.TEST, greedy, strict=True)]
    return {
        "pass": {k: round(chapter.pass_at(chances, k), 4) for k in chapter.KS},
        "differ": round(chapter.differ([chances[i] for i in chapter.FORKED]), 4),
        "greedy": share(chapter.walks, firsts),
        "reaches": share(chapter.reaches, pairs),
        "has_length": share(chapter.has_length, pairs),
        "steps": round(
            float(np.mean([len(a) - (a[-1] == chapter.END) for _, a in pairs])), 3
        ),
    }


def share(check, pairs: list) -> float:
    return round(float(np.mean([check(*pair) for pair in pairs])), 4)


def run(name: str, start: str, kind: str, seed: int) -> list[dict]:
    """One start, and what becomes of it in some rounds."""
    torch.set_num_threads(1)
    num_solved, updates = STARTS[start]
    examples, unsolved = chapter.data_of(seed, num_solved)
    model = chapter.trained(examples, updates, seed)
    first = copy.deepcopy(model.state_dict())
    draw = torch.Generator().manual_seed(seed)
    rows = [measured(model)]
    for _ in range(ROUNDS):
        if kind == "the solved mazes again":
            chapter.learn(model, examples, draw)
            rows.append(measured(model))
            continue
        if kind == "solutions":
            paths = chapter.solved(unsolved, random.Random(seed))
            chapter.learn(model, paths, draw)
            rows.append(measured(model))
            continue
        check, keep = kind.split(", ")[:2]
        test = getattr(chapter, check, lambda maze, answer: answer[-1] == chapter.END)
        kept = chapter.accepted(model, unsolved, test, getattr(chapter, keep), draw)
        if "afresh" in kind:
            _ = model.load_state_dict(first)
        rate = {"rate": 0.0002} if "slow" in kind else {}
        chapter.learn(model, [chapter.example_of(*pair) for pair in kept], draw, **rate)
        found = {"kept": len(kept), "truly": share(chapter.walks, kept)}
        rows.append(measured(model) | found)
    if kind == "reaches, distinct":
        few = chapter.sample(model, chapter.SHOWN, 8, generator=draw)
        rows[-1]["answers"] = [[" ".join(map(str, a)) for a in each] for each in few]
    print(
        f"{name:<40}{seed} {rows[0]['pass'][1]:.2f} {rows[-1]['pass'][1]:.2f}", flush=True
    )
    return rows


if __name__ == "__main__":
    jobs = [("middle", kind) for kind in ("walks, distinct", "walks, every", "walks, one")]
    jobs += [("middle", kind) for kind in ("the solved mazes again", "solutions")]
    jobs += [("middle", kind) for kind in ("unchecked, every", "unchecked, every, slow")]
    jobs += [("middle", "walks, distinct, afresh")]
    jobs += [("middle", f"reaches, {keep}") for keep in ("distinct", "every")]
    for start in STARTS:
        jobs += [(start, f"has_length, {keep}") for keep in ("distinct", "every", "one")]
    jobs += [(start, "walks, distinct") for start in ("weak", "strong")]
    jobs += [(start, "walks, every") for start in ("weak", "strong")]
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
    write(record, RECORD)
