"""What a node leaves behind: which life of which cluster it was, how far it knew the log, what its backend kept.

The record, `kept.json` in the node's folder, is written twice in a life, whole and synced: when the node has become
part of a cluster (not `clean`: from here on its data may be anything), and at an orderly end, once nothing can change
any more (`clean`). A backend that the node started itself has then saved its data beside it, `kept.rdb`; a Redis of
its own keeps what it holds by its own means. At the next start Redis says what it has, and that must be what the record
says: `judge()`. Which node's data a cluster begins again with is for decide() in council.py.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import threading
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Self

from musidecar.protocols.redis.admin import Address, BackendError, Connection, ReplyError
from musidecar.protocols.redis.driver import count_functions, count_keys

RECORD, DATA = "kept.json", "kept.rdb"
ANSWER_S = 5.0
SAVE_S = 600.0  # a backend that has not saved its data by then has not
CUT_OFF_S = 2.0  # for a backend to notice that its feed is gone
POLL_S = 0.01

log = logging.getLogger("musidecar.node")


@dataclass(frozen=True)
class Data:
    """What a backend held: up to `offset` of the history `replid`; `covers` is the same in the log's counting.

    server_replid, server_offset: the same as the server itself calls it; of one that was promoted for nothing, an RDB
    knows no other name. run_id: of the process; one that runs still needs no look at its files. index: the last record
    that it covers. moment: UTC, for people.
    """

    replid: str
    offset: int
    covers: int
    epoch: int
    index: int
    led: bool
    run_id: str
    moment: str
    server_replid: str = ""
    server_offset: int = 0


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
    data: Data | None = None
    moment: str = ""
    filled: bool = False

    @classmethod
    def of(cls, found: Any) -> Self:
        """From what asdict() and JSON have made of one. ValueError, TypeError, KeyError when it is none."""
        fields = dict(found)
        fields["members"] = {int(node): int(each) for node, each in dict(fields["members"]).items()}
        data = fields.pop("data", None)
        record = cls(**fields, data=None if data is None else Data(**data))
        whole = (record.node, record.generation, record.incarnation, record.index, record.last, record.bytes,
                 record.offset, record.epoch)  # fmt: skip
        if not all(isinstance(each, int) for each in whole):
            raise ValueError("a number is none")
        if not isinstance(record.clean, bool) or not isinstance(record.filled, bool):
            raise ValueError("a truth is none")
        return record


def now() -> str:
    """The moment, for people."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


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
    _sync_folder(home)


