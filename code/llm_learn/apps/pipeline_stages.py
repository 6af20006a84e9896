"""Stages of the pipeline, from pre-training to distillation, on one process or data-parallel on several."""

import copy
import itertools
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from llm_learn.argument_checks import expect
from llm_learn.data import get_batch
from llm_learn.distributed import DistributedContext
from llm_learn.losses import distillation_loss, group_advantages, ppo_clip_loss
from llm_learn.model.empty_weights import init_empty_weights
from llm_learn.model.gpt import init_weights_fan_in
from llm_learn.model.llama import Llama, LlamaConfig
from llm_learn.optim import AdamW, muon_and_adamw, wsd_schedule
from llm_learn.sft import Example, collate_examples
from llm_learn.tasks.shakespeare_conversations import (
    REPLY,
    Completions,
    TalkTask,
    draw_replies,
)
from llm_learn.train import IGNORE_INDEX, summed_loss

Batch = tuple[Tensor, Tensor]  # token IDs (B, T), and for each the next, or IGNORE_INDEX
SINGLE_PROCESS = DistributedContext()


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Sizes of the models, and lengths of the stages; the defaults are the book's page."""

    num_words: int = 1000  # of which a line may be made
    vocab_size: int = 1024
    context_length: int = 64
    d_model: int = 96
    num_layers: int = 3
    num_heads: int = 4
    pretrain_steps: int = 400
    pretrain_batch_size: int = 8  # windows of the text per step
    sft_steps: int = 100
    sft_batch_size: int = 48  # conversations per step
    rl_rounds: int = 30  # of reinforcement learning
    num_prompts: int = 16  # in a round
    num_samples: int = 8  # replies to each
    rl_learning_rate: float = 0.002
    beta: float = 0.05  # weight of the KL penalty, per nat
    student_d_model: int = 64
    student_num_layers: int = 1
    num_distill_samples: int = 1536  # replies of the teacher, for the student
    distill_steps: int = 120

    def __post_init__(self):
        for name, kind in type(self).__annotations__.items():
            expect(f"{name} >= {1 if kind is int else 0}", **vars(self))
        expect(
            "num_samples >= 2", num_samples=self.num_samples
        )  # a group needs two replies

    def models(self) -> tuple[Llama, Llama]:
        """The model that is trained, and its student."""
        sizes = self.vocab_size, self.context_length
        return (
            make_llama(*sizes, self.d_model, self.num_layers, self.num_heads),
            make_llama(
                *sizes, self.student_d_model, self.student_num_layers, self.num_heads
            ),
        )


