"""The engine in JavaScript against the package: operations, tokens, sampling, files, and mistakes that must be seen."""

import gzip
import re
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from llm_learn.data import shakespeare
from llm_learn.generate import filter_logits
from llm_learn.javascript import load_for_javascript, save_for_javascript
from llm_learn.javascript.scripts import ENGINE, V8, bundle
from llm_learn.model import GPT, GPTConfig
from llm_learn.notebook import recorded_file
from llm_learn.tokenizers import BPETokenizer

pytest.importorskip("py_mini_racer")
WIDE = torch.float64


@pytest.fixture(scope="module")
def tokenizer():
    return BPETokenizer.train(shakespeare()[:100_000], 600)


@pytest.fixture(scope="module")
def file(tmp_path_factory, tokenizer):
    """A small model with large weights, so that mistakes are seen."""
    torch.manual_seed(0)
    model = GPT(
        GPTConfig(vocab_size=600, context_length=16, d_model=24, num_layers=2, num_heads=3)
    )
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.3)
    path = tmp_path_factory.mktemp("weights") / "small.safetensors"
    save_for_javascript(path, model, tokenizer, [5, 1, 599, 0, 7])
    return path


@pytest.fixture(scope="module")
def run(file):
    with V8() as run:
        load(run, file)
        yield run


def load(run, path):
    run("globalThis.model = new engine.model.GPT(file)", file=path.read_bytes())
    run("globalThis.bpe = new engine.bpe.BPETokenizer(model.tensors.merges.data)")


def check_difference(run, path) -> float:
    """The largest difference of a logit from those in the file."""
    stored = load_for_javascript(path)[2]
    run("globalThis.cleared = model.clear()")
    logits = run("model.logits(ids).logits", ids=stored["check.ids"])
    logits = [
        float("nan") if logit is None else logit for logit in logits
    ]  # as JSON has it
    return (torch.tensor(logits) - stored["check.logits"]).abs().max().item()


# --- Operations ---


@given(st.lists(st.floats(-40, 40), min_size=2, max_size=20), st.integers(0, 10**6))
@settings(max_examples=50, deadline=None)
def test_operations_are_those_of_pytorch(run, values, seed):
    x = torch.tensor(values, dtype=WIDE)
    gain, bias = torch.randn(
        2, len(x), dtype=WIDE, generator=torch.Generator().manual_seed(seed)
    )
    matrix = torch.stack([gain, bias])
    ours = run(
        "[engine.tensors.gelu(x), engine.tensors.softmax(x), engine.tensors.add(x, gain),"
        " engine.tensors.layerNorm(x, {data: gain}, {data: bias})]",
        x=x,
        gain=gain,
        bias=bias,
    )
    theirs = [
        F.gelu(x, approximate="tanh"),
        x.softmax(0),
        x + gain,
        F.layer_norm(x, x.shape, gain, bias),
    ]
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(torch.tensor(a, dtype=WIDE), b, rtol=1e-9, atol=1e-9)
    product = run(
        "engine.tensors.linear(x, {shape: [2, x.length], data: matrix}, {data: [1, -1]})",
        x=x,
        matrix=matrix.flatten(),
    )
    expected = F.linear(x, matrix, torch.tensor([1.0, -1.0], dtype=WIDE))
    torch.testing.assert_close(
        torch.tensor(product, dtype=WIDE), expected, rtol=1e-6, atol=1e-5
    )


def test_softmax_gives_a_masked_score_no_weight(run):
    weights = run("engine.tensors.softmax([1000, -Infinity, 1001])")
    assert weights[1] == 0 and sum(weights) == pytest.approx(1)


# --- The model and its file ---


def test_a_file_holds_the_rounded_model(file):
    model, tokenizer, stored = load_for_javascript(file)
    assert stored["token_embedding.weight"].dtype == torch.int8
    assert stored["norm.weight"].dtype == torch.float32
    assert tokenizer.encode("To be") == BPETokenizer(tokenizer.merges).encode("To be")
    with torch.no_grad():
        logits = model.double()(stored["check.ids"][None].long())[0, -1]
    torch.testing.assert_close(logits.float(), stored["check.logits"], rtol=0, atol=1e-6)


