"""`python -m book lab`: opens the chapters as notebooks in JupyterLab."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from book.execute.kernels import kernel_environment

SETTINGS = {
    "@jupyterlab/docmanager-extension:plugin": {
        "defaultViewers": {"markdown": "Jupytext Notebook", "myst": "Jupytext Notebook"}
    },
    "@jupyterlab/apputils-extension:notification": {
        "checkForUpdates": False,
        "fetchNews": "false",
    },
}


def main(argv: Sequence[str], root: Path) -> int:
    """`python -m book lab`: further arguments go to `jupyter lab`; gives its exit status."""
    environment = kernel_environment(root)
    # A reader at the keyboard wants progress bars, and may go online.
    for name in ("TQDM_DISABLE", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
        environment.pop(name)
    # JupyterLab asks npm for its settings, and npm would keep a log of that in the home folder.
    environment["npm_config_cache"] = str(root / "_build" / ".home" / "npm")
    folder = Path(environment["JUPYTER_CONFIG_DIR"], "labconfig")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "default_setting_overrides.json").write_text(
        json.dumps(SETTINGS, indent=1), encoding="utf-8"
    )
    print("JupyterLab shows the chapters; Ctrl-C here stops it.", flush=True)
    command = [
        sys.executable,
        "-m",
        "jupyterlab",
        f"--ServerApp.root_dir={root / 'chapters'}",
        *argv,
    ]
    if sys.platform == "win32":
        # There `execve` starts a second process and ends this one, so the prompt would return at once.
        return subprocess.run(command, env=environment, check=False).returncode
    os.execve(sys.executable, command, environment)
