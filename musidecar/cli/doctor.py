"""`musidecar doctor`: is this host fit, and what will be changed on your Redis?"""

import sys
from pathlib import Path

import click

from musidecar.cli import options


@click.command("doctor")
@click.option("--config", "config_file", type=options.PATH, metavar="FILE", help="Check this cluster's servers too.")
@click.option("--port", type=int, default=7000, show_default=True, help="First client port, without --config.")
@click.option("--nodes", type=int, default=3, show_default=True, help="Number of nodes, without --config.")
@options.backend
def verb(config_file: Path | None, port: int, nodes: int, backend: str) -> None:
    """Is this host fit, and what will change on your server?

    Changes nothing. Exit code 1 when something stands in the way; every line that is not "ok" says what to do.
    """
    from musidecar import doctor
    from musidecar.config import load
    from musidecar.local import check_backend

    check_backend(backend)
    checks = doctor.check_cluster(load(config_file)) if config_file else doctor.check_host(port, nodes, backend)
    good = doctor.report(checks)
    sys.exit(0 if good else 1)
