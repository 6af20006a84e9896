"""The clean environment of the proof: the package with its extras, a kernel, and nothing of the book's own tools.

It holds what a reader gets from a notebook's install cell. An import that only the book's environment satisfies, or a
file that is missing from the installed package, fails here instead of in Colab.

The package is built and installed by pip. What it asks for comes from the book's environment, whose files are linked,
not copied: other versions could round differently, and the proof compares digits.
"""

import hashlib
import importlib.metadata as metadata
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import venv
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from book.files import write_atomically
from book.source import project

KERNEL = "llm-learn-clean"
PACKAGE = "llm-learn"
# The kernel is Jupyter's; figures come from IPython and matplotlib.
TOOLS = ["ipykernel"]


class CannotPrepare(Exception):
    """The clean environment could not be made."""


def prepare(root: Path) -> Path:
    """Makes the environment, or brings it up to date, and registers its kernel.

    Returns:
        Its Python.

    Raises:
        CannotPrepare: the package cannot be installed, or asks for what is not installed here.
    """
    folder = root / "_build" / ".clean"
    python = folder / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")
    wanted = {
        "environment": _digest(
            sys.version,
            *sorted(f"{d.name}=={d.version}" for d in metadata.distributions()),
            *(root / "pyproject.toml").read_text(encoding="utf-8").splitlines(),
        ),
        "package": _digest(*_package_texts(root)),
    }
    stamp = folder / "installed.json"
    found = _read_stamp(stamp)
    # What is interrupted from here on must not pass for installed.
    stamp.unlink(missing_ok=True)
    if found.get("environment") != wanted["environment"]:
        print("A clean environment for the proof: the package with its extras", flush=True)
        # Its own pip would be one more thing that a notebook could lean on.
        venv.create(folder, clear=True, with_pip=False)
        _install_package(root, python)
        _link(required([*_requirements(root, folder), *TOOLS]), folder)
    elif found.get("package") != wanted["package"]:
        _install_package(root, python)
    _check(python, folder)
    write_atomically(stamp, json.dumps(wanted))
    _register(root, python)
    return python


def required(requirements: Iterable[str]) -> list[metadata.Distribution]:
    """What is installed here and needed by `requirements`, directly or not; extras and markers count as for pip.

    Raises:
        CannotPrepare: something is not installed here, or in a version that does not fit.
    """
    found: dict[str, metadata.Distribution] = {}
    seen = set()
    left = [(Requirement(text), "") for text in requirements]
    while left:
        requirement, extra = left.pop()
        if requirement.marker and not requirement.marker.evaluate({"extra": extra}):
            continue
        name = canonicalize_name(requirement.name)
        try:
            found[name] = distribution = found.get(name) or metadata.distribution(name)
        except metadata.PackageNotFoundError:
            raise CannotPrepare(
                f"{requirement} is needed, and not installed here"
            ) from None
        if not requirement.specifier.contains(distribution.version, prereleases=True):
            raise CannotPrepare(
                f"{requirement} is needed; {distribution.version} is installed"
            )
        for wanted in {"", *requirement.extras} - {e for n, e in seen if n == name}:
            seen.add((name, wanted))
            left += [(Requirement(text), wanted) for text in distribution.requires or ()]
    return list(found.values())


def _requirements(root: Path, folder: Path) -> list[str]:
    """What the package that is installed in `folder` asks for, with all of its extras."""
    (package,) = metadata.distributions(name=PACKAGE, path=[str(_site(folder))])
    chosen = []
    for text in package.requires or ():
        requirement = Requirement(text)
        marker, requirement.marker = requirement.marker, None
        if not marker or any(marker.evaluate({"extra": e}) for e in ("", *extras(root))):
            chosen.append(str(requirement))
    return chosen


def _link(distributions: Iterable[metadata.Distribution], folder: Path) -> None:
    site = _site(folder)
    for distribution in distributions:
        if distribution.files is None:
            raise CannotPrepare(
                f"{distribution.name} has no list of its files: install it by pip"
            )
        for file in distribution.files:
            # Commands and the like, beside what can be imported.
            if ".." in file.parts or file.suffix == ".pyc":
                continue
            source, target = Path(distribution.locate_file(file)), site / file
            target.parent.mkdir(parents=True, exist_ok=True)
            try:
                os.link(source, target)
            except FileExistsError:
                pass  # two distributions hold it, in a folder that they share
            except OSError:
                shutil.copy2(source, target)  # another disk, or no links at all


def _site(folder: Path) -> Path:
    return Path(sysconfig.get_path("purelib", "venv", {"base": str(folder)}))


def extras(root: Path) -> list[str]:
    """The names of the package's extras."""
    return sorted(project(root).get("optional-dependencies", {}))


def _read_stamp(stamp: Path) -> dict:
    """What is installed; empty where nobody knows."""
    try:
        found = json.loads(stamp.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


@contextmanager
def _source(root: Path) -> Iterator[Path]:
    """A copy of what the package is built from: setuptools would keep files there that were deleted since."""
    with TemporaryDirectory(prefix="llm-learn-") as folder:
        source = Path(folder)
        for name in ("pyproject.toml", "README.md", "LICENSE"):
            shutil.copy(root / name, source)
        for name in ("code/llm_learn", "experiments"):
            shutil.copytree(
                root / name, source / name, ignore=shutil.ignore_patterns("__pycache__")
            )
        yield source


def _check(python: Path, folder: Path) -> None:
    """Refuses an environment that would prove the checkout instead of the installed package."""
    code = "import importlib.util as u; print(u.find_spec('llm_learn').origin, u.find_spec('book'))"
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    command = [str(python), "-c", code]
    result = subprocess.run(
        command, capture_output=True, text=True, cwd=folder, env=environment
    )
    if not result.stdout.startswith(str(folder)) or not result.stdout.endswith(" None\n"):
        raise CannotPrepare(
            f"the clean environment is not clean: {result.stdout.strip() or result.stderr.strip()}"
        )


def _install_package(root: Path, python: Path) -> None:
    with _source(root) as source:
        # Built by what is installed here: pip alone would fetch its tools, and need a network each time.
        wheels = source / "wheels"
        _pip("wheel", "--no-build-isolation", "--wheel-dir", str(wheels), str(source))
        _pip("install", "--force-reinstall", *map(str, wheels.iterdir()), python=python)


def _pip(command: str, *arguments: str, python: Path | None = None) -> None:
    """pip of this environment, at work in that of `python`."""
    pip = [sys.executable, "-m", "pip", *(["--python", str(python)] if python else [])]
    pip += [command, "--quiet", "--no-deps", *arguments]
    result = subprocess.run(pip, capture_output=True, text=True)
    if result.returncode:
        raise CannotPrepare(
            f"the clean environment of the proof could not be installed:\n{result.stderr.strip()}"
        )


def _package_texts(root: Path) -> list[str]:
    files = [
        *(root / "code" / "llm_learn").rglob("*.py"),
        *(root / "experiments").glob("*.json"),
    ]
    return [
        f"{f.relative_to(root)}\n{f.read_text(encoding='utf-8')}" for f in sorted(files)
    ]


def _digest(*texts: str) -> str:
    return hashlib.sha256("\0".join(texts).encode()).hexdigest()


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
    (folder / "kernel.json").write_text(
        json.dumps(specification, indent=1), encoding="utf-8"
    )
