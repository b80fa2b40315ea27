"""An operator's order that the leader decides about: find it, ask it, tell why it was not done."""

from __future__ import annotations

from typing import Any

from musidecar import mesh
from musidecar.config import Cluster
from musidecar.status import collect


class Refused(Exception):
    """It is not done, or it is not known whether it is; the text says why."""


def leader_of(config: Cluster, to_do: str) -> int:
    """The node that leads. Refused when none does; `to_do` is what it was to do, as in "could hand over"."""
    leader = collect(config)["leader"]
    if leader is None:
        raise Refused(f"there is no leader that {to_do}")
    return int(leader)


def give(config: Cluster, leader: int, order: str, timeout_s: float, about: str = "", **details: Any) -> dict[str, Any]:
    """The leader's answer to this question. Refused with its `why`, if there is one (`about` stands before it), or when
    it does not answer."""
    try:
        answer = mesh.ask(config, leader, order, timeout_s, **details)
    except mesh.Unreachable as error:
        raise Refused(str(error)) from None
    if answer.get("why"):
        raise Refused(f"{about}{answer['why']}")
    return answer
