"""A server is started by a process that is killed: it must not outlive it."""

import os
import select
import subprocess
import sys
import textwrap
from pathlib import Path

DEAD_WITHIN_S = 10.0


def wait_dead(pidfd: int) -> None:
    ready, _, _ = select.select([pidfd], [], [], DEAD_WITHIN_S)
    assert ready, "the process outlives what must end it"


def dies_with_its_parent(kind: str, folder: Path, socket_path: Path, *more: object) -> None:
    """Of the backend `kind`, spawned by its driver."""
    script = f"""
        import signal
        from pathlib import Path
        from musidecar.protocols.{kind} import driver
        print(driver.spawn(Path({str(folder)!r}), Path({str(socket_path)!r}), *{more!r}).pid, flush=True)
        signal.pause()
    """
    parent = subprocess.Popen([sys.executable, "-c", textwrap.dedent(script)], stdout=subprocess.PIPE)
    assert parent.stdout is not None
    try:
        pidfd = os.pidfd_open(int(parent.stdout.readline()))
    finally:
        parent.kill()
        parent.wait()
        parent.stdout.close()
    wait_dead(pidfd)
    os.close(pidfd)