@pytest.mark.parametrize("ids", [[], list(range(17))])
def test_a_check_needs_tokens_that_fit(tmp_path, tokenizer, ids):
    model = GPT(
        GPTConfig(vocab_size=600, context_length=16, d_model=24, num_layers=1, num_heads=3)
    )
    with pytest.raises(ValueError, match="check_ids"):
        save_for_javascript(tmp_path / "x.safetensors", model, tokenizer, ids)
    assert not [*tmp_path.iterdir()]


@given(st.lists(st.integers(0, 599), min_size=1, max_size=24))
@settings(max_examples=30, deadline=None)
def test_logits_and_attention_are_those_of_the_model(run, file, ids):
    model, _, _ = load_for_javascript(file)
    with torch.no_grad():
        expected = model.double()(torch.tensor([ids[-16:]]))[0, -1]
    # The cache holds tokens of other examples.
    ours = torch.tensor(run("model.logits(ids).logits", ids=ids), dtype=WIDE)
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-5)
    for block in run("model.attention(ids)", ids=ids):
        for rows in block:
            assert [len(row) for row in rows] == list(range(1, len(ids[-16:]) + 1))
            assert all(sum(row) == pytest.approx(1) for row in rows)


MISTAKES = [
    ("epsilon = 1e-5", "epsilon = 1e-3"),
    ("epsilon = 1e-5", "epsilon = 1e-6"),
    (
        "0.5 * value * (1 + Math.tanh(inside(value)))",
        "value / (1 + Math.exp(-1.702 * value))",
    ),
    ("0.044715", "0.0474715"),
    ("const position = this.ids.length;", "const position = this.ids.length + 1;"),
    ("Math.sqrt(D)", "Math.sqrt(C)"),
    ("qkv.slice(C, 2 * C)", "qkv.slice(0, C)"),
    ("Math.floor(i / columns)", "Math.floor(i / scales.length)"),
]


def test_no_mistake_is_no_difference(run, file):
    assert check_difference(run, file) < 1e-5


@pytest.mark.parametrize(("old", "new"), MISTAKES)
def test_a_mistake_is_a_difference_for_the_recorded_model(old, new):
    file = recorded_file("gpt.safetensors")
    script = bundle([ENGINE], "engine")
    assert script.count(old) == 1
    with V8(script.replace(old, new)) as mistaken:
        load(mistaken, file)
        assert not check_difference(mistaken, file) < 1e-5


def test_one_wrong_weight_is_a_difference(file):
    with V8() as run:
        load(run, file)
        run(
            "globalThis.changed = (model.tensors['blocks.1.mlp.up.weight'].data[0] += 0.01)"
        )
        assert check_difference(run, file) > 1e-5


def test_the_recorded_model_fits_a_page_and_is_computed_correctly():
    path = recorded_file("gpt.safetensors")
    assert path.stat().st_size < 1_250_000
    with V8() as run:
        load(run, path)
        assert check_difference(run, path) < 1e-5


# --- Tokens ---


@given(st.text(max_size=40))
@settings(max_examples=300, deadline=None)
def test_tokens_are_those_of_python(run, tokenizer, text):
    # The regex module can know newer characters than V8: only there may chunks differ.
    known = run(r"/^[\p{Assigned}]*$/u.test(text)", text=text)
    if known:
        ids = run("bpe.encode(text)", text=text)
        assert ids == tokenizer.encode(text)
        assert run("bpe.decode(ids)", ids=ids) == text


@pytest.mark.parametrize(
    "text",
    [
        "'s 'S 'ſ",
        "a\u0085b",
        "\ufeffx",
        "  \n \r\n x   y",
        "12345 678",
        "🙂👩‍👧",
        "",
        "\x00",
        "नमस्ते",
        "e\u0301",
    ],
)
def test_odd_texts_have_the_same_tokens(run, tokenizer, text):
    assert run("bpe.encode(text)", text=text) == tokenizer.encode(text)


