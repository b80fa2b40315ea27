"""One sidecar process: its backend, its place in the cluster, its engine, and what it tells about itself.

The main thread starts the backend (which dies with that thread), forms the cluster with the other nodes and then waits
for events: lines and wishes of the engine, peers that go away, the backend's end, signals. The engine runs in a thread
of its own and needs nothing from here to serve requests.
"""

from __future__ import annotations

import collections
import contextlib
import logging
import os
import secrets
import select
import signal
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from musidecar import formation, logs, mesh, transfer
from musidecar._ffi import lib
from musidecar.config import Cluster, ConfigError, Node, split_address
from musidecar.engine import Engine, EngineError, Event, ShmFabric, engine_settings, replica_config
from musidecar.protocols.redis import commands, driver
from musidecar.protocols.redis.admin import Address, BackendError

STOP_S = 3.0  # an engine that does not end by then is left behind
CLIENTS_WAITING = 1024  # connections that the kernel holds until they are accepted
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)

log = logging.getLogger("musidecar.node")


def run(config: Cluster, node_id: int, *, replace_data: bool = False, log_json: bool = False) -> int:
    """Run one node until a signal ends it (0) or it cannot go on (1). Call from the main thread, with its lock held.

    replace_data: let the cluster's data replace what an already running backend of this node holds.
    ConfigError when something in the configuration or its files cannot be used.
    """
    node = config.node(node_id)
    try:
        logs.setup(f"node {node_id}", as_json=log_json, file=node.log)
    except OSError as error:
        raise ConfigError([f"{node.log}: cannot write the log: {error.strerror}"]) from None
    sidecar = Sidecar(config, node, replace_data=replace_data)
    with _Signals(sidecar.wake_up):
        try:
            sidecar.start()
            return sidecar.loop()
        except formation.Stopped:
            return 0
        except (BackendError, EngineError, mesh.MeshError, ConfigError) as error:
            log.error("%s", error)
            return 1
        finally:
            sidecar.close()


class _Signals:
    """SIGTERM, SIGINT and SIGHUP call `on_signal` (in the main thread) for as long as the context lasts."""

    def __init__(self, on_signal: Callable[[int], None]) -> None:
        self._on_signal = on_signal
        self._before: dict[int, Any] = {}

    def __enter__(self) -> None:
        for number in SIGNALS:
            self._before[number] = signal.signal(number, lambda number, _: self._on_signal(number))

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)


