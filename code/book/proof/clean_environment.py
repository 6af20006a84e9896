"""The clean environment of the proof: the package, its extras and a kernel, without the book's tools.

It holds what a reader gets from a notebook's install cell. An import that only the book's environment satisfies, or a
file that is missing from the installed package, fails here instead of in Colab.

pip builds and installs the package. Its requirements are linked from the book's environment instead of being installed:
the proof compares digits, which other versions could round differently, and it needs no network.
"""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import venv
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path
from tempfile import TemporaryDirectory

from book.atomic_files import write_atomically
from book.execute.fingerprint import closure
from book.read.chapters import project

KERNEL = "llm-learn-clean"
# What the package is built from.
FILES = ("pyproject.toml", "README.md", "LICENSE")
FOLDERS = ("code/llm_learn", "experiments")


class CannotPrepare(Exception):
    """The clean environment could not be made."""


def prepare(root: Path) -> Path:
    """Makes the environment where there is none or something has changed since, and registers its kernel.

    Returns:
        Its Python.

    Raises:
        CannotPrepare: the package cannot be installed, or asks for what is not installed here.
    """
    folder = root / "_build" / ".clean"
    python = folder / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")
    stamp, digest = folder / "installed", _digest(root)
    if not stamp.is_file() or stamp.read_text(encoding="utf-8") != digest:
        print("A clean environment for the proof: the package with its extras", flush=True)
        # Its own pip would be one more thing that a notebook could lean on.
        venv.create(folder, clear=True, with_pip=False)
        site = Path(sysconfig.get_path("purelib", "venv", {"base": str(folder)}))
        _install_package(root, site)
        extras = project(root).get("optional-dependencies", {}).values()
        needed = [*project(root)["dependencies"], *(r for each in extras for r in each)]
        _link(map(metadata.distribution, closure([*needed, "ipykernel"])), site)
        write_atomically(stamp, digest)
    _register(root, python)
    return python


def _digest(root: Path) -> str:
    """Of what the environment is made from: this Python, what is installed here, and the package's files."""
    found = sorted(f"{each.name}=={each.version}" for each in metadata.distributions())
    digest = hashlib.sha256("\n".join([sys.version, *found]).encode())
    files = [root / name for name in FILES]
    for name in FOLDERS:
        files += [path for path in sorted((root / name).rglob("*")) if path.is_file()]
    for path in files:
        if path.suffix != ".pyc":
            digest.update(f"\n{path.relative_to(root)}\n".encode() + path.read_bytes())
    return digest.hexdigest()


def _install_package(root: Path, site: Path) -> None:
    # A copy: setuptools would leave its files among the sources, and keep there what was deleted since.
    with TemporaryDirectory(prefix="llm-learn-") as source:
        for name in FILES:
            shutil.copy(root / name, source)
        for name in FOLDERS:
            shutil.copytree(root / name, Path(source, name))
        extras = ",".join(project(root).get("optional-dependencies", {}))
        # Everything that it asks for must be installed here, in a version that fits.
        _pip("--dry-run", "--no-index", f"{source}[{extras}]")
        _pip("--no-deps", "--target", str(site), source)


def _pip(*arguments: str) -> None:
    # Built by what is installed here: pip alone would fetch its tools, and need a network each time.
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-build-isolation"]
    result = subprocess.run([*pip, *arguments], capture_output=True, text=True)
    if result.returncode:
        raise CannotPrepare(
            f"the clean environment of the proof could not be installed:\n{result.stderr.strip()}"
        )


def _link(distributions: Iterable[metadata.Distribution], site: Path) -> None:
    for distribution in distributions:
        if distribution.files is None:
            raise CannotPrepare(
                f"{distribution.name} has no list of its files: install it by pip"
            )
        for file in distribution.files:
            # Commands and the like, beside what can be imported.
            if ".." in file.parts or file.suffix == ".pyc":
                continue
            source, target = Path(str(distribution.locate_file(file))), site / file
            target.parent.mkdir(parents=True, exist_ok=True)
            try:
                os.link(source, target)
            except FileExistsError:
                pass  # two distributions hold it, in a folder that they share
            except OSError:
                shutil.copy2(source, target)  # another disk, or no links at all


def _register(root: Path, python: Path) -> None:
    folder = root / "_build" / ".home" / "jupyter" / "data" / "kernels" / KERNEL
    folder.mkdir(parents=True, exist_ok=True)
    command = [str(python), "-m", "ipykernel_launcher", "--log-level=CRITICAL"]
    specification = {
        "argv": [*command, "-f", "{connection_file}"],
        "display_name": "LLM Learn, installed",
        "language": "python",
        # Empty, or the checkout's sources would hide the installed package.
        "env": {"PYTHONPATH": ""},
    }
    (folder / "kernel.json").write_text(json.dumps(specification), encoding="utf-8")
