"""`musidecar local`: a cluster on this host, in the foreground."""

import sys
from pathlib import Path

import click

from musidecar.cli import options


@click.command("local")
@options.backend
@click.option("--nodes", type=int, default=3, show_default=True, help="3 or 5.")
@click.option("--port", type=int, default=7000, show_default=True, help="Node i listens on PORT + i - 1.")
@click.option("--dir", "folder", type=options.PATH, metavar="DIR", help="Its folder: new, empty or its own.")
@click.option("--fabric", default="shm", show_default=True, metavar="NAME", help="What carries the log.")
@click.option("--binary", metavar="PATH", help="The server to start.  [default: the backend's own, on PATH]")
@click.option("--reads", type=click.Choice(["linearizable", "local"]), default="linearizable", show_default=True,
              help="After READONLY: local may be stale.")
@click.option("--fix-port", type=int, metavar="PORT", help="liquibook: node i listens for FIX on PORT + i - 1.")
@click.option("--workers", type=int, metavar="COUNT", help="herd: how many it was built with.")
@click.option("--restart", is_flag=True, help="Start a node that died again.")
@click.option("--log-json", is_flag=True, help="Log lines as JSON.")
def verb(
    backend: str, nodes: int, port: int, folder: Path | None, fabric: str, binary: str | None, reads: str,
    fix_port: int | None, workers: int | None, restart: bool, log_json: bool,
) -> None:  # fmt: skip
    """A cluster on this host, in the foreground.

    Prints a line that starts with "ready" when every node answers clients. SIGTERM and Ctrl-C end every node and every
    server behind it, and keep the data: started again with the same DIR it goes on with that. DIR then holds
    cluster.toml, and for each node a log and a folder.
    """
    from musidecar import local
    from musidecar.directory import default_directory

    settings: dict[str, dict[str, int | str]] = {"cluster": {"reads": reads}} if reads != "linearizable" else {}
    if workers is not None:
        settings["backend"] = {"workers": workers}
    cluster = local.Local(
        folder or default_directory(),
        nodes=nodes,
        port=port,
        backend=backend,
        fabric=fabric,
        binary=binary,
        settings=settings,
        fix_port=fix_port,
        options=("--log-json",) if log_json else (),
    )
    try:
        sys.exit(local.run(cluster, restart=restart))
    except local.NotReady as error:
        click.echo(f"musidecar: {error}", err=True)
        sys.exit(1)
