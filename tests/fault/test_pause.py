"""Automatic fail-over paused and resumed, in a cluster whose nodes die and come back meanwhile."""

from __future__ import annotations

import json
import subprocess

from musidecar.pausing import set_paused
from musidecar.testbed import ClusterStatus, musidecar
from musidecar.workload import Load, encode, request, spread, verify
from tests.fault.cluster import another_serves, assert_same_data, leader_of
from tests.fault.log_view import LogView
from tests.fault.nursery import Cradle, Nursery


def ask(bed: Cradle, verb: str, *options: str) -> subprocess.CompletedProcess[str]:
    return musidecar(verb, "--dir", str(bed.dir), *options)


def in_order(status: ClusterStatus) -> bool:
    """All nodes are members, serve, and may lead."""
    ready = [n.role != "joining" and n.more.get("serving") and n.more["eligible"] for n in status.nodes]
    return status.leader is not None and all(ready)


def knows(status: ClusterStatus, paused: bool) -> bool:
    return all(node.more["paused"] == paused for node in status.alive)


def words(text: str) -> str:
    """What a terminal shows, without its line breaks."""
    return " ".join(text.split())


def test_a_paused_cluster_waits_for_its_operator(cradle: Cradle) -> None:
    before = cradle.status()
    client = cradle.client(leader_of(before))
    for verb in ("pause", "pause"):  # twice is once
        done = ask(cradle, verb)
        assert (done.returncode, done.stderr) == (0, "") and "`musidecar resume` ends it" in done.stdout
    assert knows(cradle.status(), True)
    shown = ask(cradle, "status")
    assert shown.returncode == 0  # it is so by somebody's wish
    assert "automatic fail-over is paused: when the leader dies, nobody takes over" in words(shown.stdout)
    assert json.loads(ask(cradle, "status", "--json").stdout)["paused"] is True

    # A node that begins another life learns it; a hand-over by plan works, and changes nothing about it.
    follower = before.followers[0]
    cradle.kill(follower)
    assert client.set("key", 1)
    cradle.revive(int(follower.id))
    cradle.wait_status("it is back", in_order)
    assert knows(cradle.status(), True)
    done = ask(cradle, "switchover", "--to", follower.id)
    assert done.returncode == 0, done.stderr
    status = cradle.wait_status("all are in order", in_order)
    assert status.leader == follower.id and knows(status, True)

    # The leader dies: nobody takes over, whatever time goes by. A fail-over takes a few of these looks.
    leader = leader_of(status)
    assert cradle.client(leader).set("last", 1)
    cradle.kill(leader)
    dead = int(leader.id)
    cradle.wait_status("they know", lambda s: all(dead not in n.more["alive"] for n in s.alive))
    for _ in range(200):
        assert cradle.status().leader is None
    shown = ask(cradle, "status")
    assert shown.returncode == 1
    assert "there is no leader, and automatic fail-over is paused: nobody is served → musidecar resume" in words(
        shown.stdout
    )
    done = ask(cradle, "pause")
    assert done.returncode == 1 and "there is no leader" in done.stderr
    done = ask(cradle, "switchover")
    assert done.returncode == 1 and "there is no leader" in done.stderr

    done = ask(cradle, "resume")
    assert (done.returncode, done.stdout) == (0, "fail-over is automatic\n"), done.stderr
    after = cradle.status()
    assert after.leader not in (None, leader.id) and knows(after, False)
    assert cradle.client(leader_of(after)).mget("key", "last") == [b"1", b"1"]

    # It is automatic again, also for who was not there.
    cradle.revive(dead)
    old = cradle.wait_status("it is back", in_order)
    assert knows(old, False)
    cradle.kill(leader_of(old))
    last = another_serves(cradle, old)
    assert cradle.client(leader_of(last)).get("last") == b"1"
    assert_same_data(cradle, last)


def test_what_is_logged_while_requests_come_spoils_neither() -> None:
    """The requests of a turn are collected in the place of the next record. A record that the leader proposes on its
    own account before they are complete (here that of a pause; a change of members is another) must not take it."""
    with Nursery() as nursery, Cradle(nursery, 3, {"timing": {"fail_us": 1_000_000}}) as bed:  # on a busy host, too
        log_often(bed)
    assert bed.leftovers() == []


def log_often(cradle: Cradle) -> None:
    status = cradle.status()
    leader = leader_of(status)
    plan = spread([node.client_address for node in status.nodes], 2, depth=8, rate=4000, timeout_s=10.0)
    with LogView(cradle, leader) as log:
        with Load(plan) as load:
            load.wait_for(200)
            for turn in range(40):
                set_paused(cradle.config, turn % 2 == 0)
                log.read()
            load.wait_for(200)
            history = load.finish()
        logged = {command.raw for command in log.commands()}  # it asserts that every record's entries are whole
        assert len(log.pauses()) >= 40
    missing = [
        (number, seq)
        for number, writer in enumerate(history.writers)
        for seq, acked in enumerate(writer.acked_ns)
        if acked > 0 and encode(request(number, seq, plan)) not in logged
    ]
    assert history.acknowledged > 0 and not missing, f"{len(missing)} acknowledged, in no COMMAND: {missing[:5]}"
    for node in cradle.status().nodes:
        verdict = verify(history, cradle.client(node))
        assert verdict.sound, verdict.troubles
