"""Quantization to 8 and 4 bits: integer codes with scales, and layers that compute with them."""

from collections.abc import Callable
from dataclasses import replace
from functools import cache

import torch
from torch import Tensor, nn

from llm_learn.argument_checks import expect
from llm_learn.model.empty_weights import init_empty_weights
from llm_learn.model.llama import Llama

# The linear layers of a block of a Llama.
MATRICES = ("attention.qkv", "attention.out", "mlp.gate_up", "mlp.down")


def quantize_absmax(weight: Tensor, bits: int, group_size: int) -> tuple[Tensor, Tensor]:
    """Integer codes and scales, with weight ≈ codes * scales.

    Args:
        weight: of any shape.
        bits: per code, at least 2.
        group_size: number of neighbours that share a scale; must divide the number of weights.

    Returns:
        (N, group_size) codes from -(2**(bits - 1) - 1) to 2**(bits - 1) - 1, and (N, 1) scales; both float32 for a weight
        of 16 bits, else of the weight's dtype
    """
    rule = "bits >= 2, group_size >= 1, weight.numel() % group_size == 0"
    expect(rule, weight=weight, bits=bits, group_size=group_size)
    # In float16, the inverse of a small scale is infinite.
    dtype = torch.promote_types(weight.dtype, torch.float32)
    rows = weight.reshape(-1, group_size).to(dtype)
    scales = rows.abs().amax(1, keepdim=True) / (2 ** (bits - 1) - 1)
    inverse = torch.where(scales > 0, 1 / scales, 0)  # a group of zeros has no scale
    return (rows * inverse).round(), scales


# From a matrix to the dequantized matrix and the bits stored per weight, with scales and zero points.
Rounding = Callable[[Tensor], tuple[Tensor, float]]


def group_size_of(group: int | str, weight: Tensor) -> int:
    """How many weights share a scale: "tensor" for all, "channel" for those of one row, or the number itself."""
    if isinstance(group, int):
        return group
    return {"tensor": weight.numel(), "channel": weight.shape[1]}[group]


def through_float16(scales: Tensor) -> Tensor:
    """The scales that are stored: codes are found with the exact ones and dequantized with these."""
    return scales.half().float()


def by_absmax(bits: int, group: int | str) -> Rounding:
    """Rounds to integers times the scale of a group, with the codes of `quantize_absmax`."""

    def rounding(weight: Tensor) -> tuple[Tensor, float]:
        size = group_size_of(group, weight)
        codes, scales = quantize_absmax(weight, bits, size)
        return (codes * through_float16(scales)).view_as(weight), bits + 16 / size

    return rounding


def by_offset(bits: int, group: int) -> Rounding:
    """Rounds to `2**bits` levels from the smallest weight of a group to the largest."""

    def rounding(weight: Tensor) -> tuple[Tensor, float]:
        rows = weight.reshape(-1, group)
        low = rows.amin(1, keepdim=True)
        step = (rows.amax(1, keepdim=True) - low) / (2**bits - 1)
        codes = ((rows - low) * torch.where(step > 0, 1 / step, 0)).round()
        value = codes * through_float16(step) + through_float16(low)
        return value.view_as(weight), bits + 32 / group

    return rounding


def by_zero_point(bits: int, group: int) -> Rounding:
    """Rounds to `2**bits` levels that span a group and 0; 0 is one of the levels."""

    def rounding(weight: Tensor) -> tuple[Tensor, float]:
        rows = weight.reshape(-1, group)
        low = rows.amin(1, keepdim=True).clamp(max=0)
        step = (rows.amax(1, keepdim=True).clamp(min=0) - low) / (2**bits - 1)
        inverse = torch.where(step > 0, 1 / step, 0)
        zero = (-low * inverse).round()
        codes = ((rows * inverse).round() + zero).clamp(0, 2**bits - 1)
        value = (codes - zero) * through_float16(step)
        return value.view_as(weight), bits + (16 + bits) / group

    return rounding


def pack_int4(codes: Tensor) -> Tensor:
    """Two codes below 16 per byte, the first half of a row in the low bits: (N, n) -> (N, n / 2) uint8."""
    expect("codes (N, n), n % 2 == 0", codes=codes)
    if codes.numel():
        expect("0 <= codes.min() <= codes.max() < 16", codes=codes)
    low, high = codes.to(torch.uint8).chunk(2, dim=1)
    return low | (high << 4)


def unpack_int4(packed: Tensor) -> Tensor:
    """(N, n / 2) uint8 -> (N, n) codes."""
    expect("packed (N, n), str(packed.dtype) == 'torch.uint8'", packed=packed)
    return torch.cat([packed & 15, packed >> 4], dim=1)


def quantize_inputs(x: Tensor) -> tuple[Tensor, Tensor]:
    """int8 codes (..., N) and one scale per position (..., 1), in float32 or float64."""
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    largest = torch.linalg.vector_norm(x, torch.inf, dim=-1, keepdim=True).clamp(min=1e-12)
    return (x * (127 / largest)).round().to(torch.int8), largest / 127


@cache
def int_mm_is_exact() -> bool:
    """Whether `torch._int_mm` is exact on this CPU. Without VNNI instructions its sums can saturate at 16 bits."""
    # There 128 is added to one side, and a pair of products, 2 * 255 * 127, exceeds 16 bits. One row takes another path.
    codes = torch.full((16, 64), 127, dtype=torch.int8)
    codes[::2] = -127
    exact = codes.long() @ codes.long().T
    return all(
        torch.equal(torch._int_mm(codes[:n], codes.T), exact[:n].int()) for n in (1, 16)
    )


