"""What the cluster looks like: each node asked over its mesh socket, put together, told to people or to machines.

A node answers the question "status" with a dict; `collect()` makes of the answers what `status --json` prints:
`{"cluster", "leader", "term", "nodes": [{"id", "role", "pid", "backend_pid", "client", "backend", "commit", "applied",
"log_hash", "incarnation", ...}]}`. `leader` is an id or null. Fields a node adds are passed on as they are.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from musidecar import protocols
from musidecar.config import Cluster, Node
from musidecar.directory import is_held, node_lock

if TYPE_CHECKING:
    from rich.table import Table

ROLES = ("leader", "follower", "joining", "down")
ANSWER_S = 1.0
HASH_SHOWN = 8
RESUME = "musidecar resume"
LAG_RECORDS = 10_000  # behind by more than this: say so
# What every node's entry has; a node that is down has None in all but the first five.
FIELDS = ("id", "role", "client", "backend", "serving", "pid", "backend_pid", "commit", "applied", "log_hash",
          "hash_index", "incarnation", "term")  # fmt: skip


@dataclass(frozen=True)
class Problem:
    """Something that is wrong, and what to type about it ("" when it mends itself)."""

    text: str
    remedy: str = ""


def collect(config: Cluster, timeout_s: float = ANSWER_S) -> dict[str, Any]:
    """Ask every node, all at once. A node that does not answer within `timeout_s` is "down", with the reason."""
    with ThreadPoolExecutor(len(config.nodes)) as pool:
        nodes = list(pool.map(lambda node: _ask(config, node, timeout_s), config.nodes))
    leaders = [node for node in nodes if node["role"] == "leader"]
    leader = max(leaders, key=lambda node: node["term"] or 0, default=None)
    for node in leaders:
        if node is not leader:  # deposed, and does not know it yet
            node["role"] = "follower"
    terms = [node["term"] for node in nodes if node["term"] is not None]
    return {
        "cluster": config.name,
        "leader": leader["id"] if leader else None,
        "term": max(terms, default=None),
        "fabric": config.fabric,
        "paused": any(node.get("paused") for node in nodes),
        "nodes": nodes,
    }


def _ask(config: Cluster, node: Node, timeout_s: float) -> dict[str, Any]:
    from musidecar import mesh

    entry: dict[str, Any] = dict.fromkeys(FIELDS)
    entry |= {"id": node.id, "role": "down", "client": node.client, "backend": node.backend.place, "serving": False}
    try:
        answer = mesh.ask(config, node.id, "status", timeout_s)
    except mesh.Unreachable as error:
        runs = is_held(node_lock(config.directory, node.id))
        entry["reason"] = f"runs, but does not answer: {error}" if runs else "is not running"
        return entry
    entry.update(answer, id=node.id)
    return entry


def problems(snapshot: dict[str, Any], config: Cluster) -> list[Problem]:
    """What is wrong with the cluster, the worst first."""
    found: list[Problem] = []
    members = _members(snapshot, config)
    nodes = [node for node in snapshot["nodes"] if node["id"] in members or node["role"] != "down"]
    majority = len(members) // 2 + 1
    up = [node for node in nodes if node["role"] != "down"]
    down = [node for node in nodes if node["role"] == "down"]
    if not up:
        found.append(Problem("no node runs"))
    elif len(counted := [node for node in up if node["id"] in members]) < majority:
        answer = "answers" if len(counted) == 1 else "answer"
        found.append(Problem(f"only {len(counted)} of {len(members)} nodes {answer}: nothing is acknowledged, writes"
                             f" and reads wait for {majority}", "see below; it goes on by itself then"))  # fmt: skip
    elif snapshot["leader"] is None:
        leaderless = Problem("there is no leader: nobody is served", "look at the nodes' logs if this lasts")
        if snapshot.get("paused"):
            leaderless = Problem("there is no leader, and automatic fail-over is paused: nobody is served", RESUME)
        found.append(_undecided(up) or _amnesia(up) or leaderless)
    for node in down:
        remedy = f"musidecar run --config {config.path} --node {node['id']}"
        if protocols.kind(config.node(node["id"]).backend.kind).embedded:
            remedy = f"start the program again that makes its Replica (node={node['id']})"
        if "does not answer" in node.get("reason", ""):
            remedy = "it is stopped (kill -CONT) or very busy: see its log"
        found.append(Problem(f"node {node['id']} {node.get('reason', 'is down')}", remedy))
    for node in up:
        if node.get("backend_state") == "down":
            found.append(_backend_down(node, config.node(node["id"]).backend.spawn))
        elif node.get("undecided"):
            pass  # said above
        elif node["role"] == "joining":
            stage = f" ({node['joining']})" if node.get("joining") else ""
            found.append(Problem(f"node {node['id']} is being filled{stage}; it counts once it has caught up"))
        elif not node["serving"]:
            found.append(Problem(f"node {node['id']} runs but answers no clients yet"))
        if "fix" in node and node["fix_pid"] is None:
            found.append(Problem(f"node {node['id']}: nothing serves its FIX port", "it is started again: see its log"))
        if node.get("alarm"):
            found.append(Problem(f"node {node['id']}: its {node['alarm']}"))
        if node.get("failed"):
            text = f"node {node['id']}: its server did not store {node['failed']} items for want of memory"
            found.append(Problem(text, "give it more memory"))
        for slow in node.get("evicted") or ():
            found.append(Problem(f"node {slow} held up the log and was dropped; it is caught up once it goes on"))
    found += _differences(up)
    return found


def _backend_down(node: dict[str, Any], spawned: bool) -> Problem:
    what = f"node {node['id']} votes, but cannot lead or hold the data: its server"
    if node["backend_pid"] is not None:
        return Problem(f"{what} (pid {node['backend_pid']}) does not answer", "kill -CONT it, or restart it")
    return Problem(f"{what} has ended", "it is started again: see the node's log" if spawned else "start it again")


def _members(snapshot: dict[str, Any], config: Cluster) -> set[int]:
    """The nodes that count: as the log has them, where anybody knows it."""
    known = max(snapshot["nodes"], key=lambda node: node["commit"] or -1).get("members")
    return set(map(int, known)) if known else set(config.founders)


def _undecided(up: list[dict[str, Any]]) -> Problem | None:
    """Does the cluster not begin because nobody can know with whose data?"""
    why = next((node["undecided"] for node in up if node.get("undecided")), "")
    return Problem(f"the cluster does not begin by itself: {why}", "musidecar recover") if why else None


def _amnesia(up: list[dict[str, Any]]) -> Problem | None:
    """Have so many members begun another life that those with a memory are no majority?"""
    known = max(up, key=lambda node: node["commit"] or 0).get("members") or {}
    lost = [node["id"] for node in up if known.get(str(node["id"])) not in (None, (node["incarnation"] or "")[:16])]
    if not lost or len(known) - len(lost) > len(known) // 2:
        return None
    return Problem(
        f"nodes {', '.join(map(str, lost))} have lost their memory, and with it a majority of the log's copies: nobody"
        f" can know what was acknowledged, and nothing starts by itself",
        "keep the data of a node that still has it, then start all of them again: docs/operating.md",
    )


def notes(snapshot: dict[str, Any]) -> list[str]:
    """What is so by somebody's wish."""
    paused = "automatic fail-over is paused: when the leader dies, nobody takes over until `musidecar resume`"
    return [paused] * bool(snapshot.get("paused")) + [
        f"node {node['id']} is handing leadership over to node {node['heir']}"
        for node in snapshot["nodes"]
        if node.get("heir") is not None
    ]


