"""LoRA: fine-tunes low-rank additions to frozen linear layers."""

import copy
import itertools
import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from llm_learn.argument_checks import expect


def check_rank(layer: nn.Module, rank: int, alpha: float) -> None:
    """Raises ValueError unless a layer can have low-rank factors of that rank."""
    expect(
        "hasattr(layer, 'in_features') and hasattr(layer, 'out_features'), "
        "1 <= rank <= min(layer.in_features, layer.out_features), alpha > 0",
        layer=layer,
        rank=rank,
        alpha=alpha,
    )


class LoRALinear(nn.Module):
    """A frozen linear layer plus a trainable product of two low-rank factors (Hu et al. 2021, arXiv:2106.09685, Eq. 3).

    Args:
        base: the layer, frozen in place: a module with `in_features` and `out_features`.
        rank: r, the short side of both factors.
        alpha: the product is scaled by alpha / rank.
    """

    def __init__(self, base: nn.Module, *, rank: int, alpha: float):
        super().__init__()
        check_rank(base, rank, alpha)
        sides = (getattr(base, name) for name in ("in_features", "out_features"))
        self.in_features, self.out_features = sides
        self.base, self.scale = base.requires_grad_(False), alpha / rank
        # A base may store its weights in few bits; the trainable factors have 32 at least.
        held = next(itertools.chain(base.parameters(), base.buffers()), torch.empty(0))
        dtype = torch.promote_types(held.dtype, torch.float32)
        kind = {"dtype": dtype, "device": held.device}
        self.a = nn.Parameter(torch.empty(rank, self.in_features, **kind))
        self.b = nn.Parameter(torch.zeros(self.out_features, rank, **kind))
        # Initialised as in nn.Linear. The other factor is zero, so that nothing changes at first.
        nn.init.kaiming_uniform_(self.a, a=math.sqrt(5))

    def forward(self, x: Tensor) -> Tensor:
        """(..., in_features) -> (..., out_features)"""
        change = self.scale * (x.to(self.a.dtype) @ self.a.T @ self.b.T)
        return self.base(x) + change.to(x.dtype)

    def update(self) -> Tensor:
        """What the product adds to the weight: (out_features, in_features)."""
        return self.scale * (self.b @ self.a)


def add_lora(
    model: nn.Module, names: Sequence[str], *, rank: int, alpha: float
) -> nn.Module:
    """Freezes a model and adds trainable low-rank factors to some of its linear layers; returns the same model.

    Args:
        model: changed in place; factors that it has already stay trainable.
        names: of the layers, such as "qkv": all whose last name in the model is one of these.
        rank, alpha: as in `LoRALinear`.

    Raises:
        ValueError: no layer has one of these names, or one cannot have such factors; the model is as it was.
    """
    found, thin = {}, []
    for path, module in model.named_modules():
        if isinstance(module, LoRALinear):
            thin += [module.a, module.b]
        elif path.rpartition(".")[2] in names:
            found[path] = module
    layers = {path.rpartition(".")[2] for path in found}  # that have no factors yet
    expect("len(names) >= 1, set(names) <= layers", names=names, layers=layers)
    for layer in found.values():  # before anything is changed
        check_rank(layer, rank, alpha)
    model.requires_grad_(False)
    for matrix in thin:
        matrix.requires_grad_(True)
    for path, layer in found.items():
        model.set_submodule(path, LoRALinear(layer, rank=rank, alpha=alpha))
    return model


def merge_lora(model: nn.Module) -> nn.Module:
    """A copy of the model with plain linear layers, to whose weights the learned products are added.

    Raises:
        ValueError: a base stores its weights in a format to which nothing can be added.
    """
    whole = nn.ModuleDict({"model": copy.deepcopy(model)})  # the model may be one layer
    for path, layer in list(whole.named_modules()):
        if not isinstance(layer, LoRALinear):
            continue
        weight = getattr(layer.base, "weight", None)
        if not isinstance(weight, Tensor) or not weight.is_floating_point():
            raise ValueError(
                f"model has a {type(layer.base).__name__} under LoRA, without floating-point weights to add to"
            )
        with torch.no_grad():
            weight += layer.update().to(weight.dtype)
        whole.set_submodule(path, layer.base)
    return whole["model"]


def lora_state(model: nn.Module) -> dict[str, Tensor]:
    """Copies of the low-rank factors only, by their paths.

    Save it together with rank and alpha; `load_state_dict(…, strict=False)` restores it.
    """
    return {
        f"{path}.{name}": parameter.detach().clone()
        for path, layer in model.named_modules()
        if isinstance(layer, LoRALinear)
        for name, parameter in (("a", layer.a), ("b", layer.b))
    }
