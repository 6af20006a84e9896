"""The recorded experiment of the chapter on serving: how long a pass of SmolLM2 takes, by the tokens in it.

`make experiment NAME=serving` runs the chapter's own code in a process of one thread, in about a minute, and rewrites
experiments/serving.json, which the chapter's clock reads. Measured are CPU-seconds, the least of several passes, since
what disturbs a pass only makes it longer.
"""

import time
from pathlib import Path

import torch
from common import definitions, record_parts

RECORD = Path(__file__).with_suffix(".json")
BLOCK_SIZE = 16
chapter = definitions("inference/serving")
torch.set_num_threads(1)
torch.set_grad_enabled(False)


def passes(seed: int) -> dict:
    """CPU-seconds of a pass: of so many texts that write an id behind 96 others, and of so many ids of a prompt."""
    generator = torch.Generator().manual_seed(seed)
    model, _ = chapter.load_smollm2()
    kv_cache = chapter.PagedKVCache(model.config, 512, BLOCK_SIZE)
    result: dict = {"writing": {}, "reading": {}}
    for kind, numbers in (("writing", (1, 2, 4, 8, 16, 32)), ("reading", (8, 32, 64, 128))):
        for number in numbers:
            ids = torch.randint(0, 1000, (number,), generator=generator).tolist()
            if kind == "writing":
                table = [range(8 * i, 8 * i + 8) for i in range(number)]
                chunks = [
                    chapter.SequenceChunk([i], 96, list(t))
                    for i, t in zip(ids, table, strict=True)
                ]
            else:
                chunks = [chapter.SequenceChunk(ids, 0, list(range(8)))]
            seconds = []
            for _ in range(7):
                begin = time.process_time()
                chapter.paged_forward(model, kv_cache, chunks)
                seconds.append(time.process_time() - begin)
            result[kind][str(number)] = min(seconds)
            print(kind, number, round(min(seconds), 4), flush=True)
    return result


if __name__ == "__main__":
    record_parts([passes], "random ids", [0], RECORD)
