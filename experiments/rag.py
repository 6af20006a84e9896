"""The recorded experiment of the chapter on retrieval: what SmolLM2 answers from notes, right ones, wrong ones and a stranger's.

`make experiment NAME=rag` runs the chapter's own code in two processes of one thread each, in about half an hour, and
rewrites experiments/rag.json, which the chapter prints. A seed stands for a guide of thirty notes and sixty questions.
"""

from pathlib import Path

import torch
from common import definitions, record_parts

SEEDS = [0, 1, 2]
RECORD = Path(__file__).with_suffix(".json")
chapter = definitions("applications/rag")
torch.set_num_threads(1)
torch.set_grad_enabled(False)
assert chapter.num_pieces("hi") == 3


def share(hits: list[bool]) -> float:
    return sum(hits) / len(hits)


def sources(answer: str, notes: list) -> list[int]:
    """Which of these notes have a word or number that is asked for and in the answer."""
    return [
        i
        for i, note in enumerate(notes)
        if any(chapter.holds(answer, wanted) for _, wanted in note.facts)
    ]


def given(seed: int) -> dict:
    """Right answers by what stands before the question, and how often the source of an answer is named."""
    notes = chapter.guide(seed)
    asked, texts = chapter.questions_about(notes), [note.text for note in notes]
    questions = [a.question for a in asked]
    found = chapter.retrieve(questions, texts, 3)
    # The two best of those that are not the right one.
    beside = [[i for i in f if i != a.note][:2] for f, a in zip(found, asked, strict=True)]
    read = {
        "no text": [[] for _ in asked],
        "the right note": [[a.note] for a in asked],
        "another note": [[a.other] for a in asked],
        "the right note first of three": [
            [a.note, *b] for a, b in zip(asked, beside, strict=True)
        ],
        "the right note between two": [
            [b[0], a.note, b[1]] for a, b in zip(asked, beside, strict=True)
        ],
        "the right note last of three": [
            [*b, a.note] for a, b in zip(asked, beside, strict=True)
        ],
    }
    result = {"recall": {}, "right": {}, "copied": {}, "cut": {}, "answers": {}}
    for name, weight in {"words": 0.0, "meaning": 1.0, "both": 0.8}.items():
        first = chapter.retrieve(questions, texts, 1, weight=weight)
        result["recall"][name] = share(
            [f == [a.note] for f, a in zip(first, asked, strict=True)]
        )
    for name, numbers in read.items():
        prompts = [
            chapter.prompt_with([texts[i] for i in some], question)
            for some, question in zip(numbers, questions, strict=True)
        ]
        answers = chapter.written(prompts)
        result["answers"][name] = answers
        result["right"][name] = share(
            [chapter.holds(t, a.wanted) for t, a in zip(answers, asked, strict=True)]
        )
        # A word or number of another note that was read, and none of the right one.
        result["copied"][name] = share(
            [
                sources(answer, [notes[i] for i in some if i != a.note]) != []
                and not chapter.holds(answer, a.wanted)
                for answer, some, a in zip(answers, numbers, asked, strict=True)
            ]
        )
        result["cut"][name] = share(
            [len(chapter.TOKENIZER.encode(t)) >= 20 for t in answers]
        )
    # Where a single one of three notes has a word or number of the answer, that note is its source.
    hits, guesses = [], []
    for name in list(read)[3:]:
        for question, answer, some in zip(
            questions, result["answers"][name], read[name], strict=True
        ):
            true = sources(answer, [notes[i] for i in some])
            if len(true) == 1:
                named = (
                    chapter.support(question, answer, [texts[i] for i in some])
                    .argmax()
                    .item()
                )
                hits.append(named == true[0])
                guesses.append(len(some) - 1 == true[0])
    result["sources"] = {
        "answers": len(hits),
        "named": share(hits),
        "always the last": share(guesses),
    }
    print(seed, {k: v for k, v in result.items() if k != "answers"}, flush=True)
    return {"seed": seed, **result}


def attacked(seed: int) -> dict:
    """What is answered when somebody else has written a part of what is read."""
    notes = chapter.guide(seed)
    asked, texts = chapter.questions_about(notes), [note.text for note in notes]
    result = {}
    for name, prompts in chapter.attacks(asked, texts).items():
        answers = chapter.answers_to(prompts)
        result[name] = {
            "right": share(
                [chapter.holds(t, a.wanted) for t, a in zip(answers, asked, strict=True)]
            ),
            "obeyed": share([chapter.holds(t, "hotline") for t in answers]),
            "lie": share(
                [chapter.holds(t, a.lie) for t, a in zip(answers, asked, strict=True)]
            ),
            "both": share(
                [
                    chapter.holds(t, a.lie) and chapter.holds(t, a.wanted)
                    for t, a in zip(answers, asked, strict=True)
                ]
            ),
            "answers": answers,
        }
        print(
            seed,
            name,
            {k: v for k, v in result[name].items() if k != "answers"},
            flush=True,
        )
    return {"seed": seed, "attacks": result}


if __name__ == "__main__":
    record_parts(
        [given, attacked], "notes and questions, drawn by the chapter", SEEDS, RECORD
    )
