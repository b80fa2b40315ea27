"""A leader whose Redis refuses writes for want of memory (-OOM) or disk (-MISCONF) hands leadership to a node whose
Redis would not. Where every other one would, too, it leads on: its clients are told what Redis says, and reads go on.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Any

from musidecar.mesh import Member, Unreachable, ask_as
from musidecar.protocols.redis.admin import Address, BackendError, Connection

ANSWER_S = 2.0
PREPARE_MS, HOLD_MS = 5_000, 1_000

log = logging.getLogger("musidecar.node")


def would_refuse(address: Address) -> str | None:
    """Why the Redis there would refuse writes if it led; None if it would not."""
    try:
        with Connection(address, ANSWER_S / 2) as connection:
            memory, disk = connection.info("memory"), connection.info("persistence")
            settings = connection.config()
    except BackendError as error:
        return str(error)
    limit = int(memory.get("maxmemory", "0"))
    used = int(memory.get("used_memory", "0")) - int(memory.get("mem_not_counted_for_evict", "0"))
    if limit and used >= limit and memory.get("maxmemory_policy") == "noeviction":
        return f"it uses {used} bytes, maxmemory is {limit}"
    saves = settings.get("save") and settings.get("stop-writes-on-bgsave-error") == "yes"
    if saves and disk.get("rdb_last_bgsave_status", "ok") != "ok":
        return "its last BGSAVE failed"
    if disk.get("aof_enabled") == "1" and disk.get("aof_last_write_status", "ok") != "ok":
        return "it cannot write its AOF"
    return None


class Refusals:
    """`switchover`: carries the question of that name to the own engine. `refuses()` begins; returns at once."""

    def __init__(self, member: Member, switchover: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
        self._member, self._switchover = member, switchover
        self._busy = threading.Lock()

    def refuses(self) -> None:
        """The own backend has refused writes for as long as is borne."""
        if self._busy.acquire(blocking=False):
            threading.Thread(target=self._run, name="refusals", daemon=True).start()

    def _run(self) -> None:
        try:
            self._hand_on()
        finally:
            self._busy.release()

    def _hand_on(self) -> None:
        reasons = []
        for node in self._member.nodes:
            if node == self._member.node:
                continue
            try:
                why = ask_as(self._member, node, "refusal", ANSWER_S).get("why")
            except Unreachable as error:
                why = str(error)
            if why is None:
                log.warning("backend: it refuses writes for want of memory or disk: node %d shall lead", node)
                outcome = self._switchover({"to": node, "prepare_ms": PREPARE_MS, "hold_ms": HOLD_MS})
                why = outcome["why"]
                if not why:
                    return
            reasons.append(f"node {node}: {why}")
        log.error("backend: it refuses writes for want of memory or disk, and no other node can do better: %s",
                  "; ".join(map(str, reasons)))  # fmt: skip
