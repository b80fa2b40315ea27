"""A whole cluster in a temporary directory on free ports, to be loaded, killed and looked into: what the
demo, the benchmarks and the fault tests stand on. It starts the real `musidecar local` and knows it from
outside only: the line `ready`, `status --json`, signals, client ports and the backends' sockets.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import redis

from musidecar import protocols
from musidecar.config import load as load_config
from musidecar.ports import free_ports as free_ports
from musidecar.ports import give_back
from musidecar.process import spawn_node
from musidecar.protocols.herd import reading as herd
from musidecar.protocols.memcached import reading as memcached
from musidecar.protocols.server import Address
from musidecar.status import collect

START_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 15.0
# Its kill() is called without the interpreter's lock, which a load's threads want: the dead may take this processor.
_LIBC = ctypes.CDLL(None, use_errno=True)


class TestbedError(Exception):
    """The cluster did not do what was asked; the text ends with the tail of its logs."""

    __test__ = False


@dataclass(frozen=True)
class NodeStatus:
    """One node, as `status --json` tells it. `pid` and `backend_pid` are 0 when there is none."""

    id: str
    role: str
    pid: int
    backend_pid: int
    client: str
    backend: str
    commit: int
    applied: int
    log_hash: str
    more: Mapping[str, Any] = field(default_factory=dict)

    @property
    def client_address(self) -> tuple[str, int]:
        """(host, port) that clients connect to."""
        host, _, port = self.client.rpartition(":")
        return host, int(port)

    @property
    def is_well(self) -> bool:
        """It leads or follows, and clients are served."""
        return self.role in ("leader", "follower") and bool(self.more["serving"])

    def moment_us(self, name: str) -> int:
        """A stage of this node's last take-over, microseconds of CLOCK_MONOTONIC; 0 when it has none."""
        return int((self.more.get("takeover") or {}).get(name) or 0)


@dataclass(frozen=True)
class ClusterStatus:
    """What `status --json` answered."""

    leader: str | None
    term: int
    nodes: tuple[NodeStatus, ...]

    def __getitem__(self, node: str) -> NodeStatus:
        return next(n for n in self.nodes if n.id == node)

    @property
    def followers(self) -> list[NodeStatus]:
        """Nodes that follow at the moment."""
        return [n for n in self.nodes if n.role == "follower"]

    @property
    def is_whole(self) -> bool:
        """There is a leader, and all nodes are well."""
        return self.leader is not None and all(node.is_well for node in self.nodes)

    @property
    def alive(self) -> list[NodeStatus]:
        """Nodes that are not down."""
        return [n for n in self.nodes if n.role != "down"]


def parse_status(raw: Mapping[str, Any]) -> ClusterStatus:
    """What `status --json` prints, as objects. Raises KeyError, TypeError or ValueError when it is not that."""
    nodes = tuple(
        NodeStatus(
            id=str(n["id"]),
            role=str(n["role"]),
            pid=int(n["pid"] or 0),
            backend_pid=int(n["backend_pid"] or 0),
            client=str(n["client"]),
            backend=str(n["backend"]),
            commit=int(n["commit"] or 0),
            applied=int(n["applied"] or 0),
            log_hash=str(n["log_hash"]),
            more=n,
        )
        for n in raw["nodes"]
    )
    leader = raw["leader"]
    return ClusterStatus(None if leader is None else str(leader), int(raw["term"] or 0), nodes)


def children_of(pid: int) -> list[int]:
    """All living descendants of a process."""
    found = []
    with contextlib.suppress(OSError):  # it may end meanwhile
        for task in os.listdir(f"/proc/{pid}/task"):
            with contextlib.suppress(OSError):
                for child in map(int, Path(f"/proc/{pid}/task/{task}/children").read_text().split()):
                    found += [child, *children_of(child)]
    return found


def cpu_seconds(pid: int) -> float:
    """User and system time a process has used; 0 when it is gone."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def state_of(pid: int) -> str:
    """The state letter of a process (R, S, T, Z ...); X when it is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return "X"


