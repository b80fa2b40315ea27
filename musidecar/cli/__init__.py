"""The command line: one file per verb."""

import click

from musidecar import __version__


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="musidecar", message="%(prog)s %(version)s")
def main() -> None:
    """A replicating sidecar in front of an unmodified Redis."""
