"""A cluster over verbs, one node on each host of a Network, and what is done to it under load.

Everything here runs in the guest. The guest is an emulated machine of two CPUs: its times are ten times those of a real
one and more, and so are the time-outs, which is all a matter of configuration.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from musidecar import secret
from musidecar.compare import compare, compare_logs
from musidecar.config import Cluster, load
from musidecar.mesh import Unreachable, ask
from musidecar.protocols.server import BackendError
from musidecar.testbed import ClusterStatus, TestbedError, open_backend
from tests.fault.clients import KINDS, Crowd, Outcome, Plan
from tests.fault.nursery import Cradle, Nursery
from tests.vm.hosts import Network

CLIENT_PORT, MESH_PORT = 7000, 7100
TIMING: Mapping[str, int] = {
    "tick_busy_us": 10_000,
    "tick_idle_us": 40_000,
    "suspect_us": 200_000,
    "late_us": 60_000,
    "fail_us": 1_000_000,
    "request_us": 100_000,
    "pin_us": 1_000_000,
    "backend_timeout_ms": 8_000,
    "takeover_timeout_ms": 8_000,
    "wait_timeout_ms": 20_000,
}
START_S = 150.0
POLL_S = 0.25  # asking costs the guest's CPUs what the cluster needs
SERVED_AGAIN_S = 2 * TIMING["wait_timeout_ms"] / 1000  # the bound that is configured, twice: for a crowded host
WELL_AGAIN_S = 120.0
COMPARE_S = 30.0
WARM_WRITES = 20
AFTER_WRITES = 30
LOAD: Mapping[str, float] = {"each": 1, "depth": 3, "rate": 90.0, "probe_s": 0.3, "timeout_s": 4.0}


class _Files:
    """The files of a cluster; what a Cradle asks of a `Local`."""

    def __init__(self, folder: Path, text: str) -> None:
        folder.mkdir(mode=0o700, parents=True)
        self.folder, self.config_file = folder, folder / "cluster.toml"
        secret.create(folder / "secret")
        self.config_file.write_text(text)
        self.config: Cluster = load(self.config_file)

    def log(self, node: int) -> Path:
        return self.folder / f"{node}.log"

    def stop(self) -> None:
        """Nothing: the processes are the Cradle's."""


def _toml(fabric: str, backends: Mapping[int, str], joining: Sequence[int], timing: Mapping[str, int]) -> str:
    lines = ["[cluster]", 'name = "hosts"', 'secret_file = "secret"', 'directory = "."', f'fabric = "{fabric}"']
    lines += ["[timing]", *(f"{key} = {value}" for key, value in timing.items())]
    if fabric == "verbs":
        lines += ["[verbs]", "timeout = 14", "retry_count = 4"]
    for host, backend in backends.items():
        lines += ["[[nodes]]", f"id = {host}", f'client = "10.8.0.{host}:{CLIENT_PORT}"']
        if fabric == "verbs":
            lines += [f'mesh = "10.8.0.{host}:{MESH_PORT}"']
        lines += [f"backend = {{ {backend} }}"]
        if host in joining:
            lines += ["joins = true"]
        if fabric == "verbs":
            lines += [f'verbs = {{ device = "rxe{host}" }}']
    return "\n".join(lines) + "\n"


