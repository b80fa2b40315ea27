"""The arithmetic and the judges of the benchmarks, and the load generator held against the server's own counts."""

from __future__ import annotations

import json
import math
import socket
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis

from musidecar.bench import contestants, generator, proxy, rejoin, switchover
from musidecar.bench.failover import Probe, Run, _judge_probes, judge
from musidecar.bench.generator import GeneratorError, Sample, Shape
from musidecar.bench.table import Figure, median, number, percentile
from musidecar.protocols.liquibook.driver import Connection
from musidecar.testbed import cpu_seconds, free_ports, is_alive, plain_redis, state_of
from musidecar.workload import History, Writer, spread


def test_percentiles_are_of_the_values_seen() -> None:
    values = [float(v) for v in range(1, 101)]
    assert (percentile(values, 0.5), percentile(values, 0.99), percentile(values, 1.0)) == (50, 99, 100)
    assert percentile([7.0], 0.5) == 7 and math.isnan(percentile([], 0.5))
    assert median([3, 1, 2]) == 2 and median([4, 1, 2, 3]) == 2.5 and math.isnan(median([]))


def test_a_figure_that_could_not_be_measured_is_missed() -> None:
    assert not Figure("x", math.nan, at_most=1).met and not Figure("x", math.nan, at_least=1).met
    assert Figure("x", 1.0, at_most=1).met and Figure("x", 1.0, at_least=1).met
    assert not Figure("x", 1.01, at_most=1).met and not Figure("x", 0.99, at_least=1).met
    assert [number(v) for v in (0.1234, 12, 12.34, 1234.5, 12_340, 123_456)] == [
        "0.123", "12", "12.3", "1234", "12.3k", "123k"]  # fmt: skip


def _runs(**more: Any) -> list[Run]:
    return [Run({"suspected": 0.1, "permitted": 0.2, "prepared": 0.3, "opened": 0.4}, 2.0, 1000, **more)] * 3


def test_failover_figures() -> None:
    assert all(f.met for f in judge(_runs(), hang=False)) and all(f.met for f in judge(_runs(), hang=True))
    lost = {f.name: f for f in judge(_runs(lost=1), hang=False)}
    assert lost["acknowledged writes lost, all runs"].value == 3 and not lost["acknowledged writes lost, all runs"].met
    silent = [Run({}, math.nan, 0)]
    assert not any(f.met for f in judge(silent, hang=False) if "p50" in f.name)


def _probe(closed: bool, *answers: Any) -> Probe:
    made = Probe.__new__(Probe)
    made.answers, made.closed = list(answers), closed
    return made


def test_probes_of_a_stopped_leader() -> None:
    closed = _probe(True)
    assert _judge_probes([closed, closed], []) == []
    assert _judge_probes([_probe(False, b"old", 1), closed], [b"early"]) == []  # asked before the new value was set
    assert _judge_probes([closed, _probe(False, b"new", 1)], [b"late"]) == []
    assert _judge_probes([closed, closed], [b"early", b"late"]) == []  # unknown outcome, done once
    assert "stale" in _judge_probes([closed, _probe(True, b"old")], [])[0]
    assert "0 times" in _judge_probes([closed, _probe(False, b"new", 1)], [])[0]
    assert "2 times" in _judge_probes([closed, closed], [b"late", b"late"])[0]
    assert "no end" in _judge_probes([_probe(False), closed], [])[0]


@pytest.fixture
def server(tmp_path: Path) -> Iterator[tuple[redis.Redis, int]]:
    port = free_ports(1)
    with plain_redis(tmp_path, "--port", str(port)) as (client, _, _):
        yield client, port


def _calls(client: redis.Redis, command: str) -> int:
    return int(client.info("commandstats").get(f"cmdstat_{command}", {"calls": 0})["calls"])


def test_fill_writes_every_key_and_gets_find_them(server: tuple[redis.Redis, int]) -> None:
    client, port = server
    generator.fill("127.0.0.1", port)
    assert client.dbsize() == generator.KEYS
    assert client.strlen("key:000000000000") == generator.VALUE_BYTES
    assert generator.run("127.0.0.1", port, Shape(5, 4), 0.3, "get").rps > 0
    assert client.info("stats")["keyspace_misses"] == 0 and client.info("stats")["keyspace_hits"] > 0


