"""Feed-forward layers: MLP, SwiGLU, and mixtures of experts with load balancing."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from llm_learn.argument_checks import expect


class MLP(nn.Module):
    """Two linear layers around a GELU (Hendrycks and Gimpel 2016, arXiv:1606.08415), as in GPT-2.

    Args:
        d_model: C, width of the input and the output.
        d_ff: width of the hidden layer.
    """

    def __init__(self, *, d_model: int, d_ff: int):
        super().__init__()
        expect("d_model >= 1, d_ff >= 1", d_model=d_model, d_ff=d_ff)
        self.up = nn.Linear(d_model, d_ff)
        self.down = nn.Linear(d_ff, d_model)

    def forward(self, x: Tensor) -> Tensor:
        """(..., C) -> (..., C)"""
        expect("x (..., C)", x=x, C=self.up.in_features)
        # GPT-2 approximates the GELU with tanh, so code that loads its weights must do the same.
        return self.down(nn.functional.gelu(self.up(x), approximate="tanh"))


class SwiGLU(nn.Module):
    """A feed-forward layer with a gate (Shazeer 2020, arXiv:2002.05202, Eq. 6), as in Llama.

    Args:
        d_model: C, width of the input and the output.
        d_ff: width of the hidden layer.
    """

    def __init__(self, *, d_model: int, d_ff: int):
        super().__init__()
        expect("d_model >= 1, d_ff >= 1", d_model=d_model, d_ff=d_ff)
        self.gate_up = nn.Linear(d_model, 2 * d_ff, bias=False)
        self.down = nn.Linear(d_ff, d_model, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(..., C) -> (..., C)"""
        expect("x (..., C)", x=x, C=self.gate_up.in_features)
        gate, up = self.gate_up(x).chunk(2, dim=-1)  # (..., d_ff) each
        return self.down(nn.functional.silu(gate) * up)


# (logits (N, E), top_k) -> weights (N, k) of the chosen experts, and which they are (N, k)
Gates = Callable[[Tensor, int], tuple[Tensor, Tensor]]


def check_top_k(top_k: int, num_experts: int) -> None:
    """Raises ValueError unless a token can visit that many experts."""
    expect("1 <= top_k <= num_experts", top_k=top_k, num_experts=num_experts)


def softmax_gates(logits: Tensor, top_k: int) -> tuple[Tensor, Tensor]:
    """The largest expert probabilities, not renormalised (Fedus et al. 2022, arXiv:2101.03961, Eqs. 1 and 2)."""
    check_top_k(top_k, logits.shape[-1])
    return logits.softmax(-1).topk(top_k, dim=-1)


def renormalised_gates(logits: Tensor, top_k: int) -> tuple[Tensor, Tensor]:
    """A softmax of the largest scores only, so that they sum to 1 (Jiang et al. 2024, arXiv:2401.04088, Sec. 2.1)."""
    check_top_k(top_k, logits.shape[-1])
    best, chosen = logits.topk(top_k, dim=-1)
    return best.softmax(-1), chosen


def within_best_groups(scores: Tensor, num_groups: int, top_groups: int) -> Tensor:
    """Scores (N, E) with -inf outside each token's best groups, by the sum of their two best scores."""
    expect(
        "scores (N, E), E % num_groups == 0, E >= 2 * num_groups, 1 <= top_groups <= num_groups",
        scores=scores,
        num_groups=num_groups,
        top_groups=top_groups,
    )
    grouped = scores.unflatten(-1, (num_groups, -1))  # (N, G, E / G)
    totals = grouped.topk(2, dim=-1).values.sum(-1)  # (N, G)
    best = totals.topk(top_groups, dim=-1).indices
    allowed = torch.zeros_like(totals, dtype=torch.bool).scatter(-1, best, True)
    return grouped.masked_fill(~allowed[..., None], -torch.inf).flatten(-2)


def sigmoid_gates(
    logits: Tensor,
    top_k: int,
    bias: Tensor | float = 0.0,
    groups: tuple[int, int] | None = None,
) -> tuple[Tensor, Tensor]:
    """Chosen by sigmoid and bias, weighted by sigmoid alone (DeepSeek-AI 2024, arXiv:2412.19437, Eqs. 13 to 16).

    Args:
        logits: (N, E) the router's scores.
        top_k: k, experts that a token visits.
        bias: (E,) or a number, which is used only for the choice.
        groups: how many there are, and how many a token may use.
    """
    check_top_k(top_k, logits.shape[-1])
    scores = logits.sigmoid()  # (N, E)
    choice = scores + bias
    if groups is not None:
        choice = within_best_groups(choice, *groups)
    chosen = choice.topk(top_k, dim=-1).indices
    weights = scores.gather(-1, chosen)
    return weights / weights.sum(-1, keepdim=True), chosen


