"""A whole cluster on this host, in one folder: for trying, for testing, for one machine that must not lose a process.

`Local` starts one `musidecar run` per node as a child that dies with it; each node starts its own server on a Unix
socket in the folder. `run()` is the verb: it stays in the foreground, reports deaths, and ends everything on SIGTERM,
Ctrl-C, or (the kernel does it) its own violent death.
"""

from __future__ import annotations

import json
import os
import secrets
import selectors
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Self

from musidecar import directory, protocols, secret
from musidecar.config import NODE_COUNTS, Cluster, ConfigError, Node, check_kind, load, split_address
from musidecar.process import how_it_ended, spawn_node
from musidecar.protocols.backend import backend_class

STOP_S = 60.0  # a node asked to end that still runs after this is killed; its server may have much to save
READY_S = 60.0
POLL_S = 0.02
RESTART_S_MIN, RESTART_S_MAX = 0.2, 10.0

Settings = Mapping[str, Mapping[str, int | str]]


class NotReady(Exception):
    """The cluster did not come up; the text says which node failed and what its log ends with."""


class Local:
    """A cluster of processes on this host. Not started until `start()`; a context manager that stops it.

    folder: new, empty, or left by a dead cluster; if that was stopped in order, it goes on with its data.
    port: node i listens on 127.0.0.1, port + i - 1.
    settings: more of the configuration, by table: `{"timing": {"fail_us": 50_000}}`; "backend" is that of every node.
    fix_port: of liquibook: node i listens for FIX on 127.0.0.1, fix_port + i - 1.
    ConfigError when something is in the way: the folder, a port, no server to start.
    """

    def __init__(
        self,
        folder: Path,
        *,
        nodes: int = 3,
        port: int = 7000,
        backend: str = "redis",
        fabric: str = "shm",
        binary: str | None = None,
        settings: Settings | None = None,
        fix_port: int | None = None,
        options: tuple[str, ...] = (),
    ) -> None:
        self.folder = folder.absolute()
        self.options = options
        self.processes: dict[int, subprocess.Popen[bytes]] = {}
        _check_usage(nodes, port, backend, fabric, binary)
        _check_fix(nodes, fix_port, backend)
        self._lock = directory.claim(self.folder)
        try:
            path = self.folder / "cluster.toml"
            name = _titleof(path, nodes, backend) if directory.keeps_data(self.folder) else ""
            path.write_text(_toml(name or _new_name(), nodes, port, backend, fabric, binary, settings or {}, fix_port))
            if not name:
                secret.create(self.folder / "secret")
            self.config: Cluster = load(path)
            _check_ports(self.config)
            if fabric != "shm":
                from musidecar.engine import check_fabric

                check_fabric(self.config, self.config.nodes[0].id)  # one host: they are all alike
        except BaseException:
            self._lock.release()
            raise

    @property
    def config_file(self) -> Path:
        return self.folder / "cluster.toml"

    def log(self, node_id: int) -> Path:
        """What a node writes: its lines, its backend's complaints, its last words."""
        return self.folder / f"{node_id}.log"

    def start(self) -> None:
        for node in self.config.nodes:
            self.start_node(node.id)

    def start_node(self, node_id: int) -> subprocess.Popen[bytes]:
        """Start one node, also one that died. Call it from the main thread: the node dies with the calling one."""
        old = self.processes.get(node_id)
        assert old is None or old.poll() is not None, f"node {node_id} runs"
        with open(self.log(node_id), "ab") as output:
            process = spawn_node(self.config_file, node_id, output, *self.options)
        self.processes[node_id] = process
        return process

    def living(self) -> list[int]:
        """Ids of the nodes started here that still run."""
        return [node_id for node_id, process in self.processes.items() if process.poll() is None]

    def serving(self) -> set[int]:
        """Ids of the nodes that say they answer clients."""
        return {node.id for node in self.config.nodes if _serves(self.config, node)}

    def wait_ready(self, timeout_s: float = READY_S) -> None:
        """Until every node answers clients. NotReady when one dies before, or after `timeout_s`."""
        deadline = time.monotonic() + timeout_s
        missing = [node.id for node in self.config.nodes]
        while missing := [i for i in missing if not _serves(self.config, self.config.node(i))]:
            self.check_alive()
            if time.monotonic() > deadline:
                raise NotReady(f"node {missing[0]} does not serve after {timeout_s:g} s{self._last_line(missing[0])}")
            time.sleep(POLL_S)

    def check_alive(self) -> None:
        """NotReady when a node started here has died."""
        for node_id, process in self.processes.items():
            if process.poll() is not None:
                raise NotReady(f"node {node_id}: {how_it_ended(process.returncode)}{self._last_line(node_id)}")

    def _last_line(self, node_id: int) -> str:
        try:
            lines = self.log(node_id).read_text(errors="replace").split("\n")
        except OSError:
            return ""
        last = next((line for line in reversed(lines) if line.strip()), "")
        return f": {last} (in {self.log(node_id)})" if last else f" (nothing in {self.log(node_id)})"

    def stop(self) -> None:
        """End every node started here, in at most STOP_S, and give the folder back. Can be called twice."""
        for process in self.processes.values():
            if process.poll() is None:
                process.send_signal(signal.SIGCONT)
                process.terminate()
        deadline = time.monotonic() + STOP_S
        for process in self.processes.values():
            try:
                process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self._lock.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


