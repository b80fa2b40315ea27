"""Clusters that cost little to start: hundreds of them in one run.

A nursery is a process that has everything imported a node needs, and forks. What a fork then runs is `musidecar run`
itself; it has a process group and a log of its own, dies with the nursery, and its Redis with it. `Cradle` is a Testbed
whose nodes come from there instead of from `musidecar local`.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from musidecar.config import Cluster
from musidecar.local import Local
from musidecar.mesh import Unreachable, ask
from musidecar.ports import give_back
from musidecar.process import how_it_ended
from musidecar.testbed import ClusterStatus, Testbed, TestbedError, children_of, is_alive, wait_until

ROOT = Path(__file__).resolve().parents[2]
PACKET_BYTES = 1 << 16
START_S = 30.0
_CLONE_NEWNET = 0x40000000


class Nursery:
    """The process that forks nodes. A context manager; leaving it ends it and all nodes. env: of the nodes, see
    tests.fault.plants.environment(). timeout_s: for it to import everything, and to answer."""

    def __init__(self, env: Mapping[str, str] | None = None, timeout_s: float = START_S) -> None:
        self.codes: dict[int, int] = {}  # pid -> return code (as Popen has them) of the nodes that have ended
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._control.settimeout(timeout_s)
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "tests.fault.nursery", str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                env=env or {**os.environ, "PYTHONPATH": str(ROOT)},
                process_group=0,
            )

    def _ask(self, **order: Any) -> dict[str, Any]:
        self._control.send(json.dumps(order).encode())
        answer = self._control.recv(PACKET_BYTES)
        if not answer:
            raise TestbedError("the nursery is gone")
        found: dict[str, Any] = json.loads(answer)
        return found

    def start_node(self, config_file: Path, node: int, log: Path, netns: str = "") -> int:
        """Forks a node, into a network namespace if one is named; returns its pid."""
        answer = self._ask(config=str(config_file), node=node, log=str(log), netns=netns)
        self._note(answer)
        self.codes.pop(answer["pid"], None)  # of an earlier process with this number
        return int(answer["pid"])

    def look(self) -> None:
        """Brings `codes` up to date."""
        self._note(self._ask(ended=True))

    def _note(self, answer: Mapping[str, Any]) -> None:
        self.codes |= {int(pid): code for pid, code in answer["ended"].items()}

    def close(self) -> None:
        self._control.close()
        self._process.wait()

    def __enter__(self) -> Nursery:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Cradle(Testbed):
    """A cluster whose nodes a nursery forks. `launch()` returns at once, `wait_ready()` waits."""

    def __init__(
        self,
        nursery: Nursery,
        nodes: int = 3,
        settings: Mapping[str, Mapping[str, int | str]] | None = None,
        backend: str = "redis",
    ) -> None:
        super().__init__(nodes, backend)
        self.nursery = nursery
        self.settings = settings or {}
        self.pids: dict[int, int] = {}  # node -> its sidecar
        self.backend_pids: dict[int, int] = {}  # node -> its redis-server, once ready
        self._local: Local | None = None

    @property
    def config(self) -> Cluster:
        """The cluster's settings."""
        assert self._local is not None
        return self._local.config

    def configure(self) -> None:
        """Writes the configuration."""
        self._local = Local(
            self.dir, nodes=self.count, port=self.port, backend=self.backend_name, settings=self.settings
        )

    def launch(self) -> None:
        """Forks all nodes."""
        self.configure()
        for node in self.config.nodes:
            self.revive(node.id)

    def revive(self, node: int) -> None:
        """Forks a node that has died again: another life of it."""
        assert self._local is not None
        self.pids[node] = self.nursery.start_node(self._local.config_file, node, self._local.log(node))

    def wait_ready(self, timeout_s: float = START_S) -> ClusterStatus:
        """Until every node serves. Raises TestbedError with the logs."""
        deadline = time.monotonic() + timeout_s
        missing = list(self.config.nodes)
        while missing:
            try:
                if ask(self.config, missing[0].id, "status", 1.0).get("serving"):
                    del missing[0]
                    continue
            except Unreachable:
                pass
            if time.monotonic() > deadline or self.died():
                raise TestbedError(f"node {missing[0].id} does not serve\n{self.logs()}")
            time.sleep(0.01)
        status = self.status()
        self.backend_pids = {int(node.id): node.backend_pid for node in status.nodes}
        return status

    def start(self, timeout_s: float = START_S) -> ClusterStatus:
        self.launch()
        return self.wait_ready(timeout_s)

    def died(self) -> dict[int, str]:
        """How each node that has ended did, by id."""
        self.nursery.look()
        codes = self.nursery.codes
        return {node: how_it_ended(codes[pid]) for node, pid in self.pids.items() if pid in codes}

    def processes(self) -> list[int]:
        """All processes of the cluster."""
        return [each for pid in self.pids.values() for each in (pid, *children_of(pid))]

    def _note_processes(self) -> None:
        for pid in self.processes():
            with contextlib.suppress(OSError):
                self._seen[pid] = Path(f"/proc/{pid}/cmdline").read_text()

    def signal_all(self, number: signal.Signals) -> None:
        for pid in self.processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    def close(self) -> None:
        """Kills every process, waits until they are gone, removes the folder."""
        for connection in self._connections:
            connection.close()
        self._note_processes()
        self.signal_all(signal.SIGKILL)
        with contextlib.suppress(TestbedError):
            wait_until("all are gone", lambda: not self.leftovers(), 5)
        for pid in self.leftovers():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if self._local is not None:
            self._local.stop()
        shutil.rmtree(self.root, ignore_errors=True)
        give_back(self.port)

    def alive(self, node: int) -> bool:
        """Does the node's sidecar run (or stand still)?"""
        return is_alive(self.pids[node])


