"""What a Redis holds when its node ends, and whether another one, or the same later, still holds that."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from musidecar.protocols.backend import Claim, Held, moment, sync_folder

from .admin import Address, BackendError, Connection, ReplyError

ANSWER_S = 5.0
SAVE_S = 600.0  # a backend that has not saved its data by then has not
CUT_OFF_S = 2.0  # for a backend to notice that its feed is gone
POLL_S = 0.01

log = logging.getLogger("musidecar.node")


def _histories(replication: Mapping[str, str]) -> dict[str, int]:
    """What a Redis says that it holds: history -> offset up to which."""
    found = {replication["master_replid"]: int(replication["master_repl_offset"])}
    before = int(replication.get("second_repl_offset", "-1"))
    if before > 0:
        found.setdefault(replication["master_replid2"], before - 1)
    return found


def judge(data: Held, address: Address) -> str | None:
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


def last_look(known: Mapping[str, Any], address: Address, save_to: Path | None) -> tuple[Held | None, str]:
    """What the backend holds once the engine has ended, and why that is nothing to begin with again ("" when it is).

    known: the engine's last status. save_to: the file that a server of the node's own saves it to; it
    is there then, synced.
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


def _data(known: Mapping[str, Any], found: Mapping[str, str], run_id: str) -> tuple[Held | None, str]:
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
    return Held(replid, offset, covers, known["epoch"], index, led, run_id, moment(), *server), ""


def _save(connection: Connection, save_to: Path) -> None:
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
    os.rename(save_to.parent / "dump.rdb", save_to)
    sync_folder(save_to.parent)


def claim(address: Address, data: Held | None) -> Claim | None:
    """What the Redis there holds; `data`: it has loaded that, if it is what it was. BackendError when it cannot be
    asked."""
    with Connection(address) as connection:
        found = connection.info("replication")
        settings = connection.config()
    if settings.get("replica-read-only") != "yes":  # what was written past the feed shows in no offset
        return None
    if data is not None and judge(data, address) is not None:
        return None
    replid, offset = found["master_replid"], int(found["master_repl_offset"])
    before = found["master_replid2"] if int(found["second_repl_offset"]) == offset + 1 else ""
    log.info("backend: it holds data up to offset %d of a history: %s", offset, before or replid)
    return Claim(replid, before, offset)