class BiasedGates(nn.Module):
    """Self-balancing gates: an expert's bias falls if it received too many tokens, and rises if it received too few.

    Args:
        num_experts: E, as many as the router scores.
        speed: the change of an expert's bias after each batch in training.
    """

    def __init__(self, num_experts: int, speed: float):
        super().__init__()
        expect("num_experts >= 1, speed >= 0", num_experts=num_experts, speed=speed)
        self.register_buffer("bias", torch.zeros(num_experts))
        self.speed = speed

    def forward(self, logits: Tensor, top_k: int) -> tuple[Tensor, Tensor]:
        """Scores (N, E) -> weights (N, k) of the chosen experts, and which they are (N, k)"""
        weights, chosen = sigmoid_gates(logits, top_k, self.bias)
        if self.training and torch.is_grad_enabled():
            load = torch.bincount(chosen.flatten(), minlength=len(self.bias)).float()
            self.bias = self.bias + self.speed * (load.mean() - load).sign()
        return weights, chosen


class MixtureOfExperts(nn.Module):
    """A layer of experts, of which each token visits a few (Shazeer et al. 2017, arXiv:1701.06538, Eq. 1).

    Args:
        d_model: C, width of the input and the output.
        num_experts: E, feed-forward layers to choose from.
        top_k: k, experts that a token visits.
        make_expert: returns a new expert, which maps (N, C) to (N, C).
        gates: turns the router's scores into a choice and its weights.
    """

    def __init__(
        self,
        *,
        d_model: int,
        num_experts: int,
        top_k: int,
        make_expert: Callable[[], nn.Module],
        gates: Gates = renormalised_gates,
    ):
        super().__init__()
        expect("d_model >= 1", d_model=d_model)
        check_top_k(top_k, num_experts)
        self.router = nn.Linear(d_model, num_experts, bias=False)
        self.experts = nn.ModuleList(make_expert() for _ in range(num_experts))
        self.top_k, self.gates = top_k, gates

    def forward(self, x: Tensor) -> Tensor:
        """(..., C) -> (..., C)"""
        expect("x (..., C)", x=x, C=self.router.in_features)
        tokens = x.reshape(-1, x.shape[-1])  # (N, C)
        weights, chosen = self.gates(self.router(tokens), self.top_k)  # (N, k) each
        out = torch.zeros_like(tokens)
        for e in chosen.unique().tolist():  # the others compute nothing
            token, rank = (chosen == e).nonzero(as_tuple=True)
            found = weights[token, rank, None] * self.experts[e](tokens[token])
            out = out.index_add(0, token, found.to(out.dtype))
        return out.view_as(x)


class SharedAndRouted(nn.Module):
    """A shared expert for every token, plus a mixture of routed experts (Dai et al. 2024, arXiv:2401.06066, Eq. 9).

    Args:
        shared: maps (..., C) to (..., C).
        routed: the same, usually a `MixtureOfExperts`.
    """

    def __init__(self, *, shared: nn.Module, routed: nn.Module):
        super().__init__()
        self.shared, self.routed = shared, routed

    def forward(self, x: Tensor) -> Tensor:
        """(..., C) -> (..., C)"""
        return self.shared(x) + self.routed(x)


def load_balancing_loss(logits: Tensor, chosen: Tensor) -> Tensor:
    """1 if all experts are used equally, up to E / k if the same k get all tokens (Fedus et al. 2022, Eqs. 4 to 6).

    Args:
        logits: (N, E) the router's scores.
        chosen: (N, k) the experts that each token visits.
    """
    expect(
        "logits (N, E), chosen int (N, k), N * k >= 1, chosen.max() < E",
        logits=logits,
        chosen=chosen,
    )
    num_experts = logits.shape[-1]
    # A count has no gradient; the probabilities carry it.
    counts = torch.bincount(chosen.flatten(), minlength=num_experts)
    share = counts.to(logits.dtype) / chosen.numel()
    return num_experts * (share * logits.softmax(-1).mean(0)).sum()


class LossScale:
    """The factor on the model's loss in a backward pass; `AddAuxiliaryLoss` multiplies its second loss by the same factor."""

    def __init__(self):
        self.factor = 1.0

    @contextmanager
    def times(self, factor: float) -> Iterator[None]:
        """Multiplies the factor in a `with` block around `backward`; blocks inside each other multiply."""
        before = self.factor
        self.factor = before * factor
        try:
            yield
        finally:
            self.factor = before


loss_scale = LossScale()


class AddAuxiliaryLoss(torch.autograd.Function):
    """Returns a tensor unchanged; the backward pass adds the gradient of a second loss to that of the model's loss.

    If you multiply the model's loss by a factor, run the backward pass in `with loss_scale.times(factor):`.
    """

    @staticmethod
    def forward(ctx, x: Tensor, loss: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, Tensor]:
        return grad, torch.full((), loss_scale.factor, dtype=grad.dtype, device=grad.device)


def with_aux_loss(gates: Gates, weight: float) -> Gates:
    """The same gates; training them lowers `weight` times the load-balancing loss as well.

    With micro-batches this is the mean of their losses, each computed from the fractions in its own micro-batch.
    """
    expect("weight >= 0", weight=weight)

    def choose(logits: Tensor, top_k: int) -> tuple[Tensor, Tensor]:
        weights, chosen = gates(logits, top_k)
        return AddAuxiliaryLoss.apply(
            weights, weight * load_balancing_loss(logits, chosen)
        ), chosen

    return choose
