"""Three nodes of an shm fabric as processes, without an engine: what a test stops, resumes, revokes and kills at will.
See shm_member.py for what each can be told."""

from __future__ import annotations

import json
import mmap
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

DONE, REFUSED, DOWN, FLUSHED = 0, 1, 2, 3
LOG_BYTES = 1 << 20
USERFAULTFD, KILL = 1, 2
ROOT = Path(__file__).parents[2]


class Process:
    """A member process; `log` is the test's own read-only view of its log."""

    def __init__(
        self, node: int, nodes: int, log_bytes: int, fence: int, hazard_us: int, env: Mapping[str, str] | None = None
    ) -> None:
        self.node = node
        self.control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.control.settimeout(60)
        with theirs:
            self.process = subprocess.Popen(
                [sys.executable, "-P", "-m", "tests.fault.shm_member", str(theirs.fileno())],
                cwd=ROOT,
                env=env or {**os.environ, "PYTHONPATH": str(ROOT)},
                pass_fds=[theirs.fileno()],
            )
        self.pid = self.process.pid
        _, self.fds = self.ask("new", node=node, nodes=nodes, log_bytes=log_bytes, fence=fence, hazard_us=hazard_us)
        self.log = mmap.mmap(self.fds[0], log_bytes, mmap.MAP_SHARED, mmap.PROT_READ)

    def tell(self, verb: str, fds: list[int] | None = None, **order: Any) -> None:
        socket.send_fds(self.control, [json.dumps({"do": verb, **order}).encode()], fds or [])

    def hear(self) -> tuple[dict[str, Any], list[int]]:
        packet, fds, _, _ = socket.recv_fds(self.control, 1 << 16, 4)
        assert packet, f"member {self.node} is gone"
        return json.loads(packet), fds

    def ask(self, verb: str, fds: list[int] | None = None, **order: Any) -> tuple[dict[str, Any], list[int]]:
        self.tell(verb, fds, **order)
        return self.hear()

    def get(self, verb: str, field: str = "result", **order: Any) -> Any:
        return self.ask(verb, **order)[0].get(field)

    def statuses(self) -> list[int]:
        return list(self.get("poll", "statuses"))

    def stop(self) -> None:
        """Stops it, and waits until it is stopped."""
        os.kill(self.pid, signal.SIGSTOP)
        _, status = os.waitpid(self.pid, os.WUNTRACED)
        assert os.WIFSTOPPED(status)

    def resume(self) -> None:
        os.kill(self.pid, signal.SIGCONT)

    def end(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        self.control.close()
        self.log.close()
        for fd in self.fds:
            os.close(fd)


def link(a: Process, b: Process) -> None:
    """Both directions, in the order that shm.h gives."""
    for here, there in ((a, b), (b, a)):
        assert here.get("attach", fds=there.fds, peer=there.node, pid=there.pid) == 0
    for writer, owner in ((a, b), (b, a)):
        answer, fds = writer.ask("fence", peer=owner.node)
        assert owner.get("set_fence", fds=fds, peer=writer.node, mapping=answer["mapping"]) == 0
        for fd in fds:
            os.close(fd)
    for here, there in ((a, b), (b, a)):
        assert here.get("open", peer=there.node) == 0


class Three:
    """Three members that all know each other. env: of their processes; plants.environment() makes them of the test
    build."""

    def __init__(
        self, fence: int = 0, log_bytes: int = LOG_BYTES, hazard_us: int = 50, env: Mapping[str, str] | None = None
    ) -> None:
        self.members = [Process(i, 3, log_bytes, fence, hazard_us, env) for i in range(3)]
        a, b, c = self.members
        for one, other in ((a, b), (b, c), (a, c)):
            link(one, other)
        for one in self.members:
            assert one.get("enter") == 0

    def permit(self, owner: int, writer: int) -> None:
        self.members[owner].ask("revoke")
        epoch = self.members[owner].get("grant", "epoch", peer=writer)
        self.members[writer].ask("accept", peer=owner, epoch=epoch)

    def end(self) -> None:
        for one in self.members:
            one.end()
