"""A planned hand-over of leadership, as the command line asks for it: find the leader, ask it, tell what came of it.

The leader does the rest (ffi/engine/handover.c): no client's request fails, requests wait for a few milliseconds, and
where the successor cannot take over the old leader goes on.
"""

from __future__ import annotations

from dataclasses import dataclass

from musidecar import orders
from musidecar.config import Cluster

PREPARE_MS = 10_000  # for the successor to catch up while requests go on
HOLD_MS = 1_000  # for which requests may wait


@dataclass(frozen=True)
class Done:
    """Who led and who leads; `pause_us`: for how long nothing was acknowledged, as the old leader measured it."""

    leader: int
    successor: int
    pause_us: int


def switchover(
    config: Cluster, to: int | None = None, *, prepare_ms: int = PREPARE_MS, hold_ms: int = HOLD_MS
) -> Done:
    """Hand leadership to node `to` (None: the leader chooses).

    orders.Refused with the reason when it does not come to that. ConfigError when there is no such node. Done with
    leader == successor when that node leads already.
    """
    if to is not None:
        config.node(to)
    leader = orders.leader_of(config, "could hand over")
    if leader == to:
        return Done(leader, leader, 0)
    patience_s = (prepare_ms + hold_ms + config.timing.takeover_timeout_ms) / 1000 + 3
    about = f"node {to}: " if to is not None else ""
    answer = orders.give(
        config, leader, "switchover", patience_s, about, to=to, prepare_ms=prepare_ms, hold_ms=hold_ms
    )
    if not isinstance(successor := answer.get("to"), int):
        raise orders.Refused("the leader does not say to whom")
    return Done(leader, successor, int(answer.get("pause_us") or 0))
