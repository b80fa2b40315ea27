"""`musidecar switchover`: leadership goes to another node by plan."""

import sys
from pathlib import Path

import click

from musidecar.cli import options


@click.command("switchover")
@options.cluster_files
@click.option("--to", type=int, metavar="ID", help="Who is to lead; without it the leader chooses.")
@click.option("--timeout-ms", type=click.IntRange(1, 600_000), default=10_000, show_default=True,
              help="For the successor to catch up.")  # fmt: skip
@click.option("--hold-ms", type=click.IntRange(1, 60_000), default=1_000, show_default=True,
              help="Requests wait no longer than this.")  # fmt: skip
def verb(folder: Path | None, config_file: Path | None, to: int | None, timeout_ms: int, hold_ms: int) -> None:
    """Hand leadership over to another node.

    No client's request fails: they wait for a few milliseconds, until the successor leads. If it cannot, or not in
    time, the old leader goes on. Exit code 1 then, with the reason.
    """
    from musidecar.orders import Refused
    from musidecar.switchover import switchover

    config = options.find_cluster(folder, config_file)
    try:
        done = switchover(config, to, prepare_ms=timeout_ms, hold_ms=hold_ms)
    except Refused as refused:
        click.echo(f"musidecar: not handed over: {refused}", err=True)
        sys.exit(1)
    if done.leader == done.successor:
        click.echo(f"node {done.leader} leads already")
    else:
        pause = f"{done.pause_us / 1000:.1f} ms without acknowledgements"
        click.echo(f"node {done.successor} leads, node {done.leader} follows: {pause}")
