"""The recorded experiment of the chapters on reward models and PPO: how far a score can be raised before the judge disagrees.

`make experiment NAME=reward-models` runs the chapters' own code in two processes of one thread each, in about
half an hour, and rewrites experiments/reward-models.json, which the chapters print and draw.
"""

import copy
import math
from pathlib import Path

import torch
from common import definitions, record_parts
from torch.nn import functional as F

SEEDS = [0, 1, 2, 3, 4]
ROUNDS = 60
PENALTIES = [0.0, 0.03, 0.1, 0.3]
RECORD = Path(__file__).with_suffix(".json")
page = definitions("post-training/reward-models")
chapter = definitions("post-training/ppo")


def dpo(start: torch.nn.Module, pairs, *, beta: float, seed: int) -> torch.nn.Module:
    """Direct preference optimization, two passes over the pairs; the chapter after them derives it."""
    policy = copy.deepcopy(start)
    number, size = len(pairs.prompts), 64
    config = page.TrainConfig(
        max_steps=2 * math.ceil(number / size), batch_size=size, learning_rate=0.002
    )
    optimizer = chapter.AdamW(
        policy.parameters(), lr=config.learning_rate, betas=(0.9, 0.95)
    )
    generator = torch.Generator().manual_seed(seed)
    order = torch.cat([torch.randperm(number, generator=generator) for _ in range(2)])

    def logps(model, some):
        answers = torch.cat([pairs.chosen[some], pairs.rejected[some]])
        each = chapter.token_logps(model, pairs.prompts[some].repeat(2, 1), answers)
        return (each * chapter.completion_mask(answers)).sum(1)

    for step, some in enumerate(order.split(size)):
        optimizer.param_groups[0]["lr"] = config.learning_rate * config.factor(step)
        with torch.no_grad():
            reference = logps(start, some)
        chosen, rejected = (logps(policy, some) - reference).chunk(2)
        loss = -F.logsigmoid(beta * (chosen - rejected)).mean()
        chapter.optimizer_step(loss, policy, optimizer)
    return policy


def together(*pairs):
    """All pairs as one."""
    columns = zip(*(vars(each).values() for each in pairs), strict=True)
    return page.Pairs(*(torch.cat(column) for column in columns))


class Study:
    """The language model of a seed, its pairs, its first reward model, and what was found."""

    def __init__(self, seed: int):
        torch.set_num_threads(1)
        self.seed = seed
        self.start = chapter.model_of_lines(seed)
        generator = torch.Generator().manual_seed(8)
        self.others = chapter.sample_answers(self.start, chapter.TEST, generator=generator)
        self.pairs = self.drawn(4000, 100)
        self.rewards = self.learned(self.pairs)
        self.found = {"seed": seed, "runs": {}, "texts": {}}

    def drawn(self, number: int, series: int, policy=None):
        """Judged pairs of the start's answers, or of one by a policy and one by the start."""
        return chapter.judged_pairs(
            policy or self.start, self.start, number, seed=series + self.seed
        )

    def learned(self, pairs):
        return chapter.train_reward_model(self.start, pairs, self.pairs, self.seed)

    def follow(self, name: str, rewards, beta: float = 0.0, ask=chapter.RewardModel.score):
        policies = chapter.ppo(self.start, rewards, beta=beta, seed=self.seed, ask=ask)
        policy, rows = chapter.followed(policies, ROUNDS, self.start, rewards, self.others)
        self.keep(name, policy, rows)
        return policy

    def keep(self, name: str, policy, rows: list[dict]) -> None:
        self.found["runs"][name] = [
            {what: round(value, 4) for what, value in row.items()} for row in rows
        ]
        prompts = chapter.TEST[:4]
        answers = chapter.sample_answers(
            policy, prompts, generator=torch.Generator().manual_seed(1)
        )
        self.found["texts"][name] = [
            f"{chapter.line_text(prompt)} | {chapter.line_text(answer)}"
            for prompt, answer in zip(prompts, answers, strict=True)
        ]
        last = rows[-1]
        print(
            f"{self.seed} {name:<24} score {last['score']:.2f} points {last['points']:.2f}",
            f"KL {last['kl']:.1f}, best points {max(row['points'] for row in rows):.2f}",
            flush=True,
        )


