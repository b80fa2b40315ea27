"""WAIT: how many other nodes' logs hold what the client was answered."""

from __future__ import annotations

from musidecar.testbed import NodeStatus, Testbed
from tests.fault.cluster import a_follower_of, another_serves, assert_same_data, last_words, leader_of, send
from tests.fault.test_own import Line


def test_what_was_answered_is_in_the_logs(shared_bed: Testbed, node: NodeStatus) -> None:
    with Line(node) as line:
        line.say("SET a 1", "WAIT 0 0", "WAIT 1 0", "WAIT 2 0", "GET a")
        assert line.hear(6) == ["+OK", ":1", ":1", ":2", "$1", "1"], "no more is waited for than is asked for"
        assert line.ask("WAIT 3 30") == [":2"], "there are no more"
        line.say("MULTI", "SET a 2", "WAIT 2 0", "EXEC")
        assert line.hear(6) == ["+OK", "+QUEUED", "+QUEUED", "*2", "+OK", ":1"], "inside a transaction nobody waits"
        assert line.ask("WATCH a") == ["+OK"]
        line.say("SET b 1", "WAIT 2 0", "WAIT 3 30", "WAIT 1 0", "UNWATCH")
        assert line.hear(5) == ["+OK", ":2", ":2", ":1", "+OK"]
        assert line.ask("WAIT x 0") == ["-ERR value is not an integer or out of range"]
        assert line.ask("WAIT 2 x") == ["-ERR timeout is not an integer or out of range"]
        assert line.ask("WAIT 2 -1") == ["-ERR timeout is negative"]


def test_a_dead_node_is_not_counted(bed: Testbed) -> None:
    before = bed.status()
    leader, follower = leader_of(before), a_follower_of(before)
    other = before.followers[-1]
    with Line(leader) as here, Line(follower) as there:
        bed.kill(other)
        for line in (here, there):
            line.say("SET a 1", "WAIT 2 200")
            assert line.hear(2) == ["+OK", ":1"]
            line.say("SET a 1", "WAIT 2 0")  # until it is back
            assert line.hear() == ["+OK"]
        bed.start_again(other)
        assert here.hear() == [":2"] and there.hear() == [":2"]
    assert_same_data(bed)


def test_who_waits_for_ever_is_closed_with_its_leader(bed: Testbed) -> None:
    before = bed.status()
    waiting = [send(node, b"WAIT", b"9", b"0") for node in (leader_of(before), a_follower_of(before))]
    with Line(a_follower_of(before)) as line:
        assert line.ask("WAIT 2 0") == [":2"]
    bed.kill(leader_of(before))
    another_serves(bed, before)
    for connection in waiting:
        assert last_words(connection) == b""
