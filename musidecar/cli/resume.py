"""`musidecar resume`: fail-over is automatic again."""

import sys
from pathlib import Path

import click

from musidecar.cli import options


@click.command("resume")
@options.cluster_files
def verb(folder: Path | None, config_file: Path | None) -> None:
    """Fail-over is automatic again.

    If the leader died meanwhile, another node takes over now. Exit code 0 once somebody leads and every node that runs
    knows it.
    """
    from musidecar.pausing import Failed, set_paused

    try:
        set_paused(options.find_cluster(folder, config_file), False)
    except Failed as failed:
        click.echo(f"musidecar: not resumed everywhere: {failed}", err=True)
        sys.exit(1)
    click.echo("fail-over is automatic")
