"""Automatic fail-over paused and resumed for a whole cluster, as the command line asks for it.

That it is paused stands in the log (ffi/engine/pause.c): it outlives whoever asked for it, every change of leaders by
plan and every node that joins; it ends with `resume`, or with the cluster.
"""

from __future__ import annotations

import contextlib
import time
from typing import Any

from musidecar import mesh
from musidecar.config import Cluster
from musidecar.status import collect

TIMEOUT_S = 10.0
POLL_S = 0.02


class Failed(Exception):
    """It is not so everywhere; the text says where not, or why."""


def set_paused(config: Cluster, paused: bool, timeout_s: float = TIMEOUT_S) -> None:
    """Returns when every node that runs knows it, and, if it is resumed while nobody leads, somebody leads. Failed."""
    snapshot = collect(config)
    leader = snapshot["leader"]
    if leader is None and paused:
        raise Failed("there is no leader that could log it")
    asked = [leader] if leader is not None else [node["id"] for node in _up(snapshot)]
    accepted = [node for node in asked if _ask(config, node, paused)]
    if not accepted:
        raise Failed("no node runs" if not asked else f"node {asked[0]} does not answer")
    deadline = time.monotonic() + timeout_s
    while missing := _missing(collect(config), paused):
        if time.monotonic() > deadline:
            raise Failed(missing)
        time.sleep(POLL_S)


def _up(snapshot: dict[str, Any]) -> list[dict[str, Any]]:
    return [node for node in snapshot["nodes"] if node["role"] != "down"]


def _ask(config: Cluster, node: int, paused: bool) -> bool:
    with contextlib.suppress(mesh.Unreachable):
        return bool(mesh.ask(config, node, "pause", paused=paused).get("accepted"))
    return False


def _missing(snapshot: dict[str, Any], paused: bool) -> str:
    """What is still to happen; "": nothing."""
    if snapshot["leader"] is None:
        return "nobody leads"
    others = [str(node["id"]) for node in _up(snapshot) if node["role"] != "joining" and node["paused"] != paused]
    return f"not known yet to node {', '.join(others)}" if others else ""
