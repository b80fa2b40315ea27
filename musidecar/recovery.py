"""The operator's choice with whose data a cluster begins, where its nodes cannot know: what `musidecar recover` does.

`look()` asks the nodes that wait for each other what they have kept; `plan()` makes a plan of it that names what may be
lost; `carry_out()` gives the choice to every node of the plan, and waits until the cluster has formed. A node that runs
in a formed cluster refuses: what it has in memory is worth more than what is on a disk.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from musidecar import mesh
from musidecar.config import Cluster
from musidecar.council import Begin, Choice, Council, Report, decide, names
from musidecar.kept import Record

ANSWER_S = 2.0
FORMED_S = 60.0
POLL_S = 0.05


class Refused(Exception):
    """Nothing was done; the text says why, and what to do instead."""


def questions(council: Council, formed: Callable[[], bool]) -> dict[str, Callable[[dict[str, Any]], dict[str, Any]]]:
    """What a node answers: `kept` and `recover`."""

    def recover(question: dict[str, Any]) -> dict[str, Any]:
        if formed():
            return {"why": "it is part of a cluster that has formed"}
        try:
            nodes = tuple(int(each) for each in question["nodes"])
            choice = Choice(int(question["seed"]), nodes, str(question["token"]))
        except (KeyError, TypeError, ValueError):
            return {"why": "the question is malformed"}
        council.report = replace(council.report, choice=choice)
        return {"why": ""}

    return {
        "kept": lambda _: {"formed": formed(), "report": council.report.message(), "undecided": council.undecided},
        "recover": recover,
    }


@dataclass(frozen=True)
class Found:
    """The nodes as they are now: what those report that wait; which run; which are not there, and why."""

    waiting: dict[int, Report]
    running: list[int]
    absent: dict[int, str]


@dataclass(frozen=True)
class Plan:
    """Begin with the data of node `seed`, with `nodes`. losses: what may be lost, in lines; empty: nothing is."""

    seed: int
    nodes: tuple[int, ...]
    says: str
    losses: tuple[str, ...]


def look(config: Cluster) -> Found:
    """Ask every node."""
    found = Found({}, [], {})
    for node in map(config.node, config.founders):
        try:
            answer = mesh.ask(config, node.id, "kept", ANSWER_S)
            if answer.get("formed"):
                found.running.append(node.id)
            else:
                found.waiting[node.id] = Report.of(answer.get("report"))
        except (mesh.Unreachable, ValueError) as error:
            found.absent[node.id] = str(error)
    return found


def plan(found: Found, config_seed: int, seed: int | None, force: bool) -> Plan:
    """What `recover --from seed` would do; without a seed it is the node that has most, if records tell. Refused."""
    if found.running:
        raise Refused(
            f"{names(found.running)} {_verb(found.running, 'run')} in a cluster that has formed: if it is served,"
            " there is nothing to recover; if a majority of it is gone for good, stop what is left in order (SIGTERM:"
            " what it has is written down), start it again, and then `musidecar recover --force`"
        )
    waiting = found.waiting
    if not waiting:
        raise Refused("no node waits: start those that are to be in the cluster first")
    if found.absent and not force:
        raise Refused(
            f"{names(found.absent)} {_verb(found.absent, 'do', 'does')} not answer: start it, or, if it is gone for"
            f" good, give --force: whatever it had beyond the others is lost then"
        )
    if seed is not None and seed not in waiting:
        raise Refused(f"node {seed} does not wait for the others")
    if not found.absent and seed is None:
        verdict = decide({node: replace(each, choice=None) for node, each in waiting.items()}, config_seed)
        if isinstance(verdict, Begin):
            raise Refused("the nodes know with whose data to begin: they do so by themselves")
        raise Refused(f"{verdict.why}: choose with --from ID. {_overview(waiting)}")
    chosen = _most(waiting) if seed is None else seed
    if chosen is None:
        raise Refused(f"it cannot be told which of the nodes has most: choose with --from ID. {_overview(waiting)}")
    return Plan(chosen, tuple(sorted(waiting)), _tell(chosen, waiting[chosen]), tuple(_losses(chosen, found)))


def _verb(nodes: Any, several: str, one: str = "") -> str:
    return several if len(nodes) > 1 else one or several + "s"


def _most(waiting: dict[int, Report]) -> int | None:
    """The node whose data reach furthest, as far as those say that were stopped in order; None when others may."""
    records = {node: each.record for node, each in waiting.items() if each.record is not None}
    generation = max((record.generation for record in records.values()), default=0)
    latest = {node: record for node, record in records.items() if record.generation == generation}
    if not latest or not all(record.clean for record in latest.values()):
        return None
    if len({record.formation for record in latest.values()}) > 1:
        return None
    epoch = max(record.epoch for record in latest.values())
    fit = {
        node: record.data.covers
        for node, record in latest.items()
        if record.data and not waiting[node].doubt and not (record.data.led and record.data.epoch != epoch)
    }
    return max(sorted(fit), key=lambda node: fit[node], default=None)


def _overview(waiting: dict[int, Report]) -> str:
    return "; ".join(_tell(node, report) for node, report in sorted(waiting.items()))


def _tell(node: int, report: Report) -> str:
    """What a node has, for people."""
    holds = f"node {node} holds {report.keys} key{'' if report.keys == 1 else 's'}"
    record = report.record
    if record is None or record.data is None:
        return f"{holds}, of which no record tells how old they are" if report.keys else f"node {node} holds nothing"
    if record.clean and not report.doubt:
        upto = f"up to record {record.index} of formation {record.generation}"
        return f"{holds}, as of its stop at {record.moment}, {upto}"
    return f"{holds}; what it kept last is of {record.data.moment} ({report.doubt or 'not stopped in order since'})"


def _losses(seed: int, found: Found) -> list[str]:
    """Line by line what beginning with that node's data may cost."""
    lines, own = [], found.waiting[seed].record
    has = own.data if own is not None and own.clean and not found.waiting[seed].doubt else None
    if own is None or has is None:
        lines.append(f"node {seed} was not stopped in order: what it had after what it kept last is lost")
    elif own.last > own.index:
        lines.append(f"records {own.index + 1} to {own.last} of node {seed}'s log, which it did not know as committed")
    for node, report in sorted(found.waiting.items()):
        if node != seed and (line := _beyond(node, report, own, has.covers if has else None)):
            lines.append(line)
    for node in sorted(found.absent):
        after = f" after record {own.index}" if own is not None and has is not None else ""
        gone = f"whatever node {node}, which is not there, had acknowledged or logged"
        lines.append(f"{gone}{after}: nobody can tell what")
    return lines


