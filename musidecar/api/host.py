"""One node inside the user's program: its sidecar and its machine, in threads."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from musidecar import directory, formation, mesh
from musidecar._ffi import lib
from musidecar.config import Cluster, ConfigError, load
from musidecar.engine import Event
from musidecar.fabrics import EngineError
from musidecar.node import Sidecar
from musidecar.protocols.backend import BackendError, Wanted
from musidecar.protocols.own.backend import Own
from musidecar.protocols.own.checked import Checked, check_copies
from musidecar.protocols.own.replicated import MachineFailed, Replicated
from musidecar.protocols.own.server import Done, Ended
from musidecar.status import collect

KIND = "own"
USERS = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGALRM}  # signals
LOCK_S = 0.5
POLL_S = 0.01  # between looks at the other nodes
ANSWER_S = 1.0
PARTS = ("apply", "snapshot", "restore")

log = logging.getLogger("musidecar.api")


class Closed(Exception):
    """This replica does not run: it was closed, or never started; the text says which, or why it ended."""


@dataclass(frozen=True)
class Leadership:
    """Who leads, as this node knows it. leader: a node's id, None while nobody is known to. leads: this node does.
    serving: proposals at this node go through."""

    leader: int | None
    term: int
    leads: bool
    serving: bool


NOBODY = Leadership(None, 0, False, False)


def check_machine(machine: Any, *, copies: bool) -> None:
    """TypeError unless it has what a machine has. copies: it is to be copied into another process."""
    missing = [part for part in PARTS if not callable(getattr(machine, part, None))]
    if isinstance(machine, type):
        raise TypeError(f"machine is the class {machine.__name__}, not one of its objects: write {machine.__name__}()")
    if missing:
        name, parts = type(machine).__name__, " and no ".join(f"{part}()" for part in missing)
        has = "apply(index, record), snapshot() and restore(data)"
        raise TypeError(f"machine: {name} has no {parts}: a machine has {has}")
    if copies:
        check_copies(machine)


def check_config(config: Cluster | Path | str) -> Cluster:
    """ConfigError unless it is of a cluster of machines."""
    found = config if isinstance(config, Cluster) else load(config)
    if found.kind != KIND:
        where = f"{found.path or 'configuration'}: nodes[0].backend.kind"
        raise ConfigError([f'{where}: {found.kind}: for a machine of your own write kind = "{KIND}"'])
    return found


class Host:
    """`start()` brings the node up, `stop()` ends it. `told`: called with each Leadership, in the node's thread.
    `ended`: called there when the node has ended, whoever ended it."""

    def __init__(
        self, config: Cluster, node: int, machine: Any, *, check: bool, replace_data: bool,
        told: Callable[[Leadership], None], ended: Callable[[], None],
    ) -> None:  # fmt: skip
        self.config, self.node = config, config.node(node)
        self.leadership = NOBODY
        self.error: BaseException | None = None  # what ended it, if nobody wanted that
        self._machine, self._check, self._replace_data = machine, check, replace_data
        self._told, self._on_end = told, ended
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._sidecar: Sidecar | None = None
        self._own: Own | None = None
        self._up = threading.Event()
        self._over = threading.Event()
        self._stopping = False

    @property
    def runs(self) -> bool:
        return self._thread is not None and not self._over.is_set()

    def start(self) -> None:
        """Returns once this node and a majority hold what the cluster began with, and somebody leads. BackendError,
        EngineError, MeshError, ConfigError; Closed when it was stopped meanwhile."""
        if self._thread is not None:
            raise Closed("a replica is started once: make another one")
        self._thread = threading.Thread(target=self._run, name=f"node-{self.node.id}", daemon=True)
        self._thread.start()
        self._up.wait()
        while not self._over.is_set():
            if self.leadership.serving and self._is_filled():
                return
            self._over.wait(POLL_S)
        self._thread.join()
        raise self.error or Closed("closed while it was started")

    def _is_filled(self) -> bool:
        """Do a majority hold it? Before, all of it would be lost with the one node that does."""
        nodes = collect(self.config, ANSWER_S)["nodes"]
        return sum(node["role"] in ("leader", "follower") for node in nodes) > len(self.config.founders) // 2

    def stop(self) -> None:
        """Ends the node in order, and waits for that."""
        with self._lock:
            self._stopping = True
            sidecar = self._sidecar
        if sidecar is not None:
            sidecar.wake_up()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join()

    def when(self, stamp: int, action: Callable[[Any], Any], done: Done) -> None:
        """As Server.when()."""
        own = self._own
        if own is None or own.machine is None:
            done(None, Ended("the machine has ended"))
        else:
            own.machine.when(stamp, action, done)

    def why_ended(self) -> BaseException:
        """What a call is told that comes, or waits, when the node has ended."""
        if self.error is not None:
            return self.error
        if self._thread is None:
            return Closed("this replica was not started: use it in a `with`, or call start()")
        return Closed("this replica is closed")

    # ---- the node's thread ----

    def _run(self) -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, USERS)  # here, and in the threads that it starts
        path = directory.node_lock(self.config.directory, self.node.id)
        try:
            directory.ensure_private(self.config.directory)
            with directory.Lock(path) as lock:
                if not lock.acquire(LOCK_S):
                    found = f"{self.config.path}: node {self.node.id} is running already ({directory.holder(path)})"
                    raise ConfigError([found])
                while self._live():
                    pass
        except formation.Stopped:
            pass
        except (BackendError, EngineError, mesh.MeshError, ConfigError) as error:
            self.error = self.error or error
        except Exception as error:
            log.exception("the node has ended")
            self.error = self.error or error
        finally:
            self._over.set()
            self._up.set()
            self._tell(NOBODY)
            self._on_end()

    def _live(self) -> bool:
        """One life. True: another one is to follow (`musidecar reinit`)."""
        with self._lock:
            if self._stopping:
                return False
            sidecar = Sidecar(self.config, self.node, replace_data=self._replace_data, backend=self._make)
            self._sidecar = sidecar
        sidecar.observers.append(self._heard)
        try:
            sidecar.start()
            self._up.set()
            if sidecar.loop() != 0 and self.error is None:
                raise EngineError("the node could not go on: see its log")
        finally:
            sidecar.close()
            if self._own is not None:
                self._own.close()
        return sidecar.again

    def _make(self, wanted: Wanted) -> Own:
        state = Checked(self._machine) if self._check else Replicated(self._machine)
        self._own = Own(wanted, state, self._machine_failed)
        return self._own

    def _machine_failed(self, error: MachineFailed) -> None:
        """In the machine's thread. What it holds may differ from the others' now: the node leaves."""
        log.error("the machine has failed, and this node leaves the cluster: %s", error, exc_info=error)
        self.error = error
        if self._sidecar is not None:
            self._sidecar.wake_up()

    def _heard(self, event: Event) -> None:
        if event.kind in (lib.ENGINE_LEADER, lib.ENGINE_SERVING) and self._sidecar is not None:
            found = self._sidecar.status()
            self._tell(Leadership(found["leader"], found["term"], found["role"] == "leader", found["serving"]))

    def _tell(self, leadership: Leadership) -> None:
        if leadership != self.leadership:
            self.leadership = leadership
            self._told(leadership)

    # ---- its own clients' port ----

    @property
    def family(self) -> socket.AddressFamily:
        return socket.AF_INET6 if ":" in self.node.client_host else socket.AF_INET

    def connect_to(self) -> tuple[str, int]:
        host = self.node.client_host
        return {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host), self.node.client_port


def wake(fd: int) -> None:
    """An eventfd."""
    with contextlib.suppress(BlockingIOError):
        os.eventfd_write(fd, 1)
