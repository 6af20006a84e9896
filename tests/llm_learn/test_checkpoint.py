"""A checkpoint gives back every bit, is there completely or not at all, and is refused where it does not fit."""

import copy
import json
import os
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from llm_learn import checkpoint
from llm_learn.checkpoint import UnreadableCheckpoint, load_checkpoint, save_checkpoint
from llm_learn.optim import AdamW, Muon


def make(width: int = 3, seed: int = 0):
    """A model, an optimizer for its matrix and one for its bias."""
    torch.manual_seed(seed)
    model = nn.Linear(width, width)
    optimizers = [
        Muon([model.weight], lr=0.1),
        AdamW([model.bias], lr=0.2, betas=(0.8, 0.9)),
    ]
    return model, optimizers


def take_steps(model, optimizers, count: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for _ in range(count):
        for p in model.parameters():
            p.grad = torch.randn(p.shape, generator=generator)
        for optimizer in optimizers:
            optimizer.step()


# Invariant


@pytest.mark.parametrize("done", [0, 1, 5])
def test_a_run_goes_on_bit_by_bit(tmp_path, done):
    model, optimizers = make()
    take_steps(model, optimizers, done, seed=1)
    save_checkpoint(tmp_path / "a", model, optimizers, {"step": done})
    other, others = make(seed=9)
    assert load_checkpoint(tmp_path / "a", other, others) == {"step": done}
    for run in ((model, optimizers), (other, others)):
        take_steps(*run, 4, seed=2)
    assert torch.equal(model.weight, other.weight) and torch.equal(model.bias, other.bias)
    # Settings come back too: lists stand in the place of tuples, which no optimizer minds.
    ours, theirs = (
        [o.state_dict()["param_groups"] for o in os] for os in (optimizers, others)
    )
    assert json.dumps(ours) == json.dumps(theirs)


keys = st.text(max_size=5).filter(lambda key: "/" not in key)
progress_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**60), 2**60)
    | st.floats(allow_nan=False)
    | st.text()
    | st.lists(st.floats(width=32, allow_nan=False), max_size=3).map(torch.tensor),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=3),
    max_leaves=8,
)


def assert_equal(a, b) -> None:
    assert type(a) is type(b)
    if isinstance(a, torch.Tensor):
        assert a.dtype == b.dtype and torch.equal(a, b)
    elif isinstance(a, dict):
        assert a.keys() == b.keys()
        for key in a:
            assert_equal(a[key], b[key])
    elif isinstance(a, list):
        assert len(a) == len(b)
        for x, y in zip(a, b, strict=True):
            assert_equal(x, y)
    else:
        assert a == b


@pytest.mark.slow
@given(st.dictionaries(keys, progress_values, max_size=4))
@settings(deadline=None, max_examples=60)
def test_progress_comes_back_as_it_was(tmp_path_factory, progress):
    model, optimizers = make()
    folder = tmp_path_factory.mktemp("run") / "a"
    save_checkpoint(folder, model, optimizers, progress)
    assert_equal(load_checkpoint(folder, model, optimizers), progress)


def test_tensors_that_share_a_name_keep_their_places(tmp_path):
    model, optimizers = make()
    progress = {"weight": torch.zeros(2), "model": {"weight": torch.ones(1)}}
    save_checkpoint(tmp_path / "a", model, optimizers, progress)
    assert_equal(load_checkpoint(tmp_path / "a", model, optimizers), progress)


@pytest.mark.parametrize("key", ["a/b", 3, None])
def test_keys_that_could_be_confused_are_refused(tmp_path, key):
    model, optimizers = make()
    with pytest.raises(ValueError, match="progress has the key"):
        save_checkpoint(tmp_path / "a", model, optimizers, {"inner": {key: 1}})
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(os.name != "posix", reason="folders cannot be synchronised")
def test_a_checkpoint_and_its_name_are_on_the_disk_when_it_is_there(tmp_path, monkeypatch):
    done, sync, rename = [], os.fsync, Path.rename

    def record_sync(opened):
        done.append(os.fstat(opened).st_ino)
        sync(opened)

    def record_rename(path, target):
        done.append("renamed")
        return rename(path, target)

    monkeypatch.setattr(os, "fsync", record_sync)
    monkeypatch.setattr(Path, "rename", record_rename)
    model, optimizers = make()
    folder = tmp_path / "a"
    save_checkpoint(folder, model, optimizers, {})
    *before, named, after = done
    inside = {path.stat().st_ino for path in folder.iterdir()}
    assert set(before) == inside | {folder.stat().st_ino} and len(inside) == 2
    assert named == "renamed" and after == tmp_path.stat().st_ino


@pytest.mark.parametrize("garbage", [b"", b"{", b"[]", b"null", b"\xff\xfe\x00"])
def test_a_damaged_checkpoint_is_told_from_one_of_another_model(tmp_path, garbage):
    model, optimizers = make()
    save_checkpoint(tmp_path / "a", model, optimizers, {})
    with pytest.raises(ValueError, match="another model") as error:
        load_checkpoint(tmp_path / "a", *make(width=4))
    assert error.type is ValueError
    for name in ("state.json", "tensors.safetensors"):
        kept = (tmp_path / "a" / name).read_bytes()
        (tmp_path / "a" / name).write_bytes(garbage)
        with pytest.raises(UnreadableCheckpoint, match="it holds no checkpoint"):
            load_checkpoint(tmp_path / "a", model, optimizers)
        (tmp_path / "a" / name).write_bytes(kept)


