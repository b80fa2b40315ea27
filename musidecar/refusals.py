"""A leader whose server refuses writes for want of memory (-OOM) or disk (-MISCONF) hands leadership to a node whose
server would not. Where every other one would, too, it leads on: its clients are told what the server says, and reads go
on.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Any

from musidecar.mesh import Member, Unreachable, ask_as

ANSWER_S = 2.0
PREPARE_MS, HOLD_MS = 5_000, 1_000

log = logging.getLogger("musidecar.node")


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
