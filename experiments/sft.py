"""The recorded experiment of the chapter on supervised fine-tuning: what a model is asked, and what it is taught.

`make experiment NAME=sft` runs the chapter's own code in two processes of one thread each, in about twenty minutes,
and rewrites experiments/sft.json, which the chapter prints and draws.
"""

import copy
import json
import random
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import torch
from common import definitions, head

from llm_learn.atomic_files import write_json

SEEDS = [0, 1, 2]
RECORD = Path(__file__).with_suffix(".json")
chapter = definitions("post-training/sft")

IN_WORDS = '{} Answer as JSON, in the form {{"answer": "..."}}, and with nothing else.'
SHOTS = [("What is the capital of {}?", "France"), ("What is the opposite of {}?", "big")]
SHOTS += [("How much is {}?", "1 plus 7")]
ALL_LAYERS = {"names": ("qkv", "out", "gate_up", "down"), "learning_rate": 0.0015}


def asked() -> dict[str, dict]:
    """What the untrained model does with three kinds of prompts."""
    torch.set_num_threads(1)
    shots = []
    for form, thing in SHOTS:
        answer = json.dumps({"answer": chapter.TRAIN[form][thing]})
        shots += [{"role": "user", "content": form.format(thing)}]
        shots += [{"role": "assistant", "content": answer}]
    conversations = {
        "the system message": lambda text: chapter.conversation(text),
        "in words, in the question": lambda text: chapter.conversation(
            IN_WORDS.format(text)
        ),
        "three examples in the prompt": lambda text: [
            chapter.conversation(text)[0],
            *shots,
            chapter.conversation(text)[1],
        ],
    }
    rows = {}
    for name, make in conversations.items():
        prompts = [
            chapter.encode_chat(chapter.TOKENIZER, make(text))
            for text, _ in chapter.QUESTIONS
        ]
        said = chapter.answers(chapter.SMOLLM2, prompts, 48)
        rows[name] = {"said": said, "prompt": float(np.mean([len(ids) for ids in prompts]))}
        print(name, chapter.scores(said), flush=True)
    return rows


def untrained() -> dict:
    """What is measured of every model, of the one that was not trained."""
    torch.set_num_threads(1)
    return plain(chapter.measured(copy.deepcopy(chapter.SMOLLM2)))


def run(name: str, settings: dict, seed: int) -> dict:
    """One model, taught and measured."""
    torch.set_num_threads(1)
    settings = dict(settings)
    examples = chapter.examples_of(settings.pop("kinds", chapter.TRAIN))
    if settings.pop("fifteen", False):
        examples = random.Random(seed).sample(examples, 15)
    if change := settings.pop("mask", None):
        examples = [getattr(chapter, change)(example) for example in examples]
    if settings.pop("rehearsal", False):
        examples += [chapter.own_answer(request) for request in chapter.REHEARSED]
    model, losses = chapter.taught(examples, seed=seed, **settings)
    row = {"losses": losses} | plain(chapter.measured(model))
    print(name, seed, chapter.scores(row["said"]), row["unasked"], row["page"], flush=True)
    return row


def plain(row: dict) -> dict:
    """With numbers that JSON knows."""
    return {name: v if isinstance(v, list) else float(v) for name, v in row.items()}


if __name__ == "__main__":
    capitals = {form: chapter.TRAIN[form] for form in list(chapter.TRAIN)[:1]}
    variants = {
        f"{updates} updates": {"updates": updates} for updates in (48, 24, 12, 6, 3)
    }
    variants |= {name: {"mask": name} for name in ("late", "early", "everything")}
    variants |= {
        "one kind": {"kinds": capitals},
        "one kind, 48 updates": {"kinds": capitals, "updates": 48},
        "fifteen": {"fifteen": True},
        "fifteen, 48 updates": {"fifteen": True, "updates": 48},
        "all layers": ALL_LAYERS,
        "all layers, rehearsal": ALL_LAYERS | {"rehearsal": True},
    }
    with ProcessPoolExecutor(2) as pool:
        first = [pool.submit(asked), pool.submit(untrained)]
        jobs = {
            name: [pool.submit(partial(run, name, settings, seed)) for seed in SEEDS]
            for name, settings in variants.items()
        }
        record = head("46 questions, 120 examples; one page of Macbeth", SEEDS)
        record["asked"], record["untrained"] = (job.result() for job in first)
        record["runs"] = {
            name: [job.result() for job in each] for name, each in jobs.items()
        }
    write_json(RECORD, record)