def check_backend(backend: str) -> None:
    """ConfigError unless this version works with the backend."""
    try:
        check_kind(backend)
    except ValueError as error:
        reason = str(error).removeprefix(f"{backend} is ")
        raise ConfigError([f"--backend {backend}: {reason}"]) from None


def check_server(backend: str) -> None:
    """ConfigError unless the backend's own server can be started here."""
    found = backend_class(backend).check_binary(protocols.kind(backend).binary)
    if found.verdict == "bad":
        raise ConfigError([f"--backend {backend}: {found.text}: {found.remedy}"])


def _check_usage(nodes: int, port: int, backend: str, fabric: str, binary: str | None) -> None:
    check_backend(backend)
    kind = protocols.kind(backend)
    if kind.embedded:
        raise ConfigError([f"--backend {backend}: your own program serves it, and runs its node, too: docs/api.md"])
    if fabric not in ("shm", "verbs"):
        raise ConfigError([f"--fabric {fabric}: unknown: there are shm and verbs"])
    if nodes not in NODE_COUNTS:
        raise ConfigError([f"--nodes {nodes}: a cluster has {' or '.join(map(str, NODE_COUNTS))} nodes"])
    if not 1 <= port <= 65536 - nodes:
        raise ConfigError([f"--port {port}: node {nodes} would listen on {port + nodes - 1}"])
    if kind.program != "binary":
        check_server(backend)
        if binary is None:
            raise ConfigError([f"--backend {backend}: name {kind.title}'s own program with --binary"])
    if shutil.which(binary or kind.binary) is None:
        hint = f"apt-get install {kind.package}, or name it with --binary"
        raise ConfigError([f"{binary or kind.binary}: not found on PATH: {hint}"])
    if binary is None:
        check_server(backend)


def _check_fix(nodes: int, fix_port: int | None, backend: str) -> None:
    if fix_port is None:
        return
    if "fix_port" not in protocols.kind(backend).options:
        raise ConfigError([f"--fix-port: is for --backend liquibook, and this is {backend}"])
    if not 1 <= fix_port <= 65536 - nodes:
        raise ConfigError([f"--fix-port {fix_port}: node {nodes} would listen on {fix_port + nodes - 1}"])


def _check_ports(config: Cluster) -> None:
    busy = []
    wanted = [(node.client, "--port") for node in config.nodes]
    wanted += [(node.backend.fix_port, "--fix-port") for node in config.nodes if node.backend.fix_port is not None]
    for address, option in wanted:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(split_address(address))
            except OSError as error:
                busy.append(f"{address}: {error.strerror}: choose other ports with {option}")
    if busy:
        raise ConfigError(busy)