@pytest.mark.parametrize("shape", proxy.SHAPES, ids=str)
def test_the_generator_counts_what_the_server_counts(server: tuple[redis.Redis, int], shape: Shape) -> None:
    client, port = server
    sample = generator.run("127.0.0.1", port, shape, 0.5, "set", warm_s=0)
    under_way = shape.connections * shape.pipeline
    assert 0 <= _calls(client, "set") - round(sample.rps * sample.seconds) <= under_way
    assert sample.p50_us <= sample.p99_us


def test_a_pair_is_counted_when_the_replica_has_acknowledged(server: tuple[redis.Redis, int], tmp_path: Path) -> None:
    alone = generator.run("127.0.0.1", server[1], Shape(1, 1), 0.3, "set", wait=1, warm_s=0)
    assert alone.rps == 0  # no replica: the first WAIT never returns
    with contestants.wait_one(tmp_path / "w") as c:
        sample = generator.run(c.host, c.port, Shape(4, 4), 1.0, "set", wait=c.wait, warm_s=0)
        with redis.Redis(port=c.port, protocol=2) as client:
            pairs = round(sample.rps * sample.seconds)
            assert pairs > 0 and 0 <= _calls(client, "wait") - pairs <= 16 + 1  # and one when it was started


def test_an_error_reply_is_no_measurement(server: tuple[redis.Redis, int]) -> None:
    client, port = server
    client.config_set("requirepass", "x")
    with pytest.raises(GeneratorError, match="NOAUTH"):
        generator.run("127.0.0.1", port, Shape(1, 1), 0.2, "set")


def test_memcached_is_loaded_as_redis_is(tmp_path: Path) -> None:
    with contestants.bare_memcached(tmp_path) as c, socket.create_connection((c.host, c.port)) as probe:
        generator.fill(c.host, c.port, c.backend)
        sample = generator.run(c.host, c.port, Shape(5, 4), 0.3, "get", warm_s=0, backend=c.backend)
        probe.sendall(b"stats\r\n")
        stats = dict(line.split()[1:3] for line in _until_end(probe).splitlines() if line.startswith(b"STAT "))
    assert int(stats[b"curr_items"]) == generator.KEYS and int(stats[b"get_misses"]) == 0
    assert 0 <= int(stats[b"get_hits"]) - round(sample.rps * sample.seconds) <= 5 * 4


def _until_end(probe: socket.socket) -> bytes:
    answer = b""
    while not answer.endswith(b"END\r\n"):
        answer += probe.recv(1 << 16)
    return answer


def test_an_exchange_is_given_orders_that_meet(tmp_path: Path) -> None:
    with contestants.bare_liquibookd(tmp_path) as c, Connection(c.host) as probe:
        for shape in (Shape(1, 1), Shape(5, 16)):
            before = int(probe.ask("STATE")[0].split(" ")[3])
            sample = generator.run(c.host, c.port, shape, 0.2, "set", warm_s=0, backend=c.backend)
            events = int(probe.ask("STATE")[0].split(" ")[3]) - before
            done = sample.rps * sample.seconds
            under_way = shape.connections * shape.pipeline
            assert 2 * (done - 1) <= events <= 2 * (done + under_way + 1), "2 FILLs each other time"
            assert generator.run(c.host, c.port, shape, 0.1, "get", backend=c.backend).rps > 10
            c.tidy()
            assert int(probe.ask("STATE")[0].split(" ")[5]) <= under_way


def test_nobody_there_is_no_measurement() -> None:
    with pytest.raises(GeneratorError, match="refused"):
        generator.run("127.0.0.1", free_ports(1), Shape(1, 1), 0.2, "set")


def test_a_stopped_contestant_uses_no_cpu_and_answers_again(tmp_path: Path) -> None:
    with contestants.bare(tmp_path) as c:
        (pid,) = c.pids["redis"]
        generator.fill(c.host, c.port)
        c.stop()
        assert state_of(pid) == "T"
        c.cont()
        used = cpu_seconds(pid)
        assert generator.run(c.host, c.port, Shape(50, 16), 0.5, "set").rps > 0
        assert cpu_seconds(pid) > used
    assert not is_alive(pid)


