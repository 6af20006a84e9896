"""Names in code are the field's; and those on which others rely exist, with their parameters."""

import ast
import re
from collections.abc import Iterator
from importlib import import_module
from inspect import signature
from pathlib import Path

import pytest

from book.read.chapters import ROOT, read_source

NEW_NAMES = dict(
    re.findall(
        r"(\w+):(\w+)",
        """end_id:eos_id LINE_END:EOS_ID learn_from:train_on own_share:local_batch_size next_id_loss:next_token_loss
        draw_weights:init_weights draw_by_fan_in:init_weights_fan_in rope_base:rope_theta IGNORED:IGNORE_INDEX
        orthogonalised:zeropower_via_newtonschulz width_groups:mup_parameter_groups WithLoss:AddAuxiliaryLoss
        muon_rate:muon_learning_rate adamw_rate:adamw_learning_rate reinforce_rate:rl_learning_rate
        Ranks:DistributedContext Gathered:FullStateDict lost_contact:is_connection_error in_processes:launch_processes
        with_layers:quantize_model pack_four:pack_int4 rounded_inputs:quantize_inputs Int8Table:Int8Embedding
        whole_sums:int8_matmul from_model:draft_from_model SOFTMAX:softmax_probs all_on_best:greedy_probs
        answer_batch:collate_examples until_end:completion_mask tune_steps:sft_steps distil_steps:distill_steps""",
    )
)
# Words that are old names only in the files of these stems.
IN_FILES = {
    "serving serving_engine openai_server": "Row Pages pages BlockPool NoBlock pool give_back remember read_rows read_slots single_ids choose "
    "reason max_rows max_chunk max_new take_out on_id on_end num_read num_unread tokens_shared room_after may_join "
    "Refusal end_all mail door",
    "distributed train_command training_run pipeline_stages pipeline_command pipeline": "ranks sharing joined is_first from_first",
    "pipeline_stages pipeline_command pipeline one_small_model": "shared as_teacher lessons rate num_steps",
    "quantize": "levels bytes_of",
    "encoder": "is_text",
    "pretraining training-run stable-training scaling-laws lora distillation dpo sft multimodal": "rate RATE RATES",
}


def names_of(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        for field in ("id", "attr", "arg", "name", "asname"):
            if isinstance(name := getattr(node, field, None), str):
                yield name.rpartition(".")[2]


def used(path: Path) -> set[str]:
    """The names in a module, or in the cells and the inline code of a chapter."""
    if path.suffix == ".py":
        return set(names_of(ast.parse(path.read_text(encoding="utf-8"))))
    page = read_source(path)
    code = [re.sub(r"(?m)^\s*[!%].*", "pass", cell.source) for cell in page.cells]
    spans = re.findall(
        r"(\{\S+?\})?(?<!`)`([^`\n]+)`(?!`)", "\n".join(line for _, line in page.prose)
    )
    inline = {name for role, text in spans if not role for name in re.findall(r"\w+", text)}
    return {name for text in code for name in names_of(ast.parse(text))} | inline


def test_no_name_of_ours_replaces_one_of_the_field():
    folders = (
        "code/llm_learn/**/*.py",
        "experiments/*.py",
        "tests/**/*.py",
        "chapters/*/*.md",
    )
    paths = [
        path
        for pattern in folders
        for path in ROOT.glob(pattern)
        if path != Path(__file__).resolve()
    ]
    for path in paths:
        found = used(path)
        for old in NEW_NAMES.keys() & found:
            pytest.fail(f"{path.relative_to(ROOT)} says {old}: write {NEW_NAMES[old]}")
        stem = path.stem.removeprefix("test_").replace("_", "-")
        for stems, words in IN_FILES.items():
            if stem in stems.replace("_", "-").split():
                old = found.intersection(words.split())
                assert not old, f"{path.relative_to(ROOT)} says {', '.join(sorted(old))}"


# The names of design.md on which readers, notebooks and outside checks rely: parameters in this order.
PROMISED = """
tokenizers CharTokenizer.encode(self, text)
tokenizers BPETokenizer.train(text, vocab_size, special_tokens, pattern)
tokenizers BPETokenizer.encode(self, text, allowed_special)
tokenizers BPETokenizer.decode(self, ids)
tokenizers BPETokenizer.save(self, path)
tokenizers BPETokenizer.load(path)
data shakespeare()
data get_batch(ids, batch_size, context_length, *generator)
data pack_documents(docs, context_length, *eos_id)
attention causal_mask(num_queries, num_keys)
attention scaled_dot_product_attention(q, k, v, mask)
attention MultiHeadAttention(*d_model, *num_heads)
attention GroupedQueryAttention(*d_model, *num_heads, *num_kv_heads)
model GPT(config)
model GPTConfig(*vocab_size, *context_length, *d_model, *num_layers, *num_heads)
model Llama(config)
model LlamaConfig(*vocab_size, *context_length, *d_model, *d_ff, *num_layers, *num_heads, *num_kv_heads)
model load_smollm2()
generate KVCache()
generate generate(model, ids, max_new_tokens, *temperature, *top_k, *top_p, *eos_id, *use_cache, *generator)
losses sequence_logps(logits, labels, loss_mask)
losses dpo_loss(policy_chosen, policy_rejected, ref_chosen, ref_rejected, *beta)
losses ppo_clip_loss(logps, old_logps, advantages, *clip)
losses group_advantages(rewards)
losses distillation_loss(student_logits, teacher_logits, *temperature)
lora add_lora(model, *rank, *alpha)
lora merge_lora(model)
optim AdamW(params, *lr)
optim Muon(params, *lr)
optim cosine_schedule(step, *max_steps)
train TrainConfig(*max_steps, *batch_size, *learning_rate)
train train(model, train_ids, val_ids, config, *generator)
"""


@pytest.mark.parametrize("promise", PROMISED.strip().split("\n"))
def test_names_that_others_rely_on_are_there(promise: str):
    module, name, wanted = re.fullmatch(r"(\w+) ([\w.]+)\((.*)\)", promise).groups()
    found = import_module(f"llm_learn.{module}")
    for part in name.split("."):
        found = getattr(found, part)
    parameters = signature(found).parameters
    named = [p for p in wanted.split(", ") if p]
    assert {p.lstrip("*") for p in named} <= parameters.keys()
    in_order = [name for name, p in parameters.items() if p.kind is p.POSITIONAL_OR_KEYWORD]
    assert in_order[: sum("*" not in p for p in named)] == [
        p for p in named if "*" not in p
    ]
