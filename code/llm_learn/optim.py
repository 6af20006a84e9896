"""Optimizers and learning-rate schedules."""

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from llm_learn.argument_checks import expect


class AdamW(torch.optim.Optimizer):
    """Adam with decoupled weight decay (Loshchilov and Hutter 2019, arXiv:1711.05101, Algorithm 2).

    Args:
        params: parameters, or dictionaries of them with their own settings.
        lr: learning rate.
        betas: decay of the first and second moments of the gradient.
        eps: added to the denominator.
        weight_decay: the fraction of each weight, times `lr`, that a step subtracts.
    """

    def __init__(
        self,
        params,
        *,
        lr: float,
        betas=(0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.01,
    ):
        settings = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        expect(
            "lr >= 0, len(betas) == 2, all(0 <= beta < 1 for beta in betas), eps >= 0, weight_decay >= 0",
            **settings,
        )
        super().__init__(params, settings)

    @torch.no_grad()
    def step(self) -> None:
        """One update of every parameter that has a gradient."""
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            if not params:
                continue
            for p in params:
                if not self.state[p]:
                    self.state[p] = {
                        "step": 0,
                        "mean": torch.zeros_like(p),
                        "mean_square": torch.zeros_like(p),
                    }
                self.state[p]["step"] += 1
            grads = [p.grad for p in params]
            means = [self.state[p]["mean"] for p in params]
            mean_squares = [self.state[p]["mean_square"] for p in params]
            steps = [self.state[p]["step"] for p in params]
            beta_1, beta_2 = group["betas"]
            # Each _foreach call is one line of the algorithm for all parameters at once.
            torch._foreach_mul_(params, 1 - group["lr"] * group["weight_decay"])
            torch._foreach_lerp_(means, grads, 1 - beta_1)
            torch._foreach_mul_(mean_squares, beta_2)
            torch._foreach_addcmul_(mean_squares, grads, grads, 1 - beta_2)
            denominators = torch._foreach_sqrt(mean_squares)
            torch._foreach_div_(denominators, [math.sqrt(1 - beta_2**t) for t in steps])
            torch._foreach_add_(denominators, group["eps"])
            torch._foreach_addcdiv_(
                params, means, denominators, [-group["lr"] / (1 - beta_1**t) for t in steps]
            )


def zeropower_via_newtonschulz(matrices: Tensor, num_iterations: int = 5) -> Tensor:
    """Turns each matrix's singular values into numbers near 1 (Jordan et al. 2024, Muon: 5 Newton-Schulz iterations).

    Args:
        matrices: (N, rows, columns); the computation keeps their type.
        num_iterations: with five, singular values above 0.002 of the matrix's norm end from 0.68 to 1.21.
    """
    a, b, c = 3.4445, -4.7750, 2.0315
    is_tall = matrices.shape[-2] > matrices.shape[-1]
    x = matrices.mT if is_tall else matrices
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp(min=1e-7)
    for _ in range(num_iterations):
        gram = x @ x.mT
        polynomial = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)  # b G + c G^2
        x = torch.baddbmm(x, polynomial, x, beta=a)  # a x + (b G + c G^2) x
    return x.mT if is_tall else x


class Muon(torch.optim.Optimizer):
    """Momentum whose steps are orthogonalised (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon/).

    For the matrices inside a model; embeddings, the output layer, biases and norms need another optimizer.

    Args:
        params: matrices, or dictionaries of them with their own settings.
        lr: learning rate, for a matrix with as many rows as columns.
        momentum: decay of the running mean of the gradient.
        weight_decay: the fraction of each weight, times `lr`, that a step subtracts.
    """

    def __init__(
        self, params, *, lr: float, momentum: float = 0.95, weight_decay: float = 0.1
    ):
        settings = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay}
        expect("lr >= 0, 0 <= momentum < 1, weight_decay >= 0", **settings)
        super().__init__(params, settings)
        for group in self.param_groups:
            for p in group["params"]:
                expect("params (rows, columns)", params=p)

    @torch.no_grad()
    def step(self) -> None:
        """One update of every matrix that has a gradient."""
        for group in self.param_groups:
            by_shape = {}  # matrices of one shape are multiplied together
            for p in group["params"]:
                if p.grad is not None:
                    by_shape.setdefault(p.shape, []).append(p)
            for (rows, columns), params in by_shape.items():
                for p in params:
                    if not self.state[p]:
                        self.state[p] = {"mean": torch.zeros_like(p)}
                grads = [p.grad for p in params]
                means = [self.state[p]["mean"] for p in params]
                torch._foreach_lerp_(means, grads, 1 - group["momentum"])
                # Nesterov's momentum: the mean as it will be if the next gradient is like this one.
                ahead = torch._foreach_lerp(grads, means, group["momentum"])
                steps = zeropower_via_newtonschulz(torch.stack(ahead))
                torch._foreach_mul_(params, 1 - group["lr"] * group["weight_decay"])
                size = group["lr"] * math.sqrt(max(1, rows / columns))
                torch._foreach_add_(params, list(steps), alpha=-size)