def is_alive(pid: int) -> bool:
    """True when the process exists and is no zombie."""
    return state_of(pid) not in "ZX"


def stop_processes(pids: Sequence[int]) -> None:
    """SIGSTOP of each in this order, the next only once the one before has stopped: the signal alone returns early."""
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
        wait_until(f"process {pid} is stopped", lambda pid=pid: state_of(pid) in "TZX", 5)  # type: ignore[misc]


def wait_until(what: str, test: Callable[[], bool], timeout_s: float) -> None:
    """Asks `test` until it says yes. Raises TestbedError naming `what`."""
    deadline = time.monotonic() + timeout_s
    while not test():
        if time.monotonic() > deadline:
            raise TestbedError(f"waited {timeout_s:g} s for: {what}")
        time.sleep(0.002)


def musidecar(
    *arguments: str, timeout_s: float = 30.0, env: Mapping[str, str] | None = None, cwd: Path | None = None
) -> subprocess.CompletedProcess[str]:
    """Runs one `musidecar` verb to its end."""
    return subprocess.run(
        [sys.executable, "-P", "-m", "musidecar", *arguments],
        capture_output=True,
        text=True,
        timeout=timeout_s,
        env=env,
        cwd=cwd,
        stdin=subprocess.DEVNULL,
        check=False,
    )