class HostsBed(Cradle):
    """A cluster with node i on host i; those of `joining` are there for it to grow, and not started at first."""

    kinds = KINDS  # of keys that its clients use
    well_again_s = WELL_AGAIN_S

    def __init__(
        self, nursery: Nursery, network: Network, fabric: str = "verbs", joining: Sequence[int] = (), **timing: int
    ) -> None:
        super().__init__(nursery, network.count)
        self.network, self.fabric, self.timing, self.joining = network, fabric, {**TIMING, **timing}, joining
        self.hosts = [host for host in network.hosts if host not in joining]  # where the clients are

    def configure(self) -> None:
        backends = {host: self.backend_of(host) for host in self.network.hosts}
        text = _toml(self.fabric, backends, self.joining, self.timing)
        self._local = _Files(self.dir, text)  # type: ignore[assignment]

    def backend_of(self, host: int) -> str:
        """Its node's backend table."""
        return f'socket = "redis-{host}.sock", spawn = true'

    def differences(self, hosts: Sequence[int]) -> list[str]:
        """Between what the servers of these nodes hold, in words. TestbedError, OSError, BackendError: not compared."""
        backends = {str(host): open_backend(f"unix:{self.dir}/redis-{host}.sock") for host in hosts}
        try:
            return compare(backends, COMPARE_S).differences
        finally:
            for backend in backends.values():
                backend.close()

    def launch(self) -> None:
        self.configure()
        for host in self.hosts:
            self._local.log(host).touch()
            self.revive(host)
            self._wait_started(host)

    def _wait_started(self, host: int) -> None:
        """One after the other: three programs that start at once on an emulated CPU are not up in time."""
        deadline = time.monotonic() + START_S
        while "backend: started" not in self.log_of(host):
            if time.monotonic() > deadline or self.died():
                raise TestbedError(f"node {host} has not started its server\n{self.logs()}")
            time.sleep(POLL_S)

    def wait_ready(self, timeout_s: float = START_S) -> ClusterStatus:
        """Until every node serves, without taking the CPU from them. Raises TestbedError with the logs."""
        deadline = time.monotonic() + timeout_s
        for node in self.hosts:
            while not self.says(node).get("serving"):
                if time.monotonic() > deadline or self.died():
                    raise TestbedError(f"node {node} does not serve\n{self.logs()}")
                time.sleep(POLL_S)
        return self.status()

    def revive(self, node: int, config_file: Path | None = None) -> None:
        """Starts a node, also one that has died: another life of it. config_file: other than the cluster's."""
        assert self._local is not None
        path, netns = config_file or self._local.config_file, self.network.netns(node)
        self.pids[node] = self.nursery.start_node(path, node, self._local.log(node), netns)

    def start(self, timeout_s: float = START_S) -> ClusterStatus:
        self.launch()
        return self.wait_ready(timeout_s)

    def says(self, node: int) -> dict[str, object]:
        """The status of one node; empty when it does not answer."""
        try:
            return ask(self.config, node, "status", 2.0)
        except Unreachable:
            return {}

    def is_well(self, node: int) -> bool:
        """Does it serve its clients, with its Redis in step, and count?"""
        said = self.says(node)
        return bool(said.get("serving") and said.get("member")) and said.get("backend_state") in ("fed", "leads")

    def log_of(self, node: int) -> str:
        """What a node has written so far."""
        assert self._local is not None
        return self._local.log(node).read_text(errors="replace")


@dataclass
class Story:
    """What was done and what came of it."""

    outcome: Outcome = field(default_factory=Outcome)
    leaders: dict[int, set[int]] = field(default_factory=dict)  # by term: who has been seen to lead in it
    troubles: list[str] = field(default_factory=list)
    done: list[str] = field(default_factory=list)
    served_again_s: list[float] = field(default_factory=list)  # after each strike: the others acknowledged writes again

    @property
    def sound(self) -> bool:
        """0 lost, 0 doubled, one order, replicas equal, never two leaders in one term, all in bounded time."""
        found = self.outcome
        two = any(len(nodes) > 1 for nodes in self.leaders.values())
        return not (found.violations or found.lost or found.doubled or self.troubles or two)

    def text(self) -> str:
        found = self.outcome
        lines = [*self.done, f"{found.acknowledged} acknowledged, lost {found.lost}, doubled {found.doubled}, unknown "
                 f"{found.unknown}, refused {found.refused}; leaders by term {self.leaders}; "
                 f"served again after {[round(s, 2) for s in self.served_again_s]} s"]  # fmt: skip
        return "\n".join([*lines, *(f"trouble: {text}" for text in self.troubles), *found.violations])


