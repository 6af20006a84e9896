"""Files and folders are written completely or not at all."""

import json

import pytest

from llm_learn.atomic_files import new_folder, replacing, write_json


def test_a_file_keeps_its_suffix_while_it_is_written_and_takes_its_place_at_the_end(
    tmp_path,
):
    path = tmp_path / "losses.png"
    path.write_bytes(b"the last one")
    with replacing(path) as new:
        assert new.suffix == ".png" and new.parent == tmp_path
        new.write_bytes(b"the new one")
        assert path.read_bytes() == b"the last one"
    assert [p.read_bytes() for p in tmp_path.iterdir()] == [b"the new one"]


def test_a_file_that_cannot_be_written_leaves_the_last_one(tmp_path):
    path = tmp_path / "losses.png"
    path.write_bytes(b"the last one")
    with pytest.raises(OSError), replacing(path) as new:
        new.write_bytes(b"half")
        raise OSError
    assert [p.read_bytes() for p in tmp_path.iterdir()] == [b"the last one"]


def test_a_value_that_json_cannot_hold_leaves_the_last_file(tmp_path):
    write_json(tmp_path / "a.json", {"x": [1, 2]})
    with pytest.raises(TypeError):
        write_json(tmp_path / "a.json", {"x": object()})
    assert json.loads((tmp_path / "a.json").read_text()) == {"x": [1, 2]}
    assert len(list(tmp_path.iterdir())) == 1


def test_a_folder_that_cannot_be_filled_is_gone(tmp_path):
    with pytest.raises(OSError), new_folder(tmp_path / "run") as folder:
        (folder / "a").write_text("a")
        raise OSError
    assert not list(tmp_path.iterdir())
    with new_folder(tmp_path / "run") as folder:
        (folder / "a").write_text("a")
    assert [p.name for p in tmp_path.rglob("*")] == ["run", "a"]
