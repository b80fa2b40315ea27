"""`musidecar reinit`: a node begins another life while the cluster goes on, unless too few others would be left."""

from __future__ import annotations

import os
import signal

from musidecar.testbed import musidecar, wait_until
from musidecar.workload import Load, spread, verify
from tests.fault.cluster import leader_of
from tests.fault.nursery import Cradle
from tests.fault.test_rejoin import REJOIN_S, assert_equal, rejoined


def test_a_node_forgets_all_and_comes_back_as_another_life(cradle: Cradle) -> None:
    before = cradle.status()
    node = before.followers[0]
    others = [each for each in before.nodes if each is not node]
    with Load(spread([each.client_address for each in others], 1)) as load:
        load.wait_for(100)
        for _ in range(2):  # in the same process, again and again
            status = cradle.status()
            done = musidecar("reinit", node.id, "--dir", str(cradle.dir), timeout_s=60)
            assert done.returncode == 0, done.stderr
            after = cradle.wait_status("it is a member again", rejoined, REJOIN_S)
            assert after[node.id].pid == node.pid and after[node.id].backend_pid != status[node.id].backend_pid
            assert after[node.id].more["incarnation"] > status[node.id].more["incarnation"]
            assert after[node.id].more["incarnation"].startswith(done.stdout.split(" as ")[1].split(":")[0])
            load.wait_for(100)
        history = load.finish()
    assert_equal(cradle)
    for each in after.nodes:
        verdict = verify(history, cradle.client(each))
        assert not verdict.lost and not verdict.doubled, verdict.troubles
    cradle.backend_pids[int(node.id)] = after[node.id].backend_pid
    os.kill(node.pid, signal.SIGTERM)  # and it ends like any other
    wait_until("it has ended", lambda: not cradle.alive(int(node.id)), 20)


def test_it_is_refused_where_it_would_cost_too_much(cradle: Cradle) -> None:
    status = cradle.status()
    leader = leader_of(status)
    node, other = status.followers
    refused = musidecar("reinit", leader.id, "--dir", str(cradle.dir))
    assert refused.returncode == 1 and "hand over first" in refused.stderr
    cradle.kill(other)
    cradle.wait_status("it is missed", lambda s: int(other.id) not in s[leader.id].more["confirmed"])
    refused = musidecar("reinit", node.id, "--dir", str(cradle.dir))
    assert refused.returncode == 1 and "only 1 of the 3 members would be left" in refused.stderr
    assert cradle.status()[node.id].more["incarnation"] == node.more["incarnation"]
    gone = musidecar("reinit", other.id, "--dir", str(cradle.dir))
    assert gone.returncode == 1 and "start it again" in gone.stderr
    assert musidecar("reinit", "4", "--dir", str(cradle.dir)).returncode == 2
