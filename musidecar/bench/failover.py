"""`bench failover`: a fresh cluster for each run, loaded through all its nodes; its leader node is killed (kill -9)
or stopped (SIGSTOP, later SIGCONT). Measured: from the signal to the first record the new leader commits (its clock,
by stages), and to the first acknowledgement a client gets from another node. Checked in each run: nothing acknowledged
is missing, nothing was done twice, replicas and logs are equal; and for a stopped leader that it answers nothing stale
and lands nothing late when it runs again."""

from __future__ import annotations

import contextlib
import random
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import hiredis
from rich.console import Console

from musidecar.bench import plot, table
from musidecar.bench.table import Figure, percentile
from musidecar.compare import compare, compare_logs
from musidecar.testbed import ClusterStatus, NodeStatus, Testbed, TestbedError
from musidecar.workload import History, Load, Verdict, encode, spread, verify

WRITERS_EACH = 2  # connections at each node
STEADY_WRITES = 200  # acknowledged by each node before the signal
STAGES = ("suspected_us", "requested_us", "permitted_us", "prepared_us", "opened_us", "fed_us", "promoted_us",
          "attached_us", "served_us")  # fmt: skip
REPLY_TIMEOUT_S = 5.0


@dataclass
class Run:
    """One fail-over. Times in milliseconds from the signal; a stage the new leader does not tell is missing."""

    stages: dict[str, float]
    client_ms: float
    acknowledged: int
    lost: int = 0
    doubled: int = 0
    unknown: int = 0
    late: int = 0
    troubles: list[str] = field(default_factory=list)

    @property
    def sound(self) -> bool:
        """Nothing was lost or doubled and nothing else was wrong."""
        return not (self.lost or self.doubled or self.troubles)


class Probe:
    """A client connected to the leader before it is stopped: what it says later must not be stale."""

    def __init__(self, node: NodeStatus) -> None:
        self.sock = socket.create_connection(node.client_address, 5)
        self.answers: list[Any] = []
        self.closed = False

    def ask(self, *commands: tuple[bytes, ...]) -> None:
        """Sends without waiting; a stopped process's kernel takes the bytes."""
        with contextlib.suppress(OSError):
            self.sock.sendall(b"".join(encode(command) for command in commands))

    def collect(self, count: int) -> None:
        """Reads until `count` answers came, the connection closed, or it stayed silent for long."""
        reader = hiredis.Reader()
        self.sock.settimeout(REPLY_TIMEOUT_S)
        try:
            while len(self.answers) < count:
                data = self.sock.recv(4096)
                if not data:
                    self.closed = True
                    return
                reader.feed(data)
                while (answer := reader.gets()) is not False:
                    self.answers.append(answer)
        except TimeoutError:
            return
        except OSError:
            self.closed = True

    def close(self) -> None:
        """Hangs up."""
        self.sock.close()


def new_leader(bed: Testbed, old: str, term: int) -> ClusterStatus:
    """The status in which another node leads in a later term, all its take-over stages known."""
    def led(status: ClusterStatus) -> bool:
        if status.leader in (None, old) or status.term <= term:
            return False
        return bool(status[status.leader or ""].moment_us("served_us"))

    return bed.wait_status("another node leads and serves", led)


def again_and_again(runs: int, kill_once: Callable[[], float], console: Console) -> list[float]:
    """Milliseconds of each kill in one cluster. When one fails that is said, and the rest not done."""
    times: list[float] = []
    try:
        for number in range(runs):
            times.append(kill_once())
            console.print(f"run {number + 1:3d}: client {times[-1]:7.3f} ms", highlight=False)
    except (TestbedError, TimeoutError) as error:
        console.print(f"run {len(times) + 1}: {error}", style="red", markup=False, highlight=False)
    return times


def stages_ms(leader: NodeStatus, signal_ns: int) -> dict[str, float]:
    """The new leader's stages in milliseconds after the signal."""
    return {name.removesuffix("_us"): leader.moment_us(name) / 1e3 - signal_ns / 1e6
            for name in STAGES if leader.moment_us(name)}


def await_traffic(load: Load, nodes: Sequence[int], more: int, timeout_s: float = 20.0) -> None:
    """Waits until these nodes together acknowledged `more` writes each than now (a writer whose connection was cut may
    have moved on to another of them). Raises TestbedError."""
    before, deadline = load.counts(), time.monotonic() + timeout_s
    while sum(load.counts()[n] - before[n] for n in nodes) < more * len(nodes):
        if time.monotonic() > deadline:
            raise TestbedError(f"no traffic for {timeout_s:g} s: acknowledged by node {before}, now {load.counts()}")
        time.sleep(0.005)


