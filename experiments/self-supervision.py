"""The recorded experiment of the chapter on self-supervised objectives: the same four exercises, practised for longer.

`make experiment NAME=self-supervision` runs the chapter's own code on one thread, in about ten minutes, and
rewrites experiments/self-supervision.json, which the chapter shows.
"""

import time
from pathlib import Path

import torch
from common import definitions, head

from llm_learn.atomic_files import write_json

SEEDS = [0, 1, 2]
UPDATES = [250, 1000, 3000]
RECORD = Path(__file__).with_suffix(".json")


def measured(chapter, name: str, model: torch.nn.Module) -> dict[str, float]:
    """What a model of an objective can do, and its likelihood where it has one."""
    found = {
        "continue": chapter.continues(name, model),
        "fill in": chapter.fills_in(name, model),
    }
    if name == "diffusion":
        found["possible"] = chapter.share_possible(chapter.draw_in_passes(model, chapter.L))
        found["nats"], found["bound"] = chapter.nats_in_any_order(model)
    elif name == "causal":
        found["possible"] = chapter.share_possible(chapter.draw_from_left(model))
        found["nats"] = chapter.nats_from_left(model)
    return {task: float(value) for task, value in found.items()}


if __name__ == "__main__":
    torch.set_num_threads(1)
    chapter = definitions("training/self-supervision")
    record = head(
        "the names of the numbers below 1,000 with their digits, 800 to learn", SEEDS
    )
    started, runs = time.process_time(), []
    for updates in UPDATES:
        for name, loss_of in chapter.OBJECTIVES.items():
            for seed in SEEDS:
                model = chapter.trained(loss_of, seed, updates)
                run = {"objective": name, "updates": updates, "seed": seed}
                runs.append(run | measured(chapter, name, model))
                print(runs[-1], flush=True)
    record |= {"cpu_seconds": round(time.process_time() - started), "runs": runs}
    write_json(RECORD, record)
