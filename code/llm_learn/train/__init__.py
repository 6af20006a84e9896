"""The training loop: batches, schedule, clipping, evaluation."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from llm_learn.argument_checks import expect
from llm_learn.data import get_batch
from llm_learn.feedforward import loss_scale
from llm_learn.optim import AdamW, cosine_schedule, decay_groups

# The target that cross-entropy leaves out of its mean, in PyTorch and in Hugging Face's models.
IGNORE_INDEX = -100


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """How a language model is trained."""

    max_steps: int  # training steps
    batch_size: int  # B, windows per step
    micro_batch_size: int | None = None  # windows in memory at a time; None: all
    learning_rate: float  # at the peak of the schedule
    warmup_steps: int = 0  # steps until the peak
    floor: float = 0.1  # the schedule's last factor
    betas: tuple[float, float] = (0.9, 0.99)  # AdamW
    weight_decay: float = 0.1  # AdamW, matrices only
    max_grad_norm: float = 1.0  # gradients are scaled down to this norm
    eval_every: int = 100  # steps between evaluations

    def __post_init__(self):
        # Also what the schedule and the optimizer reject, before hours of work, not after.
        expect(
            "max_steps >= 1, batch_size >= 1, micro_batch_size is None or micro_batch_size >= 1, learning_rate > 0, "
            "0 <= warmup_steps < max_steps, 0 <= floor <= 1, len(betas) == 2, all(0 <= beta < 1 for beta in betas), "
            "weight_decay >= 0, max_grad_norm > 0, eval_every >= 1",
            **vars(self),
        )

    def factor(self, step: int) -> float:
        """The cosine schedule's factor on the learning rate at a step; the first step is 0."""
        return cosine_schedule(
            step, max_steps=self.max_steps, warmup_steps=self.warmup_steps, floor=self.floor
        )

    def micro_batches(self, x: Tensor, y: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Splits the batch of a step, (B, T) twice, into parts that are in memory one at a time."""
        size = self.micro_batch_size or self.batch_size
        return list(zip(x.split(size), y.split(size), strict=True))


@dataclass
class History:
    """The losses of a training run, one entry for each step or evaluation."""

    losses: list[float] = field(default_factory=list)  # nats per token, each step's batch
    eval_steps: list[int] = field(default_factory=list)  # steps done
    eval_losses: list[float] = field(default_factory=list)  # nats per token


def summed_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """The cross-entropy summed over all targets except -100, in nats; computed in float32 or float64.

    Args:
        logits: (B, T, V)
        targets: (B, T)
    """
    logits = logits.flatten(0, 1)
    # A sum of many terms in bfloat16 or float16 would lose most of their digits.
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return F.cross_entropy(
        logits, targets.flatten(), ignore_index=IGNORE_INDEX, reduction="sum"
    )


def mean_over_processes(model: nn.Module, counts: Sequence[int]) -> list[float]:
    """The means of the counts over the processes that average the model's gradients, each of which must call this.

    Args:
        model: wrapped by DistributedDataParallel or divided by `fully_shard`; any other is trained by one process.
        counts: of this process.
    """
    if isinstance(model, DistributedDataParallel):
        group = model.process_group
    else:
        sharded = (p for p in model.parameters() if hasattr(p, "device_mesh"))
        if (p := next(sharded, None)) is None:
            return list(counts)
        group = p.device_mesh.get_group()
    sums = torch.tensor(counts, device=next(model.parameters()).device)
    dist.all_reduce(sums, group=group)
    return [total / dist.get_world_size(group) for total in sums.tolist()]


@torch.no_grad()
def evaluate_loss(model: nn.Module, ids: Tensor, *, batch_size: int = 64) -> float:
    """The mean loss in nats per token over a corpus, cut into windows of the model's context length.

    Args:
        model: maps token IDs (B, T) to logits (B, T, V), and has `config.context_length`.
        ids: (N,) token IDs of the corpus.
        batch_size: windows at a time; changes speed and memory only.
    """
    context_length = model.config.context_length
    expect("ids (N,), N > context_length", ids=ids, context_length=context_length)
    expect("batch_size >= 1", batch_size=batch_size)
    num_windows = (len(ids) - 1) // context_length
    inputs = ids[: num_windows * context_length].view(num_windows, context_length)
    targets = ids[1 : num_windows * context_length + 1].view(num_windows, context_length)
    was_training = model.training
    model.eval()
    total = 0.0
    try:
        for x, y in zip(inputs.split(batch_size), targets.split(batch_size), strict=True):
            total += summed_loss(model(x), y).item()
    finally:
        model.train(was_training)
    return total / targets.numel()


def train_step(
    model: nn.Module,
    optimizers: Sequence[torch.optim.Optimizer],
    batches: Sequence[tuple[Tensor, Tensor]],
    *,
    factor: float = 1.0,
    max_grad_norm: float = 1.0,
) -> float:
    """One training step of a language model, with the gradient of the mean loss over all targets of its batches.

    Several processes that average their gradients, by DistributedDataParallel or `fully_shard`, take the mean over
    the targets of all processes. A second loss, added by `AddAuxiliaryLoss`, is averaged over batches by their positions.

    Args:
        model: maps token IDs (B, T) to logits (B, T, V).
        optimizers: share the model's parameters among them.
        batches: inputs (B, T) and targets (B, T), of which those of -100 do not count; only one batch at a time is
            in memory, with its activations. Each process has the same number of batches.
        factor: on every group's learning rate, from a schedule.
        max_grad_norm: the gradient of the whole model is scaled down to this norm.

    Returns:
        The mean loss before the update, nats per token. With several processes, the mean of what they return is the
        mean loss.
    """
    expect("len(batches) >= 1", batches=batches)
    for optimizer in optimizers:
        optimizer.zero_grad()
        for group in optimizer.param_groups:
            group["lr"] = group.setdefault("initial_lr", group["lr"]) * factor
    counts = [sum(int((y != IGNORE_INDEX).sum()) for _, y in batches)]
    counts += [sum(y.numel() for _, y in batches)]
    num_targets, num_positions = mean_over_processes(model, counts)
    if not num_targets:
        raise ValueError(f"batches has no target: every one is {IGNORE_INDEX}")
    total = 0.0
    for x, y in batches:
        # Gradients add up. Dividing by the targets of all batches makes their sum that of one large batch.
        loss = summed_loss(model(x), y) / num_targets
        with loss_scale.times(y.numel() / num_positions):
            loss.backward()
        total += loss.item()
    nn.utils.clip_grad_norm_(model.parameters(), max_grad_norm)
    for optimizer in optimizers:
        optimizer.step()
    return total


def train(
    model: nn.Module,
    train_ids: Tensor,
    val_ids: Tensor | None,
    config: TrainConfig,
    *,
    generator: torch.Generator,
    on_eval: Callable[[int, float], None] | None = None,
) -> History:
    """Trains a language model on next-token prediction with AdamW and a cosine schedule.

    Args:
        model: maps token IDs (B, T) to logits (B, T, V), and has `config.context_length`.
        train_ids: (N,) token IDs to train on.
        val_ids: (M,) token IDs to evaluate on before the first step, every `eval_every`, and at the end.
        config: the recipe.
        generator: decides the batches.
        on_eval: called with the number of steps done and the validation loss.

    Returns:
        The history; the model is changed in place.
    """
    history = History()
    optimizer = AdamW(
        decay_groups(model.named_parameters(), config.weight_decay),
        lr=config.learning_rate,
        betas=config.betas,
    )

    def evaluate(step: int) -> None:
        if val_ids is None:
            return
        history.eval_steps.append(step)
        size = config.micro_batch_size or 64
        history.eval_losses.append(evaluate_loss(model, val_ids, batch_size=size))
        if on_eval is not None:
            on_eval(step, history.eval_losses[-1])

    model.train()
    for step in tqdm(range(config.max_steps), desc="training", leave=False):
        if step % config.eval_every == 0:
            evaluate(step)
        x, y = get_batch(
            train_ids, config.batch_size, model.config.context_length, generator=generator
        )
        loss = train_step(
            model,
            [optimizer],
            config.micro_batches(x, y),
            factor=config.factor(step),
            max_grad_norm=config.max_grad_norm,
        )
        history.losses.append(loss)
    evaluate(config.max_steps)
    return history
