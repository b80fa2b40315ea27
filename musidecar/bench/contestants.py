"""Who runs against whom in `bench proxy`. Each contestant is started with its own server(s), stopped (SIGSTOP) while it
is not measured, and knows its processes by role, so that their CPU time can be told apart."""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import signal
import socket
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from musidecar.protocols.server import Address
from musidecar.testbed import Testbed, TestbedError, cpu_seconds, free_ports, plain_redis, stop_processes, wait_until

_REDIS = ("--repl-diskless-sync-delay", "0")
_ALIVE = {  # asked; answered
    "redis": (b"*2\r\n$3\r\nGET\r\n$1\r\nx\r\n", b"$"),
    "memcached": (b"get x\r\n", b"E"),
    "liquibook": (b"PING\n", b"P"),
}


@dataclass
class Contestant:
    """`host`: or the path of a Unix socket; `wait`: replicas each SET waits for; `pids`: role -> processes;
    `stop`/`cont` freeze and thaw it."""

    name: str
    port: int
    pids: dict[str, list[int]]
    wait: int = 0
    backend: str = "redis"
    host: str = "127.0.0.1"
    frozen: bool = False
    may_freeze: bool = True
    how_to_stop: Callable[[], None] | None = None
    how_to_cont: Callable[[], None] | None = None
    check: Callable[[], str] = field(default=lambda: "")  # "" or what is wrong after a measurement

    def stop(self) -> None:
        """Takes its processes off the machine until `cont`."""
        if self.may_freeze and not self.frozen:
            self.frozen = True
            (self.how_to_stop or self._stop_all)()

    def cont(self) -> None:
        """Lets it run again and waits until it answers."""
        if self.frozen:
            self.frozen = False
            (self.how_to_cont or self._cont_all)()
        self._ask(*_ALIVE[self.backend])

    def tidy(self) -> None:
        """Behind a measurement: an exchange forgets the orders that are done, so that the next finds it as this did."""
        if self.backend == "liquibook":
            self._ask(b"ROLL\n", b"R")

    def _ask(self, asked: bytes, answer: bytes) -> None:
        at = Address(path=self.host) if self.host.startswith("/") else Address(host=self.host, port=self.port)
        with at.connect(10) as client:  # twemproxy knows no handshake
            client.sendall(asked)
            if client.recv(100)[:1] != answer:
                raise TestbedError(f"{self.name} does not answer")

    def _stop_all(self) -> None:
        stop_processes([pid for group in self.pids.values() for pid in group])

    def _cont_all(self) -> None:
        for pid in (pid for group in self.pids.values() for pid in group):
            os.kill(pid, signal.SIGCONT)

    def cpu(self) -> dict[str, float]:
        """CPU seconds used so far, by role."""
        return {role: sum(cpu_seconds(pid) for pid in group) for role, group in self.pids.items()}


@contextlib.contextmanager
def bare(folder: Path) -> Iterator[Contestant]:
    """redis-server alone, reached over TCP as the others are."""
    port = free_ports(1)
    with plain_redis(folder, "--port", str(port)) as (_, process, _):
        yield Contestant("redis alone", port, {"redis": [process.pid]})


@contextlib.contextmanager
def bare_memcached(folder: Path) -> Iterator[Contestant]:
    """memcached alone, reached over TCP."""
    port = free_ports(1)
    with _memcached(folder, "-l", "127.0.0.1", "-p", str(port)) as (pid, _):
        yield Contestant("memcached alone", port, {"memcached": [pid]}, backend="memcached")


