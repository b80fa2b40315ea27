"""`musidecar reinit`: a node forgets everything, and is filled from the others."""

import sys
from pathlib import Path

import click

from musidecar.cli import options


@click.command("reinit")
@options.cluster_files
@click.argument("node", type=int, metavar="ID")
def verb(folder: Path | None, config_file: Path | None, node: int) -> None:
    """Have node ID forget its memory and its server's data.

    It comes back as another life, filled from the others, and counts once it has caught up. Refused for the leader, and
    where too few members with an up-to-date log would be left.
    """
    from musidecar.orders import Refused
    from musidecar.reinit import reinit

    config = options.find_cluster(folder, config_file)
    try:
        incarnation = reinit(config, node)
    except Refused as refused:
        click.echo(f"musidecar: node {node} is not made anew: {refused}", err=True)
        sys.exit(1)
    click.echo(f"node {node} begins anew as {incarnation[:16]}: `musidecar status` tells how far it is")