def test_a_token_is_named_by_its_text_or_its_bytes(run, tokenizer):
    ids = tokenizer.encode("é🙂")
    assert run("bpe.encode('To be').map((id) => bpe.name(id)).join('')") == "To be"
    assert "".join(run("ids.map((id) => bpe.name(id))", ids=ids)).endswith(
        "<0xF0><0x9F><0x99><0x82>"
    )


def test_the_merges_of_a_chunk_lead_from_bytes_to_its_tokens(run, tokenizer):
    (states,) = run("bpe.merges(' wherefore')")
    assert len(states[0]) == len(" wherefore") and states[-1] == tokenizer.encode(
        " wherefore"
    )
    assert all(len(b) < len(a) for a, b in pairwise(states))


# --- Sampling ---


@given(
    st.integers(0, 10**6),
    st.sampled_from(
        [(None, None), (1, None), (7, None), (None, 0.5), (None, 1.0), (9, 0.7)]
    ),
    st.sampled_from([0.3, 1.0, 1.7]),
)
@settings(max_examples=60, deadline=None)
def test_probabilities_are_those_of_python(run, seed, filters, temperature):
    top_k, top_p = filters
    logits = 3 * torch.randn(50, dtype=WIDE, generator=torch.Generator().manual_seed(seed))
    ours = run(
        "engine.sample.nextProbabilities(logits, settings)",
        logits=logits,
        settings={"temperature": temperature, "topK": top_k, "topP": top_p},
    )
    expected = filter_logits(
        (logits / temperature)[None], top_k=top_k, top_p=top_p
    ).softmax(-1)[0]
    torch.testing.assert_close(torch.tensor(ours, dtype=WIDE), expected, rtol=0, atol=1e-12)


def test_a_temperature_of_zero_takes_the_most_likely_token(run):
    assert run("engine.sample.nextProbabilities([1, 3, 2], {temperature: 0})") == [0, 1, 0]


def test_samples_follow_the_probabilities(run):
    drawn = run(
        "((next) => Array.from({length: 4000}, () => engine.sample.sampleIndex([0.1, 0, 0.6, 0.3], next())))"
        "(engine.sample.randomNumbers(1))"
    )
    fractions = torch.tensor(drawn).bincount(minlength=4) / len(drawn)
    torch.testing.assert_close(
        fractions, torch.tensor([0.1, 0, 0.6, 0.3]), rtol=0, atol=0.03
    )
    assert fractions[1] == 0
    assert run("engine.sample.sampleIndex([0.5, 0.5, 0], 1)") == 1


# --- Scripts ---


def write(folder, **modules):
    for name, text in modules.items():
        (folder / f"{name}.js").write_text(text, encoding="utf-8")
    return folder


def test_modules_become_one_script_whose_names_do_not_collide(tmp_path):
    write(
        tmp_path,
        a='import { two } from "./b.js";\nconst name = 1;\nexport function three() {\n  return two() + name;\n}\n',
        b="const name = 2;\nexport function two() {\n  return name;\n}\n",
    )
    with V8(bundle([tmp_path], "all")) as run:
        assert run("[all.a.three(), Object.keys(all.b), typeof name]") == [
            3,
            ["two"],
            "undefined",
        ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('import { x } from "./none.js";\n', "a imports none: expected a module of a"),
        ('import { x } from "./a.js";\n', "a imports a"),
        ('import x from "./a.js";\n', "a.js: 'import x from"),
        ("export default 1;\n", "a.js: 'export default 1;'"),
    ],
)
def test_what_cannot_be_joined_is_named(tmp_path, text, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        bundle([write(tmp_path, a=text)], "all")


def test_the_engine_is_small():
    assert len(gzip.compress(bundle([ENGINE], "engine").encode())) < 6_000
