"""Runs a command without access to any host but loopback, where the machine allows it.

On Linux that is a new network namespace. Where it is refused, `run` sets the switches that well-behaved libraries obey,
and says so. On GitHub's Linux runners, which publish the site, a refusal is an error.
"""

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence

# Root needs no user namespace, and may lack the right to map users into one; others need one to be allowed.
_USER_NAMESPACE = [] if getattr(os, "geteuid", lambda: 0)() == 0 else ["--map-root-user"]
# A new namespace has a loopback that is down.
_LOOPBACK = ["sh", "-c", 'ip link set lo up && exec "$@"', "offline"]
WRAPPER = ("unshare", "--net", *_USER_NAMESPACE, *_LOOPBACK)
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


def refusal() -> str | None:
    """Why the machine cannot isolate a command, or None where it can."""
    if sys.platform != "linux":
        return f"{sys.platform} has no network namespaces"
    command = [*WRAPPER, "true"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return "the command `unshare` of util-linux is missing"
    return done.stderr.strip() or "no reason given" if done.returncode else None


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
