"""Options that several verbs share."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from musidecar.config import Cluster

Verb = TypeVar("Verb", bound=Callable[..., Any])

PATH = click.Path(path_type=Path)


def backend(verb: Verb) -> Verb:
    option = click.option("--backend", default="redis", show_default=True, metavar="NAME", help="What is replicated.")
    return option(verb)


def cluster_files(verb: Verb) -> Verb:
    """--dir and --config: which cluster is meant."""
    folder = click.option("--dir", "folder", type=PATH, metavar="DIR", help="Folder of a local cluster.")
    config = click.option("--config", "config_file", type=PATH, metavar="FILE", help="Configuration file.")
    return folder(config(verb))


def find_cluster(folder: Path | None, config_file: Path | None) -> "Cluster":
    """The cluster meant by --dir or --config, or the one in the default folder. ConfigError when there is none."""
    from musidecar.config import ConfigError, load
    from musidecar.directory import default_directory

    if folder is not None and config_file is not None:
        raise click.UsageError("give --dir or --config, not both")
    if config_file is None:
        config_file = (folder or default_directory()) / "cluster.toml"
        if not config_file.exists():
            started = f"musidecar local --dir {folder}" if folder else "musidecar local"
            raise ConfigError([f"{config_file.parent}: no cluster here: start one with `{started}`, or give --config"])
    return load(config_file)
