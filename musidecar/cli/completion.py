"""`musidecar completion`: what a shell needs to complete verbs and options."""

import click
from click.shell_completion import get_completion_class


@click.command("completion")
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def verb(ctx: click.Context, shell: str) -> None:
    """Print the completion script of a shell.

    bash: eval "$(musidecar completion bash)" in ~/.bashrc; fish: musidecar completion fish | source.
    """
    kind = get_completion_class(shell)
    assert kind is not None
    click.echo(kind(ctx.find_root().command, {}, "musidecar", "_MUSIDECAR_COMPLETE").source())
