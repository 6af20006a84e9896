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
from llm_learn.distributed import Ranks
from llm_learn.gpt import draw_by_fan_in
from llm_learn.llama import Llama, LlamaConfig
from llm_learn.losses import distillation_loss, group_advantages, ppo_clip_loss
from llm_learn.optim import AdamW, muon_and_adamw, wsd_schedule
from llm_learn.sft import Example, answer_batch
from llm_learn.tasks.shakespeare_conversations import REPLY, TalkTask, Written, draw_replies
from llm_learn.train import IGNORED, summed_loss

Batch = tuple[Tensor, Tensor]  # ids (B, T), and for each the next, or IGNORED
ALONE = Ranks()


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How large the models are, and how long each stage lasts; the defaults are the book's page."""

    num_words: int = 1000  # of which a line may be made
    vocab_size: int = 1024
    context_length: int = 64
    d_model: int = 96
    num_layers: int = 3
    num_heads: int = 4
    pretrain_steps: int = 400
    windows: int = 8  # of the text, in an update
    tune_steps: int = 100
    examples: int = 48  # conversations, in an update
    rounds: int = 30  # of reinforcement learning
    prompts: int = 16  # in a round
    samples: int = 8  # replies to each
    reinforce_rate: float = 0.002
    beta: float = 0.05  # rewards a nat of distance from the tuned model costs
    student_d_model: int = 64
    student_layers: int = 1
    written: int = 1536  # replies of the teacher, for the student
    distil_steps: int = 120

    def __post_init__(self):
        for name, kind in type(self).__annotations__.items():
            expect(f"{name} >= {1 if kind is int else 0}", **vars(self))
        expect("samples >= 2", samples=self.samples)  # a group needs two replies

    def models(self) -> tuple[Llama, Llama]:
        """The model that is trained, and its student."""
        sizes = self.vocab_size, self.context_length
        return (
            llama_of(*sizes, self.d_model, self.num_layers, self.num_heads),
            llama_of(*sizes, self.student_d_model, self.student_layers, self.num_heads),
        )


