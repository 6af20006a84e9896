"""The recorded experiment of the chapter on DPO: what losses of pairs make of the same four thousand pairs.

`make experiment NAME=dpo` runs the chapter's own code in two processes of one thread each, in about half an hour, and
rewrites experiments/dpo.json, which the chapter prints and draws.
"""

from pathlib import Path

import torch
from common import definitions, record_parts

SEEDS = [0, 1, 2, 3, 4]
RECORD = Path(__file__).with_suffix(".json")
chapter = definitions("post-training/dpo")
Pairs = chapter.Pairs


def together(*pairs: Pairs) -> Pairs:
    """All pairs as one."""
    columns = zip(*(vars(each).values() for each in pairs), strict=True)
    return Pairs(*(torch.cat(column) for column in columns))


def balanced(pairs: Pairs, seed: int) -> Pairs:
    """The chosen answer is longer by a number of ids in as many pairs as it is shorter by that number; at random."""
    chosen, rejected = (
        chapter.completion_mask(answers).sum(1)
        for answers in (pairs.chosen, pairs.rejected)
    )
    longer = chosen - rejected
    kept = [(longer == 0).nonzero().squeeze(1)]
    for number in range(1, int(longer.abs().max()) + 1):
        sides = [(longer == sign * number).nonzero().squeeze(1) for sign in (1, -1)]
        fewer = min(len(side) for side in sides)
        kept += [side[:fewer] for side in sides]
    rows = torch.cat(kept)
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))
    return pairs[rows[order]]


class Study:
    """The language model of a seed, pairs of its answers, and what was found."""

    def __init__(self, seed: int):
        torch.set_num_threads(1)
        self.seed = seed
        self.start = chapter.model_of_lines(seed)
        self.pairs = self.drawn(4000, 100)
        self.held_out = self.drawn(500, 200)
        self.found = {"seed": seed, "runs": {}, "texts": {}}

    def drawn(self, number: int, series: int, policy=None) -> Pairs:
        """Judged pairs of the start's answers, or of a policy's."""
        policy = policy or self.start
        return chapter.judged_pairs(policy, policy, number, seed=series + self.seed)

    def follow(self, name: str, pairs: Pairs, loss, **how):
        policies = chapter.trained(self.start, pairs, loss, seed=self.seed, **how)
        policy = chapter.last_of(policies)
        row = chapter.measured(policy, self.start, self.held_out)
        self.found["runs"][name] = {what: round(value, 4) for what, value in row.items()}
        prompts = chapter.TEST[:4]
        answers = chapter.sample_answers(
            policy, prompts, generator=torch.Generator().manual_seed(1)
        )
        self.found["texts"][name] = [
            f"{chapter.line_text(prompt)} | {chapter.line_text(answer)}"
            for prompt, answer in zip(prompts, answers, strict=True)
        ]
        print(f"{self.seed} {name:<28}{chapter.as_row(row)}", flush=True)
        return policy


def methods(seed: int) -> dict:
    """All losses, on the same pairs; and the most that could be had."""
    study = Study(seed)
    row = chapter.measured(study.start, study.start, study.held_out)
    study.found["runs"]["start"] = {what: round(value, 4) for what, value in row.items()}
    answers = study.drawn(10_000, 600)
    answers = torch.cat([answers.chosen, answers.rejected])
    worth, ids = chapter.points_of(answers), chapter.completion_mask(answers).sum(1)
    study.found["best"] = [
        {
            what: round(value, 4)
            for what, value in chapter.best_of_all(worth, ids, strength).items()
        }
        for strength in (0.0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 1.75, 2.0, 2.25, 2.5)
    ]
    for name, loss in chapter.METHODS.items():
        _ = study.follow(name, study.pairs, loss)
    for name in ("up and down", "DPO 0.1", "IPO 0.03", "SimPO 2, 1", "ORPO 5.0"):
        loss = chapter.METHODS[name]
        _ = study.follow(f"{name}, slower", study.pairs, loss, learning_rate=0.0007)
    return study.found


def longer(seed: int) -> dict:
    """More or fewer passes over the same pairs."""
    study = Study(seed)
    for passes in (1, 4, 8):
        for name in ("up and down", "DPO 0.1"):
            loss = chapter.METHODS[name]
            _ = study.follow(f"{name}, passes {passes}", study.pairs, loss, passes=passes)
    for name in ("DPO 1.0", "IPO 0.03", "IPO 0.1", "SimPO 2, 1"):
        loss = chapter.METHODS[name]
        _ = study.follow(f"{name}, passes 8", study.pairs, loss, passes=8)
    return study.found


def more_pairs(seed: int) -> dict:
    """Other numbers of pairs, and pairs of the policy's own answers."""
    study = Study(seed)
    loss = chapter.METHODS["DPO 0.1"]
    more = study.drawn(12_000, 400)
    for number in (1000, 2000):
        _ = study.follow(f"start {number}", study.pairs[:number], loss)
    for number in (8000, 16_000):
        pairs = together(study.pairs, more[: number - 4000])
        _ = study.follow(f"start {number}", pairs, loss)
    for size in (2000, 1000):
        grown, policy = study.pairs[:size], None
        while len(grown.prompts) < 4000:
            policy = study.follow(f"own {size}, {len(grown.prompts)}", grown, loss)
            own = study.drawn(size, 500 + 100 * len(grown.prompts) // size, policy)
            grown = together(grown, own)
        _ = study.follow(f"own {size}, {len(grown.prompts)}", grown, loss)
    return study.found


def lengths(seed: int) -> dict:
    """Pairs in which length says nothing, beside as many as drawn."""
    study = Study(seed)
    more = study.drawn(12_000, 400)
    even = balanced(more, seed)[:4000]
    study.found["lengths"] = {
        name: [
            round(float(chapter.completion_mask(answers).sum(1).float().mean()), 3)
            for answers in (pairs.chosen, pairs.rejected)
        ]
        for name, pairs in (("drawn", more[:4000]), ("balanced", even))
    }
    for name in ("DPO 0.1", "DPO of means 1.0", "SimPO 2, 1"):
        loss = chapter.METHODS[name]
        _ = study.follow(f"{name}, drawn", more[:4000], loss)
        _ = study.follow(f"{name}, balanced", even, loss)
    return study.found


PARTS = (methods, longer, more_pairs, lengths)

if __name__ == "__main__":
    record_parts(PARTS, "lines of Shakespeare, judged by the chapter's rule", SEEDS, RECORD)
