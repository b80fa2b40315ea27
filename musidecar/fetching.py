"""What the engine of this node wants for its backend, on its way from another node (transfer.py)."""

from __future__ import annotations

import logging
import os
import threading
import time
from pathlib import Path
from typing import Any

from musidecar import mesh, transfer
from musidecar.engine import Engine
from musidecar.protocols.backend import Backend, BackendError

log = logging.getLogger("musidecar.transfer")


class Fetching:
    """A copy of the data, or a piece of the stream behind the offset `after`, on its way to the engine, in a thread of
    its own."""

    def __init__(
        self,
        own: mesh.Mesh,
        engine: Engine,
        backend: Backend,
        into: Path,
        nodes: list[int],
        offset: int,
        term: int,
        number: int,
        after: int | None = None,
    ) -> None:
        self._mesh, self._engine, self._backend, self._into = own, engine, backend, into
        self._nodes, self._offset, self._term, self._number, self._after = nodes, offset, term, number, after
        self.source, self.bytes = 0, 0  # so much has come, from that node
        self._cancelled = threading.Event()
        self._thread = threading.Thread(target=self._run, name="transfer", daemon=True)
        self._thread.start()

    def cancel(self) -> None:
        """It is not wanted any more; the thread ends with the next piece."""
        self._cancelled.set()

    def join(self, timeout_s: float) -> None:
        self._thread.join(timeout_s)

    def _progress(self, node: int, count: int) -> None:
        self.source, self.bytes = node, count

    def _run(self) -> None:
        began = time.monotonic()
        try:
            if self._after is None:
                self._take_copy()
            else:
                self._take_tail(self._after)
        except transfer.Cancelled:
            return
        except (transfer.TransferFailed, BackendError) as error:
            log.warning("transfer: no data at offset %d or beyond: %s", self._offset, error)
            if not self._cancelled.is_set():
                self._engine.rdb_failed(self._number)
            return
        log.info("transfer: done in %.0f ms", (time.monotonic() - began) * 1000)

    def _take_copy(self) -> None:
        got = transfer.fetch(
            self._mesh, self._nodes, self._offset, self._into, term=self._term, cancelled=self._cancelled.is_set,
            progress=self._progress,
        )  # fmt: skip
        if self._cancelled.is_set():
            os.close(got.fd)
            raise transfer.Cancelled
        if not self._backend.fills_itself:
            self._engine.install_rdb(got.fd, got.bytes, got.offset, self._number)
            return
        with open(got.fd, "rb") as file:
            count = self._backend.fill(file, got.head, self._cancelled.is_set)
        if self._cancelled.is_set():
            raise transfer.Cancelled
        log.info("transfer: %d items are stored", count)
        given = got.foot.get("given")
        if not isinstance(given, int):
            raise transfer.TransferFailed(f"node {got.node} does not say how far its server was given the log")
        exact, due_s = got.head.get("exact", 0), got.head.get("due_s", 0)
        if not isinstance(exact, int) or not isinstance(due_s, int):
            raise transfer.TransferFailed(f"node {got.node} does not say what the copy holds")
        self._engine.install_copy(got.offset, given, exact, due_s, self._number)

    def _take_tail(self, after: int) -> None:
        got = transfer.fetch_tail(
            self._mesh, self._nodes, after, self._offset, term=self._term, cancelled=self._cancelled.is_set,
            progress=self._progress,
        )  # fmt: skip
        if self._cancelled.is_set():
            raise transfer.Cancelled
        self._engine.install_tail(got, self._number)


def stage(engine: dict[str, Any], fetching: Fetching | None) -> str:
    """How far a node, by its engine's status, is on its way to being a member whose server has the cluster's data."""
    state = engine["backend_state"]
    if state == "down":
        return "its server is not there"
    if engine["damage"]:
        return "it takes over another node's state of the log"
    if state == "syncing":
        return "its server loads the data"
    if state == "fed":
        return "it waits to be made a member"
    if fetching is not None and fetching.bytes:
        return f"{transfer.size(fetching.bytes)} of the data have come from node {fetching.source}"
    return "it waits for the data"
