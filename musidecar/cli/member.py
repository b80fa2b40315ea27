"""`musidecar member`: who counts for a majority."""

import sys
from pathlib import Path

import click

from musidecar.cli import options


@click.group("member")
def verb() -> None:
    """Have the cluster shrink. It grows by starting nodes."""


@verb.command("remove")
@options.cluster_files
@click.argument("node", type=int, metavar="ID")
def remove(folder: Path | None, config_file: Path | None, node: int) -> None:
    """Node ID counts no more.

    Stop it then: started again it joins. Refused for the leader, where too few members with an up-to-date log would be
    left, and where fewer than three would.
    """
    from musidecar import membership, orders

    config = options.find_cluster(folder, config_file)
    try:
        membership.remove(config, node)
    except orders.Refused as refused:
        click.echo(f"musidecar: node {node} is not removed: {refused}", err=True)
        sys.exit(1)
    click.echo(f"node {node} is a member no more: stop it, if it runs")
