"""Conversations from the plays, and the manners of a reply."""

import random

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from llm_learn.data import HELD_OUT, shakespeare_plays
from llm_learn.tasks.shakespeare_conversations import (
    FORMAT_RULES,
    REPLY,
    REPLY_END,
    REPLY_KINDS,
    ROLES,
    TalkTask,
    Turn,
    draw_replies,
    is_plain,
    kept_rules,
    make_task,
    plain_text,
    prompt_ids,
    read_talk,
    speeches_of,
    turn_example,
    turns_of,
)

PLAY = """# A Play

## ACT I

_Enter two lords_

**First Lord**\x20\x20
Who is there?\x20\x20
Speak, _aside_ my lord.

**Second Lord**\x20\x20
It is the king!

## SCENE II

**King**\x20\x20
I know not, my lord;\x20\x20
Come hither.
"""
WORDS = frozenset(
    {"who", "is", "there", "speak", "my", "lord", "it", "the", "king"}
    | {"i", "know", "not", "come", "hither"}
)


@pytest.fixture(scope="module")
def task() -> TalkTask:
    return make_task(300, 400)


class TestReading:
    def test_speeches_have_neither_names_nor_directions_nor_headings(self):
        first, *rest = speeches_of(PLAY)
        assert first == []
        said = [["Who is there?", "Speak,  my lord."], ["It is the king!"]]
        assert [s for s in rest if s][:2] == said
        assert rest[-2:] == [[], ["I know not, my lord;", "Come hither."]]

    def test_after_a_direction_the_same_person_goes_on(self):
        play = "**A**\nOne.\n\n_Exit B_\n\nTwo.\n\n**A**\nThree.\n\n**B**\nFour.\n\n## II\n\nFive."
        assert speeches_of(play) == [["One.", "Two.", "Three."], ["Four."], [], ["Five."]]

    def test_a_plain_line_has_known_words_and_no_other_signs(self):
        assert is_plain("Who is there?", WORDS)
        for line in ("Who was there?", "Who is there 2?", "“Who is there”", "", "?!"):
            assert not is_plain(line, WORDS)
        assert is_plain(" ".join(["king"] * 12), WORDS)
        assert not is_plain(" ".join(["king"] * 13), WORDS)

    def test_what_is_not_plain_leaves_a_gap_of_one_empty_line(self):
        speeches = [["The king!", "Unknreal words.", "Speak."], [], ["Come hither."]]
        text = plain_text(speeches, WORDS)
        assert text == "The king!\n\nSpeak.\n\nCome hither.\n"

    def test_turns_join_neighbours_of_a_scene_by_the_mark_of_the_reply(self):
        found = list(turns_of(speeches_of(PLAY), WORDS))
        assert found == [Turn("cry", "Speak,  my lord.", "It is the king!")]
        assert not list(turns_of([["The king!"], [], ["Speak."]], WORDS))
        assert not list(turns_of([["The king!"], ["Speak,"]], WORDS))

    def test_nothing_that_is_held_out_is_learned(self, task):
        talk = task.talk
        assert not set(talk.turns) & set(talk.held_out_turns)
        assert len(set(talk.turns)) == len(talk.turns)
        (one, *_) = HELD_OUT
        held_out = plain_text(speeches_of(shakespeare_plays()[one]), talk.words)
        assert held_out.strip()[:200] in talk.held_out_text
        assert held_out.strip()[:200] not in talk.text

    def test_every_line_is_plain_and_every_kind_true(self, task):
        lines = [line for line in task.talk.text.splitlines() if line]
        assert lines and all(is_plain(line, task.talk.words) for line in lines)
        for turn in task.talk.turns:
            assert turn.reply.endswith(REPLY_KINDS[turn.kind])
            assert is_plain(turn.said, task.talk.words)

    def test_no_words_are_refused(self):
        with pytest.raises(ValueError, match="num_words is 0: expected num_words >= 1"):
            read_talk(0)


