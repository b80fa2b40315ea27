"""A planned hand-over of leadership, as the command line asks for it: find the leader, ask it, tell what came of it.

The leader does the rest (ffi/engine/handover.c): no client's request fails, requests wait for a few milliseconds, and
where the successor cannot take over the old leader goes on.
"""

from __future__ import annotations

from dataclasses import dataclass

from musidecar import mesh
from musidecar.config import Cluster
from musidecar.status import collect

PREPARE_MS = 10_000  # for the successor to catch up while requests go on
HOLD_MS = 1_000  # for which requests may wait


class Refused(Exception):
    """Leadership stays where it is, or is not known to have gone where it should; the text says why."""


@dataclass(frozen=True)
class Done:
    """Who led and who leads; `pause_us`: for how long nothing was acknowledged, as the old leader measured it."""

    leader: int
    successor: int
    pause_us: int


def switchover(
    config: Cluster, to: int | None = None, *, prepare_ms: int = PREPARE_MS, hold_ms: int = HOLD_MS
) -> Done:
    """Hand leadership to node `to` (None: the leader chooses). Refused with the reason when it does not come to that.

    ConfigError when there is no such node. Done with leader == successor when that node leads already.
    """
    if to is not None:
        config.node(to)
    leader = collect(config)["leader"]
    if leader is None:
        raise Refused("there is no leader that could hand over")
    if leader == to:
        return Done(leader, leader, 0)
    patience_s = (prepare_ms + hold_ms + config.timing.takeover_timeout_ms) / 1000 + 3
    try:
        answer = mesh.ask(
            config, leader, "switchover", patience_s, to=to, prepare_ms=prepare_ms, hold_ms=hold_ms
        )
    except mesh.Unreachable as error:
        raise Refused(str(error)) from None
    successor, why = answer.get("to"), str(answer.get("why"))
    if why or not isinstance(successor, int):
        aim = f"node {to}: " if to is not None else ""
        raise Refused(f"{aim}{why}")
    return Done(leader, successor, int(answer.get("pause_us") or 0))
