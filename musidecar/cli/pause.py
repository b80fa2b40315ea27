"""`musidecar pause`: nobody takes over by itself."""

import sys
from pathlib import Path

import click

from musidecar.cli import options


@click.command("pause")
@options.cluster_files
def verb(folder: Path | None, config_file: Path | None) -> None:
    """Nobody takes over by itself, until `resume`.

    When the leader dies then, nobody is served until you resume. `switchover` still works. Exit code 0 once every node
    that runs knows it; it outlives this shell, changes of leaders, and nodes that start again.
    """
    from musidecar.pausing import Failed, set_paused

    try:
        set_paused(options.find_cluster(folder, config_file), True)
    except Failed as failed:
        click.echo(f"musidecar: not paused: {failed}", err=True)
        sys.exit(1)
    click.echo("automatic fail-over is paused: `musidecar resume` ends it")
