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
import select
import signal
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from musidecar import (
    claims,
    council,
    edges,
    fetching,
    formation,
    keeper,
    kept,
    links,
    logs,
    membership,
    mesh,
    places,
    recovery,
    refusals,
    reinit,
    transfer,
    vitals,
    wishes,
)
from musidecar._ffi import lib
from musidecar.config import Cluster, ConfigError, Node
from musidecar.engine import Engine, Event, check_fabric, engine_settings, replica_config, set_members
from musidecar.fabrics import EngineError, Fabric, make_fabric
from musidecar.protocols import backend as backends
from musidecar.protocols.backend import Ask, BackendError, Claim, Prepared, Wanted
from musidecar.protocols.server import log_tail

OPEN_S, OPEN_POLL_S = 5.0, 0.001  # for the engine to take a new life of another node up
STOP_S = 3.0  # an engine that does not end by then is left behind
CLIENTS_WAITING = 1024  # connections that the kernel holds until they are accepted
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)

log = logging.getLogger("musidecar.node")


def run(config: Cluster, node_id: int, *, replace_data: bool = False, log_json: bool = False) -> int:
    """Run one node until a signal ends it (0) or it cannot go on (1; 2 where what is configured can never work here).

    Call from the main thread, with its lock held.
    replace_data: let the cluster's data replace what an already running backend of this node holds.
    ConfigError when something in the configuration or its files cannot be used.
    """
    node = config.node(node_id)
    try:
        logs.setup(f"node {node_id}", as_json=log_json, file=node.log)
    except OSError as error:
        raise ConfigError([f"{node.log}: cannot write the log: {error.strerror}"]) from None
    while True:
        sidecar = Sidecar(config, node, replace_data=replace_data)
        outcome = _live(sidecar)
        if not sidecar.again:
            return outcome


