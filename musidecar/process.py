"""Child processes that cannot outlive their parent, whatever kills it.

Linux sends the death signal when the *thread* that spawned the child ends: spawn from the main thread.
"""

import ctypes
import os
import signal
import subprocess
import sys
from typing import IO

_PR_SET_PDEATHSIG = 1


def die_with_parent(parent_pid: int) -> None:
    """Let the kernel kill this process (SIGKILL) when its parent ends. Exits at once if the parent is gone already."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")
    if os.getppid() != parent_pid:
        sys.exit(1)


def musidecar_command(*arguments: str) -> list[str]:
    """The command line that runs this program again, whatever folder it is run from."""
    return [sys.executable, "-P", "-m", "musidecar", *arguments]


def spawn_node(config: os.PathLike[str], node_id: int, output: IO[bytes], *options: str) -> subprocess.Popen[bytes]:
    """`musidecar run` as a child that dies with the calling thread, in a process group of its own.

    In a group of its own, so that Ctrl-C reaches the parent only, which then ends its nodes in order.
    """
    command = musidecar_command("run", "--config", os.fspath(config), "--node", str(node_id), *options)
    return subprocess.Popen(
        [*command, "--parent-pid", str(os.getpid())],
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=output,
        process_group=0,
    )


def how_it_ended(returncode: int) -> str:
    """`"killed by SIGKILL"` or `"exit code 1"`, from what Popen calls the return code."""
    if returncode >= 0:
        return f"exit code {returncode}"
    try:
        return f"killed by {signal.Signals(-returncode).name}"
    except ValueError:
        return f"killed by signal {-returncode}"
