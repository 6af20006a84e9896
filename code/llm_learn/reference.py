"""Our models in the classes of the libraries that they are compared with."""

from typing import TYPE_CHECKING

import torch

from llm_learn.model import Llama

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM


def to_hugging_face(model: Llama) -> "LlamaForCausalLM":
    """Hugging Face's Llama on the weights of ours, which both share: no memory is needed for them.

    Needs `transformers`. Whoever changes the weights of one in place changes those of the other.
    """
    from transformers import LlamaConfig, LlamaForCausalLM
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    c = model.config
    config = LlamaConfig(
        vocab_size=c.vocab_size,
        hidden_size=c.d_model,
        intermediate_size=c.d_ff,
        num_hidden_layers=c.num_layers,
        num_attention_heads=c.num_heads,
        num_key_value_heads=c.num_kv_heads,
        max_position_embeddings=c.context_length,
        rms_norm_eps=c.norm_eps,
        rope_parameters={"rope_type": "default", "rope_theta": c.rope_base},
        tie_word_embeddings=True,
    )
    table = model.token_embedding.weight
    weights = {
        "model.embed_tokens": table,
        "lm_head": table,
        "model.norm": model.norm.weight,
    }
    kv_width = c.num_kv_heads * c.head_dim
    for i, block in enumerate(model.blocks):
        q, k, v = block.attention.qkv.weight.split([c.d_model, kv_width, kv_width])
        gate, up = block.mlp.gate_up.weight.chunk(2)
        layer = {
            "self_attn.q_proj": q,
            "self_attn.k_proj": k,
            "self_attn.v_proj": v,
            "self_attn.o_proj": block.attention.out.weight,
            "mlp.gate_proj": gate,
            "mlp.up_proj": up,
            "mlp.down_proj": block.mlp.down.weight,
            "input_layernorm": block.norm_1.weight,
            "post_attention_layernorm": block.norm_2.weight,
        }
        weights |= {f"model.layers.{i}.{name}": weight for name, weight in layer.items()}
    with torch.device("meta"):
        theirs = LlamaForCausalLM(config)
    weights = {f"{name}.weight": weight.detach() for name, weight in weights.items()}
    theirs.load_state_dict(weights, assign=True)
    theirs.model.rotary_emb = LlamaRotaryEmbedding(config)  # its angles are no weights
    return theirs.eval()