class Sidecar:
    """What one node holds. `start()` brings it to where clients are served, `loop()` stays, `close()` gives back."""

    def __init__(self, config: Cluster, node: Node, *, replace_data: bool) -> None:
        self.config, self.node, self.replace_data = config, node, replace_data
        self.member = mesh.Member.of(config, node.id)
        self.home = config.directory / f"redis-{node.id}"  # the backend's working folder, and RDBs on their way
        self.stopping = False
        self.failed = False
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._todo: collections.deque[Callable[[], None]] = collections.deque()
        self._mesh = mesh.Mesh(self.member)
        self._server: driver.Server | None = None
        self._backend_pid: int | None = None
        self._backend_fd: int | None = None  # pidfd
        self._address = Address()
        self._clients: socket.socket | None = None
        self._formed: formation.Formed | None = None
        self._watch: formation.Watch | None = None
        self._engine: Engine | None = None
        self._engine_lock = threading.Lock()  # held while anybody looks at the engine, so that it can be freed
        self._thread: threading.Thread | None = None
        self._fetching: _Fetching | None = None

    # ---- waking the main thread ----

    def wake_up(self, number: int = 0) -> None:
        """Signal handler: end in order."""
        self.stopping = True
        os.eventfd_write(self._wake, 1)

    def _later(self, action: Callable[[], None]) -> None:
        """Any thread: do this in the main one."""
        self._todo.append(action)
        os.eventfd_write(self._wake, 1)

    # ---- starting ----

    def start(self) -> None:
        """Everything up to the running engine. Stopped when a signal comes before."""
        mesh.private_directory(self.config.directory)
        mesh.private_directory(self.home)
        transfer.remove_leftovers(self.home)
        self._clients = _bind(self.node)
        token = secrets.token_hex(32)
        prepared = self._prepare_backend(token)
        table = commands.command_table(commands.rows(prepared.commands))
        replica = replica_config(self.config, self.node.id, self.member.secret)
        self._mesh.questions["status"] = lambda _: self.status()
        self._mesh.listen()
        formed = self._formed = formation.form(
            self._mesh, lambda: ShmFabric(self.config, self.node.id, replica), lambda: self.stopping
        )
        log.info("the cluster has formed: nodes %s", ", ".join(map(str, formed.incarnations)))
        feed = socket.create_server(("127.0.0.1", 0))
        settings = engine_settings(
            self.config,
            self.node.id,
            replica,
            self._address,
            prepared,
            token=token,
            feed_port=feed.getsockname()[1],
            pids=formed.pids | {self.node.id: os.getpid()},
        )
        self._start_engine(Engine(settings, formed.fabric, table), feed, formed)

    def _prepare_backend(self, token: str) -> driver.Prepared:
        backend = self.node.backend
        if backend.spawn:
            assert backend.socket is not None
            self._server = driver.spawn(
                self.home, backend.socket, binary=backend.binary, password=backend.password() or ""
            )
            self._address = self._server.address
        else:
            self._address = backend_address(self.config, self.node)
            driver.attach(self._address)
        self._check_stopping()
        joining = self.node.id != self.config.seed
        line = f"musidecar run --config {self.config.path} --node {self.node.id} --replace-data"
        prepared = driver.prepare(
            self._address,
            token=token,
            backend_timeout_ms=self.config.timing.backend_timeout_ms,
            joining=joining,
            replace_data=self.replace_data,
            replace_line=line,
        )
        self._backend_pid = driver.local_pid(self._address, prepared.pid)
        if self._backend_pid is not None:
            with contextlib.suppress(OSError):  # it ends just now: the engine will notice
                self._backend_fd = os.pidfd_open(self._backend_pid)
        how = "started" if self._server else "found"
        log.info("backend: %s Redis %s at %s, pid %d", how, prepared.version, self._address, prepared.pid)
        if not self._server and prepared.changed:
            changes = ", ".join(f"{name} = {value}" for name, value in prepared.changed.items())
            log.info("backend: settings changed: %s", changes)
        if joining and prepared.keys:
            log.warning("backend: its %d keys will be replaced by the cluster's data", prepared.keys)
        return prepared

    def _start_engine(self, engine: Engine, feed: socket.socket, formed: formation.Formed) -> None:
        assert self._clients is not None
        with self._engine_lock:
            self._engine = engine
        source = transfer.Source(self._address, self._objection)
        self._mesh.handlers["transfer"] = source.serve
        try:
            self._clients.listen(CLIENTS_WAITING)
        except OSError as error:
            raise EngineError(_in_use(self.node, error)) from None
        engine.listen(self._clients)
        engine.listen_feed(feed)
        while formed.links:
            engine.add_link(*formed.links.popitem())
        self._watch = formation.Watch(
            formed.controls, lambda node, goodbye: self._later(lambda: self._peer_gone(node, goodbye))
        )
        self._thread = threading.Thread(target=self._run_engine, args=(engine,), name="engine", daemon=True)
        self._thread.start()
        if formed.fabric.fence_kind == "kill":
            log.warning("a node stopped in mid-write can only be fenced by killing it here: see `musidecar doctor`")

    def _run_engine(self, engine: Engine) -> None:
        outcome = engine.run()
        self._later(lambda: self._engine_ended(outcome))

    def _check_stopping(self) -> None:
        if self.stopping:
            raise formation.Stopped("stopped while starting")

    # ---- the loop ----

    def loop(self) -> int:
        """Stay until a signal or the engine ends it: 0, or 1 when the node could not go on."""
        assert self._engine is not None
        poll = select.poll()
        poll.register(self._wake, select.POLLIN)
        poll.register(self._engine.event_fd, select.POLLIN)
        if self._backend_fd is not None:
            poll.register(self._backend_fd, select.POLLIN)
        while not self.stopping:
            for fd, _ in poll.poll():
                if fd == self._wake:
                    self._run_todo()
                elif fd == self._backend_fd:
                    poll.unregister(fd)
                    self._backend_ended()
                else:
                    self._hear_engine()
        self._hear_engine()
        log.info("stopping")
        return 1 if self.failed else 0

    def _run_todo(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self._wake)
        while self._todo:
            self._todo.popleft()()

    def _peer_gone(self, node: int, goodbye: bool) -> None:
        if goodbye:
            log.info("mesh: node %d has stopped", node)
        else:
            log.warning("mesh: connection to node %d lost", node)

    def _backend_ended(self) -> None:
        self._backend_pid = None
        if self._server is None:
            log.error("backend: Redis at %s has ended: this node votes, but cannot lead or serve", self._address)
            return
        self._server.process.wait()
        tail = driver.log_tail(self._server.log)
        log.error(
            "backend: redis-server has ended (%s): this node votes, but cannot lead: %s", self._server.gone(), tail
        )

    def _engine_ended(self, outcome: int) -> None:
        if not self.stopping:
            self.failed = self.stopping = True
            self._hear_engine()
            log.error("the engine has ended (%d)", outcome)

    def _hear_engine(self) -> None:
        assert self._engine is not None
        for event in self._engine.events():
            self._on_event(event)

    def _on_event(self, event: Event) -> None:
        if event.kind == lib.ENGINE_LOG:
            log.log(event.level, "%s", event.text)
        elif event.kind == lib.ENGINE_ROLE:
            role = "leads" if event.a == lib.REPLICA_LEADER else "follows"
            log.info("this node %s (term %d)", role, event.b)
        elif event.kind == lib.ENGINE_SERVING:
            log.info("clients are %s", "served" if event.a else "not served")
        elif event.kind == lib.ENGINE_WANT_RDB:
            self._want_rdb(event.a, event.b)
        elif event.kind == lib.ENGINE_FATAL:
            self.failed = self.stopping = True
            log.error("%s", event.text)

    # ---- an RDB for the engine ----

    def _want_rdb(self, offset: int, number: int) -> None:
        assert self._engine is not None
        if self._fetching is not None:
            self._fetching.cancel()
        leader, term = self._engine.leader_and_term()
        others = [node for node in self.member.nodes if node != self.node.id]
        others.sort(key=lambda node: node == leader)  # the leader last: a transfer costs the giver a fork
        self._fetching = _Fetching(self._mesh, self._engine, self.home, others, offset, term, number)

    def _objection(self, term: int) -> str | None:
        with self._engine_lock:
            return "it is not running yet" if self._engine is None else self._engine.backend_objection(term)

    # ---- what it tells ----

    def status(self) -> dict[str, Any]:
        """The answer to the question `status`: what musidecar.status.FIELDS names, and the engine's counters."""
        found: dict[str, Any] = {
            "id": self.node.id,
            "role": "joining",
            "leader": None,
            "pid": os.getpid(),
            "backend_pid": self._backend_pid,
            "client": self.node.client,
            "backend": self.node.backend.place,
            "serving": False,
            "incarnation": self.member.incarnation,
        }
        with self._engine_lock:
            if self._engine is not None:
                found |= self._engine.status()
        return found

    # ---- ending ----

    def close(self) -> None:
        """Engine, mesh and backend, in this order; what is not there is passed over."""
        if self._fetching is not None:
            self._fetching.cancel()
        if self._watch is not None:
            self._watch.close()
        self._mesh.close()
        ended = self._stop_engine()
        if self._clients is not None:
            self._clients.close()
        if self._server is not None:
            self._server.stop()
        if self._backend_fd is not None:
            os.close(self._backend_fd)
        if self._formed is not None and ended:
            mesh.close_all(list(self._formed.links.values()))
            self._formed.fabric.close()
        if not ended:  # a thread that cannot be ended holds the memory
            logging.shutdown()
            os._exit(1)

    def _stop_engine(self) -> bool:
        engine, thread = self._engine, self._thread
        if engine is None:
            return True
        if thread is not None:
            engine.stop()
            thread.join(STOP_S)
            if thread.is_alive():
                log.error("the engine does not stop: leaving it behind")
                if self._server is not None:
                    self._server.process.kill()
                return False
        if self._fetching is not None:
            self._fetching.join(STOP_S)
        with self._engine_lock:
            self._engine = None
            engine.free()
        return True