def make_llama(
    vocab_size: int, context_length: int, d_model: int, num_layers: int, num_heads: int
) -> Llama:
    """A Llama with random weights, in which two heads share their keys and values."""
    config = LlamaConfig(
        vocab_size=vocab_size,
        context_length=context_length,
        d_model=d_model,
        d_ff=round(d_model / 12) * 32,  # 8/3 of the width, in whole groups of 32
        num_layers=num_layers,
        num_heads=num_heads,
        num_kv_heads=max(1, num_heads // 2),
    )
    model = Llama(config)
    init_weights_fan_in(model, num_layers)
    # The output layer shares these weights: at the width's scale its first logits are about 1.
    nn.init.normal_(model.token_embedding.weight, std=d_model**-0.5)
    return model


def wrap_ddp(model: Llama, dist_context: DistributedContext) -> nn.Module:
    """The model as it is trained: several processes average their gradients."""
    model.to(dist_context.device)
    return model if dist_context.world_size == 1 else DistributedDataParallel(model)


def local_batch_size(name: str, number: int, dist_context: DistributedContext) -> int:
    """How many of a batch this process takes."""
    expect(f"{name} % processes == 0", **{name: number}, processes=dist_context.world_size)
    return number // dist_context.world_size


def train_on(
    model: Llama,
    loss: Callable[..., Tensor],
    batches: Iterator,
    max_steps: int,
    *,
    learning_rate: float,
    dist_context: DistributedContext = SINGLE_PROCESS,
) -> list[float]:
    """Trains with Muon and AdamW; the learning rate rises for ten steps, and falls over the last third.

    Args:
        model: changed in place.
        loss: of the model on a batch.
        batches: those of this process.
        max_steps: training steps.
        learning_rate: AdamW's; Muon's is twice as high.
        dist_context: the processes that share the work; each has the mean over its own targets.

    Returns:
        The loss before each update, on this process's batch.
    """
    trained = wrap_ddp(model, dist_context)
    optimizers = muon_and_adamw(
        model, muon_learning_rate=2 * learning_rate, adamw_learning_rate=learning_rate
    )
    groups = [group for optimizer in optimizers for group in optimizer.param_groups]
    peaks = [group["lr"] for group in groups]
    decay, warmup = -(-max_steps // 3), min(10, max_steps // 3)
    losses = []
    hidden = None if dist_context.is_main_process else True
    for step in tqdm(range(max_steps), leave=False, disable=hidden):
        factor = wsd_schedule(
            step, max_steps=max_steps, decay_steps=decay, warmup_steps=warmup
        )
        for group, peak in zip(groups, peaks, strict=True):
            group["lr"] = peak * factor
        value = loss(trained, next(batches))
        for optimizer in optimizers:
            optimizer.zero_grad()
        value.backward()
        _ = nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
        losses.append(value.item())
    return losses


def next_token_loss(model: nn.Module, batch: Batch) -> Tensor:
    """Cross-entropy in nats per target."""
    x, y = batch
    return summed_loss(model(x), y) / (y != IGNORE_INDEX).sum()


def text_batches(
    ids: Tensor,
    batch_size: int,
    context_length: int,
    seed: int,
    dist_context: DistributedContext = SINGLE_PROCESS,
) -> Iterator[Batch]:
    """Random windows of a text, without end."""
    generator = torch.Generator().manual_seed(
        seed * dist_context.world_size + dist_context.rank
    )
    share = local_batch_size("pretrain_batch_size", batch_size, dist_context)
    while True:
        x, y = get_batch(ids, share, context_length, generator=generator)
        yield x.to(dist_context.device), y.to(dist_context.device)


def example_batches(
    examples: Sequence[Example],
    batch_size: int,
    eos_id: int,
    seed: int,
    dist_context: DistributedContext = SINGLE_PROCESS,
) -> Iterator[Batch]:
    """Examples in a random order, again and again."""
    generator = torch.Generator().manual_seed(seed)  # one order for all processes
    share, order = local_batch_size("sft_batch_size", batch_size, dist_context), []
    while True:
        while len(order) < batch_size:
            order += torch.randperm(len(examples), generator=generator).tolist()
        own, order = order[dist_context.rank * share :][:share], order[batch_size:]
        x, y = collate_examples([examples[i] for i in own], eos_id)
        yield x.to(dist_context.device), y.to(dist_context.device)


@dataclass(frozen=True)
class Round:
    """Measurements of a round of reinforcement learning, before its update."""

    kept: list[float]  # fraction of the replies that keep each of FORMAT_RULES
    all_kept: float  # fraction of those that keep all
    kl: float  # nats per reply, from the reference model


def reinforce(
    model: Llama,
    task: TalkTask,
    plan: Plan,
    seed: int,
    dist_context: DistributedContext = SINGLE_PROCESS,
) -> Iterator[Round]:
    """GRPO, rewarded by the fraction of rules kept, minus `plan.beta` per nat of distance from the reference model.

    Args:
        model: changed in place, by one update per round.
        task: has the prompts and the rules.
        plan: how many rounds, of how many replies.
        seed: decides the prompts and the replies.
    """
    reference = copy.deepcopy(model).to(dist_context.device)
    trained = wrap_ddp(model, dist_context)
    optimizer = AdamW(model.parameters(), lr=plan.rl_learning_rate, weight_decay=0.0)
    own_seed = seed * dist_context.world_size + dist_context.rank
    rng = random.Random(own_seed)
    generator = torch.Generator(dist_context.device).manual_seed(own_seed)
    share = local_batch_size("num_prompts", plan.num_prompts, dist_context)
    for _ in range(plan.rl_rounds):
        groups = [ask for ask in task.ask(share, rng) for _ in range(plan.num_samples)]
        written = draw_replies(
            model, task.prompts(groups), task.eos_id, generator=generator
        )
        kept = task.kept(groups, written)  # (B, 4)
        with torch.no_grad():
            reference_logps = written.logps_by(reference)
        logps = written.logps_by(trained)  # (B, REPLY)
        old_logps, mask = logps.detach(), written.mask
        kl = ((old_logps - reference_logps) * mask).sum(1)  # (B,)
        rewards = kept.mean(1).to(kl.device) - plan.beta * kl
        advantages = group_advantages(rewards.view(share, plan.num_samples)).view(-1, 1)
        # With one update per round the ratio is 1, and the clip does not act.
        losses = ppo_clip_loss(logps, old_logps, advantages.expand_as(logps), clip=0.2)
        optimizer.zero_grad()
        ((losses * mask).sum(1) / mask.sum(1)).mean().backward()
        _ = nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        all_kept = float(kept.all(1).float().mean())
        found = [*kept.mean(0).tolist(), all_kept, float(kl.mean())]
        *each, everything, distance = dist_context.mean(found)
        yield Round(each, everything, distance)


def teacher_loss(teacher: Llama) -> Callable[[nn.Module, Completions], Tensor]:
    """How far a student is from its teacher at each token of the teacher's replies, in nats."""

    def loss(student: nn.Module, lesson: Completions) -> Tensor:
        with torch.no_grad():
            expected = lesson.logits_by(teacher)
        kl = distillation_loss(lesson.logits_by(student), expected, temperature=1.0)
        return kl[lesson.mask].mean()

    return loss


def distillation_batches(
    teacher: Llama,
    task: TalkTask,
    plan: Plan,
    seed: int,
    dist_context: DistributedContext = SINGLE_PROCESS,
) -> Iterator[Completions]:
    """Replies that a teacher generates, in batches for its student, which come again and again."""
    own_seed = seed * dist_context.world_size + dist_context.rank
    rng = random.Random(own_seed)
    generator = torch.Generator(dist_context.device).manual_seed(own_seed)
    share = local_batch_size("sft_batch_size", plan.sft_batch_size, dist_context)
    written = [
        draw_replies(
            teacher, task.prompts(task.ask(share, rng)), task.eos_id, generator=generator
        )
        for _ in range(-(-plan.num_distill_samples // plan.sft_batch_size))
    ]
    return itertools.cycle(written)


def flops(plan: Plan, prompt: float) -> dict[str, float]:
    """The floating-point operations that each stage will need, without attention scores.

    A token costs 2 per weight in inference, and 6 in training (Kaplan et al. 2020, arXiv:2001.08361, Section 2.1).

    Args:
        plan: of all stages.
        prompt: tokens of a prompt, on average.
    """
    with init_empty_weights():
        models = plan.models()
    # The embedding is the output layer as well, so it counts once.
    n, student = (sum(p.numel() for p in m.parameters() if p.ndim == 2) for m in models)
    talk = prompt + REPLY
    return {
        "pre-training": 6
        * n
        * plan.pretrain_steps
        * plan.pretrain_batch_size
        * plan.context_length,
        "tuning": 6 * n * plan.sft_steps * plan.sft_batch_size * talk,
        # Generated, scored by the reference model, trained on.
        "reinforcement": (2 + 2 + 6)
        * n
        * plan.rl_rounds
        * plan.num_prompts
        * plan.num_samples
        * talk,
        "distillation": 2 * n * plan.num_distill_samples * talk
        + (2 * n + 6 * student) * plan.distill_steps * plan.sft_batch_size * talk,
    }
