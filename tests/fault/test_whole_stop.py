"""The whole cluster is stopped, and started again: with all that was acknowledged, or when the operator says so."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import pytest
import redis

from musidecar.protocols.redis.admin import Address, BackendError
from musidecar.protocols.redis.admin import Connection as Redis
from musidecar.testbed import ClusterStatus, TestbedError, musidecar, wait_until
from musidecar.workload import Load, spread, verify
from tests.fault.cluster import leader_of
from tests.fault.nursery import Cradle
from tests.fault.test_local import Foreground
from tests.fault.test_node import Nodes, nodes
from tests.fault.test_rejoin import REJOIN_S, assert_equal, rejoined

__all__ = ["nodes"]  # a fixture

END_S = 60.0


def end(bed: Cradle, nodes: Sequence[int], number: signal.Signals = signal.SIGTERM) -> None:
    """Ends them all at the same time, and waits until they have ended."""
    for node in nodes:
        os.kill(bed.pids[node], number)
    wait_until("they have ended", lambda: not any(bed.alive(node) for node in nodes), END_S)


def start(bed: Cradle, nodes: Sequence[int] = (1, 2, 3)) -> None:
    for node in nodes:
        bed.revive(node)


def waits(bed: Cradle, node: int) -> str:
    """Why this node does not begin, once it says so."""
    found = ""

    def says() -> bool:
        nonlocal found
        try:
            found = str(bed.status()[str(node)].more.get("undecided", ""))
        except TestbedError:
            return False
        return bool(found)

    wait_until("it says why it waits", says, END_S)
    return found


def recover(bed: Cradle, *options: str) -> subprocess.CompletedProcess[str]:
    return musidecar("recover", "--dir", str(bed.dir), *options, timeout_s=90)


def set_key(bed: Cradle, status: ClusterStatus, key: str, value: str) -> None:
    with bed.client(leader_of(status)) as client:
        assert client.set(key, value)


def get_key(bed: Cradle, node: int, key: str) -> bytes | None:
    with bed.client(bed.status()[str(node)]) as client:
        found: bytes | None = client.get(key)  # type: ignore[assignment]
        return found


@pytest.mark.parametrize("order", ["all at once", "the leader first", "the leader last"])
def test_stopped_in_order_it_goes_on_with_all_that_was_acknowledged(cradle: Cradle, order: str) -> None:
    status = cradle.status()
    leader = int(leader_of(status).id)
    others = [node for node in (1, 2, 3) if node != leader]
    rest: list[list[int]] = {
        "all at once": [[leader, *others]],
        "the leader first": [[leader], *([each] for each in others)],
        "the leader last": [*([each] for each in others), [leader]],
    }[order]
    with Load(spread([node.client_address for node in status.nodes], 1, timeout_s=2.0)) as load:
        load.wait_for(200)
        for nodes in rest:
            end(cradle, nodes)
        counts = load.counts()
        start(cradle)
        after = cradle.wait_status("it serves again", rejoined, REJOIN_S)
        wait_until("writes go on", lambda: sum(load.counts()) > sum(counts) + 100, END_S)
        history = load.finish()
    assert "it held all that any node knew of" in cradle.logs(1000)
    assert sum(counts) >= 600
    for node in after.nodes:
        verdict = verify(history, cradle.client(node))
        assert not verdict.lost and not verdict.doubled, verdict.troubles
    assert_equal(cradle)
    set_key(cradle, after, "and", "on")
    end(cradle, [1, 2, 3])  # and once more
    start(cradle)
    cradle.wait_status("it serves again", rejoined, REJOIN_S)
    assert get_key(cradle, 3, "and") == b"on"


def test_a_node_that_was_killed_may_have_had_more_so_the_operator_chooses(cradle: Cradle) -> None:
    status = cradle.status()
    leader = int(leader_of(status).id)
    first, last = (node for node in (1, 2, 3) if node != leader)
    set_key(cradle, status, "k", "early")
    end(cradle, [first])
    set_key(cradle, status, "k", "late")
    end(cradle, [last], signal.SIGKILL)
    end(cradle, [leader], signal.SIGKILL)  # what these two had is gone: it was in their servers' memory
    start(cradle)
    why = waits(cradle, first)
    assert "not stopped in order" in why and str(last) in why and str(leader) in why
    shown = musidecar("status", "--dir", str(cradle.dir))
    assert shown.returncode == 1 and "musidecar recover" in shown.stdout
    assert not any(node.more.get("serving") for node in cradle.status().nodes)
    refused = recover(cradle)
    assert refused.returncode == 1
    assert "choose with --from ID" in refused.stderr
    assert f"node {first} holds 1 key, as of its stop at" in refused.stderr
    done = recover(cradle, "--from", str(first), "--yes")
    assert done.returncode == 0, done.stderr
    assert f"lost: whatever node {last}, which was not stopped in order, had after record" in done.stdout
    cradle.wait_status("it serves", rejoined, REJOIN_S)
    for node in (1, 2, 3):
        assert get_key(cradle, node, "k") == b"early"
    again = recover(cradle, "--from", str(first), "--yes")
    assert again.returncode == 1 and "there is nothing to recover" in again.stderr


def test_without_yes_it_asks_and_no_is_no(cradle: Cradle) -> None:
    set_key(cradle, cradle.status(), "k", "v")
    end(cradle, [1])
    end(cradle, [2, 3], signal.SIGKILL)
    start(cradle)
    waits(cradle, 1)
    assert recover(cradle, "--from", "1").returncode == 1  # nobody answers the question
    assert waits(cradle, 1)


def test_a_majority_that_is_gone_for_good(cradle: Cradle) -> None:
    """The one that is left begins alone, and says what that may cost; those that replace the others join it."""
    status = cradle.status()
    leader = int(leader_of(status).id)
    left, other = (node for node in (1, 2, 3) if node != leader)
    with Load(spread([node.client_address for node in status.nodes], 1, timeout_s=2.0)) as load:
        load.wait_for(100)
        end(cradle, [leader, other], signal.SIGKILL)
        refused = recover(cradle, "--force", "--yes")
        assert refused.returncode == 1 and f"node {left} runs in a cluster that has formed" in refused.stderr
        end(cradle, [left])
        load.finish()
    start(cradle, [left])
    wait_until("it waits", lambda: cradle.status()[str(left)].role == "joining", END_S)
    refused = recover(cradle, "--from", str(left), "--yes")
    assert refused.returncode == 1 and "--force" in refused.stderr
    done = recover(cradle, "--force", "--yes")
    assert done.returncode == 0, done.stderr
    for node in (leader, other):
        assert f"lost: whatever node {node}, which is not there, had acknowledged or logged after record" in done.stdout

    def serves_alone(status: ClusterStatus) -> bool:
        return status.leader == str(left) and bool(status[str(left)].more["serving"])

    alone = cradle.wait_status("it serves alone", serves_alone, END_S)
    assert list(alone[str(left)].more["members"]) == [str(left)]
    set_key(cradle, alone, "alone", "1")
    start(cradle, [leader, other])
    after = cradle.wait_status("all are members", rejoined, REJOIN_S)
    assert sorted(after[str(left)].more["members"]) == ["1", "2", "3"]
    assert get_key(cradle, leader, "alone") == b"1"
    assert_equal(cradle)


def test_local_goes_on_in_its_folder(folder: Path, free_port: int) -> None:
    for attempt in range(3):
        local = Foreground(folder / "c", free_port)
        try:
            if attempt < 2:
                local.line("ready")
                with redis.Redis(port=free_port + attempt) as client:
                    assert client.get("k") == (None if attempt == 0 else b"0")
                    assert client.set("k", attempt)
            if attempt == 1:
                local.process.kill()
                local.process.wait()
            if attempt == 2:  # it was killed: what was kept is of the first stop
                assert "no node was stopped in order" in local.line("waiting: ")
                done = musidecar("recover", "--dir", str(folder / "c"), "--from", "2", "--yes", timeout_s=90)
                assert done.returncode == 0, done.stderr
                assert "lost: node 2 was not stopped in order" in done.stdout
                local.line("ready")
                with redis.Redis(port=free_port + 2) as client:
                    assert client.get("k") == b"0"
        finally:
            local.close()


# ---- servers that nobody here has started ----------------------------------------------------------------------------


class Servers:
    """Three redis-server of the operator's own, in `folder`."""

    def __init__(self, folder: Path, *options: str) -> None:
        self.folder, self.options = folder, options
        self.processes: dict[int, subprocess.Popen[bytes]] = {}

    def start(self) -> None:
        for node in (1, 2, 3):
            home = self.folder / f"own-{node}"
            home.mkdir(exist_ok=True)
            words = ["--port", "0", "--unixsocket", f"../own-{node}.sock", "--save", "", *self.options]
            line = ["redis-server", "--dir", str(home), *words]
            self.processes[node] = subprocess.Popen(line, stdout=subprocess.DEVNULL)
        wait_until("they answer", lambda: all(self.answers(node) for node in (1, 2, 3)), END_S)

    def client(self, node: int) -> redis.Redis:
        return redis.Redis(unix_socket_path=str(self.folder / f"own-{node}.sock"))

    def answers(self, node: int) -> bool:
        try:
            with self.client(node) as client:
                return bool(client.ping())
        except redis.RedisError:
            return False

    def restart(self) -> None:
        for node, process in self.processes.items():
            how = "NOSAVE" if "yes" in self.options else "SAVE"  # an AOF is all it has
            with Redis(Address(path=str(self.folder / f"own-{node}.sock"))) as server, suppress(BackendError):
                server.call("SHUTDOWN", how)
            process.wait(END_S)
        self.start()

    def close(self) -> None:
        for process in self.processes.values():
            process.kill()
            process.wait()