def muon_and_adamw(
    model: nn.Module, *, muon_learning_rate: float, adamw_learning_rate: float
) -> list[torch.optim.Optimizer]:
    """Muon for the matrices in `model.blocks`, AdamW for everything else, neither with weight decay.

    AdamW averages squared gradients over about a hundred steps, because these models train for a few hundred.
    """
    expect("hasattr(model, 'blocks')", model=model)
    matrices = [p for p in model.get_submodule("blocks").parameters() if p.ndim == 2]
    inside = set(matrices)
    rest = [p for p in model.parameters() if p not in inside]
    return [
        Muon(matrices, lr=muon_learning_rate, weight_decay=0.0),
        AdamW(rest, lr=adamw_learning_rate, betas=(0.9, 0.99), weight_decay=0.0),
    ]


def decay_groups(
    named_parameters: Iterable[tuple[str, nn.Parameter]], weight_decay: float
) -> list[dict]:
    """Two groups for an optimizer: matrices, which decay, and biases and norms, which do not."""
    expect("weight_decay >= 0", weight_decay=weight_decay)
    parameters = [p for _, p in named_parameters]
    return [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]


def mup_parameter_groups(
    model: nn.Module, learning_rate: float, base_width: int = 32
) -> list[dict]:
    """Groups for AdamW: a learning rate chosen at one width serves at others (Yang et al. 2022, arXiv:2203.03466).

    Matrices that sum over the width get `learning_rate` times base_width / d_model; embeddings and norms get it
    unchanged.

    Args:
        model: has `config.d_model` and a `token_embedding`, and was initialised by `init_weights_fan_in`.
        learning_rate: the best at `base_width`.
        base_width: C of the model on which the learning rate was chosen.
    """
    expect("base_width >= 1", base_width=base_width)
    embedding = model.get_parameter("token_embedding.weight")
    sums = [p for p in model.parameters() if p.ndim == 2 and p is not embedding]
    others = [p for p in model.parameters() if p.ndim < 2 or p is embedding]
    narrow = base_width / model.config.d_model
    return [
        {"params": sums, "lr": learning_rate * narrow},
        {"params": others, "lr": learning_rate},
    ]


def cosine_schedule(
    step: int, *, max_steps: int, warmup_steps: int = 0, floor: float = 0.1
) -> float:
    """The factor on the learning rate: linear warm-up, then half a cosine (Loshchilov and Hutter 2017).

    Args:
        step: 0 is the first training step.
        max_steps: training steps; later steps stay at the floor.
        warmup_steps: steps until the factor reaches 1.
        floor: the factor at the end.

    Returns:
        A factor between 0 and 1; never 0 during warm-up, since such a step would be wasted.
    """
    expect("step >= 0, 0 <= floor <= 1", step=step, floor=floor)
    expect("0 <= warmup_steps < max_steps", warmup_steps=warmup_steps, max_steps=max_steps)
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    progress = min(1.0, (step - warmup_steps) / max(1, max_steps - 1 - warmup_steps))
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * progress))


def wsd_schedule(
    step: int, *, max_steps: int, decay_steps: int, warmup_steps: int = 0
) -> float:
    """The factor on the learning rate: warm-up, stable, decay (Hu et al. 2024, arXiv:2404.06395).

    The decay is linear, as in Hägele et al. 2024, arXiv:2405.18392.

    Args:
        step: 0 is the first training step.
        max_steps: training steps; later steps get 0.
        decay_steps: the last steps, over which the factor falls linearly; one more would get 0.
        warmup_steps: steps until the factor reaches 1.

    Returns:
        A factor between 0 and 1, never 0 before `max_steps`.
    """
    expect(
        "step >= 0, warmup_steps >= 0, 1 <= decay_steps <= max_steps - warmup_steps",
        step=step,
        max_steps=max_steps,
        decay_steps=decay_steps,
        warmup_steps=warmup_steps,
    )
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    return max(0.0, min(1.0, (max_steps - step) / decay_steps))
