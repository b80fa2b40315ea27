"""What a node leaves behind: which life of which cluster it was, how far it knew the log, what its backend kept.

The record, `kept.json` in the node's folder, is written twice in a life, whole and synced: when the node has become
part of a cluster (not `clean`: from here on its data may be anything), and at an orderly end, once nothing can change
any more (`clean`). A backend that the node started itself has then saved its data beside it, `kept.rdb`; a server of
its own keeps what it holds by its own means. At the next start the server says what it has, and that must be what the
record says (`Backend.judge()`). Which node's data a cluster begins again with is for decide() in council.py.
"""

from __future__ import annotations

import json
import logging
import os
import threading
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Self

from musidecar.protocols.backend import Backend, Held, moment, sync_folder

RECORD, DATA = "kept.json", "kept.rdb"

log = logging.getLogger("musidecar.node")


@dataclass(frozen=True)
class Record:
    """generation: of the cluster's formations, 1 for the first; formation: names this one. incarnation, members:
    numbers, as CONFIG records have them. index: the last record known as committed; last: the last one in the log;
    bytes: of log, up to index. offset, epoch: what the log says that the data is. filled: the backend has held the data
    of this formation, and nobody has done anything else to it since."""

    cluster: str
    node: int
    generation: int
    formation: str
    incarnation: int
    clean: bool
    members: dict[int, int]
    index: int = 0
    last: int = 0
    bytes: int = 0
    epoch: int = 0
    offset: int = 0
    data: Held | None = None
    moment: str = ""
    filled: bool = False

    @classmethod
    def of(cls, found: Any) -> Self:
        """From what asdict() and JSON have made of one. ValueError, TypeError, KeyError when it is none."""
        fields = dict(found)
        fields["members"] = {int(node): int(each) for node, each in dict(fields["members"]).items()}
        data = fields.pop("data", None)
        record = cls(**fields, data=None if data is None else Held(**data))
        whole = (record.node, record.generation, record.incarnation, record.index, record.last, record.bytes,
                 record.offset, record.epoch)  # fmt: skip
        if not all(isinstance(each, int) for each in whole):
            raise ValueError("a number is none")
        if not isinstance(record.clean, bool) or not isinstance(record.filled, bool):
            raise ValueError("a truth is none")
        return record


def read(home: Path, cluster: str, node: int) -> Record | None:
    """The record in this folder; None when there is none of this node of this cluster, or it is not whole."""
    try:
        record = Record.of(json.loads((home / RECORD).read_text()))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, KeyError) as error:
        log.warning("%s: cannot be read: %s", home / RECORD, error)
        return None
    return record if (record.cluster, record.node) == (cluster, node) else None


def write(home: Path, record: Record) -> None:
    """Replace the record; it is on the disk when this returns. OSError."""
    text = json.dumps(asdict(record))
    partial = home / f"{RECORD}.partial"
    fd = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with open(fd, "w") as file:
        file.write(text)
        file.flush()
        os.fsync(fd)
    os.rename(partial, home / RECORD)
    sync_folder(home)


class Kept:
    """The record of one node, in the folder `home`. record: as it was found, then as it was written last."""

    def __init__(self, home: Path, cluster: str, node: int) -> None:
        self.home, self.cluster, self.node = home, cluster, node
        self._lock = threading.Lock()
        self.record = read(home, cluster, node)
        if self.record is None and (home / DATA).exists():  # whose it is and how old, nobody knows
            self.record = self._record(0, "", 0, {})

    def begin(
        self, generation: int, formation: str, incarnation: int, members: Mapping[int, int], *, filled: bool
    ) -> None:
        """From here on this life is part of a cluster. OSError."""
        fresh = self._record(generation, formation, incarnation, members)
        data = self.record.data if self.record is not None else None
        self._write(replace(fresh, data=data, filled=filled))

    def mark(self, *, filled: bool) -> None:
        """Whether the backend holds this formation's data; any thread, and again and again. OSError."""
        with self._lock:
            if self.record is not None and not self.record.clean and self.record.filled != filled:
                self._write(replace(self.record, filled=filled))

    def end(self, known: Mapping[str, Any], backend: Backend) -> None:
        """The engine has ended in order, and `known` was its last status."""
        if self.record is None:
            return
        data, why = backend.last_look(known, self.home / DATA if backend.server is not None else None)
        if data is None:
            log.warning("stopping: another start cannot begin with this node's data: %s", why)
        members = {int(node): int(each, 16) for node, each in known["members"].items()}
        counts = {"index": known["commit"], "last": known["last"], "bytes": known["log_position"]}
        self._write(replace(self.record, clean=True, members=members, epoch=known["epoch"],
                            offset=known["effect_offset"], data=data, moment=moment(), **counts))  # fmt: skip

    def forget(self) -> None:
        """There is nothing that a later start could begin with."""
        for name in (RECORD, DATA):
            (self.home / name).unlink(missing_ok=True)
        self.record = None

    def _record(self, generation: int, formation: str, incarnation: int, members: Mapping[int, int]) -> Record:
        return Record(self.cluster, self.node, generation, formation, incarnation, False, dict(members))

    def _write(self, record: Record) -> None:
        write(self.home, record)
        self.record = record
