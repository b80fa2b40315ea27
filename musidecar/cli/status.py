"""`musidecar status`: who leads, who follows, what is wrong and what to type."""

import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from musidecar.cli import options

if TYPE_CHECKING:
    from rich.console import RenderableType

    from musidecar.config import Cluster

WATCH_S = 1.0


@click.command("status")
@options.cluster_files
@click.option("--json", "as_json", is_flag=True, help="One JSON object, for machines.")
@click.option("--watch", is_flag=True, help="Look again every second, until Ctrl-C.")
def verb(folder: Path | None, config_file: Path | None, as_json: bool, watch: bool) -> None:
    """Who leads, who follows, what is wrong, and what to type.

    Exit code 1 when something is wrong. Without --dir and --config: the cluster that `musidecar local` started.
    """
    from musidecar.status import collect, problems

    config = options.find_cluster(folder, config_file)
    if watch:
        _watch(config, as_json)
    snapshot = collect(config)
    found = problems(snapshot, config)
    if as_json:
        click.echo(json.dumps(snapshot))
    else:
        from rich.console import Console

        Console().print(_view(snapshot, config))
    sys.exit(1 if found else 0)


def _watch(config: "Cluster", as_json: bool) -> None:
    from musidecar.status import collect

    try:
        if as_json:
            while True:
                click.echo(json.dumps(collect(config)))
                time.sleep(WATCH_S)
        from rich.live import Live

        with Live(_view(collect(config), config), auto_refresh=False) as live:
            while True:
                time.sleep(WATCH_S)
                live.update(_view(collect(config), config), refresh=True)
    except KeyboardInterrupt:
        sys.exit(0)


def _view(snapshot: dict[str, Any], config: "Cluster") -> "RenderableType":
    from rich.console import Group
    from rich.text import Text

    from musidecar.status import fix_ports, notes, problems, table

    lines = [
        Text.assemble(("! ", "bold red"), problem.text, f"  →  {problem.remedy}" if problem.remedy else "")
        for problem in problems(snapshot, config)
    ]
    if not lines:
        lines = [Text("Everything is in order.", style="green")]
    lines += [Text(note, style="yellow") for note in notes(snapshot)]
    if ports := fix_ports(snapshot):
        lines.append(Text(ports, style="dim"))
    if config.fabric == "shm":
        lines.append(Text("shm: all nodes are on this host; the data survives processes, not the host.", style="dim"))
    return Group(table(snapshot), *lines)
