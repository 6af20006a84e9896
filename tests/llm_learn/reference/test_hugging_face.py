"""Hugging Face's models on our weights: the same numbers, and no memory of their own."""

import torch

from llm_learn.model import GPT, GPTConfig, Llama, LlamaConfig, load_smollm2
from llm_learn.reference.hugging_face import smollm2_tokenizer, to_gpt2, to_hugging_face


def tiny_llama(**changes) -> Llama:
    config = LlamaConfig(
        vocab_size=29,
        context_length=16,
        d_model=24,
        d_ff=40,
        num_layers=2,
        num_heads=6,
        num_kv_heads=2,
        rope_theta=500.0,
        norm_eps=1e-3,
        **changes,
    )
    model = Llama(config).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model


def test_logits_are_ours_whatever_the_layout_of_the_weights():
    model, ids = tiny_llama(), torch.randint(29, (2, 9))
    with torch.no_grad():
        logits = model(ids)
        # float32 through two blocks; the logits have size 5.
        torch.testing.assert_close(
            to_hugging_face(model)(ids).logits, logits, rtol=0, atol=1e-4
        )
        for block in model.blocks:
            block.attention.qkv.weight.data = (
                block.attention.qkv.weight.data.T.contiguous().T
            )
        torch.testing.assert_close(
            to_hugging_face(model)(ids).logits, logits, rtol=0, atol=1e-4
        )


def test_logits_are_ours_with_an_output_layer_of_its_own():
    model, ids = tiny_llama(tie_embeddings=False), torch.randint(29, (2, 9))
    theirs = to_hugging_face(model)
    assert not theirs.config.tie_word_embeddings
    assert theirs.lm_head.weight.data_ptr() == model.output.weight.data_ptr()
    with torch.no_grad():
        torch.testing.assert_close(theirs(ids).logits, model(ids), rtol=0, atol=1e-4)


def test_no_id_ends_what_it_writes_unless_told():
    """Hugging Face's Llama would end at id 2."""
    model = tiny_llama()
    with torch.no_grad():
        for parameter in model.parameters():  # every id is followed by itself
            parameter.fill_(0 if parameter.ndim == 2 else 1)
        model.token_embedding.weight[2] = 1
    theirs, ids = to_hugging_face(model), torch.tensor([[2, 2]])
    written = theirs.generate(ids, max_new_tokens=5, do_sample=False)
    assert written.tolist() == [[2] * 7]
    assert theirs.generation_config.eos_token_id is None
    assert theirs.generation_config.bos_token_id is None


def test_weights_are_shared_and_gradients_are_not():
    model = tiny_llama()
    theirs = to_hugging_face(model)
    ours = {p.untyped_storage().data_ptr() for p in model.parameters()}
    assert {p.untyped_storage().data_ptr() for p in theirs.parameters()} == ours
    theirs(torch.randint(29, (1, 5))).logits.sum().backward()
    assert all(p.grad is not None for p in theirs.parameters())
    assert all(p.grad is None for p in model.parameters())


def test_smollm2s_tokenizer_reads_back_what_it_cut_and_knows_the_end():
    # That its ids are ours, tests of llm_learn.gguf_reader show.
    theirs, (_, ours) = smollm2_tokenizer(), load_smollm2()
    for text in ("The city of Lyon, in 2024.", " a  b\n\n\tc", "Ünïcödé 漢字 🙂"):
        assert theirs.decode(theirs.encode(text, add_special_tokens=False)) == text
    assert theirs.eos_token_id == ours.special_ids["<|endoftext|>"]


def test_a_gpt_in_hugging_face_s_class_has_our_logits_and_weights_of_its_own():
    torch.manual_seed(0)
    shape = {"vocab_size": 23, "context_length": 12, "d_model": 24, "num_layers": 2}
    model, ids = GPT(GPTConfig(**shape, num_heads=3)).eval(), torch.randint(23, (2, 9))
    with torch.no_grad():
        # Biases and norms too: fresh ones are 0 and 1, which would hide a swapped pair.
        for parameter in model.parameters():
            parameter.normal_(std=0.3)
        logits, theirs = model(ids), to_gpt2(model)
        torch.testing.assert_close(theirs(ids).logits, logits, rtol=0, atol=1e-4)
        for parameter in theirs.parameters():
            parameter.zero_()
        assert torch.equal(model(ids), logits)
