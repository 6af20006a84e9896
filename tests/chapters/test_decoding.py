"""What the chapter on decoding defines: against Hugging Face and `json`."""

import json
import math

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given
from transformers import MinPLogitsWarper, RepetitionPenaltyLogitsProcessor

from llm_learn.model import Llama, LlamaConfig

SLUG = "inference/decoding"
pytestmark = pytest.mark.usefixtures("no_gradients")


def tiny(
    seed: int, width: int = 16, vocab_size: int = 6, context_length: int = 48
) -> Llama:
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=vocab_size,
        context_length=context_length,
        d_model=width,
        d_ff=2 * width,
        num_layers=2,
        num_heads=2,
        num_kv_heads=1,
    )
    model = Llama(config).eval()
    for parameter in model.parameters():
        if parameter.ndim == 2:
            parameter.detach().mul_(12)  # distributions that differ from place to place
    return model


# --- Samplers ---


@given(st.integers(0, 10**6), st.floats(0.001, 1), st.floats(0.3, 3))
def test_min_p_after_a_temperature_is_min_p_with_another_share(
    definitions_of, seed, share, tau
):
    chapter = definitions_of(SLUG)
    logits = 3 * torch.randn(4, 50, generator=torch.Generator().manual_seed(seed))
    after = chapter.chain(("temperature", tau), ("min-p", share))(logits) > -torch.inf
    before = chapter.chain(("min-p", share**tau))(logits) > -torch.inf
    assert (after != before).sum() <= 1  # a token at the border may round to either side
    theirs = MinPLogitsWarper(share)(None, logits) > -torch.inf
    assert torch.equal(chapter.min_p(logits, share) > -torch.inf, theirs)


def test_min_p_refuses_a_share_above_one(chapter):
    with pytest.raises(ValueError, match=r"share is 1\.5"):
        chapter.min_p(torch.zeros(1, 3), 1.5)


def test_only_top_p_depends_on_where_the_temperature_stands(chapter):
    logits = 3 * torch.randn(6, 80, generator=torch.Generator().manual_seed(1))

    def orders(step):
        hot = ("temperature", 2.0)
        return [chapter.chain(*steps)(logits) for steps in ((hot, step), (step, hot))]

    torch.testing.assert_close(*orders(("top-k", 7)))
    first, last = orders(("top-p", 0.7))
    assert (first > -torch.inf).sum() > (last > -torch.inf).sum()


@given(st.integers(0, 10**6), st.floats(0.5, 2))
def test_repetition_penalty_is_hugging_faces(definitions_of, seed, penalty):
    generator = torch.Generator().manual_seed(seed)
    logits, ids = (
        torch.randn(3, 9, generator=generator),
        torch.randint(9, (3, 5), generator=generator),
    )
    before = logits.clone()
    ours = definitions_of(SLUG).repetition_penalty(logits, ids, penalty)
    assert torch.equal(logits, before)
    torch.testing.assert_close(ours, RepetitionPenaltyLogitsProcessor(penalty)(ids, logits))


def test_repetition_penalty_refuses_zero(chapter):
    with pytest.raises(ValueError, match="penalty is 0"):
        chapter.repetition_penalty(torch.zeros(1, 3), torch.tensor([[0]]), 0)


# --- Quality and diversity ---


def test_even_answers_count_fully_and_none_count_zero(chapter):
    quality, diversity = chapter.quality_and_diversity(torch.full((8,), 0.1))
    assert quality == pytest.approx(0.8) and diversity == pytest.approx(8)
    assert chapter.quality_and_diversity(torch.zeros(8)) == (0, 0)


@pytest.mark.slow
def test_probabilities_of_names_are_those_of_whole_texts(chapter):
    """Each name read whole, without a cache, for a sampler that rules out."""
    leave = chapter.chain(("temperature", 1.5), ("top-k", 500))
    ours = chapter.name_probs(leave, *chapter.name_logits("Europe", 1))
    names = [name for same in chapter.COUNTRIES["Europe"] for name in same]
    prompt = chapter.country_prompt("Europe", 1)
    for name in ("France", "the United Kingdom", "North Macedonia"):
        ids = chapter.TOKENIZER.encode(f" {name}")
        probs = leave(chapter.SMOLLM2(torch.tensor([prompt + ids]))[0]).softmax(-1)
        steps = probs[len(prompt) - 1 :]
        chance = math.prod(steps[t, i].item() for t, i in enumerate(ids))
        chance *= steps[-1, chapter.ENDS].sum().item()
        assert ours[names.index(name)].item() == pytest.approx(chance, rel=1e-3), name


def test_a_name_that_goes_on_is_another_name(chapter):
    goes_on = chapter.GOES_ON.match
    assert all(map(goes_on, ("ia", "-Bissau", " Sudan", "é")))
    assert not any(map(goes_on, (".", ",", " is", "\n", " (", '"', " 3")))


# --- Grammars ---

json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=6),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text(max_size=4), inner, max_size=3)
    ),
    max_leaves=8,
)


