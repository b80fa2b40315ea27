"""`musidecar demo`: see a node die and nothing get lost."""

import sys

import click

from musidecar.cli import options


@click.command("demo")
@options.backend
@click.option("--binary", metavar="PATH", help="herd: HERD's own program.")
@click.option("--workers", type=int, metavar="COUNT", help="herd: how many it was built with.")
def verb(backend: str, binary: str | None, workers: int | None) -> None:
    """See a node die and nothing get lost.

    Starts a cluster, loads it, kills the leader's node, starts it again, and proves that nothing was lost.

    Exit code 0 only if nothing acknowledged is missing, nothing was done twice, and all servers hold the same data.
    """
    from musidecar.local import check_backend, check_server

    check_backend(backend)
    check_server(backend)
    if backend == "liquibook":
        from musidecar import exchange_demo

        sys.exit(exchange_demo.run())
    from musidecar import demo

    given = [] if binary is None else ["--binary", binary]
    given += [] if workers is None else ["--workers", str(workers)]
    sys.exit(demo.run(backend=backend, arguments=given))
