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
def replicate(rounds: int, seconds: float, payload_bytes: int, png: Path | None, pin: bool) -> None:
    """What a commit costs, beside raw copies of the same bytes."""
    from musidecar.bench import replicate

    sys.exit(replicate.run(rounds=rounds, payload_bytes=payload_bytes, seconds=seconds, png=png, pin=pin))


@verb.command("failover")
@click.option("--runs", type=click.IntRange(1), default=50, show_default=True, help="Each with a fresh cluster.")
@click.option("--hang", is_flag=True, help="Stop the leader (SIGSTOP) instead of killing it, and continue it later.")
@click.option("--seed", type=int, default=1, show_default=True, help="Of the moments of death.")
@_out
def failover(runs: int, hang: bool, seed: int, out: Path) -> None:
    """How long until another node answers, what is lost."""
    from musidecar.bench import failover

    sys.exit(failover.run(runs=runs, hang=hang, out=out, seed=seed))


@verb.command("proxy")
@click.option("--rounds", type=click.IntRange(1), default=7, show_default=True, help="Of all contestants.")
@click.option("--seconds", type=click.FloatRange(0.05), default=1.0, show_default=True, help="Of each measurement.")
@click.option("--only", multiple=True, metavar="NAME", help="Only this contestant; can be given again.")
@click.option("--seed", type=int, default=1, show_default=True, help="Of the order of the contestants.")
@_out
def proxy(rounds: int, seconds: float, only: tuple[str, ...], seed: int, out: Path) -> None:
    """Beside redis-server, HAProxy, twemproxy and WAIT."""
    from musidecar.bench import contestants, proxy

    if unknown := sorted(set(only) - set(contestants.ALL)):
        raise click.UsageError(f"no contestant {unknown[0]}: there are {', '.join(contestants.ALL)}")
    sys.exit(proxy.run(rounds=rounds, seconds=seconds, out=out, only=only or tuple(contestants.ALL), seed=seed))


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
