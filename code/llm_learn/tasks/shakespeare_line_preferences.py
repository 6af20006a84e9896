"""Lines of Shakespeare that a small model completes and a judge scores, for the chapters on preferences."""

import copy
import itertools
import math
import random
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from llm_learn.argument_checks import expect
from llm_learn.data import shakespeare
from llm_learn.generate import generate
from llm_learn.losses import preference_loss
from llm_learn.model.llama import Llama, LlamaConfig
from llm_learn.optim import AdamW
from llm_learn.sft import fine_tune
from llm_learn.train import TrainConfig

LONGEST_LINE = 11  # words and marks of a line
PROMPT = 2  # of them are given
# Tokens of an answer at most, including the one that ends it.
ANSWER = LONGEST_LINE - PROMPT + 1
EOS_ID = 1000  # comes after the IDs of all words and marks


@cache
def words_and_lines() -> tuple[list[str], list[tuple[int, ...]]]:
    """The most frequent words and marks, by their IDs, and all lines of nothing else, in a random order."""
    all_lines = [
        re.findall(r"[a-z']+|[.,;:!?]", line.lower())
        for line in shakespeare().splitlines()
        if line.strip() and line.strip()[0] not in "*#_["  # names, headings, directions
    ]
    counts = Counter(itertools.chain(*all_lines))
    ids = {word: i for i, (word, _) in enumerate(counts.most_common(EOS_ID))}
    known = {
        tuple(ids[word] for word in line)
        for line in all_lines
        if 5 <= len(line) <= LONGEST_LINE and ids.keys() >= set(line)
    }
    return list(ids), random.Random(0).sample(sorted(known), len(known))


def line_text(ids: Sequence[int]) -> str:
    """Words and marks as one text; it stops at the end of the line."""
    vocabulary, ids = words_and_lines()[0], [int(i) for i in ids]
    words = [vocabulary[i] for i in ids[: ids.index(EOS_ID) if EOS_ID in ids else None]]
    return re.sub(r" ([.,;:!?])", r"\1", " ".join(words))


def train_and_test() -> tuple[list[tuple[int, ...]], Tensor]:
    """Training lines, and prompts from 300 others, (300, 2)."""
    lines = words_and_lines()[1]
    return lines[1000:], torch.tensor([line[:PROMPT] for line in lines[:300]])


def model_of_lines(seed: int) -> Llama:
    """A small Llama that was trained to complete lines."""
    torch.manual_seed(seed)
    model = Llama(
        LlamaConfig(
            vocab_size=EOS_ID + 1,
            context_length=PROMPT + ANSWER,
            d_model=64,
            d_ff=168,
            num_layers=2,
            num_heads=4,
            num_kv_heads=4,
        )
    )
    config = TrainConfig(max_steps=300, batch_size=64, learning_rate=0.004, warmup_steps=30)
    examples = [
        ((*line, EOS_ID), [False] + [True] * len(line)) for line in train_and_test()[0]
    ]
    generator = torch.Generator().manual_seed(seed)
    _ = fine_tune(model, examples, config, pad_id=EOS_ID, generator=generator)
    return model


def completion_mask(answers: Tensor) -> Tensor:
    """(B, T) -> (B, T), True for every token up to the first EOS_ID, and for that one."""
    is_end = answers == EOS_ID
    return is_end.cumsum(1) - is_end.long() == 0


def sample_answers(model: Llama, prompts: Tensor, *, generator: torch.Generator) -> Tensor:
    """Samples an answer to each prompt: (B, 2) -> (B, T), padded with EOS_ID."""
    ids = generate(model, prompts, ANSWER, eos_id=EOS_ID, generator=generator)
    return F.pad(ids, (0, PROMPT + ANSWER - ids.shape[1]), value=EOS_ID)[:, PROMPT:]


@cache
def marks_and_long_words() -> tuple[frozenset[int], frozenset[int]]:
    """The IDs of marks, and those of words of six letters or more."""
    words = list(enumerate(words_and_lines()[0]))
    marks = frozenset(i for i, word in words if word in ".,;:!?")
    return marks, frozenset(i for i, word in words if len(word.replace("'", "")) >= 6)


def points(answer: Sequence[int]) -> int:
    """The judge's hidden criterion: different long words, minus repeated words."""
    marks, long_words = marks_and_long_words()
    words = [i for i in answer if i != EOS_ID and i not in marks]
    return len(long_words.intersection(words)) - (len(words) - len(set(words)))


def points_of(answers: Tensor) -> Tensor:
    """(B, T) -> (B,)"""
    return torch.tensor([float(points(answer)) for answer in answers.tolist()])


SHARPNESS = 2.0  # how much a point counts for the judge


@dataclass(frozen=True)
class Pairs:
    """Prompts with two answers each, one of them preferred."""

    prompts: Tensor  # (N, 2)
    chosen: Tensor  # (N, T)
    rejected: Tensor  # (N, T)

    def __getitem__(self, rows: slice | Tensor) -> "Pairs":
        return Pairs(self.prompts[rows], self.chosen[rows], self.rejected[rows])