def test_ratios_are_paired_by_round() -> None:
    results = proxy.Results()
    one = Shape(1, 1)
    for ours, its, used in ((200, 100, 0.5), (50, 100, 0.5), (330, 300, 0.5)):
        results.samples["musidecar", "set", "1x1"].append(Sample(ours, 10, 20, 0, 1))
        results.samples["HAProxy", "set", "1x1"].append(Sample(its, 20, 20, 0, 1))
        results.cpu["musidecar", "set", "1x1"].append({"followers": used, "followers' redis": 0.0})
    assert results.ratio("set", one, "HAProxy") == pytest.approx(1.1)
    assert results.p50_ratio("set", one, "HAProxy") == pytest.approx(0.5)
    assert results.ratio_without_followers("set", one, "HAProxy") > 1.1
    assert math.isnan(results.ratio("set", one, "twemproxy"))


def _history(*writers: list[tuple[int, int]]) -> History:
    """Of each write: when it was sent and acknowledged, in milliseconds; 0: it never was."""
    made = [Writer(array("q", [s * 10**6 for s, _ in w]), array("q", [a * 10**6 or -1 for _, a in w])) for w in writers]
    return History(spread([("", 0)], len(made)), made)


def test_a_pause_is_one_of_all_clients_together() -> None:
    one = [(t, t + 1) for t in range(0, 200, 5)]
    held = [(t, t + 1 if t < 100 else t + 31) for t in range(0, 200, 5)]
    moments = [(90 * 10**6, 110 * 10**6), (10 * 10**6, 40 * 10**6)]
    assert switchover.pauses_ms(_history(held), moments) == [35, 5]  # from 96 to 131; every 5
    assert switchover.pauses_ms(_history(held, one), moments) == [5, 5]  # another one was answered meanwhile
    assert switchover.pauses_ms(_history([(0, 0)]), moments) == [0, 0]


def test_switchover_and_rejoin_figures() -> None:
    good = switchover.judge([2.0, 3.0, 50.0], [1.0, 2.0, 40.0], failed=0, refused=1)
    assert all(figure.met for figure in good)
    assert not all(figure.met for figure in switchover.judge([2.0, 6.0, 7.0], [1.0] * 3, failed=0, refused=0))
    assert not all(figure.met for figure in switchover.judge([2.0], [1.0], failed=1, refused=0))
    assert not all(figure.met for figure in switchover.judge([], [], failed=0, refused=9))
    assert all(figure.met for figure in rejoin.judge(20.0, [1.0], [19.0], failed=0))
    assert not all(figure.met for figure in rejoin.judge(20.0, [1.0], [21.0], failed=0))
    assert not all(figure.met for figure in rejoin.judge(20.0, [1.0], [], failed=0))
    assert rejoin.latencies_ms(_history([(0, 1), (10, 13), (20, 0), (30, 31)]), 10 * 10**6, 30 * 10**6) == [3]


def test_leadership_is_handed_round_and_measured(tmp_path: Path) -> None:
    """The bench itself, in short; how long it takes is not judged on a host that does other things."""
    code = switchover.run(runs=3, out=tmp_path)
    found = json.loads((tmp_path / "switchover.json").read_text())
    told, failed = found["raw"], next(f["value"] for f in found["figures"] if f["name"].startswith("failed"))
    assert (code == 0) == (failed == 0 and bool(told["pauses_ms"]))
    assert len(told["pauses_ms"]) == len(told["told_ms"]) == 3 - len(told["refused"]) and not told["troubles"]
    assert all(pause > 0 for pause in told["pauses_ms"])


def test_a_node_rejoins_and_it_is_measured(tmp_path: Path) -> None:
    rejoin.run(megabytes=8, rate=1000, timeout_s=60, out=tmp_path)  # its bars are for a quiet host
    found = json.loads((tmp_path / "rejoin.json").read_text())
    figures = {figure["name"]: figure["value"] for figure in found["figures"]}
    assert found["raw"]["troubles"] == []
    assert 0 < figures["started again until it is a voter"] < 60 and figures["p99 while it rejoins"] > 0
