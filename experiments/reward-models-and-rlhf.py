"""The recorded experiment of the chapter on reward models: how far a score can be raised before the judge disagrees.

`make experiment NAME=reward-models-and-rlhf` runs the chapter's own code in two processes of one thread each, in about
fifteen minutes, and rewrites experiments/reward-models-and-rlhf.json, which the chapter prints and draws.
"""

import copy
import math
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import torch
from common import definitions, head, write
from torch.nn import functional as F

SEEDS = [0, 1, 2, 3, 4]
ROUNDS = 60
PENALTIES = [0.0, 0.03, 0.1, 0.3]
RECORD = Path(__file__).with_suffix(".json")
chapter = definitions("post-training/reward-models-and-rlhf")


def dpo(start: torch.nn.Module, pairs, *, beta: float, seed: int) -> torch.nn.Module:
    """Direct preference optimization, two passes over the pairs; the chapter after this one derives it."""
    policy = copy.deepcopy(start)
    number, size = len(pairs.prompts), 64
    config = chapter.TrainConfig(
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
        return (each * chapter.until_end(answers)).sum(1)

    for step, some in enumerate(order.split(size)):
        optimizer.param_groups[0]["lr"] = config.learning_rate * config.factor(step)
        with torch.no_grad():
            reference = logps(start, some)
        chosen, rejected = (logps(policy, some) - reference).chunk(2)
        loss = -F.logsigmoid(beta * (chosen - rejected)).mean()
        chapter.update(loss, policy, optimizer)
    return policy


def run(seed: int) -> dict:
    """Everything of one seed: its own language model, pairs and reward models."""
    torch.set_num_threads(1)
    start = chapter.language_model(seed)
    draw = torch.Generator().manual_seed(8)
    others = chapter.sample(start, chapter.TEST, draw)
    pairs = chapter.draw_pairs(start, start, 4000, seed=100 + seed)
    held_out = chapter.draw_pairs(start, start, 1500, seed=200 + seed)
    rewards = chapter.reward_model_from(start, pairs, pairs, seed)
    gaps = chapter.points_of(held_out.chosen) - chapter.points_of(held_out.rejected)
    found = {
        "agreement": round(chapter.agreement(rewards, held_out), 4),
        "ceiling": round(float(((gaps > 0) + (gaps == 0) / 2).mean()), 4),
        "runs": {},
        "texts": {},
    }

    def follow(name: str, rewards, beta: float = 0.0, ask=chapter.score):
        policies = chapter.ppo(start, rewards, beta=beta, seed=seed, ask=ask)
        policy, rows = chapter.followed(policies, ROUNDS, start, rewards, others)
        keep(name, policy, rows)
        return policy

    def keep(name: str, policy, rows: list[dict]) -> None:
        found["runs"][name] = [
            {what: round(value, 4) for what, value in row.items()} for row in rows
        ]
        answers = chapter.sample(policy, chapter.TEST[:4], torch.Generator().manual_seed(1))
        found["texts"][name] = [
            f"{chapter.text_of(prompt)} | {chapter.text_of(answer)}"
            for prompt, answer in zip(chapter.TEST[:4], answers, strict=True)
        ]
        last = rows[-1]
        print(
            f"{seed} {name:<16} score {last['score']:.2f} points {last['points']:.2f}",
            f"KL {last['kl']:.1f}, best points {max(row['points'] for row in rows):.2f}",
            flush=True,
        )

    scores, points = chapter.scored_answers(
        start, rewards, chapter.TEST[:100], 128, seed=300 + seed
    )
    found["best of n"] = [
        {
            "n": n,
            "kl": round(math.log(n) - (n - 1) / n, 4),
            "score": round(chapter.best_of(scores, scores, n), 4),
            "points": round(chapter.best_of(scores, points, n), 4),
        }
        for n in (1, 2, 4, 8, 16, 32, 64, 128)
    ]
    for beta in PENALTIES:
        policy = follow(f"PPO {beta}", rewards, beta)
        if not beta:
            spoiled = policy
    known = chapter.points_of(torch.cat([pairs.chosen, pairs.rejected]))
    follow(
        "PPO, the judge",
        rewards,
        ask=lambda _, prompts, answers: (
            (chapter.points_of(answers) - known.mean()) / known.std()
        ),
    )
    for beta in (0.03, 0.1, 0.3):
        policy = dpo(start, pairs, beta=beta, seed=seed)
        keep(f"DPO {beta}", policy, [chapter.measured(policy, start, rewards, others)])

    # More pairs of the start's answers, against pairs of what the last policy says and what the start says.
    more = chapter.draw_pairs(start, start, 12000, seed=400 + seed)
    for number in (1000, 4000, 12000):
        added = type(pairs)(*(tensor[:number] for tensor in vars(more).values()))
        judge = chapter.reward_model_from(start, pairs + added, pairs, seed)
        follow(f"start +{number}", judge)
    grown = pairs
    for turn in range(1, 5):
        seed_of_turn = 500 + 10 * seed + turn
        grown = grown + chapter.draw_pairs(spoiled, start, 1000, seed=seed_of_turn)
        judge = chapter.reward_model_from(start, grown, pairs, seed)
        spoiled = follow(f"fresh +{1000 * turn}", judge)
    return found


if __name__ == "__main__":
    with ProcessPoolExecutor(2) as pool:
        record = head("lines of Shakespeare, judged by the chapter's rule", SEEDS)
        record["each"] = list(pool.map(run, SEEDS))
    write(record, RECORD)