@given(st.dictionaries(st.text(max_size=4), json_values, max_size=3), st.booleans())
def test_what_json_writes_is_in_the_grammar(definitions_of, value, ascii_only):
    chapter = definitions_of(SLUG)
    try:
        text = json.dumps(value, ensure_ascii=ascii_only).encode()
    except UnicodeEncodeError:  # half a pair of surrogates is no text
        return
    assert chapter.read(chapter.GRAMMAR, ("object",), text) == ()


@given(st.integers(2, 80), st.randoms(use_true_random=False))
def test_whatever_fits_can_be_finished_within_the_limit(definitions_of, limit, rng):
    chapter = definitions_of(SLUG)
    grammar, state, text = chapter.GRAMMAR, ("object",), b""
    while state:
        fits = [
            byte
            for byte in sorted(grammar.first_bytes(state))
            if grammar.fewest_bytes(grammar.advance(state, byte)) < limit - len(text)
        ]
        text += bytes([rng.choice(fits)])
        state = grammar.advance(state, text[-1])
    assert len(text) <= limit and isinstance(json.loads(text), dict)


@given(st.text(alphabet='{}[]",:\\0123456789eE.-truefalsn', max_size=12))
def test_the_grammar_and_json_agree_on_short_texts(definitions_of, inside):
    chapter = definitions_of(SLUG)
    text = '{"a":' + inside + "}"
    ours = chapter.read(chapter.GRAMMAR, ("object",), text.encode()) == ()
    assert ours == (chapter.as_object(text) is not None)


@pytest.mark.parametrize(
    "value", ["1.", ".5", "01", "1e", "-", "+1", "tru", "[1,]", '"\\x"']
)
def test_what_is_nearly_json_is_refused(chapter, value):
    text = f'{{"a":{value}}}'
    assert chapter.as_object(text) is None
    assert chapter.read(chapter.GRAMMAR, ("object",), text.encode()) is None


@pytest.mark.parametrize(
    "character",
    [
        b"\xed\xa0\x80",
        b"\xc0\x80",
        b"\xe0\x80\x80",
        b"\xf0\x80\x80\x80",
        b"\xf4\x90\x80\x80",
        b"\x80",
    ],
)
def test_bytes_that_are_no_character_are_refused(chapter, character):
    with pytest.raises(UnicodeDecodeError):
        character.decode()
    assert chapter.read(chapter.GRAMMAR, ("characters",), character) is None


def test_rules_that_are_missing_endless_or_begin_alike_are_refused(chapter):
    with pytest.raises(ValueError, match="'word' that begin alike"):
        chapter.Grammar({"word": [(b"ab", b"c"), (b"b",)]})
    with pytest.raises(ValueError, match=r"lacks \['inner'\]"):
        chapter.Grammar({"word": [(b"a", "inner")]})
    with pytest.raises(ValueError, match=r"\['word'\], whose texts never end"):
        chapter.Grammar({"word": [(b"a", "word")]})
    hidden = {"word": [("inner",), (b"b",)], "inner": [(b"b",)]}
    with pytest.raises(ValueError, match="'word' that begin alike"):
        chapter.Grammar(hidden)


def test_the_tree_finds_the_tokens_that_fit_one_by_one(chapter):
    for begun in (b'{"a": ', b'{"a": "b'):
        state = chapter.read(chapter.GRAMMAR, ("object",), begun)
        ids, fewest = chapter.possible(chapter.GRAMMAR, state)
        found = dict(zip(ids.tolist(), fewest.tolist(), strict=True))
        wanted = {}
        for i, token in enumerate(chapter.TOKENIZER.token_bytes):
            after = chapter.read(chapter.GRAMMAR, state, token)
            if i not in chapter.CONTROL and after is not None:
                wanted[i] = chapter.GRAMMAR.fewest_bytes(after)
        assert found == wanted


def test_a_model_of_noise_writes_json_within_any_limit(chapter):
    model = tiny(0, width=8, vocab_size=chapter.TOKENIZER.vocab_size)
    generator = torch.Generator().manual_seed(0)
    thing, prompts = "a cat called Tom", [[5], [6, 7]] * 2
    for limit in (2, 3, 5, 9, 16):
        rows = chapter.write_in_grammar(
            model,
            prompts,
            chapter.GRAMMAR,
            ["object"] * 4,
            limit,
            temperature=1.0,
            generator=generator,
        )
        assert all(len(ids) <= limit for ids in rows)
        assert all(chapter.as_object(chapter.without_end(ids)) is not None for ids in rows)
    rows = chapter.write_in_grammar(
        model,
        prompts,
        chapter.GRAMMAR,
        [thing] * 4,
        40,
        temperature=1.0,
        generator=generator,
    )
    for ids in rows:
        assert tuple(chapter.as_object(chapter.without_end(ids))) == chapter.ASKED[thing]
    with pytest.raises(ValueError, match="max_new_tokens is 1"):
        chapter.write_in_grammar(model, prompts, chapter.GRAMMAR, ["object"] * 4, 1)


def test_texts_end_where_the_model_ends_them(chapter):
    end = chapter.END
    assert chapter.before_end([4, 5, end, 6]) == [4, 5]
    assert chapter.before_end([4, 5]) == [4, 5]
    assert chapter.taken_out("so: {1} }x") == "{1} }" and chapter.taken_out("none") == ""