def _sync_folder(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


class Kept:
    """The record of one node, in the folder `home`. record: as it was found, then as it was written last."""

    def __init__(self, home: Path, cluster: str, node: int) -> None:
        self.home, self.cluster, self.node = home, cluster, node
        self._lock = threading.Lock()
        self.record = read(home, cluster, node)
        if self.record is None and (home / DATA).exists():  # whose it is and how old, nobody knows
            self.record = self._record(0, "", 0, {})

    def bring_back(self) -> None:
        """Lay what a backend of this node's own has saved where another one begins with it."""
        with contextlib.suppress(FileNotFoundError):
            os.link(self.home / DATA, self.home / "dump.rdb")

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

    def end(self, known: Mapping[str, Any], address: Address, *, own: bool) -> None:
        """The engine has ended in order, and `known` was its last status. own: the backend goes as well."""
        if self.record is None:
            return
        data, why = last_look(known, address, self.home if own else None)
        if data is None:
            log.warning("stopping: another start cannot begin with this node's data: %s", why)
        members = {int(node): int(each, 16) for node, each in known["members"].items()}
        counts = {"index": known["commit"], "last": known["last"], "bytes": known["log_position"]}
        self._write(replace(self.record, clean=True, members=members, epoch=known["epoch"],
                            offset=known["effect_offset"], data=data, moment=now(), **counts))  # fmt: skip

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


# ---- what the backend says -------------------------------------------------------------------------------------------


def _histories(replication: Mapping[str, str]) -> dict[str, int]:
    """What a Redis says that it holds: history -> offset up to which."""
    found = {replication["master_replid"]: int(replication["master_repl_offset"])}
    before = int(replication.get("second_repl_offset", "-1"))
    if before > 0:
        found.setdefault(replication["master_replid2"], before - 1)
    return found


def judge(data: Data, address: Address) -> str | None:
    """Why what the backend at `address` holds is not what the record says; None when it is.

    A backend that led may have gone on by itself (keys that expired): it holds more then, and has not lost anything.
    BackendError when it cannot be asked.
    """
    with Connection(address) as connection:
        histories = _histories(connection.info("replication"))
        run_id = connection.info("server")["run_id"]
    offset, held = histories.get(data.replid), data.offset
    if offset is None:
        offset, held = histories.get(data.server_replid), data.server_offset
    if offset is None:
        again = " (it was started again, and what it loaded does not tell: an AOF never does)"
        return f"its Redis does not say that it holds what it held at the stop{again if run_id != data.run_id else ''}"
    if offset < held:
        return f"its Redis holds {held - offset} bytes of changes less than at the stop"
    if offset > held and not data.led:
        return f"its Redis holds {offset - held} bytes of changes more than at the stop"
    return None


def count(address: Address) -> int:
    """Keys and function libraries that it holds. BackendError."""
    with Connection(address) as connection:
        return count_keys(connection) + count_functions(connection)


def last_look(known: Mapping[str, Any], address: Address, save_to: Path | None) -> tuple[Data | None, str]:
    """What the backend holds once the engine has ended, and why that is nothing to begin with again ("" when it is).

    known: the engine's last status. save_to: the folder in which a backend of this node's own saves it; kept.rdb is
    there then, synced.
    """
    if known["backend_state"] == "down":
        return None, "its Redis does not answer"
    try:
        with Connection(address, ANSWER_S) as connection:
            found = _settled(connection)
            data, why = _data(known, found, connection.info("server")["run_id"])
            if data is not None and save_to is not None:
                _save(connection, save_to)
            return data, why
    except (BackendError, KeyError, ValueError, OSError) as error:
        return None, str(error)


def _settled(connection: Connection) -> dict[str, str]:
    """INFO replication of a backend whose feed, if it had one, has been read to its end."""
    deadline = time.monotonic() + CUT_OFF_S
    while True:
        found = connection.info("replication")
        if found["role"] != "slave" or found["master_link_status"] == "down":
            return found
        if time.monotonic() > deadline:
            raise BackendError("its Redis still takes its feed")
        time.sleep(POLL_S)


def _data(known: Mapping[str, Any], found: Mapping[str, str], run_id: str) -> tuple[Data | None, str]:
    """One that follows holds a part of what the log says. One that leads, or led last as far as this node knows, also
    when it lost its majority before it stopped, holds all of that, and perhaps what nobody was told of."""
    led, end = found["role"] == "master", known["effect_offset"]
    state = known["backend_state"]
    if not led and state != "fed":
        return None, f"its Redis is {state}"
    replid = known["replid"] if led and state != "promoting" else known["told_replid"]
    offset = _histories(found).get(replid) if replid else None
    if offset is None:
        return None, "its Redis is of another history than the log"
    if led and offset < end:
        return None, "its Redis holds less than the log says that it has done"
    if not led and offset > end:
        return None, "its Redis holds more than the log says that it was given"
    covers = end if led else offset
    index = known["commit"] if covers == end else 0
    server = found["master_replid"], int(found["master_repl_offset"])
    return Data(replid, offset, covers, known["epoch"], index, led, run_id, now(), *server), ""


def _save(connection: Connection, home: Path) -> None:
    deadline = time.monotonic() + SAVE_S
    connection.timeout_s = SAVE_S
    while True:
        try:
            connection.call("SAVE")
            break
        except ReplyError as error:
            if "progress" not in str(error) or time.monotonic() > deadline:
                raise
        time.sleep(POLL_S)
    os.rename(home / "dump.rdb", home / DATA)
    _sync_folder(home)
