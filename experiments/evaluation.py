"""The recorded experiment of the chapters on evaluation: four models, eight formats, judges, and leaked tests.

`make experiment NAME=evaluation` runs the chapters' own code in two processes of one thread each, in about three quarters of an hour,
and rewrites experiments/evaluation.json, which the chapters print and draw.
"""

import functools
from pathlib import Path

import numpy as np
import torch
from common import definitions, record_parts

SEEDS = [0, 1, 2]  # draws of the wrong answers, and what is leaked
RECORD = Path(__file__).with_suffix(".json")
BITS = (8, 5, 4, 3)
LONG = ("letters", "chat")  # formats for two of the models only
chapter = definitions("measuring/evaluation")
judging = definitions("post-training/evaluation-judges")


@functools.lru_cache(maxsize=1)
def models() -> dict:
    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    rounded = {f"{bits} bits": chapter.with_bits(chapter.SMOLLM2, bits) for bits in BITS}
    return {"shipped": chapter.SMOLLM2, **rounded}


def marks(right: np.ndarray) -> str:
    """One character a question: 1 is right."""
    return "".join(map(str, right.astype(int)))


def packed(values: np.ndarray) -> str:
    """Numbers in one line, to a hundredth of a nat."""
    return " ".join(f"{value:.2f}" for value in values.flatten())


def formats(seed: int) -> dict:
    """All models in all formats: which questions are right by which rule, and some of the log-probabilities."""
    questions = chapter.draw_questions(chapter.PLACES, seed)
    right = np.array([question.right for question in questions])
    runs = {}
    for name, model in models().items():
        for format_name, (form, encode) in chapter.FORMATS.items():
            if (name == "8 bits" and format_name != "question") or (
                format_name in LONG and name not in ("shipped", "4 bits")
            ):
                continue
            sums = chapter.sums_for(model, form, questions, encode)
            ruled = {"sum": sums}
            if encode is chapter.encode_pair and format_name not in (
                "letters",
                "no article",
            ):
                ruled = chapter.by_rules(model, sums, questions)
            row = {rule: marks(s.argmax(1) == right) for rule, s in ruled.items()}
            log_shares = torch.tensor(sums).log_softmax(1)[range(len(right)), right]
            row["loss"] = round(-log_shares.mean().item(), 4)
            row["answers"] = np.bincount(sums.argmax(1), minlength=4).tolist()
            if name == "shipped" or format_name == "question":
                row["sums"] = packed(sums)
            runs[f"{name}, {format_name}"] = row
            print(seed, name, format_name, row["sum"].count("1"), row["loss"], flush=True)
    return {"seed": seed, "runs": runs}


def judges(seed: int) -> dict:
    """The shipped model judges answers to every second question, in both orders."""
    questions = chapter.draw_questions(chapter.PLACES, seed)[::2]
    model, runs = models()["shipped"], {}
    for kind, pairs, names in (
        ("right or wrong", judging.one_wrong(questions), list(judging.JUDGES)),
        (
            "right or longer",
            judging.same_but_longer(questions),
            ["letters", "letters, chat"],
        ),
        (
            "right or wrong and longer",
            judging.wrong_but_longer(questions),
            ["letters", "letters, chat"],
        ),
    ):
        for name in names:
            margins = judging.verdicts(model, *judging.JUDGES[name], pairs)
            runs[f"{kind}, {name}"] = packed(margins)
            print(seed, kind, name, (margins > 0).mean(0), flush=True)
    return {"seed": seed, "runs": runs}


def leaked_half(seed: int, which: int) -> dict:
    """Half of the test's questions are learned by heart; then all are asked in several formats."""
    questions = chapter.draw_questions(chapter.PLACES, seed)
    right = np.array([question.right for question in questions])
    order = torch.randperm(len(questions), generator=torch.Generator().manual_seed(seed))
    middle = len(questions) // 2
    leaked = sorted((order[:middle] if which == 0 else order[middle:]).tolist())
    texts = [judging.solved(judging.QUESTION, questions[i]) for i in leaked]
    student, runs = judging.crammed(models()["shipped"], texts, seed), {}
    for asked in ("question", "statement", "is a city in"):
        sums = chapter.sums_for(student, chapter.FORMATS[asked][0], questions)
        shares = torch.tensor(sums).log_softmax(1)[range(len(right)), right]
        hits = sums.argmax(1) == right
        runs[asked] = {"sum": marks(hits), "log shares": packed(shares.numpy())}
        print(seed, which, asked, round(hits[leaked].mean(), 3), hits.sum(), flush=True)
    return {"seed": seed, "leaked": leaked, "runs": runs}


def leaks(seed: int) -> dict:
    return leaked_half(seed, 0)


def other_leaks(seed: int) -> dict:
    """The same with the other half, so that each question is leaked once and fresh once."""
    return leaked_half(seed, 1)


if __name__ == "__main__":
    record_parts(
        [leaks, other_leaks, formats, judges],
        "cities of the time zone database (tzdata 2026.6), with three other countries of the continent",
        SEEDS,
        RECORD,
    )
