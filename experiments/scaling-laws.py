"""The recorded experiment of the chapter on scaling laws: a grid of small runs, and larger ones that it must predict.

`make experiment NAME=scaling-laws` runs the chapter's own code in two processes of one thread each, in somewhat less than
an hour, and rewrites experiments/scaling-laws.json, which the chapter fits.
"""

import time
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import torch
from common import definitions, head

from llm_learn.atomic_files import write_json

SEEDS, TUNING_SEED = [0, 1, 2], 99
LEARNING_RATES = [0.0057, 0.008, 0.0113, 0.016]
TUNED = {8: [100, 1600], 32: [100, 400, 1600], 128: [100, 1600]}  # width: updates
LARGER = 256  # the width of the runs that the grid must predict
RECORD = Path(__file__).with_suffix(".json")
chapter = definitions("training/scaling-laws")


def timed(work) -> tuple[list[dict], float]:
    """What `work` returns, and the processor's seconds that it took; for a process of its own."""
    torch.set_num_threads(1)
    started = time.process_time()
    rows = work()
    print(*rows, sep="\n", flush=True)
    return rows, time.process_time() - started


def grid(d_model: int, seed: int) -> list[dict]:
    """One trunk and all its branches."""
    return chapter.trunk(d_model, seed, chapter.ENDS)


def tuning(d_model: int, learning_rate: float) -> list[dict]:
    """What the decayed runs of one width reach at that rate, on the seed for tuning."""
    rows = chapter.trunk(d_model, TUNING_SEED, TUNED[d_model], learning_rate)
    return [row | {"rate": learning_rate} for row in rows]


def unfinished(d_model: int, seed: int) -> list[dict]:
    """A cosine schedule to the end of the longest run, evaluated where the grid's runs end."""
    run, rows = chapter.Run(d_model, seed), []
    for end in chapter.ENDS:
        _ = run.advance(end, chapter.cosine(chapter.ENDS[-1]))
        rows.append(chapter.row_of(run, d_model, seed))
    return rows


def larger(seed: int) -> list[dict]:
    """One run over the whole text, each window once."""
    run = chapter.Run(LARGER, seed)
    end = run.loader.num_windows // chapter.BATCH_SIZE
    _ = run.advance(end, chapter.wsd(end))
    return [chapter.row_of(run, LARGER, seed)]


if __name__ == "__main__":
    record = head("Shakespeare's plays in characters, four held out", SEEDS)
    record |= {"tuning_seed": TUNING_SEED, "rate": chapter.LEARNING_RATE}
    parts = {
        "larger": [partial(larger, seed) for seed in SEEDS],
        "runs": [
            partial(grid, d_model, seed)
            for d_model in reversed(chapter.WIDTHS)
            for seed in SEEDS
        ],
        "unfinished": [
            partial(unfinished, d_model, SEEDS[0]) for d_model in reversed(chapter.WIDTHS)
        ],
        "tuning": [
            partial(tuning, d, learning_rate)
            for d in TUNED
            for learning_rate in LEARNING_RATES
        ],
    }
    seconds = 0.0
    with ProcessPoolExecutor(2) as processes:
        jobs = {
            name: [processes.submit(timed, work) for work in works]
            for name, works in parts.items()
        }
        for name, waiting in jobs.items():
            record[name] = []
            for job in waiting:
                rows, taken = job.result()
                record[name] += rows
                seconds += taken
                write_json(RECORD, record | {"cpu_seconds": round(seconds)})
