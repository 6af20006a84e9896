"""Kernels that begin with their imports done: they are forked from one process, the zygote, which has done them.

Forty chapters import the same libraries, for three to five CPU-seconds each. It is done on Linux alone, since elsewhere
system libraries may not survive a fork, and with one thread, since others would not either. The proof does without: its
kernels start from nothing, and must give the same outputs.
"""

import gc
import multiprocessing.process
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterable
from contextlib import suppress
from importlib import import_module
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from typing import Any

import psutil
from jupyter_client import KernelManager
from jupyter_client.connect import KernelConnectionInfo
from jupyter_client.provisioning import LocalProvisioner

# What most chapters import, at once or late: optimizers bring torch's compiler. Nothing that starts a thread, as
# pandas does, and nothing of the book's own. ipykernel comes last: tqdm warns where it finds a notebook without widgets.
IMPORTS = (
    "matplotlib.pyplot",
    "torch._dynamo",
    "transformers.models.auto.modeling_auto",
    "transformers.models.gpt2.modeling_gpt2",
    "transformers.models.llama.modeling_llama",
    "ipykernel.kernelapp",
)
LAUNCHER = "ipykernel_launcher"
# A chapter that may set the environment, which libraries read while they are imported, or that looks at its own process.
OWN_PROCESS = re.compile(
    r"\b(environ|putenv|unsetenv|getrusage|psutil)\b|%(set_)?env\b|/proc/self"
)

# CPU-seconds of the imports, once they are done; a kernel's own clock begins when it is forked. Nearly all chapters
# import PyTorch and half of them transformers: the others are charged a second too much, rather than all three too little.
seconds_before_fork = 0.0


def may_be_forked(sources: Iterable[str]) -> bool:
    """Whether cells can do with a kernel that has imported before they begin."""
    return not any(OWN_PROCESS.search(source) for source in sources)


class Zygote:
    """A process to fork kernels from. It ends when it is closed, or with the build, and its kernels with it.

    Args:
        environment: Its environment; that of a kernel may add to it what no library reads while it is imported.
    """

    def __init__(self, environment: dict[str, str]) -> None:
        self._connection, far_end = Pipe()
        self._one_by_one = threading.Lock()
        self.process = subprocess.Popen(
            [
                sys.executable,
                "-c",
                f"from book.zygote import serve; serve({far_end.fileno()})",
            ],
            stdin=subprocess.DEVNULL,
            env=environment,
            pass_fds=[far_end.fileno()],
        )
        far_end.close()

    def provisioner(self, manager: KernelManager) -> LocalProvisioner:
        """What forks a manager's kernel, instead of starting a new Python."""
        provisioner = _Provisioner(
            kernel_id=manager.kernel_id, kernel_spec=manager.kernel_spec, parent=manager
        )
        provisioner.zygote = self
        return provisioner

    def fork(
        self, arguments: list[str], environment: dict[str, str], folder: str
    ) -> "Forked":
        """Forks what `python -m ipykernel_launcher` with these arguments would be.

        Raises:
            RuntimeError: The zygote has ended.
        """
        with self._one_by_one:
            try:
                self._connection.send((arguments, environment, folder))
                return Forked(self._connection.recv())
            except (EOFError, OSError):
                raise RuntimeError("the process to fork kernels from has ended") from None
            except psutil.NoSuchProcess:
                raise RuntimeError("a forked kernel has ended at once") from None

    def close(self) -> None:
        self.process.terminate()
        self.process.wait()
        self._connection.close()


class Forked(psutil.Process):
    """A forked kernel, with what LocalProvisioner asks of a subprocess.Popen beyond what psutil has."""

    stdin = stdout = stderr = None

    def poll(self) -> int | None:
        """None while it runs, then 0, however it ended: it is no child of this process."""
        with suppress(psutil.NoSuchProcess):
            if self.is_running() and self.status() != psutil.STATUS_ZOMBIE:
                return None
        return 0

    def send_signal(self, sig: int) -> None:
        with suppress(psutil.NoSuchProcess):
            super().send_signal(sig)


class _Provisioner(LocalProvisioner):
    zygote: Zygote

    async def launch_kernel(
        self, cmd: list[str], *, env: dict[str, str], cwd: str, **_: Any
    ) -> KernelConnectionInfo:
        arguments = cmd[cmd.index(LAUNCHER) + 1 :]
        self.process = self.zygote.fork(arguments, env, cwd)
        self.pid = self.pgid = self.process.pid
        self.cwd = cwd
        return self.connection_info


class _Stderr:
    """Whatever is sys.stderr at the time, for the handlers that libraries give their loggers while they are imported."""

    def __getattr__(self, name: str) -> Any:
        return getattr(sys.__stderr__ if sys.stderr is self else sys.stderr, name)


def serve(descriptor: int) -> None:
    """The zygote: imports, then forks a kernel for each message, until the connection ends."""
    global seconds_before_fork
    # The keyboard's interrupt reaches every process; the build ends this one.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    sys.path[:] = filter(None, sys.path)  # as ipykernel's launcher does
    connection = Connection(descriptor)
    # Both are read while ipykernel and matplotlib are imported.
    os.environ["JPY_PARENT_PID"] = str(os.getpid())
    os.environ.setdefault("MPLBACKEND", "module://matplotlib_inline.backend_inline")
    sys.stderr = _Stderr()
    # What the garbage collector never touches stays shared with the kernels.
    gc.disable()
    for name in (*IMPORTS, LAUNCHER):
        import_module(name)
    gc.freeze()
    sys.stderr = sys.__stderr__
    used = os.times()
    seconds_before_fork = used.user + used.system
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # kernels are not waited for
    while (message := _received(connection)) and (pid := os.fork()):
        connection.send(pid)
    connection.close()
    if message:
        _become_kernel(*message)


def _received(connection: Connection) -> Any:
    """The next message, None when the other side has ended."""
    with suppress(EOFError, ConnectionError):
        return connection.recv()
    return None


def _become_kernel(arguments: list[str], environment: dict[str, str], folder: str) -> None:
    os.setsid()
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    multiprocessing.process.ORIGINAL_DIR = folder  # where its own children begin
    sys.argv = [sys.modules[LAUNCHER].__file__, *arguments]
    gc.enable()
    sys.modules["ipykernel.kernelapp"].launch_new_instance()