def check_data(bed: Testbed, status: ClusterStatus, history: History, run: Run) -> None:
    """Everything read back through each node alive and from each backend; then replicas and logs compared."""
    backends = bed.backends(status)
    same = compare(backends)
    run.troubles += [f"replicas differ: {text}" for text in same.differences]
    run.troubles += compare_logs(bed.status)
    readers = {f"through node {n.id}": bed.client(n) for n in status.alive}
    readers |= {f"in node {name}'s backend": backend for name, backend in backends.items()}
    for where, reader in readers.items():
        _count(run, where, verify(history, reader))


def _count(run: Run, where: str, verdict: Verdict) -> None:
    run.lost = max(run.lost, verdict.lost)
    run.doubled = max(run.doubled, verdict.doubled)
    run.late = max(run.late, verdict.late)
    if not verdict.sound:
        run.troubles += [f"{where}: {text}" for text in verdict.troubles[:5]]


def one_kill(bed: Testbed, chance: random.Random) -> Run:
    """kill -9 of the leader node under load."""
    before = bed.status()
    leader = before[before.leader or ""]
    index = before.nodes.index(leader)
    others = [i for i in range(len(before.nodes)) if i != index]
    with Load(spread([n.client_address for n in before.nodes], WRITERS_EACH)) as load:
        load.wait_for(STEADY_WRITES + chance.randrange(STEADY_WRITES))
        signal_ns = bed.kill(leader)
        await_traffic(load, others, STEADY_WRITES)
        after = new_leader(bed, leader.id, before.term)
        history = load.finish()
    return _finish(bed, after, history, signal_ns, index)


def one_hang(bed: Testbed, chance: random.Random) -> Run:
    """SIGSTOP of the leader's sidecar under load, SIGCONT once another node has served for a while."""
    before = bed.status()
    leader = before[before.leader or ""]
    index = before.nodes.index(leader)
    others = [i for i in range(len(before.nodes)) if i != index]
    with contextlib.ExitStack() as stack:
        probes = [stack.enter_context(contextlib.closing(Probe(leader))) for _ in range(2)]
        bed.client(leader).set("probe", "old")
        load = stack.enter_context(Load(spread([n.client_address for n in before.nodes], WRITERS_EACH)))
        load.wait_for(STEADY_WRITES + chance.randrange(STEADY_WRITES))
        signal_ns = bed.stop(leader)
        probes[0].ask((b"GET", b"probe"), (b"RPUSH", b"probes", b"early"))
        await_traffic(load, others, STEADY_WRITES)
        after = new_leader(bed, leader.id, before.term)
        bed.client(after[after.leader or ""]).set("probe", "new")
        probes[1].ask((b"GET", b"probe"), (b"RPUSH", b"probes", b"late"))
        await_traffic(load, others, STEADY_WRITES)
        bed.cont(leader)
        for probe in probes:
            probe.collect(2)
        history = load.finish()
        back = bed.wait_status("the stopped node follows again", lambda s: s[leader.id].role == "follower")
        run = _finish(bed, back, history, signal_ns, index, stages_of=after)
        run.troubles += _judge_probes(probes, bed.client(back[back.leader or ""]).lrange("probes", 0, -1))
    return run


def _judge_probes(probes: Sequence[Probe], pushed: Any) -> list[str]:
    """What a client of the stopped leader may have been told: the truth, or nothing."""
    troubles = []
    early, late = probes
    if late.answers and late.answers[0] == b"old":
        troubles.append("stale read: a GET sent after SET probe new was acknowledged elsewhere answered 'old'")
    for probe, name in ((early, b"early"), (late, b"late")):
        times = list(pushed).count(name)
        acknowledged = len(probe.answers) > 1 and isinstance(probe.answers[1], int)
        refused = len(probe.answers) > 1 and isinstance(probe.answers[1], Exception)
        if times > 1 or (acknowledged and times != 1) or (refused and times):
            troubles.append(f"RPUSH probes {name.decode()} answered {probe.answers[1:]!r} and is there {times} times")
        if not probe.closed and len(probe.answers) < 2:
            troubles.append(f"a client of the stopped leader got {probe.answers!r} and no end in {REPLY_TIMEOUT_S:g} s")
    return troubles


def _finish(bed: Testbed, status: ClusterStatus, history: History, signal_ns: int, killed: int,
            stages_of: ClusterStatus | None = None) -> Run:
    told_by = stages_of or status
    stages = stages_ms(told_by[told_by.leader or ""], signal_ns)
    served_ns = int(stages["served"] * 1e6) + signal_ns
    first_ns = history.first_ack_ns(0, served_ns, killed)
    client_ms = (first_ns - signal_ns) / 1e6 if first_ns else float("nan")
    run = Run(stages, client_ms, history.acknowledged, unknown=history.unknown)
    if not first_ns:
        run.troubles.append("no write was acknowledged by another node after the signal")
    check_data(bed, status, history, run)
    return run


