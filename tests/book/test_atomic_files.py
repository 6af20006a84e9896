"""Files are replaced whole, or not at all."""

import pytest

from book.atomic_files import write_atomically


def test_a_file_is_replaced_and_keeps_its_mode(tmp_path):
    path = tmp_path / "new/file.md"
    write_atomically(path, "one")
    path.chmod(0o640)
    link = tmp_path / "link.md"
    link.symlink_to(path)
    write_atomically(link, "two é")
    assert link.is_symlink() and path.read_bytes() == "two é".encode()
    assert path.stat().st_mode & 0o777 == 0o640
    assert [p.name for p in path.parent.iterdir()] == ["file.md"]


def test_what_is_interrupted_leaves_the_old_file(tmp_path):
    path = tmp_path / "file.md"
    write_atomically(path, "old")
    with pytest.raises(UnicodeEncodeError):
        write_atomically(path, "half " * 9999 + "\ud800")
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]
