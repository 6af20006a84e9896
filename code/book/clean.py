"""The clean environment of the proof: the package with its extras, a kernel, and nothing of the book's own tools.

It is what a reader gets from a notebook's install cell. An import that only the book's environment satisfies, or a
file that is missing from the installed package, fails here instead of in Colab.
"""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import venv
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from book.files import write_atomically
from book.source import project

KERNEL = "llm-learn-clean"
# The kernel is Jupyter's; figures come from IPython and matplotlib.
TOOLS = ["ipykernel"]


class CannotPrepare(Exception):
    """The clean environment could not be made; the message is pip's."""


def prepare(root: Path) -> Path:
    """Makes the environment, or brings it up to date, and registers its kernel.

    Returns:
        Its Python.
    """
    folder = root / "_build" / ".clean"
    python = folder / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")
    constraints = _installed_here()
    wanted = {
        "environment": _digest(
            sys.version, constraints, *(root / "pyproject.toml").read_text().splitlines()
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
        (folder / "constraints.txt").write_text(constraints, encoding="utf-8")
        with _source(root) as source:
            needed = [f"{source}[{','.join(extras(root))}]", *TOOLS]
            _pip(python, "--constraint", str(folder / "constraints.txt"), *needed)
    elif found.get("package") != wanted["package"]:
        with _source(root) as source:
            _pip(python, "--no-deps", "--force-reinstall", str(source))
    _check(python, folder)
    write_atomically(stamp, json.dumps(wanted))
    _register(root, python)
    return python


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


def _pip(python: Path, *arguments: str) -> None:
    command = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet"]
    # Half of pip's time would go into compiling 22,000 files, of which the kernels import few.
    command += ["--no-compile", *arguments]
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode:
        raise CannotPrepare(
            f"the clean environment of the proof could not be installed:\n{result.stderr.strip()}"
        )


def _installed_here() -> str:
    """The versions of the book's environment: other ones could round differently, and the proof compares digits."""
    command = [sys.executable, "-m", "pip", "freeze", "--exclude-editable"]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    # A checkout lists itself, too; it is what will be installed.
    other = (
        n for n in lines.splitlines() if " @ " not in n and not n.startswith("llm-learn")
    )
    return "\n".join(other) + "\n"


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
