"""Quantizes a matrix to NF4 with bitsandbytes."""

from torch import Tensor


def bitsandbytes_nf4(weight: Tensor, *, group: int) -> tuple[Tensor, Tensor]:
    """The levels of bitsandbytes' NF4, and a matrix that it rounded to them and read back.

    Needs `bitsandbytes`, which works on a CPU too.

    Args:
        weight: (M, N) float32
        group: neighbours that share a scale, one of the sizes that bitsandbytes accepts.

    Returns:
        (16,) levels in order; (M, N)
    """
    from bitsandbytes import functional

    codes, state = functional.quantize_4bit(weight, blocksize=group, quant_type="nf4")
    levels = functional.get_4bit_type("nf4", device="cpu")
    return levels, functional.dequantize_4bit(codes, state)
