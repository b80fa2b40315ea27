"""A node is told to begin another life: it forgets its memory and its backend's data, and is filled from the others.

The leader decides, for it knows whose memory counts: `reinit` is refused where those that are left would be no majority
of the members, and one at a time. It tells the node (`forget`), which stops its engine and starts again in its process,
and answers once it no longer counts on it; the rest is what becomes of any node that starts again (node.py).
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

from musidecar import mesh, orders
from musidecar.config import Cluster
from musidecar.status import collect

FORGET_S = 5.0  # for the node to answer, and then for its memory to be gone
BEGUN_S = 30.0
POLL_S = 0.01


class Reinit:
    """A node's part, as leader and as the one that forgets. status: of the engine, None while there is none; forget:
    begins the other life, soon, in another thread."""

    def __init__(
        self, member: Callable[[], mesh.Member], status: Callable[[], dict[str, Any] | None], forget: Callable[[], None]
    ) -> None:
        self._member, self._status, self._forget = member, status, forget
        self._one_at_a_time = threading.Lock()
        self.questions = {"reinit": self._reinit, "forget": self._told}

    def _told(self, _: dict[str, Any]) -> dict[str, Any]:
        if self._status() is None:
            return {"why": "it is only starting"}
        self._forget()
        return {"why": ""}

    def _reinit(self, question: dict[str, Any]) -> dict[str, Any]:
        node = question.get("node")
        if not isinstance(node, int):
            return {"why": "the question is malformed"}
        if not self._one_at_a_time.acquire(timeout=FORGET_S):
            return {"why": "another node is being told to begin anew"}
        try:
            why = objection(self._status(), self._member().node, node)
            if not why:
                why = str(mesh.ask_as(self._member(), node, "forget", FORGET_S).get("why"))
            return {"why": why or self._wait_gone(node)}
        except mesh.Unreachable as error:
            return {"why": f"node {node}: {error}: end it, and start it again"}
        finally:
            self._one_at_a_time.release()

    def _wait_gone(self, node: int) -> str:
        """Until the leader does not count on that memory any more; only then may the next one be told."""
        deadline = time.monotonic() + FORGET_S
        while time.monotonic() < deadline:
            status = self._status()
            if status is None or node not in status["confirmed"]:
                return ""
            time.sleep(POLL_S)
        return f"node {node} was told so, and goes on: see its log"


def objection(status: dict[str, Any] | None, leader: int, node: int) -> str:
    """Why `node` must keep its memory, by the status of `leader`'s engine; "" when it need not."""
    if status is None or status["role"] != "leader" or not status["serving"]:
        return "this node does not lead"
    if node == leader:
        return f"node {node} leads: hand over first: musidecar switchover"
    members = set(map(int, status["members"]))
    sound = (members & set(status["confirmed"])) - {node}
    if len(sound) <= len(members) // 2:
        return (f"only {len(sound)} of the {len(members)} members would be left with an up-to-date log, and"
                f" {len(members) // 2 + 1} are needed")  # fmt: skip
    return ""


def reinit(config: Cluster, node: int) -> str:
    """Returns the incarnation of the node's new life, once it has begun. orders.Refused. ConfigError: no such node."""
    config.node(node)
    leader, before = orders.leader_of(config, "could say whether it may"), _incarnation(config, node)
    orders.give(config, leader, "reinit", 3 * FORGET_S, node=node)
    deadline = time.monotonic() + BEGUN_S
    while time.monotonic() < deadline:
        if (now := _incarnation(config, node)) not in (None, before):
            return str(now)
        time.sleep(POLL_S)
    raise orders.Refused(f"node {node} has stopped, and is not there again after {BEGUN_S:g} s: see its log")


def _incarnation(config: Cluster, node: int) -> str | None:
    found: str | None = next(each["incarnation"] for each in collect(config)["nodes"] if each["id"] == node)
    return found
