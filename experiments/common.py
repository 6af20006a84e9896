"""What recorded experiments share: the definitions of their chapter, and the head of a record."""

import ast
import platform
import subprocess
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import torch

from llm_learn.atomic_files import write_json

ROOT = Path(__file__).parents[1]


def definitions(slug: str) -> SimpleNamespace:
    """What a chapter imports and defines, so that an experiment runs the very code of the page.

    Imports, functions, classes, and what is given a name with a capital, constants and types, are executed; everything
    else of the chapter is left out.

    Args:
        slug: part/name, such as `decoder/positions`.
    """
    from book.read.chapters import read_source  # `make experiment` puts code/ on the path

    kept = []
    for cell in read_source(ROOT / "chapters" / f"{slug}.md").cells:
        if not any("exercise" in tag for tag in cell.tags):
            kept += [node for node in ast.parse(cell.source).body if _defines(node)]
    namespace = {"__name__": slug}
    exec(compile(ast.Module(kept, type_ignores=[]), slug, "exec"), namespace)
    return SimpleNamespace(**namespace)


def _defines(node: ast.stmt) -> bool:
    if isinstance(node, ast.Assign):
        names = [
            name.id
            for target in node.targets
            for name in ast.walk(target)
            if isinstance(name, ast.Name)
        ]
        return all(name[0].isupper() for name in names)
    kinds = (ast.Import, ast.ImportFrom, ast.ClassDef)
    kinds += (ast.FunctionDef, ast.AsyncFunctionDef)
    return isinstance(node, kinds)


def head(data: str, seeds: list[int]) -> dict:
    """What every record says first: data, commit, versions, machine, seeds."""
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
    ).stdout
    return {
        "data": data,
        "commit": commit.strip(),
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__.split("+")[0],
        },
        "machine": f"{platform.machine()}, one thread",
        "seeds": seeds,
    }


def record_parts(
    parts: Sequence[Callable[[int], dict]], data: str, seeds: list[int], path: Path
) -> None:
    """Runs the parts of an experiment with each seed, in two processes, and writes their record.

    Args:
        parts: functions of a module, each from a seed to what was found; the record has them by their names.
        data, seeds: as for `head`.
        path: the record.
    """
    with ProcessPoolExecutor(2) as pool:
        record = head(data, seeds)
        if taken := record.keys() & {part.__name__ for part in parts}:
            raise ValueError(
                f"parts has {sorted(taken)}, names that the head of a record has already"
            )
        done = {part: [] for part in parts}
        for seed in seeds:
            for part in parts:
                done[part].append(pool.submit(part, seed))
        record |= {
            part.__name__: [future.result() for future in futures]
            for part, futures in done.items()
        }
    write_json(path, record)