def _new_name() -> str:
    return f"local-{secrets.token_hex(4)}"


def _titleof(path: Path, nodes: int, backend: str) -> str:
    """The name of the cluster whose data is kept here. ConfigError when it had another number of nodes, or another
    backend."""
    config = load(path)
    if config.kind != backend:
        raise ConfigError([f"{path.parent}: keeps the data of a cluster of {config.kind}: give another one with --dir"])
    if len(config.nodes) != nodes:
        reason = f"keeps the data of a cluster of {len(config.nodes)} nodes: give --nodes {len(config.nodes)}"
        raise ConfigError([f"{path.parent}: {reason}, or another folder with --dir"])
    return config.name


def _toml(
    name: str, nodes: int, port: int, backend: str, fabric: str, binary: str | None, settings: Settings,
    fix_port: int | None,
) -> str:  # fmt: skip
    """The text of a configuration file (a JSON string is a TOML string too)."""
    kind = protocols.kind(backend)
    program = shutil.which(binary or kind.binary) if kind.program != "binary" else binary or kind.binary
    every = [f"{kind.program} = {json.dumps(program)}", *_keys(settings.get("backend", {}))]
    lines = [
        "# Written by `musidecar local`; configs/cluster.toml in the source explains every key.",
        "[cluster]",
        f'name = "{name}"',
        'secret_file = "secret"',
        'directory = "."',
        f'fabric = "{fabric}"',
        *_keys(settings.get("cluster", {})),
    ]
    for i in range(1, nodes + 1):
        table = [f'kind = "{backend}"', f'socket = "{backend}-{i}.sock"', "spawn = true", *every]
        table += [f"fix_port = {fix_port + i - 1}"] if fix_port is not None else []
        table += [f'{kind.lone_address} = "127.0.0.{i}"'] if kind.lone_address else []
        lines += [
            "",
            "[[nodes]]",
            f"id = {i}",
            f'client = "127.0.0.1:{port + i - 1}"',
            f'log = "{i}.log"',
            f"backend = {{ {', '.join(table)} }}",
        ]
    for title, values in settings.items():
        if title not in ("cluster", "backend"):
            lines += ["", f"[{title}]", *_keys(values)]
    return "\n".join(lines) + "\n"


def _keys(values: Mapping[str, int | str]) -> list[str]:
    return [f"{key} = {json.dumps(value)}" for key, value in values.items()]


def _serves(config: Cluster, node: Node) -> bool:
    from musidecar import mesh

    try:
        return bool(mesh.ask(config, node.id, "status", 1.0).get("serving"))
    except mesh.Unreachable:
        return False


def _undecided(config: Cluster, node_id: int) -> str:
    from musidecar import mesh

    try:
        return str(mesh.ask(config, node_id, "status", 1.0).get("undecided", ""))
    except mesh.Unreachable:
        return ""


# ---- the verb ----------------------------------------------------------------------------------------------------


@contextmanager
def _end_signals() -> Iterator[socket.socket]:
    """SIGTERM, SIGINT and SIGHUP make the socket readable instead of ending the process."""
    reader, writer = socket.socketpair()
    writer.setblocking(False)
    reader.setblocking(False)
    before_fd = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
    watched = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
    before = [signal.signal(number, lambda *_: None) for number in watched]
    try:
        yield reader
    finally:
        for number, handler in zip(watched, before, strict=True):
            signal.signal(number, handler)
        signal.set_wakeup_fd(before_fd)
        reader.close()
        writer.close()


def _say(text: str) -> None:
    print(text, flush=True)


