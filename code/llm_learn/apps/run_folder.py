"""Helpers that the commands share: options, the folder that holds one run, and errors in one line."""

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from llm_learn.assets import AssetError
from llm_learn.atomic_files import new_folder, write_json
from llm_learn.distributed import DistributedContext, init_distributed


def command_parser(name: str, **texts: Any) -> argparse.ArgumentParser:
    """The options of every command; those that are not given are missing from what it parses."""
    made = argparse.ArgumentParser(
        prog=f"python -m llm_learn.{name}", argument_default=argparse.SUPPRESS, **texts
    )
    made.add_argument("--out", required=True, type=Path, help="the run's folder")
    device_help = "cpu (default), or cuda: a GPU for each process"
    made.add_argument("--device", choices=["cpu", "cuda"], help=device_help)
    return made


def exit_status(work: Callable[[DistributedContext], int], device: str) -> int:
    """What `work` returns for this process, or 2 after an error; of several processes the first one reports it."""
    dist_context = DistributedContext()
    with ExitStack() as stack:
        try:
            dist_context = stack.enter_context(init_distributed(device))
            return work(dist_context)
        except (ValueError, OSError, AssetError) as error:
            if dist_context.is_main_process:
                print(f"error: {error}", file=sys.stderr)
            return 2


def check_free(folder: Path, more: str) -> None:
    """Refuses a folder that holds something; `more` ends the message."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"--out is {str(folder)!r}: it exists{more}")


@contextmanager
def new_run(folder: Path, name: str, settings: dict) -> Iterator[Path]:
    """A run's folder to fill, with its settings in the file of that name: all of it or nothing."""
    with new_folder(folder) as temporary:
        yield temporary
        write_json(temporary / name, settings)
        if folder.exists():
            folder.rmdir()  # empty; on Windows nothing can be renamed onto it


def begun_with(path: Path, given: dict) -> dict:
    """The settings that a run was begun with, which `given` may repeat and not change."""
    settings = json.loads(path.read_text(encoding="utf-8"))
    for name, value in given.items():
        if settings.get(name) != value:
            raise ValueError(
                f"{name} is {value}: the run in {str(path.parent)!r} was begun with {settings.get(name)}"
            )
    return settings
