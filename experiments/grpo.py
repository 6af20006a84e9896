"""The recorded experiment of the chapter on GRPO: each ingredient, taken away or exchanged.

`make experiment NAME=grpo` runs the chapter's own code in two processes of one thread each, in about half an hour,
and rewrites experiments/grpo.json, which the chapter prints and draws.
"""

import copy
import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch
from common import definitions, record_parts
from torch import Tensor, nn

SEEDS = [0, 1, 2, 3, 4]
RECORD = Path(__file__).with_suffix(".json")
chapter = definitions("post-training/grpo")
GRPO, DR_GRPO = (chapter.ONE_STEP[name] for name in ("GRPO", "Dr. GRPO"))


class Study:
    """The start of a seed, and what was found."""

    def __init__(self, seed: int, **how):
        torch.set_num_threads(1)
        self.seed = seed
        self.start = chapter.start_of(seed, **how)
        self.found = {"seed": seed, "start": chapter.habits(self.start), "runs": {}}

    def keep(self, name: str, rows: list[dict]) -> None:
        self.found["runs"][name] = [
            {what: round(value, 4) for what, value in row.items()} for row in rows
        ]
        last = " ".join(f"{what} {value:.2f}" for what, value in rows[-1].items())
        print(f"{self.seed} {name:<32}{last}", flush=True)

    def follow(self, name: str, method, rounds: int = 40, every: int = 4, **how):
        policies = chapter.reinforced(self.start, method, self.seed, **how)
        policy, rows = chapter.followed(policies, rounds, self.start, every=every)
        self.keep(name, rows)
        return policy


def with_value_function(start, seed: int) -> Iterator[tuple]:
    """PPO with a value function instead of groups: GAE with lambda = 1, where the only reward is the last one."""
    policy, body = copy.deepcopy(start), copy.deepcopy(start)
    head = nn.Linear(start.config.d_model, 1)
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    learned = [*body.parameters(), *head.parameters()]
    optimizers = [
        chapter.AdamW(parameters, lr=learning_rate, betas=(0.9, 0.95))
        for parameters, learning_rate in ((policy.parameters(), 0.001), (learned, 0.003))
    ]
    generator, rng = torch.Generator().manual_seed(seed), random.Random(seed)
    rewards = torch.empty(0, 16)

    def update(loss: Tensor, parameters: list, optimizer) -> None:
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()

    while True:
        yield policy, rewards
        problems = [p for p in rng.choices(chapter.TRAIN, k=16) for _ in range(16)]
        answers = chapter.sample(policy, problems, generator=generator)
        prompts, mask = torch.tensor(problems), chapter.until_done(answers)
        rewards = chapter.is_right(problems, answers).view(16, 16)
        ids = torch.cat([prompts, answers], dim=1)
        values = head(body.hidden_states(ids))[:, chapter.PROMPT - 1 : -1, 0]  # (B, T)
        errors = rewards.flatten().unsqueeze(1) - values
        advantages = errors.detach()
        advantages = (advantages - advantages[mask].mean()) / advantages[mask].std()
        logps = chapter.answer_logps(policy, prompts, answers)
        losses = chapter.ppo_clip_loss(logps, logps.detach(), advantages, clip=0.2)
        update(losses[mask].mean(), list(policy.parameters()), optimizers[0])
        update(errors[mask].square().mean(), learned, optimizers[1])


def ingredients(seed: int) -> dict:
    """One step with each answer: baselines, scaling, and what a mean is taken over."""
    study = Study(seed)
    for name, method in chapter.ONE_STEP.items():
        study.follow(name, method)
    policies = with_value_function(study.start, seed)
    study.keep("PPO", chapter.followed(policies, 40, study.start)[1])
    study.keep("rejection sampling", chapter.rejection_sampled(study.start, seed)[1])
    return study.found


def several_steps(seed: int) -> dict:
    """Four steps with each answer: what a clipped ratio is good for."""
    study = Study(seed)
    for name, method in chapter.FOUR_STEPS.items():
        study.follow(name, method)
    return study.found


def controls(seed: int) -> dict:
    """Rewards by lot, and starts that hardly ever write steps."""
    study = Study(seed)
    lots = torch.Generator().manual_seed(1000 + seed)

    def by_lot(problems, answers: Tensor) -> Tensor:
        return (torch.rand(len(answers), generator=lots) < 0.2).float()

    for name, method in (("GRPO", GRPO), ("Dr. GRPO", DR_GRPO)):
        study.follow(f"{name}, random reward", method, rounds=80, every=8, reward=by_lot)
    never = Study(seed, with_share=0.0)
    study.found["never"] = never.found["start"]
    never.follow("GRPO, never with steps", GRPO, rounds=80, every=8)
    study.found["runs"] |= never.found["runs"]
    return study.found


def kl_penalties(seed: int) -> dict:
    """A penalty in the rewards, and as a loss in three forms."""
    study = Study(seed)
    slow = replace(DR_GRPO, learning_rate=0.0003, beta=0.3)
    for name, kl_loss in {
        "in the rewards": None,
        "k1": chapter.k1_of,
        "k2": chapter.k2_of,
        "k3": chapter.k3_of,
    }.items():
        policy = study.follow(name, replace(slow, kl_loss=kl_loss), rounds=80, every=8)
        study.found["runs"][name][-1] |= chapter.habits(policy)
    return study.found


def small_penalty(seed: int) -> dict:
    """A thousandth of a point for each id, in groups of four; the start's steps are not so good yet."""
    study = Study(seed, max_steps=260)

    def shorter(problems, answers: Tensor) -> Tensor:
        ids = chapter.until_done(answers).sum(1)
        return chapter.is_right(problems, answers) - 0.001 * ids

    for name, method in (("GRPO", GRPO), ("Dr. GRPO", DR_GRPO)):
        small = replace(method, prompts=64, samples=4)
        study.follow(name, small)
        study.follow(f"{name}, penalty", small, reward=shorter)
    return study.found


if __name__ == "__main__":
    record_parts(
        [ingredients, several_steps, controls, kl_penalties, small_penalty],
        "sums and products of three numbers, modulo 7",
        SEEDS,
        RECORD,
    )
