"""The recorded experiment of the chapter on sparse attention: facts recalled with few keys, on 24 texts.

`make experiment NAME=sparse-attention` runs the chapter's own code on one thread, in about three minutes, and rewrites
experiments/sparse-attention.json, which the chapter shows.
"""

import time
from pathlib import Path

import torch
from common import definitions, head

from llm_learn.atomic_files import write_json
from llm_learn.data import shakespeare
from llm_learn.model import load_smollm2

SEEDS = list(range(24))
RECORD = Path(__file__).with_suffix(".json")

if __name__ == "__main__":
    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    chapter = definitions("scale/sparse-attention")
    model, tokenizer = load_smollm2()
    record = head("sixteen facts in a passage of Shakespeare, one passage a seed", SEEDS)
    started, runs = time.process_time(), []
    for seed in SEEDS:
        runs.append(chapter.recalled(seed, model, tokenizer, shakespeare()))
        shares = {name: sum(hits) / 16 for name, hits in runs[-1]["hits"].items()}
        print(seed, shares, flush=True)
    record |= {"cpu_seconds": round(time.process_time() - started), "runs": runs}
    write_json(RECORD, record)