class _Fetching:
    """One RDB on its way to the engine, in a thread of its own."""

    def __init__(
        self, own: mesh.Mesh, engine: Engine, into: Path, nodes: list[int], offset: int, term: int, number: int
    ) -> None:
        self._mesh, self._engine, self._into = own, engine, into
        self._nodes, self._offset, self._term, self._number = nodes, offset, term, number
        self._cancelled = threading.Event()
        self._thread = threading.Thread(target=self._run, name="transfer", daemon=True)
        self._thread.start()

    def cancel(self) -> None:
        """It is not wanted any more; the thread ends with the next piece."""
        self._cancelled.set()

    def join(self, timeout_s: float) -> None:
        self._thread.join(timeout_s)

    def _run(self) -> None:
        began = time.monotonic()
        try:
            got = transfer.fetch(
                self._mesh, self._nodes, self._offset, self._into, term=self._term, cancelled=self._cancelled.is_set
            )
        except transfer.Cancelled:
            return
        except transfer.TransferFailed as error:
            log.warning("transfer: no data at offset %d or beyond: %s", self._offset, error)
            if not self._cancelled.is_set():
                self._engine.rdb_failed(self._number)
            return
        if self._cancelled.is_set():
            os.close(got.fd)
            return
        log.info("transfer: done in %.0f ms", (time.monotonic() - began) * 1000)
        self._engine.install_rdb(got.fd, got.bytes, got.offset, self._number)


def backend_address(config: Cluster, node: Node) -> Address:
    """Where a node's backend listens and how to log in. ConfigError when its password cannot be read."""
    backend = node.backend
    user, password = backend.user or "", backend.password() or ""
    if backend.socket is not None:
        return Address(path=str(backend.socket), user=user, password=password)
    host, port = split_address(backend.address)
    return Address(host=host, port=port, user=user, password=password)


def _bind(node: Node) -> socket.socket:
    """The clients' socket, bound, not listening yet. ConfigError when the address cannot be had."""
    family = socket.AF_INET6 if ":" in node.client_host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((node.client_host, node.client_port))
    except OSError as error:
        sock.close()
        raise ConfigError([_in_use(node, error)]) from None
    return sock


def _in_use(node: Node, error: OSError) -> str:
    return f"cannot listen for clients on {node.client}: {error.strerror or error}"
