"""`musidecar run`: one node, for production."""

import sys
from pathlib import Path

import click

from musidecar.cli import options


@click.command("run")
@click.option("--config", "config_file", type=options.PATH, required=True, metavar="FILE", help="Configuration file.")
@click.option("--node", "node_id", type=int, required=True, metavar="ID", help="Which of its nodes this is.")
@click.option("--replace-data", is_flag=True, help="Let the cluster's data replace what this node's server holds.")
@click.option("--log-json", is_flag=True, help="Log lines as JSON.")
@click.option("--parent-pid", type=int, hidden=True, help="Die with this process.")
def verb(config_file: Path, node_id: int, replace_data: bool, log_json: bool, parent_pid: int | None) -> None:
    """One node, for production.

    Stays in the foreground; SIGTERM ends it, and the server if the node started it."""
    if parent_pid is not None:
        from musidecar.process import die_with_parent

        die_with_parent(parent_pid)
    from musidecar.config import ConfigError, load
    from musidecar.directory import Lock, ensure_private, holder, node_lock

    config = load(config_file)
    config.node(node_id)
    ensure_private(config.directory)
    path = node_lock(config.directory, node_id)
    with Lock(path) as lock:
        if not lock.acquire(0.5):
            raise ConfigError([f"{config_file}: node {node_id} is running already ({holder(path)})"])
        from musidecar import node

        sys.exit(node.run(config, node_id, replace_data=replace_data, log_json=log_json))