def int8_matmul_float32(codes: Tensor, weights: Tensor) -> Tensor:
    """Exact sums of products: int8 (N, K) and (M, K) -> int32 (N, M)."""
    expect("codes (N, K), weights (M, K)", codes=codes, weights=weights)
    # float32 holds integers up to 2**24, and 1024 * 127**2 is below that.
    parts = zip(codes.split(1024, 1), weights.split(1024, 1), strict=True)
    return sum(((a.float() @ b.float().T).int() for a, b in parts), torch.tensor(0))


def int8_matmul(codes: Tensor, weights: Tensor) -> Tensor:
    """The same sums, computed in the faster of the ways that are exact on this device."""
    if codes.device.type != "cpu":
        return int8_matmul_float32(codes, weights)
    capable = torch.backends.cpu.get_cpu_capability().startswith("AVX512")
    # With K = 1, torch._int_mm returns uninitialised memory.
    if (len(codes) == 1 or capable) and codes.shape[1] > 1 and int_mm_is_exact():
        return torch._int_mm(codes, weights.T)
    return int8_matmul_float32(codes, weights)


class Int8Linear(nn.Module):
    """A linear layer with int8 weights, which quantizes its inputs to int8 as well (W8A8, dynamic).

    Args:
        weight: (out_features, in_features); each row gets a scale.
    """

    def __init__(self, weight: Tensor):
        super().__init__()
        expect("weight (out_features, in_features)", weight=weight)
        self.out_features, self.in_features = weight.shape
        codes, scales = quantize_absmax(weight.detach(), 8, self.in_features)
        # (out_features, in_features), and (1, out_features) of the weight's dtype
        self.register_buffer("codes", codes.to(torch.int8))
        self.register_buffer("scales", scales.T.to(weight.dtype).contiguous())

    def forward(self, x: Tensor) -> Tensor:
        """(..., in_features) -> (..., out_features), of the dtype of `x`"""
        expect("x (..., in_features)", x=x, in_features=self.in_features)
        codes, scales = quantize_inputs(x)
        sums = int8_matmul(codes.reshape(-1, self.in_features), self.codes)
        return (sums.view(*x.shape[:-1], -1) * (scales * self.scales)).to(x.dtype)


class Int8Embedding(nn.Module):
    """An embedding that shares its rows with an int8 output layer."""

    def __init__(self, output: Int8Linear):
        super().__init__()
        self.output = output

    @property
    def weight(self) -> Tensor:
        """All rows, dequantized: (V, C)."""
        return self.output.codes * self.output.scales.T

    def forward(self, ids: Tensor) -> Tensor:
        """(B, T) -> (B, T, C)"""
        return self.output.codes[ids] * self.output.scales[0, ids, None]


def quantize_model(model: Llama, make_layer: Callable[[Tensor], nn.Module]) -> Llama:
    """A model with layers made from the matrices of another; embedding and output layer are int8.

    Args:
        model: a Llama of plain linear layers. It is not changed; the new model shares its norms.
        make_layer: from a matrix (out_features, in_features) to the layer that replaces it.
    """
    parts = model.modules() if isinstance(model, Llama) else ()
    kinds = {type(part) for part in parts if hasattr(part, "in_features")}
    if kinds != {nn.Linear}:
        raise ValueError(
            f"model is a {type(model).__name__} with layers of {sorted(k.__name__ for k in kinds)}: "
            "expected a Llama whose linear layers are all nn.Linear"
        )
    config = replace(model.config, tie_embeddings=False)
    with init_empty_weights():  # no memory for weights that are replaced at once
        small = Llama(config)
    small.load_state_dict(model.state_dict(), strict=False, assign=True)
    for block in small.blocks:
        for path in MATRICES:
            part, name = path.split(".")
            layer = make_layer(block.get_parameter(f"{path}.weight"))
            setattr(block.get_submodule(part), name, layer)
    table = Int8Linear(model.token_embedding.weight)
    small.add_module("token_embedding", Int8Embedding(table))
    # Where embedding and output layer share their weights, they share their codes.
    tied = model.config.tie_embeddings
    small.output = table if tied else Int8Linear(model.get_parameter("output.weight"))
    return small.eval()


class Int4Linear(nn.Module):
    """A linear layer with 4-bit weights in groups of 32, which are dequantized for each use (W4A16).

    Args:
        weight: (out_features, in_features); in_features must be a multiple of 32.
    """

    def __init__(self, weight: Tensor):
        super().__init__()
        expect("weight (out_features, in_features), in_features % 32 == 0", weight=weight)
        self.out_features, self.in_features = weight.shape
        codes, scales = quantize_absmax(weight.detach(), 4, 32)
        self.register_buffer("packed", pack_int4(codes + 8))  # (N, 16)
        self.register_buffer("scales", scales.half())  # (N, 1)

    def dequantize(self) -> Tensor:
        """(out_features, in_features), float32"""
        codes = unpack_int4(self.packed).to(torch.int8) - 8
        return (codes * self.scales.float()).view(self.out_features, -1)

    def forward(self, x: Tensor) -> Tensor:
        """(..., in_features) -> (..., out_features), of the dtype of `x`"""
        return x @ self.dequantize().T.to(x.dtype)


def memory_footprint(model: nn.Module) -> int:
    """Bytes of all parameters and buffers; shared ones count once."""
    tensors = [*model.parameters(), *model.buffers()]
    return sum({t.data_ptr(): t.nbytes for t in tensors}.values())