def fix_ports(snapshot: dict[str, Any]) -> str:
    """Where FIX is spoken; "" where nowhere."""
    ports = ", ".join(f"node {node['id']} at {node['fix']}" for node in snapshot["nodes"] if "fix" in node)
    return f"FIX: {ports}" if ports else ""


def _differences(up: list[dict[str, Any]]) -> list[Problem]:
    """Nodes that lag, and nodes whose logs differ at the same index."""
    found = []
    commit = max((node["commit"] or 0 for node in up), default=0)
    for node in up:
        behind = commit - (node["applied"] or 0)
        if behind > LAG_RECORDS:
            found.append(Problem(f"node {node['id']} is {behind} records behind"))
    hashes: dict[int, dict[str, list[int]]] = {}
    for node in up:
        if node["log_hash"] is not None and node["hash_index"] is not None:
            hashes.setdefault(node["hash_index"], {}).setdefault(str(node["log_hash"]), []).append(node["id"])
    for index, same in hashes.items():
        if len(same) > 1:
            sides = " and ".join(" ".join(map(str, ids)) for ids in same.values())
            found.append(Problem(f"the logs of nodes {sides} differ at record {index}", "this is a bug: keep the logs"))
    return found


def table(snapshot: dict[str, Any]) -> Table:
    """The nodes, one a row."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    colours = {"leader": "bold green", "follower": "green", "joining": "yellow", "down": "bold red"}
    term = snapshot["term"] if snapshot["term"] is not None else "-"
    title = f"{snapshot['cluster']}   term {term}   fabric {snapshot['fabric']}"
    shape: dict[str, Any] = {"box": box.SIMPLE_HEAD, "padding": (0, 1), "pad_edge": False, "collapse_padding": True}
    result = Table(title=title, title_justify="left", **shape)
    numbers = ("node", "pid", "server", "commit", "applied", "local reads")
    locally = any(node.get("reads_locally") for node in snapshot["nodes"])
    columns = ("node", "role", "clients", "pid", "server", "commit", "applied", "log hash")
    for name in (*columns, *["local reads"] * locally):
        result.add_column(name, justify="right" if name in numbers else "left", no_wrap=True)
    for node in snapshot["nodes"]:
        role = Text(node["role"], style=colours.get(node["role"], ""))
        log_hash = None if node["log_hash"] is None else str(node["log_hash"])[:HASH_SHOWN]
        cells = [node["pid"], node["backend_pid"], node["commit"], node["applied"], log_hash]
        if locally:
            cells.append(node.get("local_reads") if node.get("reads_locally") else None)
        texts = ["-" if cell is None else str(cell) for cell in cells]
        result.add_row(str(node["id"]), role, node["client"], *texts)
    return result