@contextlib.contextmanager
def _memcached(folder: Path, *arguments: str) -> Iterator[tuple[int, Path]]:
    """One with its default threads, on a Unix socket unless told otherwise: (pid, socket)."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "memcached.sock"
    words = arguments or ("-s", str(path))
    user = ("-u", pwd.getpwuid(os.geteuid()).pw_name) if os.geteuid() == 0 else ()
    with (folder / "memcached.log").open("wb") as log:
        process = subprocess.Popen(["memcached", "-U", "0", "-m", "256", *words, *user], stdin=subprocess.DEVNULL,
                                   stdout=log, stderr=log)
    try:
        port = int(arguments[-1]) if arguments else 0

        def listens() -> bool:
            if process.poll() is not None:
                raise TestbedError(f"memcached ended: {(folder / 'memcached.log').read_text()}")
            with socket.socket(socket.AF_INET if port else socket.AF_UNIX) as probe:
                return probe.connect_ex(("127.0.0.1", port) if port else str(path)) == 0

        wait_until("memcached listens", listens, 10)
        yield process.pid, path
    finally:
        process.send_signal(signal.SIGCONT)
        process.kill()
        process.wait()


@contextlib.contextmanager
def _redis(folder: Path) -> Iterator[tuple[int, Path]]:
    with plain_redis(folder) as (_, process, path):
        yield process.pid, path


@contextlib.contextmanager
def _liquibookd(folder: Path) -> Iterator[tuple[int, Path]]:
    from musidecar.protocols.liquibook import driver
    from musidecar.protocols.liquibook.backend import SYMBOLS

    folder.mkdir(parents=True, exist_ok=True)
    server = driver.spawn(folder, folder / "liquibookd.sock", SYMBOLS)
    try:
        yield server.pid, Path(server.address.path)
    finally:
        os.kill(server.pid, signal.SIGCONT)
        server.stop()


@contextlib.contextmanager
def bare_liquibookd(folder: Path) -> Iterator[Contestant]:
    """liquibookd alone, on the Unix socket that it has."""
    with _liquibookd(folder) as (pid, path):
        yield Contestant("liquibookd alone", 0, {"liquibook": [pid]}, backend="liquibook", host=str(path))


_SERVERS = {"redis": _redis, "memcached": _memcached, "liquibook": _liquibookd}


@contextlib.contextmanager
def _proxy(name: str, folder: Path, program: str, config: Callable[[int, Path], str],
           arguments: Callable[[Path, int], list[str]], backend: str = "redis") -> Iterator[Contestant]:
    path = shutil.which(program) or shutil.which(program, path="/usr/sbin:/usr/local/sbin")
    if path is None:
        raise TestbedError(f"{program} is not installed: apt-get install {program}")
    port = free_ports(2)
    with _SERVERS[backend](folder / backend) as (pid, sock), (folder / "proxy.log").open("wb") as log:
        file = folder / "proxy.conf"
        file.write_text(config(port, sock))
        process = subprocess.Popen([path, *arguments(file, port + 1)], stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        try:
            def listens() -> bool:
                if process.poll() is not None:
                    raise TestbedError(f"{program} ended: {(folder / 'proxy.log').read_text()}")
                with socket.socket() as probe:
                    return probe.connect_ex(("127.0.0.1", port)) == 0

            wait_until(f"{program} listens", listens, 10)
            yield Contestant(name, port, {"proxy": [process.pid], backend: [pid]}, backend=backend)
        finally:
            process.send_signal(signal.SIGCONT)
            process.terminate()
            try:
                process.wait(5)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def haproxy(folder: Path, backend: str = "redis") -> contextlib.AbstractContextManager[Contestant]:
    """HAProxy in TCP mode (its default threads) before one server on a Unix socket."""

    def config(port: int, sock: Path) -> str:
        return (
            "global\n  maxconn 4096\n"
            "defaults\n  mode tcp\n  timeout connect 5s\n  timeout client 1h\n  timeout server 1h\n"
            f"listen {backend}\n  bind 127.0.0.1:{port}\n  server one unix@{sock}\n"
        )

    return _proxy("HAProxy", folder, "haproxy", config, lambda file, _: ["-db", "-f", str(file)], backend)


def twemproxy(folder: Path) -> contextlib.AbstractContextManager[Contestant]:
    """twemproxy (Debian: nutcracker) before one redis-server on a Unix socket."""

    def config(port: int, sock: Path) -> str:
        return (
            f"alpha:\n  listen: 127.0.0.1:{port}\n  hash: fnv1a_64\n  distribution: ketama\n  redis: true\n"
            f"  auto_eject_hosts: false\n  servers:\n   - {sock}:1 one\n"
        )

    return _proxy("twemproxy", folder, "nutcracker", config,
                  lambda file, stats: ["-c", str(file), "-s", str(stats), "-a", "127.0.0.1", "-v", "1"])


@contextlib.contextmanager
def wait_one(folder: Path) -> Iterator[Contestant]:
    """Redis's own replication: a primary, two replicas, and WAIT 1 after each SET."""
    port = free_ports(1)
    with contextlib.ExitStack() as stack:
        primary, first, _ = stack.enter_context(plain_redis(folder / "primary", *_REDIS, "--port", str(port)))
        replicas = []
        for name in ("replica-1", "replica-2"):
            replica, process, _ = stack.enter_context(plain_redis(folder / name, *_REDIS))
            replica.replicaof("127.0.0.1", str(port))
            replicas.append(process.pid)
        wait_until("both replicas acknowledge", lambda: primary.wait(2, 100) == 2, 20)
        yield Contestant("Redis + WAIT 1", port, {"redis": [first.pid], "replicas": replicas}, wait=1)


@contextlib.contextmanager
def sidecar(backend: str = "redis") -> Iterator[Contestant]:
    """A three-node cluster of this project, loaded through its leader. It is frozen like the others if it survives
    that without a leader change, which is tried first; else it is left running, idle."""
    with Testbed(backend=backend) as bed:
        status = bed.status()
        leader = status[status.leader or ""]
        followers = [n for n in status.nodes if n.id != leader.id]

        def check() -> str:
            now = bed.status()
            if (now.leader, now.term) != (status.leader, status.term):
                return f"the leader changed: node {status.leader} term {status.term}, node {now.leader} term {now.term}"
            return ""

        made = Contestant(
            "musidecar", leader.client_address[1],
            {"leader": [leader.pid], f"leader's {backend}": [leader.backend_pid],
             "followers": [n.pid for n in followers], f"followers' {backend}": [n.backend_pid for n in followers]},
            backend=backend,
            how_to_stop=lambda: bed.freeze(status), how_to_cont=lambda: bed.thaw(status), check=check,
        )
        made.stop()
        made.cont()
        if check():
            made.may_freeze = False
            status = bed.wait_status("a leader", lambda s: s.leader is not None)
        yield made


ALL: dict[str, dict[str, Callable[[Path], contextlib.AbstractContextManager[Contestant]]]] = {
    "redis": {
        "redis": bare,
        "haproxy": haproxy,
        "twemproxy": twemproxy,
        "wait": wait_one,
        "musidecar": lambda _: sidecar(),
    },
    "memcached": {
        "memcached": bare_memcached,
        "haproxy": lambda folder: haproxy(folder, "memcached"),
        "musidecar": lambda _: sidecar("memcached"),
    },
    "liquibook": {
        "liquibookd": bare_liquibookd,
        "haproxy": lambda folder: haproxy(folder, "liquibook"),
        "musidecar": lambda _: sidecar("liquibook"),
    },
}