class _Foreground:
    """Watches a cluster until it is told to end."""

    def __init__(self, cluster: Local, ended: socket.socket, restart: bool) -> None:
        self.cluster = cluster
        self.restart = restart
        self.selector = selectors.DefaultSelector()
        self.selector.register(ended, selectors.EVENT_READ, None)
        self.due: dict[int, float] = {}  # node id: when to start it again
        self.delay: dict[int, float] = {}
        self.waiting = {node.id for node in cluster.config.nodes}
        self.was_ready = False
        self.undecided = ""  # why the cluster does not begin: the operator may take as long as it takes

    def watch(self, node_id: int) -> None:
        fd = os.pidfd_open(self.cluster.processes[node_id].pid)
        self.selector.register(fd, selectors.EVENT_READ, (node_id, fd))

    def close(self) -> None:
        for key in list(self.selector.get_map().values()):
            if key.data is not None:
                os.close(key.data[1])
        self.selector.close()

    def died(self, node_id: int) -> None:
        process = self.cluster.processes[node_id]
        text = f"node {node_id} ended: {how_it_ended(process.wait())} ({self.cluster.log(node_id)})"
        if not self.restart:
            return _say(f"{text}; the others go on")
        delay = self.delay.get(node_id, RESTART_S_MIN)
        self.delay[node_id] = min(2 * delay, RESTART_S_MAX)
        self.due[node_id] = time.monotonic() + delay
        return _say(f"{text}; starting it again")

    def start_due(self) -> None:
        now = time.monotonic()
        for node_id in [node_id for node_id, moment in self.due.items() if moment <= now]:
            del self.due[node_id]
            self.cluster.start_node(node_id)
            self.watch(node_id)

    def timeout_s(self) -> float | None:
        """How long nothing needs to be done: for ever, or until a restart or the next look at who serves."""
        moments = [moment - time.monotonic() for moment in self.due.values()]
        if not self.was_ready:
            moments.append(POLL_S)
        return max(0.0, min(moments)) if moments else None

    def look(self) -> None:
        """Prints the line that starts with `ready` once every node has served."""
        self.waiting = {i for i in self.waiting if not _serves(self.cluster.config, self.cluster.config.node(i))}
        if self.waiting:
            self._look_why()
            return
        self.was_ready = True
        clients = " ".join(node.client for node in self.cluster.config.nodes)
        fix = " ".join(node.backend.fix_port for node in self.cluster.config.nodes if node.backend.fix_port)
        clients += f"; FIX {fix}" * bool(fix)
        _say(f"ready: clients {clients}; config {self.cluster.config_file}; Ctrl-C ends it")

    def _look_why(self) -> None:
        why = next(filter(None, (_undecided(self.cluster.config, node_id) for node_id in self.waiting)), "")
        if why and why != self.undecided:
            _say(f"waiting: {why}: see `musidecar recover --dir {self.cluster.folder}`")
        self.undecided = why

    def run(self, ready_s: float) -> None:
        deadline = time.monotonic() + ready_s
        while True:
            events = self.selector.select(self.timeout_s())
            for key, _ in events:
                if key.data is None:
                    return
                node_id, fd = key.data
                self.selector.unregister(fd)
                os.close(fd)
                if not self.was_ready and not self.restart:
                    self.cluster.processes[node_id].wait()
                    self.cluster.check_alive()
                self.died(node_id)
            self.start_due()
            if not self.was_ready:
                self.look()
                if self.undecided:
                    deadline = time.monotonic() + ready_s
                if not self.was_ready and time.monotonic() > deadline:
                    self.cluster.wait_ready(0.0)


def run(cluster: Local, *, restart: bool = False) -> int:
    """Start the cluster and stay until SIGTERM, SIGINT or SIGHUP: 0. NotReady when it does not come up."""
    with _end_signals() as ended, cluster:
        foreground = _Foreground(cluster, ended, restart)
        try:
            _say(f"starting {len(cluster.config.nodes)} nodes in {cluster.folder}")
            for node in cluster.config.nodes:
                cluster.start_node(node.id)
                foreground.watch(node.id)
            foreground.run(protocols.kind(cluster.config.kind).ready_s)
        finally:
            foreground.close()
        return 0