def _live(sidecar: Sidecar) -> int:
    """One life, to its end."""
    with _Signals(sidecar.wake_up):
        try:
            sidecar.start()
            return sidecar.loop()
        except formation.Stopped:
            return 0
        except (BackendError, EngineError, mesh.MeshError, ConfigError) as error:
            log.error("%s", error)
            return 2 if isinstance(error, ConfigError | formation.Unfit) else 1
        finally:
            sidecar.close()
            if sidecar.stuck:  # a thread that cannot be ended holds the memory
                logging.shutdown()
                os._exit(1)


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

    def __init__(
        self, config: Cluster, node: Node, *, replace_data: bool,
        backend: Callable[[Wanted], backends.Backend] | None = None,
    ) -> None:  # fmt: skip
        """backend: makes it, where it is not made by its kind alone."""
        self.config, self.node, self.replace_data = config, node, replace_data
        self.member = mesh.Member.of(config, node.id)
        self.home = places.home(config, node)
        self.stopping = False
        self.again = False  # another life is to follow
        self.failed = False
        self.stuck = False  # the engine's thread could not be ended, and what it uses is left behind
        self.observers: list[Callable[[Event], None]] = []  # called in the main thread with each of the engine's
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._todo: collections.deque[Callable[[], None]] = collections.deque()
        self._mesh = mesh.Mesh(self.member)
        token = places.feed_token(self.member, node.id)
        wanted = places.wanted_backend(config, node, token)
        self._backend = backend(wanted) if backend is not None else backends.make(node.backend.kind, wanted)
        self._vitals = vitals.Watch(self._backend)
        self._backend_pid: int | None = None
        self._backend_fd: int | None = None  # pidfd
        self._clients: socket.socket | None = None
        self._edge: edges.Port | None = None
        self._formed: formation.Formed | None = None
        self._members: dict[int, str] = {}  # of the formation: id -> incarnation
        self._kept = kept.Kept(self.home, config.name, node.id)
        self._council = council.Council(council.Report(), config.seed)
        self._former = claims.Former(None, outlived=False, restored=False)
        self._claim: Claim | None = None
        self._strange = False  # what the backend holds may be of no cluster
        self._last: dict[str, Any] | None = None  # what the engine knew when it had ended
        self._links: links.Links | None = None
        self._engine: Engine | None = None
        self._engine_lock = threading.Lock()  # held while anybody looks at the engine, so that it can be freed
        self._thread: threading.Thread | None = None
        self._fetching: fetching.Fetching | None = None
        self._keeper = keeper.Keeper(
            self._prepare_again,
            on_ready=lambda prepared: self._later(lambda: self._backend_answers(prepared)),
            restart=lambda: self._later(self._restart_backend),
        )
        self._refusals = refusals.Refusals(self.member, lambda question: self._wishes.switchover(question))
        self._reinit = reinit.Reinit(
            lambda: self.member, self._engine_status, lambda: self._later(self._begin_anew)
        )
        self._membership = membership.Membership(node.id, self._engine_status, self._with_engine)
        self._wishes = wishes.Wishes(self._with_engine, self.member.nodes, config.timing.takeover_timeout_ms)

    # ---- waking the main thread ----

    def wake_up(self, number: int = 0) -> None:
        """Signal handler: end in order."""
        self.stopping, self.again = True, False
        os.eventfd_write(self._wake, 1)

    def _begin_anew(self) -> None:
        """In the main thread: forget everything, by the operator's wish."""
        if not self.stopping:
            log.warning("this node forgets its memory and its server's data, and begins anew")
            self.stopping = self.again = True

    def _later(self, action: Callable[[], None]) -> None:
        """Any thread: do this in the main one."""
        self._todo.append(action)
        os.eventfd_write(self._wake, 1)

    # ---- starting ----

    def start(self) -> None:
        """Everything up to the running engine. Stopped when a signal comes before."""
        check_fabric(self.config, self.node.id)
        mesh.private_directory(self.config.directory)
        mesh.private_directory(self.home)
        transfer.remove_leftovers(self.home)
        self._clients = places.bind(self.node.client_host, self.node.client_port)
        text = places.near(self.node.client_host), self.node.client_port
        self._edge = edges.Port(self._backend.edge(text), self.home, self._later)
        running = formation.running(self.member)
        record = None if self.replace_data else self._kept.record
        restored = running is None or claims.may_restore(record, running.generation)
        if restored and not self.replace_data:
            self._backend.restore(self.home / kept.DATA)
        self._start_backend()
        outlived = self._backend.outlived()
        self._former = claims.Former(record, outlived, restored and self._backend.server is not None)
        if running is None:
            self._council.report = council.look_back(self._kept.record, self._backend, self.replace_data)
            self._strange = bool(self._council.report.doubt) and not outlived
        prepared = self._prepare_backend(rejoins=running is not None)
        table = self._backend.table(prepared)
        replica = replica_config(self.config, self.node.id, self.member.secret)
        self._mesh.questions |= {
            "status": lambda _: self.status(), "switchover": self._wishes.switchover, "pause": self._wishes.pause,
            "refusal": lambda _: {"why": self._backend.refuses()},
        } | recovery.questions(self._council, lambda: self._formed is not None)  # fmt: skip
        self._mesh.questions |= self._reinit.questions | self._membership.questions
        self._mesh.listen()
        try:
            if running is not None:
                raise running
            formed = formation.form(
                self._mesh,
                lambda: make_fabric(self.config, self.node.id, replica),
                lambda: self.stopping,
                self._council,
            )
            self._members = formed.incarnations
            log.info("the cluster has formed: nodes %s", ", ".join(map(str, formed.incarnations)))
            if self._kept.record is not None and not prepared.keys and not self._backend.keeps_data:
                log.warning("the cluster begins empty: %s keeps nothing when it ends", self._backend.kind.title)
            if formed.verdict.chosen:
                log.info("it begins with the data of node %d: %s", formed.verdict.seed, formed.verdict.chosen)
        except formation.Running as found:
            if running is None:  # it has become known only now
                if self._strange:
                    self._backend.disown()
                prepared = self._prepare_backend(rejoins=True)
            formed = self._join(found, make_fabric(self.config, self.node.id, replica))
        self._formed = formed
        claim = self._look_for_claim(formed.verdict)
        self._begin_life(formed.verdict.generation, claim is not None)
        set_members(replica, self.member.incarnation, self._members)
        feed = socket.create_server(("127.0.0.1", 0))
        settings = engine_settings(
            self.config,
            self.node,
            replica,
            self._backend.address,
            self._backend.engine_fields(prepared),
            token=self._backend.wanted.token,
            feed_port=feed.getsockname()[1],
            pids=formed.pids | {self.node.id: os.getpid()},
            seed=self.node.id == formed.verdict.seed and self.node.id in formed.incarnations,
            claim=claim,
        )
        self._start_engine(Engine(settings, formed.fabric, table), feed, formed)

    def _join(self, running: formation.Running, fabric: Fabric) -> formation.Formed:
        """Begins another life in a cluster that runs: without memory, and for now without connections."""
        self._members = running.members
        if mesh.incarnation_number(self.member.incarnation) <= running.latest:
            self.member = replace(self.member, incarnation=mesh.new_incarnation(running.latest))
            self._mesh.member = self.member
        log.info("the cluster runs: this node joins it as incarnation %s", self.member.incarnation)
        return formation.Formed(fabric, {}, {}, {}, {}, council.Begin(0, running.generation))

    def _founder(self) -> str:
        """Names the formation."""
        return self._members[min(self._members)]

    def _look_for_claim(self, begun: council.Begin) -> Claim | None:
        """What the backend has kept of the data of a cluster that runs."""
        joins = begun.seed == 0
        self._claim = claims.look(self._former, self._backend, begun.generation, self._founder()) if joins else None
        return self._claim

    def _begin_life(self, generation: int, filled: bool) -> None:
        lives = {node: mesh.incarnation_number(each) for node, each in self._members.items()}
        try:
            number = mesh.incarnation_number(self.member.incarnation)
            self._kept.begin(generation, self._founder(), number, lives, filled=filled)
        except OSError as error:
            raise ConfigError([f"{self.home}: cannot write here: {error.strerror}"]) from None

    def _formation(self, _: dict[str, Any]) -> dict[str, Any]:
        """The answer to the question `formation`: that the cluster runs, and what a node that joins it must know."""
        latest: dict[int, int] = {}
        with self._engine_lock:
            if self._engine is not None:
                latest = self._engine.latest()
        met = self._links.incarnations() if self._links is not None else {}
        for node, each in met.items():
            latest[node] = max(latest.get(node, 0), mesh.incarnation_number(each))
        generation = self._formed.verdict.generation if self._formed is not None else 1
        return {"members": self._members, "latest": latest, "generation": generation}

    def _start_backend(self) -> None:
        self._backend.start()
        self._check_stopping()

    def _prepare_backend(self, *, rejoins: bool) -> Prepared:
        """rejoins: the cluster runs, so its data replaces what a former life of this node has left in its backend."""
        ran = self._kept.record is not None  # with whose data the cluster begins is to be seen
        own = self._former.outlived or (self._former.restored and self._former.record is not None)
        joining = rejoins or ran or self.node.id != self.config.seed
        ask = Ask(
            joining=joining,
            rejoins=rejoins,
            follows=rejoins and self._former.outlived,
            replace_data=self.replace_data or (ran and not rejoins) or (rejoins and own),
            replace_line=f"musidecar run --config {self.config.path} --node {self.node.id} --replace-data",
        )
        prepared = self._backend.prepare(ask)
        self._know_backend(prepared)
        title, address = self._backend.kind.title, self._backend.address
        how = "started" if self._backend.server else "found"
        log.info("backend: %s %s %s at %s, pid %d", how, title, prepared.version, address, prepared.pid)
        if not self._backend.server and prepared.changed:
            changes = ", ".join(f"{name} = {value}" for name, value in prepared.changed.items())
            log.info("backend: settings changed: %s", changes)
        if joining and prepared.keys and not own and (rejoins or not ran):
            log.warning("backend: its %d keys will be replaced by the cluster's data", prepared.keys)
        return prepared

    def _prepare_again(self) -> Prepared:
        """For the keeper, in its thread. BackendError while the backend is not there, or does not answer."""
        try:
            self._kept.mark(filled=False)  # before it can be taken for this node's again: who knows what it has loaded
        except OSError as error:
            raise BackendError(f"{self.home}: cannot write here: {error.strerror}") from None
        self._backend.look(keeper.ANSWER_S)
        return self._backend.prepare(Ask(joining=True, follows=True, replace_data=True))  # the cluster's, from before

    def _know_backend(self, prepared: Prepared) -> None:
        self._backend_pid = self._backend.local_pid(prepared.pid)
        if self._backend_pid is not None:
            with contextlib.suppress(OSError):  # it ends just now: the engine will notice
                self._backend_fd = os.pidfd_open(self._backend_pid)

    def _start_engine(self, engine: Engine, feed: socket.socket, formed: formation.Formed) -> None:
        assert self._clients is not None
        with self._engine_lock:
            self._engine = engine
        rate = self.config.limits.transfer_bytes_per_s
        source = transfer.Source(self._backend, self._objection, rate, self._points)
        self._mesh.handlers["transfer"] = source.serve
        try:
            self._clients.listen(CLIENTS_WAITING)
        except OSError as error:
            host, port = self.node.client_host, self.node.client_port
            raise EngineError(places.in_use(host, port, "for clients", error)) from None
        engine.listen(self._clients)
        engine.listen_feed(feed)
        while formed.links:
            engine.add_link(*formed.links.popitem())
        self._links = links.Links(self._mesh, formed.fabric, links.Callbacks(
            opened=lambda node, pid: self._open_peer(formed.fabric, node, pid), link=self._add_link,
            gone=self._peer_gone, back=self._peer_back,
        ))  # fmt: skip
        self._links.adopt(formed.controls)
        self._thread = threading.Thread(target=self._run_engine, args=(engine,), name="engine", daemon=True)
        self._thread.start()
        self._vitals.start()
        self._links.start()
        self._mesh.questions["formation"] = self._formation
        if self._edge is not None:
            self._edge.start()
        if formed.fabric.warning:
            log.warning("%s", formed.fabric.warning)

    def _run_engine(self, engine: Engine) -> None:
        outcome = engine.run()
        self._later(lambda: self._engine_ended(outcome))

    def _open_peer(self, fabric: Fabric, node: int, pid: int) -> None:
        """For the links: has the engine open the fabric's link to a new life of a node. OSError if it does not."""
        with self._engine_lock:
            if self._engine is not None:
                self._engine.peer(node, pid, fabric.region(node))
        deadline = time.monotonic() + OPEN_S
        while not fabric.is_open(node):
            if self.stopping or time.monotonic() > deadline:
                raise TimeoutError("the engine does not open it")
            time.sleep(OPEN_POLL_S)

    def _add_link(self, node: int, fd: int) -> None:
        with self._engine_lock:
            if self._engine is not None:
                self._engine.add_link(node, fd)
                return
        os.close(fd)

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
        watched: int | None = None  # the backend's process; another one after a restart
        while not self.stopping:
            if self._backend_fd != watched:
                if self._backend_fd is not None:
                    poll.register(self._backend_fd, select.POLLIN)
                watched = self._backend_fd
            for fd, _ in poll.poll():
                if fd == self._wake:
                    self._run_todo()
                elif fd == watched:
                    poll.unregister(fd)
                    watched = None
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

    def _peer_back(self, node: int) -> None:
        log.info("mesh: connected to node %d again", node)
        with self._engine_lock:
            if self._engine is None or self._links is None:
                return
            members, leader = self._engine.members(), self._engine.leader_and_term()[0]
        lives = {id_: mesh.incarnation_number(each) for id_, each in self._links.incarnations().items()}
        lives[self.node.id] = mesh.incarnation_number(self.member.incarnation)
        lost = [id_ for id_, each in members.items() if lives.get(id_, each) != each]
        if self.node.id in lost:
            return  # what this node knows of the members is old, or it is not the one to tell
        if leader is None and len(members) - len(lost) <= len(members) // 2:
            log.error("nodes %s have lost their memory, and with it a majority of the log's copies: nobody can know"
                      " what was acknowledged, and nothing starts by itself", ", ".join(map(str, lost)))  # fmt: skip

    def _backend_ended(self) -> None:
        self._forget_backend()
        server, title = self._backend.server, self._backend.kind.title
        if server is None:
            address = self._backend.address
            log.error("backend: %s at %s has ended: this node votes, but cannot lead till it is back", title, address)
            return
        server.process.wait()
        tail, name = log_tail(server.log), self._backend.wanted.binary
        log.error("backend: %s has ended (%s), and is started again: %s", name, server.gone(), tail)

    def _forget_backend(self) -> None:
        self._backend_pid = None
        if self._backend_fd is not None:
            os.close(self._backend_fd)
            self._backend_fd = None

    def _restart_backend(self) -> None:
        """In the main thread: the server dies with the thread that starts it."""
        server = self._backend.server
        if server is None or server.gone() is None or self.stopping:
            return
        try:
            self._start_backend()
        except BackendError as error:
            log.error("backend: %s", error)

    def _backend_answers(self, prepared: Prepared) -> None:
        """In the main thread: a backend that was lost is there, and prepared."""
        if self.stopping or self._engine is None:
            return
        self._forget_backend()
        self._know_backend(prepared)
        what = "it goes on where it was, or is filled again"
        title, address = self._backend.kind.title, self._backend.address
        log.info("backend: %s at %s answers, pid %d: %s", title, address, prepared.pid, what)
        self._engine.backend_ready()

    def _engine_ended(self, outcome: int) -> None:
        if not self.stopping:
            self.failed = self.stopping = True
            self._hear_engine()
            log.error("the engine has ended (%d)", outcome)

    def _hear_engine(self) -> None:
        assert self._engine is not None
        for event in self._engine.events():
            self._on_event(event)
            for observer in self.observers:
                observer(event)

    def _on_event(self, event: Event) -> None:
        if event.kind == lib.ENGINE_LOG:
            log.log(event.level, "%s", event.text)
        elif event.kind == lib.ENGINE_ROLE:
            role = "leads" if event.a == lib.REPLICA_LEADER else "follows"
            log.info("this node %s (term %d)", role, event.b)
        elif event.kind == lib.ENGINE_SERVING:
            log.info("clients are %s", "served" if event.a else "not served")
            if event.a:
                with contextlib.suppress(OSError):  # then it is filled again next time
                    self._kept.mark(filled=True)
        elif event.kind == lib.ENGINE_LINK_LOST:
            if self._links is not None:
                self._links.link_lost(event.a + 1)
        elif event.kind == lib.ENGINE_WANT_RDB:
            self._want_data(event.a, event.b, None)
        elif event.kind == lib.ENGINE_WANT_TAIL and self._claim is not None:
            self._want_data(event.a, event.b, self._claim.offset)
        elif event.kind == lib.ENGINE_REFUSES:
            self._refusals.refuses()
        elif event.kind == lib.ENGINE_BACKEND_LOST:
            self._keeper.lost()
        elif event.kind == lib.ENGINE_HANDOVER:
            self._wishes.heard(event)
        elif event.kind == lib.ENGINE_FATAL:
            self.failed = self.stopping = True
            log.error("%s", event.text)

    # ---- data for the backend ----

    def _want_data(self, offset: int, number: int, after: int | None) -> None:
        """A copy at that offset or beyond; or the changes behind `after`, up to there."""
        assert self._engine is not None
        if self._fetching is not None:
            self._fetching.cancel()
        leader, term = self._engine.leader_and_term()
        others = [node for node in self.member.nodes if node != self.node.id]
        others.sort(key=lambda node: node == leader)  # the leader last: a transfer costs the giver (Redis: a fork)
        self._fetching = fetching.Fetching(
            self._mesh, self._engine, self._backend, self.home, others, offset, term, number, after
        )

    def _objection(self, term: int) -> str | None:
        with self._engine_lock:
            return "it is not running yet" if self._engine is None else self._engine.backend_objection(term)

    def _points(self) -> backends.Point:
        with self._engine_lock:
            return backends.Point(0, 0, 0) if self._engine is None else self._engine.points()

    def _with_engine(self, action: Callable[[Engine], None]) -> bool:
        with self._engine_lock:
            if self._engine is None:
                return False
            action(self._engine)
            return True

    def _engine_status(self) -> dict[str, Any] | None:
        with self._engine_lock:
            return self._engine.status() if self._engine is not None else None

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
            "reads_locally": self.config.reads_locally(self.node),
            "incarnation": self.member.incarnation,
        }
        with self._engine_lock:
            if self._engine is not None:
                found |= self._engine.status()
        found |= self._vitals.status() | (self._edge.status() if self._edge is not None else {})
        if found["role"] == "joining" and "damage" in found:
            found["joining"] = fetching.stage(found, self._fetching)
        if self._council.undecided and self._formed is None:
            found["undecided"] = self._council.undecided
        return found

    # ---- ending ----

    def close(self) -> None:
        """Engine, mesh and backend, in this order; what is not there is passed over."""
        self._keeper.close()
        self._vitals.close()
        if self._fetching is not None:
            self._fetching.cancel()
        if self._links is not None:
            self._links.close()
        self._mesh.close()
        if self._edge is not None:
            self._edge.close()
        ended = self._stop_engine()
        if self._clients is not None:
            self._clients.close()
        if self.again:
            self._kept.forget()
        elif self._last is not None and not self.failed:
            self._end_life(self._last)
        if self._backend.server is not None:
            self._backend.server.stop()
        if self._backend_fd is not None:
            os.close(self._backend_fd)
        if self._formed is not None and ended:
            mesh.close_all(list(self._formed.links.values()))
            self._formed.fabric.close()
        self.stuck = not ended

    def _stop_engine(self) -> bool:
        engine, thread = self._engine, self._thread
        if engine is None:
            return True
        if thread is not None:
            engine.stop()
            thread.join(STOP_S)
            if thread.is_alive():
                log.error("the engine does not stop: leaving it behind")
                if self._backend.server is not None:
                    self._backend.server.process.kill()
                return False
        if self._fetching is not None:
            self._fetching.join(STOP_S)
        with self._engine_lock:
            self._engine = None
            self._last = engine.status() if thread is not None else None
            engine.free()
        return True

    def _end_life(self, known: dict[str, Any]) -> None:
        try:
            self._kept.end(known, self._backend)
        except OSError as error:
            log.error("%s: what this node had cannot be written down: %s", self.home, error.strerror)
