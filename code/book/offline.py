"""Runs a command without a route to any host but loopback, where the machine allows it.

This file, run as a script with a command behind it, enters a new network namespace (Linux), brings its
loopback up, and becomes the command. Where that is refused, `run` sets the switches that well-behaved
libraries obey, and says so. On GitHub's Linux runners, which publish the site, a refusal is an error.
"""

import ctypes
import os
import socket
import struct
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

_NEW_USER, _NEW_NET = 0x10000000, 0x40000000  # CLONE_NEWUSER, CLONE_NEWNET
_GET_FLAGS, _SET_FLAGS, _UP = 0x8913, 0x8914, 0x1  # SIOCGIFFLAGS, SIOCSIFFLAGS, IFF_UP
# The exit status of a refusal, apart from failures of our own: a bug must not look like a machine's limits.
_REFUSED = 77
# `-P`: the folder of this file holds modules that are none of the command's business.
WRAPPER = (sys.executable, "-P", str(Path(__file__).resolve()))
# Port 9 is "discard": nothing listens there, so a request through it fails at once.
_CLOSED = "http://127.0.0.1:9"


def switches() -> dict[str, str]:
    """Environment variables that keep pip, the Hugging Face libraries and HTTP clients from the network."""
    proxies = ("http_proxy", "https_proxy", "ftp_proxy", "all_proxy")
    return {
        **dict.fromkeys(
            [
                "HF_HUB_OFFLINE",
                "TRANSFORMERS_OFFLINE",
                "HF_DATASETS_OFFLINE",
                "PIP_NO_INDEX",
            ],
            "1",
        ),
        **dict.fromkeys([*proxies, *map(str.upper, proxies)], _CLOSED),
        **dict.fromkeys(["no_proxy", "NO_PROXY"], "localhost,127.0.0.1,::1"),
    }


def isolate() -> None:
    """Moves this process into a network namespace that has loopback only.

    Raises:
        OSError: The machine refuses, or has no such thing.
    """
    if sys.platform != "linux":
        raise OSError(f"{sys.platform} has no network namespaces")
    user, group = os.getuid(), os.getgid()
    libc = ctypes.CDLL(None, use_errno=True)
    # Root needs no user namespace, and may lack the right to write its maps; others need one to be allowed.
    if libc.unshare(_NEW_NET) != 0:
        if libc.unshare(_NEW_USER | _NEW_NET) != 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"{user} {user} 1")
        Path("/proc/self/gid_map").write_text(f"{group} {group} 1")
    _loopback_up()


def _loopback_up() -> None:
    import fcntl

    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as channel:
        request = struct.pack("16sh14x", b"lo", 0)
        flags = struct.unpack("16sh14x", fcntl.ioctl(channel, _GET_FLAGS, request))[1]
        fcntl.ioctl(channel, _SET_FLAGS, struct.pack("16sh14x", b"lo", flags | _UP))


def refusal() -> str | None:
    """Why the machine cannot isolate a command, or None where it can."""
    done = subprocess.run(
        [*WRAPPER, sys.executable, "-c", ""], capture_output=True, text=True, check=False
    )
    if done.returncode not in (0, _REFUSED):
        raise RuntimeError(f"the offline wrapper failed: {done.stderr.strip()}")
    return done.stderr.strip() if done.returncode else None


def run(command: Sequence[str], environment: Mapping[str, str]) -> int:
    """Runs the command offline, prints by which means, and returns its exit status.

    On GitHub's Linux runners it runs nothing, and returns 1, where the machine refuses a namespace.
    """
    reason = refusal()
    if reason and os.environ.get("GITHUB_ACTIONS") and sys.platform == "linux":
        print(
            f"Not run: this machine isolates no network ({reason}), and what is published must be proved without "
            "one. Allow network namespaces before: sudo sysctl -w kernel.apparmor_restrict_unprivileged_userns=0",
            file=sys.stderr,
            flush=True,
        )
        return 1
    if reason is None:
        print("Offline: the kernels have no route to any host but loopback.", flush=True)
        command = [*WRAPPER, *command]
    else:
        environment = {**environment, **switches()}
        print(
            f"Offline switches only: this machine isolates no network ({reason}).",
            flush=True,
        )
    return subprocess.run(command, env=environment, check=False).returncode


if __name__ == "__main__":
    try:
        isolate()
    except OSError as error:
        print(error.strerror or error, file=sys.stderr)
        sys.exit(_REFUSED)
    os.execvp(sys.argv[1], sys.argv[1:])