def _series(runs: Sequence[Run]) -> Iterator[tuple[str, list[float]]]:
    """Name and milliseconds of each stage: how long it took, then the two sums that matter."""
    steps = (("detect (suspected)", None, "suspected"), ("permission", "suspected", "permitted"),
             ("catch-up + prepare", "permitted", "prepared"), ("first record", "prepared", "opened"),
             ("feed the rest", "opened", "fed"), ("Redis promoted", "fed", "promoted"),
             ("attached to it", "promoted", "attached"), ("serves", "attached", "served"))  # fmt: skip
    for name, start, end in steps:
        values = [r.stages[end] - (r.stages[start] if start else 0) for r in runs
                  if end in r.stages and (start is None or start in r.stages)]
        yield name, values
    yield "core: signal to first record", [r.stages["opened"] for r in runs if "opened" in r.stages]
    yield "client: signal to first OK elsewhere", [r.client_ms for r in runs]


def judge(runs: Sequence[Run], hang: bool) -> list[Figure]:
    """The figures that are wanted."""
    series = dict(_series(runs))
    core, client = series["core: signal to first record"], series["client: signal to first OK elsewhere"]
    lost = Figure("acknowledged writes lost, all runs", sum(r.lost for r in runs), "", at_most=0)
    doubled = Figure("writes done twice, all runs", sum(r.doubled for r in runs), "", at_most=0)
    if hang:
        stale = sum(1 for r in runs for t in r.troubles if "stale" in t)
        return [Figure("client p50", percentile(client, 0.5), "ms", at_most=15.0),
                Figure("core p50", percentile(core, 0.5), "ms"), lost, doubled,
                Figure("stale replies, all runs", stale, "", at_most=0)]
    return [Figure("core p50", percentile(core, 0.5), "ms", at_most=0.8),
            Figure("client p50", percentile(client, 0.5), "ms", at_most=3.0),
            Figure("client p99", percentile(client, 0.99), "ms", at_most=15.0), lost, doubled]


def report(runs: Sequence[Run], hang: bool, out: Path, console: Console) -> None:
    """The tables and the picture."""
    rows = [[name, len(v), percentile(v, 0.5), percentile(v, 0.99), max(v, default=float("nan"))]
            for name, v in _series(runs)]
    signal_name = "SIGSTOP" if hang else "kill -9"
    console.print(table.plain(f"{signal_name} of the leader, milliseconds by stage",
                              ["stage", "runs", "p50", "p99", "max"], rows))
    console.print("The stages are told by the new leader, whose clock is read once a turn of its loop: 0 means in the "
                  "same turn, not in no time. The client's figure is taken outside.", style="dim")
    console.print(table.figures(f"{len(runs)} runs", judge(runs, hang)))
    late = sum(r.late for r in runs)
    if late:
        console.print(f"{late} writes of unknown outcome were applied behind their writer's later ones (allowed).")
    name = "failover-hang" if hang else "failover"
    series = {k: v for k, v in _series(runs) if k.startswith(("core", "client")) and v}
    wanted = {} if hang else {"core: signal to first record": 0.8}
    wanted["client: signal to first OK elsewhere"] = 15.0 if hang else 3.0
    console.print(plot.histograms(out / f"{name}.png", f"Fail-over after {signal_name}", "ms", series, wanted))
    table.save(out, name, judge(runs, hang), [vars(r) for r in runs])


def run(runs: int = 50, hang: bool = False, out: Path = Path("bench-results"), seed: int = 1) -> int:
    """Runs, prints, returns the exit code: 1 when in any run something was lost, doubled, stale or unequal."""
    console, chance = table.console(), random.Random(seed)
    done: list[Run] = []
    for number in range(runs):
        with Testbed() as bed:
            try:
                one = (one_hang if hang else one_kill)(bed, chance)
            except (TestbedError, TimeoutError) as error:
                console.print(f"run {number + 1}: {error}", style="red", markup=False, highlight=False)
                console.print(bed.logs(), markup=False, highlight=False)
                return 1
        done.append(one)
        core = one.stages.get("opened", float("nan"))
        console.print(f"run {number + 1:3d}: core {core:7.3f} ms   client {one.client_ms:7.3f} ms   "
                      f"acknowledged {one.acknowledged}, lost {one.lost}, doubled {one.doubled}, "
                      f"unknown {one.unknown}", highlight=False)
        for trouble in one.troubles:
            console.print(f"         {trouble}", style="red", markup=False, highlight=False)
    report(done, hang, out, console)
    return 0 if all(r.sound for r in done) else 1
