"""What the cluster looks like: each node asked over its mesh socket, put together, told to people or to machines.

A node answers the question "status" with a dict; `collect()` makes of the answers what `status --json` prints:
`{"cluster", "leader", "term", "nodes": [{"id", "role", "pid", "backend_pid", "client", "backend", "commit", "applied",
"log_hash", "incarnation", ...}]}`. `leader` is an id or null. Fields a node adds are passed on as they are.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from musidecar.config import Cluster, Node
from musidecar.directory import is_held, node_lock

if TYPE_CHECKING:
    from rich.table import Table

ROLES = ("leader", "follower", "joining", "down")
ANSWER_S = 1.0
HASH_SHOWN = 8
NO_WAY_BACK = "this version takes no node back into a running cluster: start all of it again when it suits"
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
    nodes = snapshot["nodes"]
    majority = len(nodes) // 2 + 1
    up = [node for node in nodes if node["role"] != "down"]
    down = [node for node in nodes if node["role"] == "down"]
    formed = any(node["role"] in ("leader", "follower") for node in up)
    if not up:
        found.append(Problem("no node runs"))
    elif len(up) < majority:
        found.append(Problem(f"only {len(up)} of {len(nodes)} nodes run: writes and reads wait for {majority}"))
    elif snapshot["leader"] is None:
        found.append(Problem("there is no leader: nobody is served", "look at the nodes' logs if this lasts"))
    for node in down:
        remedy = NO_WAY_BACK if formed else f"musidecar run --config {config.path} --node {node['id']}"
        if "does not answer" in node.get("reason", ""):
            remedy = "it is stopped (kill -CONT) or very busy: see its log"
        found.append(Problem(f"node {node['id']} {node.get('reason', 'is down')}", remedy))
    for node in up:
        if node["role"] == "joining":
            found.append(Problem(f"node {node['id']} is being filled; it counts once it has caught up"))
        elif node["backend_pid"] is None and config.node(node["id"]).backend.spawn:
            found.append(Problem(f"node {node['id']} has no backend", "see its log"))
        elif not node["serving"]:
            found.append(Problem(f"node {node['id']} runs but answers no clients yet"))
    found += _differences(up)
    return found


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
    numbers = ("node", "pid", "server", "commit", "applied")
    for name in ("node", "role", "clients", "pid", "server", "commit", "applied", "log hash"):
        result.add_column(name, justify="right" if name in numbers else "left", no_wrap=True)
    for node in snapshot["nodes"]:
        role = Text(node["role"], style=colours.get(node["role"], ""))
        log_hash = None if node["log_hash"] is None else str(node["log_hash"])[:HASH_SHOWN]
        cells = [node["pid"], node["backend_pid"], node["commit"], node["applied"], log_hash]
        texts = ["-" if cell is None else str(cell) for cell in cells]
        result.add_row(str(node["id"]), role, node["client"], *texts)
    return result
