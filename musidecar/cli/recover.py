"""`musidecar recover`: the operator says with whose data a cluster begins."""

import sys
from pathlib import Path

import click

from musidecar.cli import options


@click.command("recover")
@options.cluster_files
@click.option("--from", "seed", type=int, metavar="ID", help="The node with whose data the cluster begins.")
@click.option("--force", is_flag=True, help="Without the nodes that do not answer: they are gone for good.")
@click.option("--yes", is_flag=True, help="Do not ask.")
def verb(folder: Path | None, config_file: Path | None, seed: int | None, force: bool, yes: bool) -> None:
    """Begin a cluster that cannot know by itself with whose data.

    After a whole cluster was stopped, its nodes begin by themselves with all that was acknowledged, if that can be
    known. Where it cannot, they wait, and say why. This command shows what each of them has, says what may be lost, and
    asks before it does anything. Start the nodes first; those that come later join, and are filled.
    """
    from musidecar import recovery

    config = options.find_cluster(folder, config_file)
    if seed is not None:
        config.node(seed)
    try:
        chosen = recovery.plan(recovery.look(config), config.seed, seed, force)
        click.echo(f"to begin with: {chosen.says}")
        for line in chosen.losses:
            click.echo(f"lost: {line}")
        without = [str(node) for node in config.founders if node not in chosen.nodes]
        if without:
            click.echo(f"without node {', '.join(without)}: make sure that it does not run, and serves nobody")
        if not yes and not click.confirm("Begin so?"):
            sys.exit(1)
        recovery.carry_out(config, chosen)
    except recovery.Refused as refused:
        click.echo(f"musidecar: not recovered: {refused}", err=True)
        sys.exit(1)
    click.echo(f"the cluster has formed, with the data of node {chosen.seed}")
