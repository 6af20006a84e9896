"""The files from which a page of the book runs a GPT: weights in 8 bits, the tokenizer's merges, and a check."""

import json
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from llm_learn.argument_checks import expect
from llm_learn.atomic_files import replacing
from llm_learn.model import GPT, GPTConfig
from llm_learn.quantize import quantize_absmax
from llm_learn.tokenizers import BPETokenizer

# What such a file holds besides the weights.
BESIDE = ("check.ids", "check.logits", "merges")


def save_for_javascript(
    path: Path, model: GPT, tokenizer: BPETokenizer, check_ids: list[int]
) -> None:
    """Writes a model's weights, its tokenizer's merges, and logits with which a browser checks itself.

    Matrices are stored as int8 with one float32 scale per row. The logits (V) are those of the stored weights in
    float64 after `check_ids`.
    """
    expect("1 <= len(check_ids) <= T", check_ids=check_ids, T=model.config.context_length)
    tensors: dict[str, Tensor] = {}
    for name, weight in model.state_dict().items():
        tensors[name] = weight.float().contiguous()
        if weight.ndim == 2:
            codes, scales = quantize_absmax(weight.float(), 8, weight.shape[1])
            tensors[name] = codes.reshape(weight.shape).to(torch.int8)
            tensors[f"{name}.scale"] = scales.float().flatten()
    stored = GPT(model.config).double().eval()
    stored.load_state_dict(dequantized(tensors))
    with torch.no_grad():
        logits = stored(torch.tensor([check_ids]))[0, -1].float()
    tensors["check.ids"] = torch.tensor(check_ids, dtype=torch.int32)
    tensors["check.logits"] = logits
    tensors["merges"] = torch.tensor(tokenizer.merges, dtype=torch.uint16).flatten()
    metadata = {"config": json.dumps(vars(model.config)), "format": "pt"}
    with replacing(path) as temporary:
        temporary.write_bytes(save(tensors, metadata))


def dequantized(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The weights as a browser computes with them: codes times the scale of their row, in float32."""
    return {
        name: tensor * tensors[f"{name}.scale"][:, None]
        if f"{name}.scale" in tensors
        else tensor
        for name, tensor in tensors.items()
        if not name.endswith(".scale") and name not in BESIDE
    }


def load_for_javascript(path: Path) -> tuple[GPT, BPETokenizer, dict[str, Tensor]]:
    """The model and the tokenizer that `save_for_javascript` wrote, and all tensors of the file as they are stored."""
    with safe_open(path, "pt") as file:
        config = GPTConfig(**json.loads(file.metadata()["config"]))
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (it is no dict)
    model = GPT(config).eval()
    model.load_state_dict(dequantized(tensors))
    merges = tensors["merges"].reshape(-1, 2).tolist()
    return model, BPETokenizer([(a, b) for a, b in merges]), tensors
