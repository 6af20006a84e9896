"""The chapter on one small model: its measures, its server's prompts, and the prompts that are wrong."""

import pytest
import torch

SLUG = "capstone/one-small-model"


@pytest.fixture(scope="module")
def model(chapter):
    return chapter.new(0)


class TestMeasures:
    @pytest.mark.slow
    def test_bits_a_byte_are_the_loss_of_an_id_by_its_bytes(self, chapter, model):
        row = chapter.measured(model)
        uniform = torch.tensor(float(chapter.PLAN.vocab_size)).log2().item()
        assert row.bits == pytest.approx(uniform / chapter.BYTES_PER_TOKEN, rel=0.1)
        assert row.all_rules <= min(row.rules) and len(row.replies) == len(chapter.ASKED)

    @pytest.mark.slow
    def test_a_draw_repeats(self, chapter, model):
        assert chapter.measured(model, seed=3) == chapter.measured(model, seed=3)

    def test_kinds_are_asked_by_lot_about_lines_that_are_held_out(self, chapter):
        said = [said for _, said in chapter.ASKED]
        assert said == [turn.said for turn in chapter.TASK.talk.held_out_turns]
        counts = [sum(kind == k for k, _ in chapter.ASKED) for kind in chapter.REPLY_KINDS]
        assert min(counts) > len(said) / 4

    def test_a_model_that_drafts_for_itself_is_always_right(self, chapter, model):
        """Random models write to the limit: every pass but the last brings k + 1 ids."""
        found = chapter.tokens_per_pass(model, model, number=4, k=3)
        assert found == pytest.approx(chapter.REPLY / 4, abs=0.4)
        assert chapter.tokens_per_pass(model, chapter.new_student(1), number=4, k=3) < found


class TestPrompts:
    def test_the_server_s_prompt_is_the_one_that_was_learned(self, chapter):
        assert chapter.agrees(chapter.right)
        for turn in chapter.TASK.talk.turns[:20]:
            messages = [
                {"role": "system", "content": turn.kind},
                {"role": "user", "content": turn.said},
            ]
            assert chapter.chat_ids(messages) == chapter.right(turn.kind, turn.said)

    @pytest.mark.parametrize("name", ["as_text", "with_a_break", "without_system"])
    def test_the_wrong_ones_are_found_out(self, chapter, name):
        assert not chapter.agrees(getattr(chapter, name))

    @pytest.mark.parametrize(
        "roles", [[], ["user"], ["user", "system"], ["system", "user", "assistant", "user"]]
    )
    def test_another_conversation_is_refused(self, chapter, roles):
        messages = [{"role": role, "content": "tell"} for role in roles]
        with pytest.raises(ValueError, match="roles"):
            chapter.chat_ids(messages)

    def test_an_unknown_kind_is_refused(self, chapter):
        messages = [
            {"role": "system", "content": "sing"},
            {"role": "user", "content": "Now."},
        ]
        with pytest.raises(ValueError, match="kind is 'sing'"):
            chapter.chat_ids(messages)


def test_student_and_twin_begin_with_the_same_weights(chapter):
    one, other = chapter.new_student(5), chapter.new_student(5)
    assert all(map(torch.equal, one.parameters(), other.parameters()))
    assert sum(p.numel() for p in one.parameters()) < 0.3 * sum(
        p.numel() for p in chapter.new(5).parameters()
    )
