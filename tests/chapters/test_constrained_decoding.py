"""What the chapter on constrained decoding defines: against `json`, and with models that know nothing."""

import json

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given
from package_fixtures import sharp_llama

SLUG = "inference/constrained-decoding"
pytestmark = pytest.mark.usefixtures("no_gradients")


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
    model = sharp_llama(12, d_model=8, d_ff=16, vocab_size=chapter.TOKENIZER.vocab_size)
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
