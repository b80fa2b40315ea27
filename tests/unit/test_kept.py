"""What a node writes down of its backend at its end is what the same backend says once it is started again."""

from __future__ import annotations

import shutil
from pathlib import Path

from musidecar.protocols.redis import keeping
from musidecar.protocols.redis.admin import Address, Connection
from tests.unit.private_redis import PrivateRedis, private_redis


def attach_once(server: PrivateRedis) -> None:
    """As a replica does: from then on the server counts what it does, and keeps a backlog."""
    with server.connect() as connection:
        connection.sendall(b"PSYNC ? -1\r\n")
        assert connection.recv(1 << 16).startswith(b"+FULLRESYNC ")


def replication(server: PrivateRedis) -> dict[str, str]:
    with Connection(Address(path=server.path)) as connection:
        return connection.info("replication")


def call(server: PrivateRedis, *commands: tuple[str, ...]) -> None:
    with Connection(Address(path=server.path)) as connection:
        for words in commands:
            connection.call(*words)


def test_a_backend_that_was_promoted_for_nothing_is_known_again(tmp_path: Path) -> None:
    """Its node was taking over when the majority went: the server has a name of its own for its history, which the log
    does not know, and an RDB keeps that one only."""
    options = ("--repl-backlog-ttl", "0", "--dbfilename", "dump.rdb")
    with private_redis(*options) as server:
        attach_once(server)
        call(server, ("SET", "key", "value"))
        before = replication(server)
        call(server, ("REPLICAOF", "127.0.0.1", "1"), ("REPLICAOF", "NO", "ONE"))
        name, end = before["master_replid"], int(before["master_repl_offset"])
        assert replication(server)["master_replid"] != name
        known = {"backend_state": "promoting", "replid": name, "told_replid": name, "effect_offset": end, "epoch": 1}
        known["commit"] = 7
        address = Address(path=server.path)
        data, why = keeping.last_look(known, address, Path(server.directory) / "kept.rdb")
        assert data is not None, why
        assert (data.replid, data.offset, data.covers, data.index) == (name, end, end, 7)
        assert keeping.judge(data, address) is None
        shutil.copy(Path(server.directory) / "kept.rdb", tmp_path / "dump.rdb")
    with private_redis(*options, "--dir", str(tmp_path)) as again:
        address = Address(path=again.path)
        assert keeping.judge(data, address) is None
    with private_redis(*options) as stranger:
        attach_once(stranger)
        assert "does not say that it holds" in str(keeping.judge(data, Address(path=stranger.path)))