def llama_of(
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
    draw_by_fan_in(model, num_layers)
    # The output layer reads the same weights: at the width's scale its first logits are about 1.
    nn.init.normal_(model.token_embedding.weight, std=d_model**-0.5)
    return model


def shared(model: Llama, ranks: Ranks) -> nn.Module:
    """The model as it is trained: several processes average their gradients."""
    model.to(ranks.device)
    return model if ranks.world_size == 1 else DistributedDataParallel(model)


def own_share(name: str, number: int, ranks: Ranks) -> int:
    """How many of a batch this process takes."""
    expect(f"{name} % processes == 0", **{name: number}, processes=ranks.world_size)
    return number // ranks.world_size


def learn_from(
    model: Llama,
    loss: Callable[..., Tensor],
    batches: Iterator,
    num_steps: int,
    *,
    rate: float,
    ranks: Ranks = ALONE,
) -> list[float]:
    """Trains with Muon and AdamW; the rate rises for ten updates, and falls over the last third.

    Args:
        model: changed in place.
        loss: of the model on a batch.
        batches: those of this process.
        num_steps: updates.
        rate: AdamW's; Muon's is twice as high.
        ranks: the processes that share the work; each has the mean over its own targets.

    Returns:
        The loss before each update, on this process's batch.
    """
    trained = shared(model, ranks)
    optimizers = muon_and_adamw(model, muon_rate=2 * rate, adamw_rate=rate)
    groups = [group for optimizer in optimizers for group in optimizer.param_groups]
    highest = [group["lr"] for group in groups]
    decay, warmup = -(-num_steps // 3), min(10, num_steps // 3)
    losses = []
    hidden = None if ranks.is_first else True
    for step in tqdm(range(num_steps), leave=False, disable=hidden):
        factor = wsd_schedule(
            step, max_steps=num_steps, decay_steps=decay, warmup_steps=warmup
        )
        for group, lr in zip(groups, highest, strict=True):
            group["lr"] = lr * factor
        value = loss(trained, next(batches))
        for optimizer in optimizers:
            optimizer.zero_grad()
        value.backward()
        _ = nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
        losses.append(value.item())
    return losses


def next_id_loss(model: nn.Module, batch: Batch) -> Tensor:
    """Cross-entropy in nats per target."""
    x, y = batch
    return summed_loss(model(x), y) / (y != IGNORED).sum()


def text_batches(
    ids: Tensor, windows: int, context_length: int, seed: int, ranks: Ranks = ALONE
) -> Iterator[Batch]:
    """Random windows of a text, without end."""
    generator = torch.Generator().manual_seed(seed * ranks.world_size + ranks.rank)
    share = own_share("windows", windows, ranks)
    while True:
        x, y = get_batch(ids, share, context_length, generator=generator)
        yield x.to(ranks.device), y.to(ranks.device)


def example_batches(
    examples: Sequence[Example], number: int, end_id: int, seed: int, ranks: Ranks = ALONE
) -> Iterator[Batch]:
    """Examples in a random order, again and again."""
    generator = torch.Generator().manual_seed(seed)  # one order for all processes
    share, order = own_share("examples", number, ranks), []
    while True:
        while len(order) < number:
            order += torch.randperm(len(examples), generator=generator).tolist()
        own, order = order[ranks.rank * share :][:share], order[number:]
        x, y = answer_batch([examples[i] for i in own], end_id)
        yield x.to(ranks.device), y.to(ranks.device)


@dataclass(frozen=True)
class Round:
    """What a round of reinforcement learning found, before its update."""

    kept: list[float]  # share of the replies that keep each of MANNERS
    all_kept: float  # share of those that keep all
    kl: float  # nats a reply, from the model that it began with


def reinforce(
    model: Llama, task: TalkTask, plan: Plan, seed: int, ranks: Ranks = ALONE
) -> Iterator[Round]:
    """GRPO with the share of rules kept as the reward, less `plan.beta` a nat of distance from the first model.

    Args:
        model: changed in place, by one update a round.
        task: has the prompts and the rules.
        plan: how many rounds, of how many replies.
        seed: decides the prompts and the replies.
    """
    reference = copy.deepcopy(model).to(ranks.device)
    trained = shared(model, ranks)
    optimizer = AdamW(model.parameters(), lr=plan.reinforce_rate, weight_decay=0.0)
    own_seed = seed * ranks.world_size + ranks.rank
    draw = random.Random(own_seed)
    generator = torch.Generator(ranks.device).manual_seed(own_seed)
    share = own_share("prompts", plan.prompts, ranks)
    for _ in range(plan.rounds):
        groups = [ask for ask in task.ask(share, draw) for _ in range(plan.samples)]
        written = draw_replies(model, task.prompts(groups), task.end_id, generator)
        kept = task.kept(groups, written)  # (B, 4)
        with torch.no_grad():
            reference_logps = written.logps_by(reference)
        logps = written.logps_by(trained)  # (B, REPLY)
        old_logps, mask = logps.detach(), written.mask
        kl = ((old_logps - reference_logps) * mask).sum(1)  # (B,)
        rewards = kept.mean(1).to(kl.device) - plan.beta * kl
        advantages = group_advantages(rewards.view(share, plan.samples)).view(-1, 1)
        # With one update a round the ratio is 1, and the clip does not act.
        losses = ppo_clip_loss(logps, old_logps, advantages.expand_as(logps), clip=0.2)
        optimizer.zero_grad()
        ((losses * mask).sum(1) / mask.sum(1)).mean().backward()
        _ = nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        all_kept = float(kept.all(1).float().mean())
        found = [*kept.mean(0).tolist(), all_kept, float(kl.mean())]
        *each, everything, distance = ranks.mean(found)
        yield Round(each, everything, distance)


def as_teacher(teacher: Llama) -> Callable[[nn.Module, Written], Tensor]:
    """How far a student is from its teacher at each id of the teacher's replies, in nats."""

    def loss(student: nn.Module, lesson: Written) -> Tensor:
        with torch.no_grad():
            expected = lesson.logits_by(teacher)
        kl = distillation_loss(lesson.logits_by(student), expected, temperature=1.0)
        return kl[lesson.mask].mean()

    return loss


def lessons(
    teacher: Llama, task: TalkTask, plan: Plan, seed: int, ranks: Ranks = ALONE
) -> Iterator[Written]:
    """Replies that a teacher writes, in batches for its student, which come again and again."""
    own_seed = seed * ranks.world_size + ranks.rank
    draw = random.Random(own_seed)
    generator = torch.Generator(ranks.device).manual_seed(own_seed)
    share = own_share("examples", plan.examples, ranks)
    written = [
        draw_replies(teacher, task.prompts(task.ask(share, draw)), task.end_id, generator)
        for _ in range(-(-plan.written // plan.examples))
    ]
    return itertools.cycle(written)


def flops(plan: Plan, prompt: float) -> dict[str, float]:
    """The floating-point operations that each stage will need, attention's scores left out.

    An id costs 2 a weight to read, and 6 to learn from (Kaplan et al. 2020, arXiv:2001.08361, Section 2.1).

    Args:
        plan: of all stages.
        prompt: ids of a prompt, on average.
    """
    with torch.device("meta"):
        models = plan.models()
    # The embedding is the output layer as well, so it counts once.
    n, student = (sum(p.numel() for p in m.parameters() if p.ndim == 2) for m in models)
    talk = prompt + REPLY
    return {
        "pre-training": 6 * n * plan.pretrain_steps * plan.windows * plan.context_length,
        "tuning": 6 * n * plan.tune_steps * plan.examples * talk,
        # Written, read by the reference, learned from.
        "reinforcement": (2 + 2 + 6) * n * plan.rounds * plan.prompts * plan.samples * talk,
        "distillation": 2 * n * plan.written * talk
        + (2 * n + 6 * student) * plan.distil_steps * plan.examples * talk,
    }