class Siege:
    """Clients at all hosts of a cluster, and strikes at its leader. `with siege(bed, crowd, seed) as s: s.kill()`"""

    def __init__(self, bed: HostsBed, crowd: Crowd) -> None:
        self.bed, self.crowd, self.story = bed, crowd, Story()
        self.dead: set[int] = set()
        self.began = time.monotonic()

    def note(self, text: str) -> None:
        self.story.done.append(f"{time.monotonic() - self.began:7.2f} s  {text}")
        print(self.story.done[-1], flush=True)

    def look(self, without: int = 0) -> int:
        """Who leads and serves now, as the nodes say themselves (0: nobody), and who has been seen to lead when.
        `without`: a node that cannot answer."""
        leader, newest = 0, -1
        for host in self.bed.hosts:
            said = {} if host == without or host in self.dead else self.bed.says(host)
            if said.get("role") == "leader":
                term = int(str(said.get("term") or 0))
                self.story.leaders.setdefault(term, set()).add(host)
                if said.get("serving") and term > newest:
                    leader, newest = host, term
        return leader

    def leader(self) -> int:
        """The node that leads and serves, once there is one."""
        deadline = time.monotonic() + WELL_AGAIN_S
        while not (leader := self.look()):
            if time.monotonic() > deadline:
                raise TestbedError(f"no node leads and serves in {WELL_AGAIN_S:g} s")
            time.sleep(POLL_S)
        return leader

    def progress(self, without: set[int], writes: int, bound_s: float) -> None:
        """Until clients of the other nodes have so many more writes acknowledged. TestbedError when not in time."""
        nodes = [host - 1 for host in self.bed.hosts if host not in without]
        before, began = self.crowd.counts(), time.monotonic()

        def more() -> int:
            now = self.crowd.counts()
            return sum(now[n] - before[n] for n in nodes)

        while more() < writes:
            if time.monotonic() > began + bound_s:
                raise TestbedError(f"{more()} writes acknowledged in {bound_s:g} s by the nodes left")
            time.sleep(0.05)

    def served_again(self, victim: int) -> None:
        """The others acknowledge writes again, within what is configured."""
        began = time.monotonic()
        self.progress({victim, *self.dead}, 5, SERVED_AGAIN_S)
        self.story.served_again_s.append(time.monotonic() - began)
        self.look(without=victim)
        self.progress({victim, *self.dead}, AFTER_WRITES, SERVED_AGAIN_S)

    def leads_by_mistake(self, node: int) -> bool:
        """Has it not heard yet that another one was elected? So it may serve until it does, and then breaks off."""
        said = self.bed.says(node)
        return said.get("role") == "leader" and int(str(said.get("term") or 0)) < max(self.story.leaders, default=0)

    def well(self, node: int) -> None:
        """The node serves again with its Redis in step."""
        deadline = time.monotonic() + self.bed.well_again_s
        while self.leads_by_mistake(node) or not self.bed.is_well(node):
            if time.monotonic() > deadline:
                took = f"{self.bed.well_again_s:g} s"
                raise TestbedError(f"node {node} did not recover in {took}: {self.bed.says(node)}")
            time.sleep(POLL_S)
        self.note(f"node {node} is well")
        self.look()


@contextmanager
def siege(bed: HostsBed, crowd: Crowd, seed: int) -> Iterator[Siege]:
    """Load through all nodes for as long as the block runs; then everything is judged, and what is wrong raised."""
    one = Siege(bed, crowd)
    story = one.story
    addresses = tuple((f"10.8.0.{host}", CLIENT_PORT) for host in bed.hosts)
    crowd.start(Plan(addresses, seed, kinds=bed.kinds, **LOAD))  # type: ignore[arg-type]
    try:
        one.progress(set(), WARM_WRITES, SERVED_AGAIN_S)
        one.note("under load")
        yield one
    except TestbedError as error:
        story.troubles.append(str(error))
    finally:
        crowd.stop()
    left = [host for host in bed.hosts if host not in one.dead]
    crowd.finish([host - 1 for host in left])
    story.troubles += [
        f"node {node} ended by itself: {how}" for node, how in bed.died().items() if node not in one.dead
    ]
    try:
        story.troubles += [f"replicas differ: {text}" for text in bed.differences(left)]
        story.troubles += compare_logs(bed.status, COMPARE_S)
    except (TestbedError, OSError, BackendError) as error:
        story.troubles.append(f"the replicas cannot be compared: {error}")
    story.outcome = crowd.outcome()
    story.troubles += story.outcome.troubles
    assert story.sound, f"{story.text()}\n{bed.logs(40)}"