class TestPrompts:
    def test_a_prompt_is_the_beginning_of_its_example(self, task):
        for turn in task.talk.turns[:50]:
            ids, loss_mask = turn_example(task.tokenizer, turn)
            assert task.examples([turn, turn]) == [(ids, loss_mask)] * 2
            prompt = prompt_ids(task.tokenizer, turn.kind, turn.said)
            assert ids[: len(prompt)] == prompt and not any(loss_mask[: len(prompt)])
            assert all(loss_mask[len(prompt) :])
            *reply, end = ids[len(prompt) :]
            assert task.tokenizer.decode(reply) == turn.reply and end == task.eos_id

    @given(st.text(max_size=30))
    def test_what_a_user_types_makes_no_role(self, task, text):
        special = set(task.tokenizer.special_ids.values())
        ids = prompt_ids(task.tokenizer, "ask", text + REPLY_END + "".join(ROLES))
        assert [i for i in ids if i in special] == [
            task.tokenizer.special_ids[role] for role in ROLES
        ]

    def test_an_unknown_kind_is_refused(self, task):
        with pytest.raises(
            ValueError,
            match=r"kind is 'beg', .*'ask': .*'cry': .*'tell': .*: expected kind in REPLY_KINDS",
        ):
            prompt_ids(task.tokenizer, "beg", "Help!")
        with pytest.raises(
            ValueError, match=r"kind is 'beg', .*: expected kind in REPLY_KINDS"
        ):
            kept_rules("beg", "Help!", WORDS)


class TestManners:
    @pytest.mark.parametrize(
        ("reply", "kept"),
        [
            ("I know not, my lord.", "whole, real words, courteous, as asked"),
            ("I know not, my lord?", "whole, real words, courteous"),
            ("I know not, my lord,", "real words, courteous"),
            ("I know, lord.", "real words, courteous, as asked"),
            ("I know not the king.", "whole, real words, as asked"),
            ("I knowest not, my lord.", "whole, courteous, as asked"),
            ("My lord, my lord.", "whole, courteous, as asked"),
            ("I know not, lordly, my king.", "whole, as asked"),
            ("Speak,\nmy lord, speak.", "courteous, as asked"),
            (
                "Is it not the king, is it not my lord.",
                "whole, real words, courteous, as asked",
            ),
            (
                "Who is it, who is it, who is it, my lord.",
                "real words, courteous, as asked",
            ),
            (".", "as asked"),
            ("", ""),
        ],
    )
    def test_rules(self, reply, kept):
        found = zip(FORMAT_RULES, kept_rules("tell", reply, WORDS), strict=True)
        assert ", ".join(rule for rule, yes in found if yes) == kept


class TestWriting:
    def test_the_mask_ends_with_the_first_end(self, task, tiny_llama):
        model = tiny_llama(vocab_size=task.tokenizer.vocab_size, context_length=80)
        prompts = task.prompts(task.ask(12, random.Random(0)))
        written = draw_replies(
            model, prompts, task.eos_id, generator=torch.Generator().manual_seed(0)
        )
        assert written.replies.shape == written.mask.shape == (12, REPLY)
        for ids, mask in zip(written.replies.tolist(), written.mask.tolist(), strict=True):
            length = ids.index(task.eos_id) + 1 if task.eos_id in ids else REPLY
            assert mask == [True] * length + [False] * (REPLY - length)

    def test_log_probabilities_are_those_of_each_conversation_alone(self, task, tiny_llama):
        model = tiny_llama(vocab_size=task.tokenizer.vocab_size, context_length=80)
        prompts = task.prompts([("ask", "The king!"), ("tell", "I know not what to say.")])
        written = draw_replies(
            model, prompts, task.eos_id, generator=torch.Generator().manual_seed(0)
        )
        logps = written.logps_by(model)
        for prompt, reply, found in zip(prompts, written.replies, logps, strict=True):
            ids = torch.tensor([[*prompt, *reply.tolist()]])
            alone = model(ids[:, :-1]).log_softmax(-1)[0, len(prompt) - 1 :]
            expected = alone.gather(1, reply[:, None])[:, 0]
            torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)

    def test_a_reply_without_its_end_is_empty(self, task):
        end, *ids = task.eos_id, *task.tokenizer.encode("The king.")
        rows = [[*ids, end], [*ids, 0]]
        width = max(map(len, rows))
        replies = torch.tensor([row + [end] * (width - len(row)) for row in rows])
        replies[1, -1] = 0
        fake = type("Fake", (), {"replies": replies})
        assert task.texts(fake) == ["The king.", ""]
        kept = task.kept([("tell", ""), ("tell", "")], fake)
        assert kept.tolist()[1] == [0, 0, 0, 0] and kept[0, 3] == 1

    def test_kinds_are_drawn_evenly_and_lines_from_what_is_learned(self, task):
        asked = task.ask(600, random.Random(0))
        counts = [sum(kind == k for k, _ in asked) for kind in REPLY_KINDS]
        assert min(counts) > 150
        assert {said for _, said in asked} <= {turn.said for turn in task.talk.turns}
