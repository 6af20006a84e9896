"""Supervised fine-tuning: conversations with a loss mask, their batches, and the training loop."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from tqdm import tqdm

from llm_learn.argument_checks import expect
from llm_learn.optim import AdamW, decay_groups
from llm_learn.train import IGNORE_INDEX, TrainConfig, train_step

# Token IDs, and the loss mask: which of them are trained on.
Example = tuple[Sequence[int], Sequence[bool]]


def collate_examples(examples: Sequence[Example], pad_id: int) -> tuple[Tensor, Tensor]:
    """Examples as inputs and targets of one batch; tokens outside the loss mask are no targets.

    Rows are padded on the right, which a causal model never attends to: no mask is needed.

    Args:
        examples: token IDs and loss mask of each, at least two tokens.
        pad_id: pads the shorter rows.

    Returns:
        x (B, T), and y (B, T): the next token where the loss mask has it, else `IGNORE_INDEX`.
    """
    expect(
        "len(examples) >= 1, all(len(ids) == len(loss_mask) >= 2 for ids, loss_mask in examples)",
        examples=examples,
    )
    longest = max(len(ids) for ids, _ in examples)
    x = torch.full((len(examples), longest - 1), pad_id)
    y = torch.full_like(x, IGNORE_INDEX)
    for row, (ids, loss_mask) in enumerate(examples):
        ids, counts = torch.tensor(ids), torch.tensor(loss_mask, dtype=torch.bool)
        x[row, : len(ids) - 1] = ids[:-1]
        # A target is the next token, so it is the next token's mask that counts.
        y[row, : len(ids) - 1] = ids[1:].where(counts[1:], IGNORE_INDEX)
    return x, y


def fine_tune(
    model: nn.Module,
    examples: Sequence[Example],
    config: TrainConfig,
    *,
    pad_id: int,
    generator: torch.Generator,
) -> list[float]:
    """Trains what is not frozen on examples, in a new order each epoch, with AdamW and a cosine schedule.

    Args:
        model: maps token IDs (B, T) to logits (B, T, V); changed in place.
        examples: token IDs and loss mask of each.
        config: the recipe; its `batch_size` counts examples.
        pad_id: pads the rows of a batch.
        generator: decides the order.

    Returns:
        The loss of each step's batch before the update, in nats per target.
    """
    expect("len(examples) >= 1", examples=examples)
    optimizer = AdamW(
        decay_groups(model.named_parameters(), config.weight_decay),
        lr=config.learning_rate,
        betas=config.betas,
    )
    device = next(model.parameters()).device
    order, losses = [], []
    model.train()
    for step in tqdm(range(config.max_steps), desc="fine-tuning", leave=False):
        while len(order) < config.batch_size:
            order += torch.randperm(len(examples), generator=generator).tolist()
        batch, order = order[: config.batch_size], order[config.batch_size :]
        x, y = (
            t.to(device) for t in collate_examples([examples[i] for i in batch], pad_id)
        )
        loss = train_step(
            model,
            [optimizer],
            config.micro_batches(x, y),
            factor=config.factor(step),
            max_grad_norm=config.max_grad_norm,
        )
        losses.append(loss)
    return losses