class Testbed:
    """`musidecar local` under observation. A context manager; leaving it ends every process and removes the
    folder."""

    __test__ = False

    def __init__(
        self,
        nodes: int = 3,
        backend: str = "redis",
        arguments: Sequence[str] = (),
        env: Mapping[str, str] | None = None,
    ) -> None:
        self.count, self.backend_name, self.arguments = nodes, backend, tuple(arguments)
        self.env = env
        self.root = Path(tempfile.mkdtemp(prefix="musidecar-"))
        self.dir = self.root / "c"  # `local` wants it new or empty; short, for the sockets' paths
        self.port = free_ports(nodes)
        self._process: subprocess.Popen[bytes] | None = None
        self._seen: dict[int, str] = {}  # pid -> command line: what must be gone at the end
        self._connections: list[redis.Redis] = []
        self._revived: list[subprocess.Popen[bytes]] = []

    # ---- life ----------------------------------------------------------------------------------------------

    def start(self, timeout_s: float = START_TIMEOUT_S) -> ClusterStatus:
        """Starts the cluster and waits for its `ready`. Raises TestbedError with the logs when it does not
        come."""
        command = [
            sys.executable,
            "-P",
            "-m",
            "musidecar",
            "local",
            "--backend",
            self.backend_name,
            "--nodes",
            str(self.count),
            "--port",
            str(self.port),
            "--dir",
            str(self.dir),
            *self.arguments,
        ]
        with (self.root / "local.err").open("wb") as err:
            self._process = subprocess.Popen(
                command, stdout=subprocess.PIPE, stderr=err, stdin=subprocess.DEVNULL, env=self.env
            )
        self._wait_ready(timeout_s)
        return self.status_by_command()

    def _wait_ready(self, timeout_s: float) -> None:
        assert self._process is not None and self._process.stdout is not None
        deadline, text = time.monotonic() + timeout_s, b""
        out = self._process.stdout.fileno()
        while not any(line.startswith(b"ready") for line in text.splitlines()):
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([out], [], [], left)[0]:
                raise TestbedError(f"the cluster was not ready in {timeout_s:g} s\n{self.logs()}")
            data = os.read(out, 65536)
            if not data:
                raise TestbedError(
                    f"`musidecar local` ended with {self._process.wait()}: "
                    f"{text.decode(errors='replace')}\n{self.logs()}"
                )
            text += data

    def close(self) -> None:
        """Ends everything that was started and removes the folder."""
        for connection in self._connections:
            connection.close()
        self._note_processes()
        self.signal_all(signal.SIGCONT)
        if self._process is not None and self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        for process in self._revived:
            process.terminate()
        for process in self._revived:
            try:
                process.wait(STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        if self._process is not None and self._process.stdout is not None:
            self._process.stdout.close()
        for pid in self.leftovers():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        shutil.rmtree(self.root, ignore_errors=True)
        give_back(self.port)

    def __enter__(self) -> Testbed:
        try:
            self.start(max(START_TIMEOUT_S, protocols.kind(self.backend_name).ready_s))
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def local_pid(self) -> int:
        """The process of `musidecar local` itself."""
        assert self._process is not None
        return self._process.pid

    def _note_processes(self) -> None:
        for pid in self._descendants():
            with contextlib.suppress(OSError):
                self._seen[pid] = Path(f"/proc/{pid}/cmdline").read_text()

    def _descendants(self) -> list[int]:
        """Of `musidecar local`, and the nodes that were started again, with theirs."""
        found = children_of(self._process.pid) if self._process is not None else []
        for process in self._revived:
            if process.poll() is None:
                found += [process.pid, *children_of(process.pid)]
        return found

    def leftovers(self) -> list[int]:
        """Processes of this cluster that are alive though `local` is gone (or still runs)."""
        left = []
        for pid, cmdline in self._seen.items():
            with contextlib.suppress(OSError):
                if is_alive(pid) and Path(f"/proc/{pid}/cmdline").read_text() == cmdline:
                    left.append(pid)
        return left

    def logs(self, lines: int = 25) -> str:
        """The tails of all logs of the cluster."""
        parts = []
        for path in sorted([*self.root.glob("*.err"), *self.dir.glob("*.log")]):
            tail = path.read_text(errors="replace").splitlines()[-lines:]
            parts.append("\n".join([f"--- {path.name}", *tail]))
        return "\n".join(parts)

    # ---- looking -------------------------------------------------------------------------------------------

    def status_by_command(self) -> ClusterStatus:
        """`musidecar status --json`, read. Raises TestbedError when it fails."""
        done = musidecar("status", "--dir", str(self.dir), "--json")
        self._note_processes()
        try:
            return parse_status(json.loads(done.stdout))
        except (ValueError, KeyError, TypeError) as error:
            told = f"exit {done.returncode}, {error!r}\n{done.stdout}{done.stderr}"
            raise TestbedError(f"status --json: {told}") from error

    def status(self) -> ClusterStatus:
        """The same, asked from this process: a new interpreter would take the measured cluster's CPU."""
        self._note_processes()
        return parse_status(collect(load_config(self.dir / "cluster.toml")))

    def wait_status(
        self, what: str, test: Callable[[ClusterStatus], bool], timeout_s: float = 20.0
    ) -> ClusterStatus:
        """The first status that passes `test`. Raises TestbedError naming `what`."""
        deadline = time.monotonic() + timeout_s
        while True:
            status = self.status()
            if test(status):
                return status
            if time.monotonic() > deadline:
                raise TestbedError(f"waited {timeout_s:g} s for: {what}; last seen {status}\n{self.logs()}")
            time.sleep(0.01)

    def reader(self, node: NodeStatus) -> redis.Redis | memcached.Reader:
        """A client of a node, for what is loaded and judged whatever the backend."""
        if self.backend_name == "redis":
            return self.client(node)
        host, port = node.client_address
        reader = herd.Reader if self.backend_name == "herd" else memcached.Reader
        return reader(Address(host=host, port=port))

    def servers(self, status: ClusterStatus) -> dict[str, redis.Redis | memcached.Reader | herd.Behind]:
        """The same of the servers of all nodes alive, past the sidecars, by node id."""
        if self.backend_name == "redis":
            return {**self.backends(status)}
        if self.backend_name == "herd":
            return {node.id: herd.Behind(Address(path=node.backend)) for node in status.alive}
        return {node.id: memcached.Reader(Address(path=node.backend)) for node in status.alive}

    def client(self, node: NodeStatus, **more: Any) -> redis.Redis:
        """A client of a node, as any client would connect; it does not try again by itself."""
        host, port = node.client_address
        return self._keep(redis.Redis(host=host, port=port, **{**_CLIENT, **more}))

    def backend(self, node: NodeStatus) -> redis.Redis:
        """A direct connection to a node's own Redis, past the sidecar."""
        return self._keep(open_backend(node.backend))

    def backends(self, status: ClusterStatus) -> dict[str, redis.Redis]:
        """Direct connections to the backends of all nodes alive, by node id."""
        return {n.id: self.backend(n) for n in status.alive}

    def _keep(self, connection: redis.Redis) -> redis.Redis:
        self._connections.append(connection)
        return connection

    # ---- hurting -------------------------------------------------------------------------------------------

    def kill(self, node: NodeStatus) -> int:
        """kill -9 of a node's sidecar, with which its Redis dies. Returns CLOCK_MONOTONIC at the signal,
        ns."""
        began_ns = time.monotonic_ns()
        if _LIBC.kill(node.pid, signal.SIGKILL) != 0:
            raise OSError(ctypes.get_errno(), "kill")
        return began_ns

    def start_again(self, node: NodeStatus) -> None:
        """Starts a node that was killed again, as an operator would: `musidecar run`. It dies with this process."""
        with (self.dir / f"{node.id}.log").open("ab") as output:
            self._revived.append(spawn_node(self.dir / "cluster.toml", int(node.id), output))
        self._note_processes()

    def stop(self, node: NodeStatus) -> int:
        """SIGSTOP of a node's sidecar. Returns CLOCK_MONOTONIC at the signal, ns."""
        began_ns = time.monotonic_ns()
        os.kill(node.pid, signal.SIGSTOP)
        return began_ns

    def cont(self, node: NodeStatus) -> None:
        """SIGCONT of a node's sidecar."""
        os.kill(node.pid, signal.SIGCONT)

    def signal_all(self, number: signal.Signals) -> None:
        """A signal to every process of the cluster."""
        pids = [*self._descendants(), self._process.pid] if self._process else []
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    def freeze(self, status: ClusterStatus) -> None:
        """Stops the whole cluster, followers first: nobody is left running who could depose a stopped
        leader."""
        order = sorted(status.alive, key=lambda n: n.role == "leader")
        stop_processes([self.local_pid, *(n.pid for n in order), *(n.backend_pid for n in order)])

    def thaw(self, status: ClusterStatus) -> None:
        """Continues a frozen cluster, the leader first."""
        order = sorted(status.alive, key=lambda n: n.role != "leader")
        for pid in (*(n.backend_pid for n in order), *(n.pid for n in order), self.local_pid):
            os.kill(pid, signal.SIGCONT)


_CLIENT: dict[str, Any] = {"protocol": 2, "retry": None, "retry_on_error": [], "socket_timeout": 30}


def open_backend(address: str) -> redis.Redis:
    """A connection to a Redis given as `unix:PATH`, a path or `host:port`."""
    path = address.removeprefix("unix:")
    if "/" in path:
        return redis.Redis(unix_socket_path=path, **_CLIENT)
    host, _, port = path.rpartition(":")
    return redis.Redis(host=host, port=int(port), **_CLIENT)


@contextlib.contextmanager
def plain_redis(
    directory: Path, *arguments: str
) -> Iterator[tuple[redis.Redis, subprocess.Popen[bytes], Path]]:
    """A bare redis-server, memory only, on `directory`/redis.sock: for contestants and for tests of the
    tools."""
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / "redis.sock"
    command = [
        "redis-server",
        "--port",
        "0",
        "--unixsocket",
        str(path),
        "--save",
        "",
        "--dir",
        str(directory),
        "--daemonize",
        "no",
        *arguments,
    ]
    with (directory / "redis.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL)
    client = open_backend(str(path))
    try:

        def answers() -> bool:
            try:
                return bool(client.ping())
            except redis.exceptions.RedisError:
                if process.poll() is not None:
                    raise TestbedError((directory / "redis.log").read_text()) from None
                return False

        wait_until("redis-server answers", answers, 10)
        yield client, process, path
    finally:
        client.close()
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(signal.SIGCONT)
        process.terminate()
        try:
            process.wait(5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