@pytest.fixture
def own(nodes: Nodes, request: pytest.FixtureRequest) -> Iterator[Servers]:
    servers = Servers(nodes.folder, *request.param)
    try:
        servers.start()
        nodes.write([f'{{ socket = "own-{node}.sock" }}' for node in (1, 2, 3)])
        yield servers
    finally:
        servers.close()


def stop_written(nodes: Nodes, own: Servers) -> None:
    """Writes, and stops the sidecars one after another."""
    with own.client(1) as client:
        client.set("from before", 1)
    nodes.run_all()
    with nodes.client(2) as client:
        for i in range(100):
            assert client.call("SET", f"k{i}", i) == b"OK"
    assert [nodes.end(node) for node in (1, 2, 3)] == [0, 0, 0]


@pytest.mark.parametrize("own", [()], indirect=True)
@pytest.mark.parametrize("again", [False, True], ids=["they run on", "from their RDBs"])
def test_servers_of_ones_own_keep_the_data(nodes: Nodes, own: Servers, again: bool) -> None:
    stop_written(nodes, own)
    if again:
        own.restart()
    nodes.run_all()
    for node in (1, 2, 3):
        with nodes.client(node) as client, own.client(node) as server:
            assert client.call("GET", "k99") == b"99" and client.call("GET", "from before") == b"1"
            assert server.dbsize() == 101


@pytest.mark.parametrize("own", [("--appendonly", "yes")], indirect=True)
def test_an_aof_does_not_tell_how_far_it_goes(nodes: Nodes, own: Servers) -> None:
    stop_written(nodes, own)
    own.restart()
    for node in (1, 2, 3):
        nodes.run(node)
    wait_until("it waits", lambda: "an AOF never does" in nodes.log(1), END_S)
    chosen = ("recover", "--config", str(nodes.folder / "cluster.toml"), "--from", "3", "--yes")
    done = musidecar(*chosen, timeout_s=90)
    assert done.returncode == 0, done.stderr
    for node in (1, 2, 3):
        wait_until("it serves", lambda node=node: nodes.serves(node), END_S)  # type: ignore[misc]
        with nodes.client(node) as client:
            assert client.call("GET", "k99") == b"99"