def test_others_may_read_what_the_umask_allows(tmp_path):
    model, optimizers = make()
    save_checkpoint(tmp_path / "a", model, optimizers, {})
    (tmp_path / "b").mkdir()
    assert (tmp_path / "a").stat().st_mode == (tmp_path / "b").stat().st_mode


def test_a_full_disk_is_an_error_of_the_system(tmp_path, monkeypatch):
    def fail(tensors, path):
        path.write_bytes(b"half")
        raise checkpoint.SafetensorError("No space left on device")

    monkeypatch.setattr(checkpoint, "save_file", fail)
    with pytest.raises(OSError, match="could not be written: No space"):
        save_checkpoint(tmp_path / "a", *make(), {})
    assert not list(tmp_path.iterdir())


def test_what_was_loaded_does_not_hang_on_the_file(tmp_path):
    model, optimizers = make()
    take_steps(model, optimizers, 2, seed=1)
    save_checkpoint(tmp_path / "a", model, optimizers, {"numbers": torch.ones(4000)})
    progress = load_checkpoint(tmp_path / "a", model, optimizers)
    path = tmp_path / "a" / "tensors.safetensors"
    with path.open("r+b") as file:  # in place, as another program might
        file.write(bytes(path.stat().st_size))
    assert torch.equal(progress["numbers"], torch.ones(4000))


def test_a_checkpoint_of_another_kind_of_optimizer_is_refused(tmp_path):
    model, optimizers = make()
    save_checkpoint(tmp_path / "a", model, optimizers, {})
    adamw = AdamW([model.weight], lr=0.1)
    with pytest.raises(ValueError, match="its optimizers hold"):
        load_checkpoint(tmp_path / "a", model, [adamw, optimizers[1]])
    assert not adamw.state


def test_a_schedule_that_has_marked_its_optimizer_does_not_make_it_another_one(tmp_path):
    model, optimizers = make()
    # It adds `initial_lr` to the optimizer's groups.
    _ = torch.optim.lr_scheduler.ConstantLR(optimizers[0])
    save_checkpoint(tmp_path / "a", model, optimizers, {})
    load_checkpoint(tmp_path / "a", *make())


def test_a_random_generator_goes_on(tmp_path):
    generator = torch.Generator().manual_seed(3)
    torch.rand(7, generator=generator)
    model, optimizers = make()
    save_checkpoint(tmp_path / "a", model, optimizers, {"random": generator.get_state()})
    expected = torch.rand(5, generator=generator)
    state = load_checkpoint(tmp_path / "a", model, optimizers)["random"]
    other = torch.Generator()
    other.set_state(state)
    assert torch.equal(torch.rand(5, generator=other), expected)


@pytest.mark.parametrize("broken", ["save_file", "json.dumps", "Path.rename"])
def test_an_error_leaves_nothing(tmp_path, monkeypatch, broken):
    def fail(*_, **__):
        raise OSError("No space left on device")

    if broken == "save_file":
        monkeypatch.setattr(checkpoint, "save_file", fail)
    elif broken == "json.dumps":
        monkeypatch.setattr(checkpoint.json, "dumps", fail)
    else:  # what makes the folder appear is the very last act
        monkeypatch.setattr(checkpoint.Path, "rename", fail)
    model, optimizers = make()
    with pytest.raises(OSError, match="No space"):
        save_checkpoint(tmp_path / "a", model, optimizers, {})
    assert not list(tmp_path.iterdir())


# Bad input


def test_an_existing_folder_is_not_overwritten(tmp_path):
    model, optimizers = make()
    with pytest.raises(ValueError, match=rf"folder is '{tmp_path}': it exists already"):
        save_checkpoint(tmp_path, model, optimizers, {})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("damage", ["no folder", "no tensors", "no state", "half", "other"])
def test_what_is_no_checkpoint_is_refused(tmp_path, damage):
    model, optimizers = make()
    folder = tmp_path / "a"
    if damage != "no folder":
        save_checkpoint(folder, model, optimizers, {})
        tensors, state = folder / "tensors.safetensors", folder / "state.json"
        if damage == "no tensors":
            tensors.unlink()
        elif damage == "no state":
            state.unlink()
        elif damage == "half":
            tensors.write_bytes(tensors.read_bytes()[:100])
        else:
            state.write_text("[1, 2]", encoding="utf-8")
    with pytest.raises(ValueError, match=r"folder is .*: it holds no checkpoint "):
        load_checkpoint(folder, model, optimizers)


def test_a_checkpoint_of_something_else_is_refused_and_changes_nothing(tmp_path):
    model, optimizers = make()
    take_steps(model, optimizers, 2, seed=1)
    save_checkpoint(tmp_path / "a", model, optimizers, {})
    wider, for_wider = make(width=4)
    before = copy.deepcopy(wider.state_dict())
    with pytest.raises(
        ValueError, match=r"another model, in which weight has shape \(3, 3\), not \(4, 4\)"
    ):
        load_checkpoint(tmp_path / "a", wider, for_wider)
    assert all(torch.equal(before[name], x) for name, x in wider.state_dict().items())
    fresh, others = make(seed=5)
    before = copy.deepcopy(fresh.state_dict())
    with pytest.raises(ValueError, match=r"its optimizers hold \[\[\(1, .*, not \[\[\(1, "):
        load_checkpoint(tmp_path / "a", fresh, others[:1])
    with pytest.raises(ValueError, match=r"its optimizers hold"):
        load_checkpoint(
            tmp_path / "a", fresh, [AdamW(fresh.parameters(), lr=0.1), others[1]]
        )
    assert all(torch.equal(before[name], x) for name, x in fresh.state_dict().items())
    assert not others[0].state
