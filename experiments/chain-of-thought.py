"""The recorded experiment of the chapter on chains of thought: forms of answers, more updates, gaps, SmolLM2.

`make experiment NAME=chain-of-thought` runs the chapter's own code in two processes of one thread each, in about half an
hour, and rewrites experiments/chain-of-thought.json, which the chapter prints and draws. A seed stands for the first
weights, the problems that are learned, and the word problems with the examples before them.
"""

import copy
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from common import definitions, record_parts

SEEDS = [0, 1, 2]
RECORD = Path(__file__).with_suffix(".json")
chapter = definitions("reasoning/chain-of-thought")
torch.set_num_threads(1)


def results_of(model: chapter.Llama, form: chapter.Form) -> list[float]:
    return [chapter.right(model, K, form) for K in chapter.LENGTHS]


def forms(seed: int) -> dict:
    """Right results by form and length; what comes of an answer before its steps."""
    found = {}
    for form in chapter.FORMS:
        model = chapter.teach(chapter.new_model(seed), form, seed)
        if form is chapter.answer_first:
            # What is given first counts, not what its steps come to.
            explained = chapter.explained(model)
            found[form.__name__] = explained["answer"]
        else:
            found[form.__name__] = results_of(model, form)
        print(seed, form.__name__, found[form.__name__], flush=True)
    return {"seed": seed, "right": found, "answer first": explained}


def longer(seed: int) -> dict:
    """At once, with five times the updates, in two layers and in eight, at several learning rates."""
    found = {}
    for num_layers, learning_rate_factor in (
        (2, 0.3),
        (2, 1.0),
        (2, 3.0),
        (8, 0.3),
        (8, 1.0),
    ):
        model = chapter.new_model(seed, num_layers)
        model = chapter.teach(
            model,
            chapter.at_once,
            seed,
            max_steps=3000,
            learning_rate_factor=learning_rate_factor,
        )
        found[f"{num_layers} layers, rate {learning_rate_factor:g}"] = results_of(
            model, chapter.at_once
        )
        print(seed, num_layers, learning_rate_factor, list(found.values())[-1], flush=True)
    return {"seed": seed, "right": found}


def gaps(seed: int) -> dict:
    """Right results when some results are not written, after few and after many updates on such chains."""
    model = chapter.teach(chapter.new_model(seed), chapter.with_steps, seed)
    kinds = {
        "cut": (chapter.cut_short, chapter.cut_after),
        "blank": (chapter.partly_blank, chapter.blank_after),
    }
    found = {}
    for name, (form, gapped) in kinds.items():
        for updates in (200, 3000):
            other = chapter.teach(copy.deepcopy(model), form, seed + 100, max_steps=updates)
            rows = [chapter.with_gaps(other, gapped, K) for K in chapter.LENGTHS]
            found[f"{name}, {updates} updates"] = rows
            print(seed, name, updates, rows[-1], flush=True)
    return {"seed": seed, "right": found}


def words(seed: int) -> dict:
    """SmolLM2 on problems in words: forms of examples, the bare sum, votes, and the steps of right answers."""
    generator, found = torch.Generator().manual_seed(seed), {}
    for operations in (1, 2, 3):
        examples, asked = chapter.draw_words(seed, operations, 60)
        results = [result for _, _, result in asked]
        shown = {result for _, _, result in examples}
        rows = found[str(operations)] = {}
        for form in chapter.PROMPTED:
            texts = chapter.solve(form, examples, asked)
            answers = [chapter.answer_in(text) for text in texts]
            rows[form] = {
                "right": share(a == r for a, r in zip(answers, results, strict=True)),
                "none": share(a is None for a in answers),
                "an example's": share(
                    a in shown and a != r for a, r in zip(answers, results, strict=True)
                ),
            }
            if form == "steps":
                whole = [
                    text.startswith(f" {steps}.")
                    for text, (_, steps, _) in zip(texts, asked, strict=True)
                ]
                rows["steps all right"] = share(whole)
                rows["right without"] = share(
                    a == r and not w
                    for a, r, w in zip(answers, results, whole, strict=True)
                )
        rows["most frequent"] = Counter(results).most_common(1)[0][1] / len(results)
        drawn = [
            [
                chapter.answer_in(t)
                for t in chapter.solve("steps", examples, asked, 0.7, generator=generator)
            ]
            for _ in range(5)
        ]
        rows["drawn"] = share(
            a == r for each in drawn for a, r in zip(each, results, strict=True)
        )
        votes = [
            Counter(a for a in each if a is not None) for each in zip(*drawn, strict=True)
        ]
        rows["vote of 5"] = share(
            bool(v) and v.most_common(1)[0][0] == r
            for v, r in zip(votes, results, strict=True)
        )
        if operations == 1:
            shared = chapter.TOKENIZER.encode(
                "".join(f"{steps}\n" for _, steps, _ in examples)
            )
            sums = [
                chapter.TOKENIZER.encode(steps.rpartition(" ")[0]) for _, steps, _ in asked
            ]
            texts = chapter.continued(shared, sums, 4)
            rows["the sum alone"] = share(
                text.strip() == str(r) for text, r in zip(texts, results, strict=True)
            )
        print(seed, operations, rows, flush=True)
    return {"seed": seed, "runs": found}


def share(found: Iterable[bool]) -> float:
    return float(np.mean(list(found)))


if __name__ == "__main__":
    record_parts(
        [forms, longer, gaps, words],
        "sums and products modulo 7, drawn by the chapter; problems in words, drawn by the chapter",
        SEEDS,
        RECORD,
    )