def _beyond(node: int, report: Report, own: Record | None, covers: int | None) -> str:
    """What that node has more than the chosen one, whose data is `covers` long."""
    record = report.record
    if record is None:
        return f"{report.keys} keys of node {node}'s own" if report.keys else ""
    if own is None or covers is None or record.formation != own.formation:
        return f"what node {node} has and the other has not, of {report.keys} keys" if report.keys else ""
    if not record.clean:
        return f"whatever node {node}, which was not stopped in order, had after record {own.index}"
    if record.offset <= covers:
        return ""
    count, size = record.index - own.index, record.bytes - own.bytes
    return (f"{count} records ({size} bytes of log, {record.offset - covers} bytes of changes) that node {node} knew as"
            f" committed: {own.index + 1} to {record.index}")  # fmt: skip


def carry_out(config: Cluster, chosen: Plan, timeout_s: float = FORMED_S) -> None:
    """Returns when the nodes of the plan have formed a cluster. Refused when one does not take it, or it lasts."""
    token = secrets.token_hex(8)
    for node in chosen.nodes:
        try:
            details = {"seed": chosen.seed, "nodes": list(chosen.nodes), "token": token}
            answer = mesh.ask(config, node, "recover", ANSWER_S, **details)
        except mesh.Unreachable as error:
            raise Refused(f"node {node} has not heard of it, and the cluster waits: {error}") from None
        if answer.get("why"):
            raise Refused(f"node {node} does not take it: {answer['why']}")
    deadline = time.monotonic() + timeout_s
    while missing := [node for node in chosen.nodes if node not in look(config).running]:
        if time.monotonic() > deadline:
            raise Refused(f"{names(missing)} {_verb(missing, 'wait')} still after {timeout_s:g} s: see the logs")
        time.sleep(POLL_S)
