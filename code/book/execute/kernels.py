"""Executes one chapter in a kernel of its own, measures it, and reports how it failed."""

import copy
import json
import os
import re
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import psutil
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError
from nbformat import NotebookNode

from book.execute.budgets import LEAST_TIME_LIMIT, TIME_LIMIT, time_limit
from book.read.chapters import Source

# Evaluated in the kernel after the last cell, and kept out of the notebook. VmHWM comes first: ru_maxrss
# starts from the peak of the process that started the kernel.
_USAGE = """
def _book_usage():
    import json, os, re, sys
    used = os.times()
    try:
        with open("/proc/self/status") as status:
            peak = int(re.search(r"VmHWM:\\s+(\\d+)", status.read())[1]) * 1024
    except (OSError, TypeError):
        try:
            import resource
            unit = 1 if sys.platform == "darwin" else 1024
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
        except ImportError:
            import psutil
            peak = psutil.Process().memory_info().peak_wset
    seconds = used.user + used.system + used.children_user + used.children_system
    return json.dumps({"cpu_seconds": round(seconds, 2), "peak_memory_gib": round(peak / 2**30, 3)})
"""

# What decides on outputs, the same on every machine: one thread each and fixed hashes, so that two executions give
# equal numbers, and no network.
SETTINGS = {
    **dict.fromkeys(["OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"], "1"),
    **dict.fromkeys(["HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "TQDM_DISABLE"], "1"),
    "TOKENIZERS_PARALLELISM": "false",
    "PYTHONHASHSEED": "0",
    "COLUMNS": "80",
    "PYDEVD_DISABLE_FILE_VALIDATION": "1",
}

_running: set[NotebookClient] = set()
_stopped = threading.Event()


class ChapterFailed(Exception):
    """A cell of a chapter raised or ran too long, or its kernel died; `details` holds the kernel's traceback."""

    def __init__(self, message: str, details: str) -> None:
        super().__init__(message)
        self.details = details


def kernel_environment(root: Path) -> dict[str, str]:
    """The environment of every kernel, the same in the build and in the proof.

    It holds `SETTINGS`, and kernels write no file outside the book's `_build` and the user's cache.
    """
    home = root / "_build" / ".home"
    # IPython takes a temporary folder where the parent is missing.
    home.mkdir(parents=True, exist_ok=True)
    environment = dict(os.environ)
    # Many containers set it: every kernel would compile torch and transformers anew, for more than two seconds.
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    environment |= {
        **SETTINGS,
        "IPYTHONDIR": str(home / "ipython"),
        "JUPYTER_CONFIG_DIR": str(home / "jupyter" / "config"),
        "JUPYTER_DATA_DIR": str(home / "jupyter" / "data"),
        "JUPYTER_RUNTIME_DIR": str(home / "jupyter" / "runtime"),
        "MPLCONFIGDIR": str(home / "matplotlib"),
    }
    # The package whose sources the cache looks at must be the one that the kernel imports.
    path = [
        str(root / "code"),
        *filter(None, environment.get("PYTHONPATH", "").split(os.pathsep)),
    ]
    environment["PYTHONPATH"] = os.pathsep.join(dict.fromkeys(path))
    return environment


def execute(
    chapter: Source, environment: dict[str, str], limit: float | None = None
) -> tuple[NotebookNode, dict[str, Any]]:
    """Executes a chapter in a temporary working directory.

    Args:
        limit: After how many seconds by the clock the chapter is ended; `time_limit(chapter)` where None.

    Returns:
        The notebook with its outputs, and its record: CPU-seconds, wall seconds, peak memory, checks, the keys of
        questions, and the conditions of claims.

    Raises:
        ChapterFailed: A cell raised an exception it is not tagged for, the kernel died, or the limit was reached.
    """
    limit = time_limit(chapter) if limit is None else limit
    notebook = copy.deepcopy(chapter.notebook)
    client = NotebookClient(
        notebook,
        # Of a cell. nbclient takes 0 and less for no limit.
        timeout_func=lambda cell: max(0.001, start + limit - time.perf_counter()),
        record_timing=False,
        coalesce_streams=True,
        # On a busy machine the rest of the output may come long after the answer.
        iopub_timeout=60,
        raise_on_iopub_timeout=True,
        # Nothing is left to be done, and to unload what a chapter has imported takes more than a second.
        shutdown_kernel="immediate",
    )
    # Else each warns that loopback is not encrypted.
    client.extra_arguments = ["--log-level=CRITICAL"]
    start = time.perf_counter()
    with (
        TemporaryDirectory(prefix="llm-learn-") as folder,
        _kernel(client, environment, folder),
    ):
        info = client.wait_for_reply(client.kc.kernel_info())
        notebook.metadata["language_info"] = info["content"]["language_info"]
        number = 0
        for index, cell in enumerate(notebook.cells):
            number += cell.cell_type == "code"
            try:
                client.execute_cell(
                    cell, index, execution_count=client.code_cells_executed + 1
                )
            except CellExecutionError as error:
                problem = f"{error.ename}: {error.evalue}"
                raise ChapterFailed(
                    _describe(chapter, number, problem), str(error)
                ) from None
            except CellTimeoutError as error:
                if time.perf_counter() - start >= limit:
                    problem = (
                        f"the chapter was ended here, after {limit:g} seconds: it may take {TIME_LIMIT} times its "
                        f"budget, and at least {LEAST_TIME_LIMIT:g} seconds"
                    )
                    _kill(_processes(client))
                else:
                    problem = "the kernel did not send the end of its output"
                raise ChapterFailed(
                    _describe(chapter, number, problem), str(error)
                ) from None
            except (DeadKernelError, RuntimeError) as error:
                problem = f"the kernel died ({error}); too little memory is the usual cause"
                raise ChapterFailed(
                    _describe(chapter, number, problem), str(error)
                ) from None
        usage = _usage(client)
    return notebook, {
        **usage,
        "wall_seconds": round(time.perf_counter() - start, 2),
        "checks": _recorded(notebook, "check"),
        "answers": {a["name"]: a["key"] for a in _recorded(notebook, "answer")},
        "claims": {c["name"]: c["conditions"] for c in _recorded(notebook, "claim")},
    }


def _recorded(notebook: NotebookNode, kind: str) -> list[dict[str, Any]]:
    """What the cells recorded of this kind, in their order."""
    key = f"llm_learn_{kind}"
    outputs = (output for cell in notebook.cells for output in cell.get("outputs", ()))
    return [o.metadata[key] for o in outputs if key in o.get("metadata", {})]


def stop_all() -> None:
    """Kills every running kernel, so that an interrupted build leaves nothing behind."""
    _stopped.set()
    for client in list(_running):
        _kill(_processes(client))


def _processes(client: NotebookClient) -> list[psutil.Process]:
    """A kernel and the processes that it started; none where it has ended."""
    pid = getattr(getattr(client.km, "provisioner", None), "pid", None)
    with suppress(psutil.NoSuchProcess):
        if pid:
            kernel = psutil.Process(pid)
            return [kernel, *kernel.children(recursive=True)]
    return []


def _kill(processes: list[psutil.Process]) -> None:
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.kill()


@contextmanager
def _kernel(
    client: NotebookClient, environment: dict[str, str], folder: str
) -> Iterator[None]:
    _running.add(client)
    stack = ExitStack()
    try:
        for attempts_left in (2, 1, 0):
            try:
                if _stopped.is_set():
                    raise ChapterFailed("the build was interrupted", "")
                stack.enter_context(client.setup_kernel(env=environment, cwd=folder))
                break
            # Its ports are chosen before it takes them: another process may have been faster.
            except RuntimeError:
                if not attempts_left:
                    raise
        yield
    finally:
        stack.close()
        _running.discard(client)


def _usage(client: NotebookClient) -> dict[str, float]:
    message = client.kc.execute(
        _USAGE, silent=True, user_expressions={"usage": "_book_usage()"}
    )
    answer = client.wait_for_reply(message)["content"]["user_expressions"]["usage"]
    if answer["status"] != "ok":
        raise ChapterFailed(
            f"cannot measure the kernel: {answer['ename']}: {answer['evalue']}", ""
        )
    return json.loads(answer["data"]["text/plain"].strip("'"))


def _describe(chapter: Source, number: int, problem: str) -> str:
    cell = chapter.cells[number - 1]
    place = f"{chapter.docname}.md, code cell {number}, line {cell.line}"
    lines = cell.source.strip().splitlines()
    shown = [*lines[:4], "…"] if len(lines) > 4 else lines
    problem = re.sub(r"\x1b\[[0-9;]*m", "", problem)
    return "\n".join([place, *(f"    {text}" for text in shown), f"  {problem}"])