def judge(
    prompts: Tensor, first: Tensor, second: Tensor, *, generator: torch.Generator
) -> Pairs:
    """Lets the judge choose between two answers to each prompt, (B, T) each."""
    rule = "prompts (B, P), first (B, T), second (B, T)"
    expect(rule, prompts=prompts, first=first, second=second)
    lead = SHARPNESS * (points_of(first) - points_of(second))
    wins = torch.rand(len(lead), generator=generator) < lead.sigmoid()  # (N,)
    chosen = torch.where(wins[:, None], first, second)
    return Pairs(prompts, chosen, torch.where(wins[:, None], second, first))


def draw_prompts(number: int, *, generator: torch.Generator) -> Tensor:
    """Prompts from random lines, (B, 2)."""
    lines = train_and_test()[0]
    some = torch.randint(len(lines), (number,), generator=generator).tolist()
    return torch.tensor([lines[i][:PROMPT] for i in some])


def judged_pairs(first: Llama, second: Llama, number: int, seed: int) -> Pairs:
    """Pairs of an answer by one model and one by another, judged."""
    generator = torch.Generator().manual_seed(seed)
    prompts = draw_prompts(number, generator=generator)
    one, other = (
        sample_answers(model, prompts, generator=generator) for model in (first, second)
    )
    return judge(prompts, one, other, generator=generator)


class RewardModel(nn.Module):
    """A language model's body, with one score for each position instead of logits."""

    def __init__(self, model: Llama):
        super().__init__()
        self.body = copy.deepcopy(model)
        self.head = nn.Linear(model.config.d_model, 1)
        for parameter in self.head.parameters():
            _ = nn.init.zeros_(parameter)

    def forward(self, ids: Tensor) -> Tensor:
        """(B, T) -> (B, T)"""
        return self.head(self.body.hidden_states(ids)).squeeze(-1)

    def score(self, prompts: Tensor, answers: Tensor) -> Tensor:
        """The score at the last token of each answer: (B, 2), (B, T) -> (B,)."""
        at_each = self(torch.cat([prompts, answers], dim=1))[:, PROMPT:]  # (B, T)
        last = completion_mask(answers).sum(1, keepdim=True) - 1  # (B, 1)
        return at_each.gather(1, last).squeeze(1)

    def score_pairs(self, pairs: Pairs) -> tuple[Tensor, Tensor]:
        """The scores of the chosen and of the rejected answers, (N,) twice."""
        answers = torch.cat([pairs.chosen, pairs.rejected])
        chosen, rejected = self.score(pairs.prompts.repeat(2, 1), answers).chunk(2)
        return chosen, rejected


def optimizer_step(
    loss: Tensor, model: nn.Module, optimizer: torch.optim.Optimizer
) -> None:
    """One step of the optimizer, with gradients clipped to a norm of 1."""
    optimizer.zero_grad()
    loss.backward()
    _ = nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()


def train_reward_model(
    model: Llama, pairs: Pairs, scale_by: Pairs, seed: int
) -> RewardModel:
    """Trains on pairs; scores have mean 0 and standard deviation 1 on the answers of `scale_by`."""
    rewards = RewardModel(model)
    generator = torch.Generator().manual_seed(seed)
    number, size = len(pairs.prompts), 64
    config = TrainConfig(
        max_steps=2 * math.ceil(number / size), batch_size=size, learning_rate=0.003
    )
    optimizer = AdamW(rewards.parameters(), lr=config.learning_rate)
    order = torch.cat([torch.randperm(number, generator=generator) for _ in range(2)])
    for step, some in enumerate(order.split(size)):
        optimizer.param_groups[0]["lr"] = config.learning_rate * config.factor(step)
        loss = preference_loss(*rewards.score_pairs(pairs[some])).mean()
        optimizer_step(loss, rewards, optimizer)
    with torch.no_grad():
        known = torch.cat(rewards.score_pairs(scale_by))
        _ = rewards.head.bias.sub_(known.mean()).div_(known.std())
        _ = rewards.head.weight.div_(known.std())
    return rewards


def answer_logits(model: Llama, prompts: Tensor, answers: Tensor) -> Tensor:
    """Logits of a model for each token of the answers, (B, T, V)."""
    return model(torch.cat([prompts, answers], dim=1)[:, :-1])[:, PROMPT - 1 :]


@torch.no_grad()
def kl_per_token(
    policy: Llama, reference: Llama, prompts: Tensor, answers: Tensor
) -> Tensor:
    """The KL divergence between two models' predictions of each token of the answers, (B, T), in nats."""
    logps, reference_logps = (
        answer_logits(model, prompts, answers).log_softmax(-1)
        for model in (policy, reference)
    )
    return (logps.exp() * (logps - reference_logps)).sum(-1)
