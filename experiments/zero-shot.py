"""The recorded experiment of the chapter on chains of thought: SmolLM2 without examples, told to think step by step.

`make experiment NAME=zero-shot` runs the chapter's own code in two processes of one thread each, in about half an hour,
and rewrites experiments/zero-shot.json, which the chapter prints. A seed stands for the problems.
"""

from pathlib import Path

import torch
from common import definitions, record_parts

SEEDS = [0, 1, 2]
LENGTHS = {"number only": 8, "no request": 128, "step by step": 128}  # tokens at most
RECORD = Path(__file__).with_suffix(".json")
chapter = definitions("reasoning/chain-of-thought")
torch.set_num_threads(1)


def without_examples(seed: int) -> dict:
    """Right numbers by the number of operations and the request; tokens written, and the first problem's text."""
    found = {}
    for operations in (1, 2, 3):
        _, asked = chapter.draw_words(seed, operations, 60)
        results = [result for _, _, result in asked]
        for request, length in LENGTHS.items():
            texts, numbers = chapter.told(asked, request, length)
            given = [chapter.first_number(number) for number in numbers]
            tokens = [len(chapter.TOKENIZER.encode(text)) for text in texts]
            right = [
                number == result for number, result in zip(given, results, strict=True)
            ]
            found[f"{operations}, {request}"] = {
                "right": sum(right) / len(right),
                "tokens": sum(tokens) / len(tokens),
                "cut": sum(count >= length for count in tokens) / len(tokens),
                "given": given,
                "text": texts[0],
            }
            print(seed, operations, request, found[f"{operations}, {request}"], flush=True)
    return {"seed": seed, "runs": found}


if __name__ == "__main__":
    record_parts(
        [without_examples], "problems in words, drawn by the chapter", SEEDS, RECORD
    )
