"""`musidecar demo`: a cluster is loaded, its leader node is killed and comes back, and it is shown that nothing got
lost; told so that someone who has never heard of Mu understands what they saw. Exit code 0 only if everything it claims
holds.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from musidecar import protocols
from musidecar.bench.failover import await_traffic, new_leader, stages_ms
from musidecar.bench.table import percentile, plain
from musidecar.compare import compare_logs, compare_servers
from musidecar.testbed import ClusterStatus, NodeStatus, Testbed, TestbedError
from musidecar.workload import History, Load, Verdict, spread, verify

BEFORE_S, AFTER_S = 3.0, 2.0
WRITERS_EACH = 2
REJOIN_S = 60.0
THROUGH = 100  # writes through the node that came back

_STORY = (
    ("suspected", "the others noticed that the node was dead"),
    ("permitted", "a majority gave node {new} the sole right to write into their logs"),
    ("prepared", "node {new} had read what the dead node left in those logs, and completed it"),
    ("opened", "node {new} committed its first record: the log works again"),
    ("fed", "its server had been given everything that was ever acknowledged"),
    ("promoted", "its server was switched from copy to original"),
    ("attached", "the sidecar was listening to what that server changes"),
    ("served", "commands that were accepted but not yet carried out were done, once: clients are served"),
)


def run(backend: str = "redis", arguments: Sequence[str] = ()) -> int:
    """Tells the story on the terminal. Returns the exit code: 0 when all of it held, 1 when not.

    arguments: more of `musidecar local`.
    """
    console = Console()
    console = console if console.is_terminal else Console(width=110)
    try:
        with Testbed(backend=backend, arguments=arguments) as bed:
            return _Demo(bed, console).tell()
    except (TestbedError, TimeoutError) as error:
        console.print(f"The demo could not go on: {error}", style="red", markup=False, highlight=False)
        return 1


@dataclass
class _Check:
    """One claim and whether it held; `detail` in words."""

    claim: str
    held: bool
    detail: str


class _Demo:
    """One telling: what is known grows from chapter to chapter."""

    def __init__(self, bed: Testbed, console: Console) -> None:
        self.bed, self.console = bed, console
        self.kind = protocols.kind(bed.backend_name)
        self.title = self.kind.title

    def say(self, text: str = "", style: str = "") -> None:
        """A line of the story."""
        self.console.print(text, style=style, highlight=False, soft_wrap=True)

    def tell(self) -> int:
        """All chapters."""
        before = self._introduce()
        leader = before[before.leader or ""]
        killed = before.nodes.index(leader)
        plan = spread([n.client_address for n in before.nodes], WRITERS_EACH, backend=self.kind.name)
        with Load(plan) as load:
            load.wait_for(20)
            self._watch(load, before, BEFORE_S, "writing through all three nodes")
            self._status(self.bed.status())
            signal_ns = self._kill(leader)
            survivors = [i for i in range(len(before.nodes)) if i != killed]
            await_traffic(load, survivors, 50)
            after = new_leader(self.bed, leader.id, before.term)
            self._watch(load, before, AFTER_S, "writing on, through the two that are left")
            self._status(self.bed.status())
            back, whole = self._come_back(load, before, leader)
            history = load.finish()
        told = self._stages(after, history, signal_ns, killed)
        self._status(whole)
        return self._verdict([told, back, *self._checks(whole, history)])

    def _introduce(self) -> ClusterStatus:
        status = self.bed.status()
        nodes = ", ".join(f"node {n.id} at {n.client}" for n in status.nodes)
        self.say(f"[bold]Three {self.title} servers that behave like one, and survive the death of any of them[/]")
        self.say()
        self.say(f"Three nodes run on this host: {nodes}.")
        server = self.kind.binary if self.kind.program == "binary" else self.title
        self.say(f"Each is an unmodified {server}, a sidecar in front of it. Clients may talk to any.")
        self.say(f"One leads, now node {status.leader}: before its server sees a write, that is in the memory of a")
        self.say("majority of the nodes, put there directly, without asking a process on the other side. That is the")
        self.say("Mu protocol. So a write that was answered with OK can no longer be lost with one node.")
        self.say()
        return status

    def _watch(self, load: Load, status: ClusterStatus, seconds: float, what: str) -> None:
        names = [n.id for n in status.nodes]
        start, end = load.counts(), time.monotonic() + seconds
        with self._progress(what) as show:
            while time.monotonic() < end:
                time.sleep(0.1)
                show(self._rates(names, start, load.counts()))
        each = self._rates(names, start, load.counts())
        total = sum(load.counts()) - sum(start)
        self.say(f"{what}: {total} writes acknowledged in {seconds:g} s ({each})")

    @staticmethod
    def _rates(names: Sequence[str], start: Sequence[int], now: Sequence[int]) -> str:
        return ", ".join(f"node {n}: {b - a}" for n, a, b in zip(names, start, now, strict=True))

    @contextlib.contextmanager
    def _progress(self, what: str) -> Iterator[_Show]:
        if not self.console.is_terminal:
            yield _Show(None, None)
            return
        columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
        with Progress(*columns, console=self.console, transient=True) as progress:
            yield _Show(progress, what)

    def _status(self, status: ClusterStatus) -> None:
        rows = [[n.id, n.role, n.client, n.pid or "-", n.backend_pid or "-", str(n.commit), str(n.applied)]
                for n in status.nodes]
        columns = ["node", "role", "clients at", "sidecar pid", f"{self.title} pid", "committed", "applied"]
        self.console.print(plain("", columns, [[str(cell) for cell in row] for row in rows]))

    def _kill(self, leader: NodeStatus) -> int:
        self.say()
        self.say(f"[bold]Now node {leader.id}, the leader, is killed[/]: kill -9 of its sidecar (pid {leader.pid}); "
                 f"its {self.title} (pid {leader.backend_pid}) dies with it.")
        return self.bed.kill(leader)

    def _stages(self, after: ClusterStatus, history: History, signal_ns: int, killed: int) -> _Check:
        new = after[after.leader or ""]
        told = stages_ms(new, signal_ns)
        self.say("What happened, in milliseconds after the signal, by the new leader's own clock:")
        self.say(f"  {0:8.3f} ms  the signal was sent")
        for name, text in _STORY:
            if name in told:
                self.say(f"  {told[name]:8.3f} ms  {text.format(new=new.id)}")
        first = history.first_ack_ns(0, signal_ns + int(told["served"] * 1e6), killed)
        if first is None:
            return _Check("another node took over", False, "no write was acknowledged elsewhere after the signal")
        first_ms = (first - signal_ns) / 1e6
        self.say(f"  {first_ms:8.3f} ms  a client of another node got its first OK")
        self.say()
        detail = f"node {new.id} leads, in term {after.term}; first OK after {first_ms:.1f} ms"
        return _Check("another node took over", True, detail)

    def _come_back(self, load: Load, before: ClusterStatus, dead: NodeStatus) -> tuple[_Check, ClusterStatus]:
        """The dead node is started again while the writes go on. The status when it counts again."""
        self.say()
        self.say(f"[bold]Now node {dead.id} is started again[/]. Its memory is gone: it is a new member in place of")
        self.say("the dead one, is given the state of the log by the leader and the data by the other's server, and")
        self.say("counts once it has both.")
        began, start = time.monotonic(), load.counts()
        self.bed.start_again(dead)
        whole = self.bed.wait_status(f"node {dead.id} counts again", lambda s: s[dead.id].is_well, REJOIN_S)
        took_s, written = time.monotonic() - began, sum(load.counts()) - sum(start)
        client = self.bed.reader(whole[dead.id])
        through = sum(client.incr("demo:through the node that came back") == i + 1 for i in range(THROUGH))
        self.say(f"It counts again after {took_s:.1f} s, most of which is the start of its programs; {written} writes "
                 f"were acknowledged meanwhile.")
        self.say()
        detail = f"after {took_s:.1f} s, and {through} of {THROUGH} writes through it were done"
        return _Check(f"node {dead.id} came back", through == THROUGH, detail), self.bed.status()

    def _checks(self, after: ClusterStatus, history: History) -> list[_Check]:
        latency = [t for i in range(len(after.nodes)) for t in history.latencies_us(i)]
        self.say(f"{history.acknowledged} writes were acknowledged in all, p50 {percentile(latency, 0.5):.0f} us; "
                 f"{history.unknown} were cut off without an answer (they may be there or not); "
                 f"{history.refused} were refused with an error.")
        self.say("Now everything is read back: from each living node, and from each server behind its sidecar's back.")
        same, logs = compare_servers(self.bed, after), compare_logs(self.bed.status)
        verdicts = {f"node {n.id}": verify(history, self.bed.reader(n)) for n in after.alive}
        servers = self.bed.servers(after).items()
        verdicts |= {f"{self.title} of node {name}": verify(history, each) for name, each in servers}
        worst = Verdict(
            lost=max(v.lost for v in verdicts.values()), doubled=max(v.doubled for v in verdicts.values()),
            ghosts=max(v.ghosts for v in verdicts.values()), misordered=max(v.misordered for v in verdicts.values()),
        )
        where = ", ".join(verdicts)
        for name, verdict in verdicts.items():
            for trouble in verdict.troubles[:3]:
                self.console.print(f"  {name}: {trouble}", style="red", markup=False)
        return [
            _Check("no acknowledged write is missing", not worst.lost, f"{worst.lost} lost, looked at through {where}"),
            _Check("no write was done twice", not worst.doubled, f"{worst.doubled} doubled"),
            _Check("order kept, and nothing there that was refused", not (worst.misordered or worst.ghosts),
                   f"{worst.misordered} out of order, {worst.ghosts} refused but there"),
            _Check("all servers hold the same data", same.equal and not logs,
                   "; ".join([*same.differences, *logs]) or
                   f"{same.keys} keys with values and expiry, and the hashes of the logs"),
        ]

    def _verdict(self, checks: Sequence[_Check]) -> int:
        self.say()
        for check in checks:
            mark = "[green]held[/]" if check.held else "[bold red]FAILED[/]"
            self.say(f"  {mark}  {check.claim} ({check.detail})")
        self.say()
        self.say("Not shown: the log of this version lives in this host's memory; it survives the death of processes, "
                 "not of the host.", style="dim")
        return 0 if all(check.held for check in checks) else 1


class _Show:
    """The moving line while a chapter runs; nothing when the output is no terminal."""

    def __init__(self, progress: Progress | None, what: str | None) -> None:
        self._progress, self._what = progress, what
        self._task = progress.add_task(what or "", total=None) if progress else None

    def __call__(self, text: str) -> None:
        if self._progress is not None and self._task is not None:
            self._progress.update(self._task, description=f"{self._what}: {text}")
