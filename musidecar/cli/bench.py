"""`musidecar bench`: the figures, measured on this host."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from musidecar.cli import options

Verb = TypeVar("Verb", bound=Callable[..., Any])


def _out(verb: Verb) -> Verb:
    folder = Path("bench-results")
    return click.option("--out", type=options.PATH, default=folder, show_default=True, help="Where figures go.")(verb)


@click.group("bench")
def verb() -> None:
    """Measure it on this host."""


@verb.command("replicate")
@click.option("--rounds", type=click.IntRange(1), default=7, show_default=True, help="Of both contestants.")
@click.option("--seconds", type=click.FloatRange(0.05), default=1.0, show_default=True, help="Of each measurement.")
@click.option("--payload-bytes", type=click.IntRange(1), default=64, show_default=True, help="Of each record.")
@click.option("--png", type=options.PATH, metavar="FILE", help="Draw it.")
@click.option("--pin", is_flag=True, help="Keep the leader on a processor of its own.")
@click.option("--fabric", type=click.Choice(["shm", "verbs"]), default="shm", show_default=True, help="Carries it.")
@click.option("--device", metavar="NAME", help="The RDMA device.  [default: the first that will do]")
@click.option("--count", type=click.IntRange(10), default=4000, show_default=True, help="Operations, over verbs.")
def replicate(
    rounds: int, seconds: float, payload_bytes: int, png: Path | None, pin: bool, fabric: str, device: str | None,
    count: int,
) -> None:  # fmt: skip
    """What a commit costs, beside raw copies of the same bytes; over verbs, beside bare RDMA writes."""
    if fabric == "verbs":
        from musidecar.bench import race

        sys.exit(race.run(count=count, payload_bytes=payload_bytes, device=device))
    from musidecar.bench import replicate

    sys.exit(replicate.run(rounds=rounds, payload_bytes=payload_bytes, seconds=seconds, png=png, pin=pin))


@verb.command("failover")
@click.option("--runs", type=click.IntRange(1), default=50, show_default=True, help="Each with a fresh cluster.")
@click.option("--hang", is_flag=True, help="Stop the leader (SIGSTOP) instead of killing it, and continue it later.")
@click.option("--backend", type=click.Choice(["redis", "memcached", "liquibook"]), default="redis", show_default=True)
@click.option("--seed", type=int, default=1, show_default=True, help="Of the moments of death.")
@_out
def failover(runs: int, hang: bool, backend: str, seed: int, out: Path) -> None:
    """How long until another node answers, what is lost. (memcached, liquibook: in one cluster, kills only.)"""
    from musidecar.bench import cache_failover, failover
    from musidecar.local import check_server

    if backend != "redis" and hang:
        raise click.UsageError(f"--hang is not measured with {backend}")
    check_server(backend)
    if backend == "memcached":
        sys.exit(cache_failover.run(runs=runs, out=out, seed=seed))
    if backend == "liquibook":
        from musidecar.bench import exchange_failover  # needs the package

        sys.exit(exchange_failover.run(runs=runs, out=out, seed=seed))
    sys.exit(failover.run(runs=runs, hang=hang, out=out, seed=seed))


@verb.command("proxy")
@click.option("--rounds", type=click.IntRange(1), default=7, show_default=True, help="Of all contestants.")
@click.option("--seconds", type=click.FloatRange(0.05), default=1.0, show_default=True, help="Of each measurement.")
@click.option("--backend", type=click.Choice(["redis", "memcached", "liquibook"]), default="redis", show_default=True)
@click.option("--only", multiple=True, metavar="NAME", help="Only this contestant; can be given again.")
@click.option("--seed", type=int, default=1, show_default=True, help="Of the order of the contestants.")
@_out
def proxy(rounds: int, seconds: float, backend: str, only: tuple[str, ...], seed: int, out: Path) -> None:
    """Beside the server alone, HAProxy, and for Redis twemproxy and WAIT."""
    from musidecar.bench import contestants, proxy
    from musidecar.local import check_server

    check_server(backend)
    if unknown := sorted(set(only) - set(contestants.ALL[backend])):
        raise click.UsageError(f"no contestant {unknown[0]}: there are {', '.join(contestants.ALL[backend])}")
    sys.exit(proxy.run(rounds=rounds, seconds=seconds, out=out, backend=backend, only=only, seed=seed))


@verb.command("herd")
@click.option("--binary", metavar="PATH", required=True, help="HERD's own program.")
@click.option("--workers", type=click.IntRange(1), default=12, show_default=True, help="How many it was built with.")
@click.option("--count", type=click.IntRange(10), default=2000, show_default=True, help="Of PUTs, and of GETs.")
@_out
def herd(binary: str, workers: int, count: int, out: Path) -> None:
    """What a sidecar adds to a HERD's PUT and GET, beside a client of HERD's own."""
    from musidecar.bench import herd
    from musidecar.local import check_server

    check_server("herd")
    sys.exit(herd.run(binary=binary, workers=workers, count=count, out=out))


@verb.command("reads")
@click.option("--rounds", type=click.IntRange(1), default=7, show_default=True, help="Of both ways.")
@click.option("--seconds", type=click.FloatRange(0.05), default=1.0, show_default=True, help="Of each measurement.")
@_out
def reads(rounds: int, seconds: float, out: Path) -> None:
    """Local reads at a follower, beside linearizable ones there."""
    from musidecar.bench import reads

    sys.exit(reads.run(rounds=rounds, seconds=seconds, out=out))


@verb.command("api")
@click.option("--rounds", type=click.IntRange(1), default=7, show_default=True)
@click.option("--records", type=click.IntRange(1), default=200_000, show_default=True, help="In one propose_many().")
@click.option("--singles", type=click.IntRange(1), default=5000, show_default=True, help="One after the other.")
@_out
def api(rounds: int, records: int, singles: int, out: Path) -> None:
    """A Python object of your own, replicated (musidecar.api): proposals in batches, and one at a time."""
    from musidecar.bench import api

    sys.exit(api.run(rounds=rounds, records=records, singles=singles, out=out))


@verb.command("idle")
@click.option("--seconds", type=click.FloatRange(1), default=30.0, show_default=True)
@_out
def idle(seconds: float, out: Path) -> None:
    """What a cluster costs that does nothing."""
    from musidecar.bench import idle

    sys.exit(idle.run(seconds=seconds, out=out))


@verb.command("steady")
@click.option("--minutes", type=click.FloatRange(0.05), default=10.0, show_default=True)
@_out
def steady(minutes: float, out: Path) -> None:
    """Full load with nobody killed: the leader must not change."""
    from musidecar.bench import steady

    sys.exit(steady.run(minutes=minutes, out=out))


@verb.command("switchover")
@click.option("--runs", type=click.IntRange(1), default=50, show_default=True, help="Hand-overs, in one cluster.")
@_out
def switchover(runs: int, out: Path) -> None:
    """Planned hand-overs under load: for how long nothing is acknowledged, what fails."""
    from musidecar.bench import switchover

    sys.exit(switchover.run(runs=runs, out=out))


@verb.command("rejoin")
@click.option("--megabytes", type=click.IntRange(1), default=1000, show_default=True, help="Of data in the cluster.")
@click.option("--rate", type=click.IntRange(1), default=5000, show_default=True, help="Writes a second meanwhile.")
@click.option("--timeout-s", type=click.FloatRange(1), default=300.0, show_default=True, help="For it to come back.")
@_out
def rejoin(megabytes: int, rate: int, timeout_s: float, out: Path) -> None:
    """A node killed and started again: how long until it votes, what clients notice."""
    from musidecar.bench import rejoin

    sys.exit(rejoin.run(megabytes=megabytes, rate=rate, timeout_s=timeout_s, out=out))
