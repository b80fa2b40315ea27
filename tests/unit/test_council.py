"""With whose data a cluster begins: every way in which that may not be known is told from those in which it is."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from musidecar import kept
from musidecar.council import Begin, Choice, Report, Undecided, decide
from musidecar.kept import Record
from musidecar.protocols.backend import Held
from musidecar.recovery import Found, Refused, plan

LIVES = {1: 10, 2: 20, 3: 30}


def record(node: int, index: int = 100, covers: int | None = None, led: bool = False, epoch: int = 1) -> Record:
    """Stopped in order; an index has a byte of changes, and the data covers them all unless `covers` says less."""
    data = Held("r", index, index if covers is None else covers, epoch, index, led, "run", "then")
    numbers = {"index": index, "last": index, "bytes": 10 * index, "epoch": epoch, "offset": index}
    return Record("c", node, 1, "f", LIVES[node], True, dict(LIVES), data=data, moment="then", **numbers)


def reports(**changed: Report) -> dict[int, Report]:
    """Of three nodes stopped in order at the same record; n1=... replaces one."""
    found = {node: Report(record(node), keys=5) for node in LIVES}
    return found | {int(name[1:]): report for name, report in changed.items()}


def seed_of(verdict: Begin | Undecided) -> int:
    assert isinstance(verdict, Begin), verdict
    return verdict.seed


def why(verdict: Begin | Undecided) -> str:
    assert isinstance(verdict, Undecided), verdict
    return verdict.why


def test_a_cluster_that_never_ran_begins_with_the_seed() -> None:
    assert decide(dict.fromkeys(LIVES, Report()), 2) == Begin(2, 1)


def test_one_that_kept_nothing_begins_with_the_seed_too() -> None:
    gone = {node: Report(replace(record(node), clean=False, data=None), doubt="not stopped in order") for node in LIVES}
    assert decide(gone, 3) == Begin(3, 2)


def test_what_was_kept_and_is_gone_is_missed() -> None:
    lost = {node: Report(record(node), keys=0, doubt="its disk was changed") for node in LIVES}
    assert "its disk was changed" in why(decide(lost, 1))


def test_the_data_that_covers_all_that_anybody_knew_is_chosen() -> None:
    assert seed_of(decide(reports(), 1)) == 1
    assert seed_of(decide(reports(n3=Report(record(3, 101), 5)), 1)) == 3
    knows = replace(record(2, 101), data=None)  # it knew most, and its server was not up to date
    assert "no node's server holds all" in why(decide(reports(n2=Report(knows, 5)), 1))
    assert seed_of(decide(reports(n2=Report(knows, 5), n3=Report(record(3, 101), 5)), 1)) == 3
    assert seed_of(decide(reports(n1=Report(record(1, 100, covers=99), 5)), 1)) == 2


def test_an_overthrown_leader_may_have_what_nobody_else_has() -> None:
    deposed = record(1, 100, led=True)
    others = {f"n{node}": Report(record(node, 100, epoch=2), 5) for node in (2, 3)}
    assert seed_of(decide(reports(n1=Report(deposed, 5), **others), 1)) == 2
    assert seed_of(decide(reports(n1=Report(record(1, 100, led=True, epoch=2), 5), **others), 1)) == 1


@pytest.mark.parametrize("node", [1, 2, 3])
def test_a_member_that_was_not_stopped_in_order_may_have_had_more(node: int) -> None:
    killed = Report(replace(record(node), clean=False, data=None), 5, "not stopped in order")
    assert f"node {node} was not stopped in order" in why(decide(reports(**{f"n{node}": killed}), 1))
    assert f"node {node} was not stopped in order" in why(decide(reports(**{f"n{node}": Report()}), 1))
    other_life = Report(replace(record(node), incarnation=99), 5)
    assert f"node {node} was not stopped in order" in why(decide(reports(**{f"n{node}": other_life}), 1))


def test_a_life_that_was_removed_has_no_say() -> None:
    members = {2: 20, 3: 30}
    later = {f"n{node}": Report(replace(record(node, 200), members=members), 5) for node in members}
    killed = Report(replace(record(1), clean=False), 5, "not stopped in order")
    assert seed_of(decide(reports(n1=killed, **later), 1)) == 2


def test_an_earlier_formation_has_no_say_and_two_of_the_same_number_have_none() -> None:
    members = {1: 10, 2: 20}
    again = {"generation": 2, "formation": "g", "members": members}
    later = {f"n{node}": Report(replace(record(node, 5), **again), 5) for node in members}  # type: ignore[arg-type]
    assert decide(reports(**later), 3) == Begin(1, 3, "it held all that any node knew of, up to record 5")
    forked = replace(record(3), generation=2, formation="h")
    assert "different clusters" in why(decide(reports(n3=Report(forked, 5), **later), 1))


def test_what_redis_says_outweighs_the_record() -> None:
    doubted = Report(record(1, 101), 5, "its Redis holds 7 bytes of changes less than at the stop")
    assert "7 bytes of changes less" in why(decide(reports(n1=doubted), 1))
    assert seed_of(decide(reports(n1=doubted, n2=Report(record(2, 101), 5)), 1)) == 2


def test_data_that_is_not_the_clusters_is_not_replaced() -> None:
    members = {1: 10, 2: 20}
    known = {f"n{node}": Report(replace(record(node), members=members), 5) for node in members}
    assert "node 3 holds data that this cluster has never had" in why(decide(reports(n3=Report(keys=1), **known), 1))
    assert seed_of(decide(reports(n3=Report(replaces=True), **known), 1)) == 1


@pytest.mark.parametrize("clean", [True, False])
def test_a_node_whose_data_may_go_is_not_waited_for(clean: bool) -> None:
    given_up = Report(replace(record(1, 101), clean=clean, data=None), replaces=True)
    verdict = decide(reports(n1=given_up), 1)
    assert "lacks 1 bytes" in why(verdict) if clean else seed_of(verdict) == 2


def test_where_the_operator_gave_all_other_data_away_the_seed_is_the_choice() -> None:
    killed = Report(replace(record(2), clean=False, data=None), 5, "not stopped in order")
    assert decide({1: Report(replaces=True), 2: killed, 3: Report(replaces=True)}, 2) == Begin(2, 2)


def test_a_choice_holds_once_every_node_has_it() -> None:
    choice = Choice(3, (1, 2, 3), "t")
    chosen = {node: replace(report, choice=choice) for node, report in reports().items()}
    assert seed_of(decide(chosen, 1)) == 3
    assert "not come to every node" in why(decide(chosen | {2: reports()[2]}, 1))
    other = replace(choice, token="u")
    assert "not come to every node" in why(decide(chosen | {2: replace(reports()[2], choice=other)}, 1))
    assert "not come to every node" in why(decide({1: chosen[1], 2: chosen[2]}, 1))


def test_reports_travel_as_json() -> None:
    for report in (Report(), Report(record(1), 3, "?", choice=Choice(1, (1, 2), "t"))):
        assert Report.of(json.loads(json.dumps(report.message()))) == report
    for nonsense in (None, {}, {"record": 1, "keys": 0, "doubt": "", "replaces": False, "choice": None}):
        with pytest.raises(ValueError):
            Report.of(nonsense)


def test_a_record_is_whole_or_none(tmp_path: Path) -> None:
    kept.write(tmp_path, record(1))
    assert kept.read(tmp_path, "c", 1) == record(1)
    assert kept.read(tmp_path, "c", 2) is None and kept.read(tmp_path, "d", 1) is None
    text = (tmp_path / kept.RECORD).read_text()
    (tmp_path / kept.RECORD).write_text(text[: len(text) // 2])
    assert kept.read(tmp_path, "c", 1) is None
    assert kept.Kept(tmp_path, "c", 1).record is None
    (tmp_path / kept.DATA).touch()
    unknown = kept.Kept(tmp_path, "c", 1).record
    assert unknown is not None and not unknown.clean


def test_a_plan_names_what_may_be_lost() -> None:
    behind = Report(record(1, 90), 5)
    killed = Report(replace(record(3), clean=False, data=None), 5, "not stopped in order")
    chosen = plan(Found(reports(n1=behind, n3=killed), [], {}), 1, 1, False)
    assert chosen.nodes == (1, 2, 3)
    assert chosen.losses == (
        "10 records (100 bytes of log, 10 bytes of changes) that node 2 knew as committed: 91 to 100",
        "whatever node 3, which was not stopped in order, had after record 90",
    )
    tail = replace(record(1), last=103)
    alone = plan(Found({1: Report(tail, 5)}, [], {2: "is not there", 3: "is not there"}), 1, None, True)
    assert alone.seed == 1 and alone.nodes == (1,)
    assert alone.losses[0] == "records 101 to 103 of node 1's log, which it did not know as committed"
    assert len(alone.losses) == 3


@pytest.mark.parametrize(
    ("found", "seed", "force", "reason"),
    [
        (Found(reports(), [], {}), None, False, "they do so by themselves"),
        (Found(reports(), [1], {}), 1, True, "has formed"),
        (Found({}, [], {1: "", 2: "", 3: ""}), None, True, "no node waits"),
        (Found({1: reports()[1]}, [], {2: "", 3: ""}), 1, False, "give --force"),
        (Found({1: reports()[1]}, [], {2: "", 3: ""}), 2, True, "node 2 does not wait"),
    ],
)
def test_what_is_no_plan(found: Found, seed: int | None, force: bool, reason: str) -> None:
    with pytest.raises(Refused, match=reason):
        plan(found, 1, seed, force)
