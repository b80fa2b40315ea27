"""`musidecar bench`: the figures, measured here."""

import sys

import click


@click.group("bench")
def verb() -> None:
    """Measure it on this host."""


@verb.command("replicate")
def replicate() -> None:
    """How long committing a record takes, beside copying the same bytes into the same memory."""
    from musidecar.bench import replicate

    sys.exit(replicate.run())