# ---- the nursery's own process ---------------------------------------------------------------------------------------


def _enter(netns: str) -> None:
    """Moves this process to a network namespace made by `ip netns add`."""
    with open(f"/run/netns/{netns}") as namespace:
        if ctypes.CDLL(None, use_errno=True).setns(namespace.fileno(), _CLONE_NEWNET) != 0:
            raise OSError(ctypes.get_errno(), f"setns {netns}")


def _be_node(order: dict[str, Any], parent: int) -> None:
    """In the fork: `musidecar run`, to its end."""
    from musidecar.cli.run import verb

    code = 1
    try:
        os.setpgid(0, 0)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        if order["netns"]:
            _enter(order["netns"])
        with open(order["log"], "ab") as log:
            os.dup2(log.fileno(), 1)
            os.dup2(log.fileno(), 2)
        arguments = ["--config", order["config"], "--node", str(order["node"]), "--parent-pid", str(parent)]
        verb.main(arguments, standalone_mode=False)
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


def _reap(ended: dict[int, int]) -> None:
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if pid == 0:
            return
        ended[pid] = os.waitstatus_to_exitcode(status)


def main() -> None:
    """Forks what the control socket asks for, until it closes."""
    import musidecar.cli.run
    import musidecar.directory
    import musidecar.node  # noqa: F401

    control = socket.socket(fileno=int(sys.argv[1]))
    me, ended = os.getpid(), {}  # type: int, dict[int, int]
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    gc.freeze()
    while True:
        control.settimeout(0.02)  # so that the dead are not left lying
        try:
            packet = control.recv(PACKET_BYTES)
        except TimeoutError:
            _reap(ended)
            continue
        if not packet:
            return  # all children die with this process
        order = json.loads(packet)
        _reap(ended)
        answer: dict[str, Any] = {"ended": ended}
        ended = {}
        if "config" in order:
            answer["pid"] = os.fork()
            if answer["pid"] == 0:
                control.close()
                _be_node(order, me)
        control.send(json.dumps(answer).encode())


if __name__ == "__main__":
    main()
