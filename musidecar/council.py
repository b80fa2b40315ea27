"""With whose data a cluster begins, when all of its nodes have met and none of them has a memory.

Each node reports what it left behind (kept.py) and whether its backend still holds that; all of them hear the same
reports and come to the same verdict: `decide()`. A cluster that never ran begins with the seed's data. One that was
stopped in order begins with the data of a node that held all that any of them knew as acknowledged. Where that cannot
be known nothing begins, until the operator chooses (recovery.py): the choice goes to every node, and is reported too.

Why all members of the last formation must have stopped in order: whatever was acknowledged was known as committed by
the leader that acknowledged it. Its life is still a member then, and its record says so; or a later leader has removed
it by a CONFIG record that lies behind all of that in the log, and the node that knows of the removal knows of it all.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Self

from musidecar.kept import Record
from musidecar.protocols.backend import Backend


@dataclass(frozen=True)
class Choice:
    """The operator's: begin with the data of node `seed`, with these nodes; the others may join later."""

    seed: int
    nodes: tuple[int, ...]
    token: str


@dataclass(frozen=True)
class Report:
    """What a node says of itself. record: None when it never ran here. keys: that its backend holds, functions
    included. doubt: why that is not what the record says. replaces: it was started with --replace-data."""

    record: Record | None = None
    keys: int = 0
    doubt: str = ""
    replaces: bool = False
    choice: Choice | None = None

    def message(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)

    @classmethod
    def of(cls, message: Any) -> Self:
        """What message() was. ValueError when it is something else."""
        try:
            record, choice = message["record"], message["choice"]
            nodes = choice and tuple(int(node) for node in choice["nodes"])
            return cls(
                record=None if record is None else Record.of(record),
                keys=int(message["keys"]),
                doubt=str(message["doubt"]),
                replaces=bool(message["replaces"]),
                choice=None if choice is None else Choice(int(choice["seed"]), nodes, str(choice["token"])),
            )
        except (KeyError, TypeError) as error:
            raise ValueError(f"not a report: {error}") from None


@dataclass(frozen=True)
class Begin:
    """With the data of node `seed`; as the `generation`-th formation. chosen: by the records, or by the operator."""

    seed: int
    generation: int
    chosen: str = ""


@dataclass(frozen=True)
class Undecided:
    """Nothing begins, and why."""

    why: str


def decide(reports: Mapping[int, Report], seed: int) -> Begin | Undecided:
    """The same at every node. seed: of the configuration."""
    records = {node: each.record for node, each in reports.items() if each.record is not None}
    generation = 1 + max((record.generation for record in records.values()), default=0)
    choices = {each.choice for each in reports.values()}
    if choices != {None}:
        choice = next(each for each in choices if each is not None)
        if len(choices) > 1 or set(choice.nodes) != set(reports):
            return Undecided("the operator's choice has not come to every node yet")
        return Begin(choice.seed, generation, "the operator has chosen so")
    if not records or _is_all_replaced(reports, seed):
        return Begin(seed, generation)
    lost = [node for node, record in records.items() if record.clean and record.data and reports[node].doubt]
    if not lost and not any(each.keys for each in reports.values()):
        return Begin(seed, generation)  # memory only, and all of it gone
    return _by_records(reports, records, generation)


def _is_all_replaced(reports: Mapping[int, Report], seed: int) -> bool:
    """The operator has said of every node but the seed that its data may go."""
    return all(each.replaces or node == seed for node, each in reports.items())


def _by_records(reports: Mapping[int, Report], records: Mapping[int, Record], generation: int) -> Begin | Undecided:
    latest = {node: record for node, record in records.items() if record.generation == generation - 1}
    if len({record.formation for record in latest.values()}) > 1:
        return Undecided(f"{names(latest)} were last parts of different clusters")
    clean = {node: record for node, record in latest.items() if record.clean}
    if not clean:
        return Undecided("no node was stopped in order: nobody can know which of them has all that was acknowledged")
    best = max(clean.values(), key=lambda record: (record.epoch, record.index))
    given_up = {node for node, each in reports.items() if each.replaces}
    members = {node: life for node, life in best.members.items() if node not in given_up}
    missing = [node for node, life in members.items() if node not in clean or clean[node].incarnation != life]
    if missing:
        was = "were" if len(missing) > 1 else "was"
        return Undecided(f"{names(missing)} {was} not stopped in order, and may have had more than the others")
    foreign = [node for node, each in reports.items() if each.keys and each.record is None and not each.replaces]
    if foreign:
        holds = "hold" if len(foreign) > 1 else "holds"
        return Undecided(f"{names(foreign)} {holds} data that this cluster has never had")
    reasons = {node: _unfit(reports[node], clean[node], best) for node in members}
    fit = [node for node, why in reasons.items() if not why]
    if not fit:
        said = "; ".join(f"node {node}: {why}" for node, why in sorted(reasons.items()))
        return Undecided(f"no node's server holds all that was acknowledged: {said}")
    return Begin(min(fit), generation, f"it held all that any node knew of, up to record {best.index}")


def _unfit(report: Report, record: Record, best: Record) -> str:
    """Why a member that was stopped in order does not have it all."""
    data = record.data
    if data is None:
        return "its server was not up to date"
    if report.doubt:
        return report.doubt
    if data.led and data.epoch != best.epoch:
        return "it had been overthrown, and did not know"
    if data.covers < best.offset:
        return f"it lacks {best.offset - data.covers} bytes of changes"
    return ""


def names(nodes: Any) -> str:
    """Nodes for people."""
    ids = sorted(nodes)
    return ("nodes " if len(ids) > 1 else "node ") + ", ".join(map(str, ids))


def look_back(record: Record | None, backend: Backend, replaces: bool) -> Report:
    """What this node has to report, before its backend is prepared. BackendError when that cannot be asked."""
    if replaces:
        return Report(replace(record, data=None) if record is not None else None, replaces=True)
    keys = backend.count()
    if record is None:
        return Report(keys=keys)
    doubt = "it was not stopped in order" if record.data is None else backend.judge(record.data)
    return Report(record, keys, doubt or "")


class Council:
    """One node's part: what it reports, what was chosen, how it stands. `report` is replaced, never changed."""

    def __init__(self, report: Report, seed: int) -> None:
        self.report, self.seed = report, seed
        self.undecided = ""  # why the cluster does not begin

    def decide(self, reports: Mapping[int, Report]) -> Begin | Undecided:
        """Of the reports of all that take part, this node's own as it was when it was sent."""
        return decide(reports, self.seed)
