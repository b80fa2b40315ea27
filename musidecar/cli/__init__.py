"""The command line: one file per verb. What a verb needs is imported when it runs, so that help comes at once.

Exit codes: 0 fine, 1 the check failed, 2 wrong usage or configuration.
"""

from typing import Any

import click

from musidecar import __version__
from musidecar.cli import (
    bench,
    completion,
    demo,
    doctor,
    local,
    member,
    pause,
    recover,
    reinit,
    resume,
    run,
    status,
    switchover,
)

EXIT_FAILED = 1
EXIT_USAGE = 2


class _Verbs(click.Group):
    """Says what is wrong in one line each, instead of showing a stack."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except (click.ClickException, click.exceptions.Exit, click.Abort):
            raise
        except Exception as error:
            from musidecar.config import ConfigError

            if not isinstance(error, ConfigError):
                raise
            for problem in error.problems:
                click.echo(f"musidecar: {problem}", err=True)
            ctx.exit(EXIT_USAGE)


@click.group(cls=_Verbs, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="musidecar", message="%(prog)s %(version)s")
def main() -> None:
    """A replicating sidecar in front of an unmodified Redis.

    A write is acknowledged when a majority of the nodes has it; when one dies, another goes on within milliseconds.
    Try it: musidecar demo.
    """


for module in (local, demo, run, status, switchover, pause, resume, reinit, member, recover, doctor, bench, completion):
    main.add_command(module.verb)