def methods(seed: int) -> dict:
    """One reward model, and all ways to use it; and the pairs without one."""
    study = Study(seed)
    held_out = study.drawn(1500, 200)
    gaps = chapter.points_of(held_out.chosen) - chapter.points_of(held_out.rejected)
    study.found["agreement"] = round(page.agreement(study.rewards, held_out), 4)
    study.found["ceiling"] = round(float(((gaps > 0) + (gaps == 0) / 2).mean()), 4)
    scores, points = page.scored_answers(
        study.start, study.rewards, chapter.TEST[:100], 128, seed=300 + seed
    )
    study.found["best of n"] = [
        {
            "n": n,
            "kl": round(math.log(n) - (n - 1) / n, 4),
            "score": round(page.best_of(scores, scores, n), 4),
            "points": round(page.best_of(scores, points, n), 4),
        }
        for n in (1, 2, 4, 8, 16, 32, 64, 128)
    ]
    for beta in PENALTIES:
        _ = study.follow(f"PPO {beta}", study.rewards, beta)
    known = chapter.points_of(torch.cat([study.pairs.chosen, study.pairs.rejected]))
    _ = study.follow(
        "PPO, the judge",
        study.rewards,
        ask=lambda _, prompts, answers: (
            (chapter.points_of(answers) - known.mean()) / known.std()
        ),
    )
    for beta in (0.03, 0.1, 0.3):
        policy = dpo(study.start, study.pairs, beta=beta, seed=seed)
        row = chapter.measured(policy, study.start, study.rewards, study.others)
        study.keep(f"DPO {beta}", policy, [row])
    return study.found


def more_pairs(seed: int) -> dict:
    """Reward models from more of the start's answers, or from answers of the last policy."""
    study = Study(seed)
    more = study.drawn(12000, 400)
    for number, penalties in ((4000, (0.0, 0.03, 0.1)), (12000, (0.0, 0.1))):
        rewards = study.learned(together(study.pairs, more[:number]))
        for beta in penalties:
            _ = study.follow(f"start +{number}, {beta}", rewards, beta)
    study.found["learned"] = {}
    for beta in (0.0, 0.1):
        # As in the other half of the study, whose policy after the first reward model is needed here again.
        policy = study.follow(f"fresh +0, {beta}", study.rewards, beta)
        grown = study.pairs
        for turn in range(1, 5):
            name = f"fresh +{1000 * turn}, {beta}"
            grown = together(grown, study.drawn(1000, 500 + 100 * turn, policy))
            rewards = study.learned(grown)
            before = chapter.measured(policy, study.start, rewards, study.others)
            study.found["learned"][name] = round(before["agrees"], 4)
            policy = study.follow(name, rewards, beta)
    return study.found


def within(policy: torch.nn.Module, rewards: torch.nn.Module) -> float:
    """How often score and points agree on which of two answers of a policy is better, where the points differ."""
    generator = torch.Generator().manual_seed(9)
    two = [
        chapter.sample_answers(policy, chapter.TEST, generator=generator) for _ in range(2)
    ]
    with torch.no_grad():
        scores = [rewards.score(chapter.TEST, answers) for answers in two]
    gap = chapter.points_of(two[0]) - chapter.points_of(two[1])
    same = (scores[0] - scores[1]) * gap > 0
    return round(float(same[gap != 0].float().mean()), 4)


def longer(seed: int) -> dict:
    """The first reward model's runs without a penalty and with one, twice as long, and asked about their own answers."""
    study = Study(seed)
    study.found["within"] = {}
    for beta in (0.0, 0.1):
        asked = []
        policies = chapter.ppo(study.start, study.rewards, beta=beta, seed=seed)

        def overheard(policies=policies, asked=asked):
            for done, policy in enumerate(policies):
                if done % 10 == 0:
                    asked.append(within(policy, study.rewards))
                yield policy

        policy, rows = chapter.followed(
            overheard(), 2 * ROUNDS, study.start, study.rewards, study.others
        )
        study.keep(f"PPO {beta}, longer", policy, rows)
        study.found["within"][str(beta)] = asked
    return study.found


def slower(seed: int) -> dict:
    """The first reward model, a third of the learning rate, three times as many rounds."""
    study = Study(seed)
    for beta in (0.0, 0.1, 0.3):
        policies = chapter.ppo(
            study.start, study.rewards, beta=beta, seed=seed, learning_rate=0.001
        )
        policy, rows = chapter.followed(
            policies, 3 * ROUNDS, study.start, study.rewards, study.others, every=15
        )
        study.keep(f"PPO {beta}, slower", policy, rows)
    return study.found


PARTS = (more_pairs, methods, longer, slower)

if __name__ == "__main__":
    record_parts(PARTS, "lines of Shakespeare, judged by the chapter's rule", SEEDS, RECORD)
