"""A member is removed by the operator: a CONFIG record, as every change of the membership (ffi/core/membership.h).

Nodes are added without being asked for: a node that is started, and whose place is free, is filled and becomes a
member. One that was removed is to be stopped, then: started again it would be another life, and join.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

from musidecar import orders
from musidecar.config import Cluster
from musidecar.engine import Engine

MEMBERS_MIN = 3
REMOVED_S = 15.0
POLL_S = 0.02


class Membership:
    """The leader's part. with_engine: calls an action with the engine, unless there is none (False)."""

    def __init__(
        self,
        node: int,
        status: Callable[[], dict[str, Any] | None],
        with_engine: Callable[[Callable[[Engine], None]], bool],
    ) -> None:
        self._node, self._status, self._with_engine = node, status, with_engine
        self._one_at_a_time = threading.Lock()
        self.questions = {"remove": self._remove}

    def _remove(self, question: dict[str, Any]) -> dict[str, Any]:
        node = question.get("node")
        if not isinstance(node, int) or isinstance(node, bool):
            return {"why": "the question is malformed"}
        with self._one_at_a_time:
            deadline = time.monotonic() + REMOVED_S
            while time.monotonic() < deadline:
                status = self._status()
                if status is not None and status["role"] == "leader" and node not in status["members"]:
                    return {"why": ""}
                if why := objection(status, self._node, node):
                    return {"why": why}
                self._with_engine(lambda engine: engine.remove_member(node))
                time.sleep(POLL_S)
        return {"why": f"the log has not taken it within {REMOVED_S:g} s"}


def objection(status: dict[str, Any] | None, leader: int, node: int) -> str:
    """Why the member `node` must stay, by the status of `leader`'s engine; "" when it need not."""
    if status is None or status["role"] != "leader" or not status["serving"]:
        return "this node does not lead"
    if node == leader:
        return f"node {node} leads: hand over first: musidecar switchover"
    rest = set(status["members"]) - {node}
    if len(rest) < MEMBERS_MIN:
        return f"a cluster has at least {MEMBERS_MIN} members: to replace one, start another in its place"
    sound = rest & set(status["confirmed"])
    if len(sound) <= len(rest) // 2:
        return (f"only {len(sound)} of the {len(rest)} members that are left have an up-to-date log, and"
                f" {len(rest) // 2 + 1} are needed")  # fmt: skip
    return ""


def remove(config: Cluster, node: int) -> None:
    """Returns once `node` is a member no more. orders.Refused. ConfigError: no such node."""
    config.node(node)
    orders.give(config, orders.leader_of(config, "could log it"), "remove", REMOVED_S + 5, node=node)
