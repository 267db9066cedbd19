"""Options that several commands share, and how a command finds the cluster it is about."""

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import click
from click.core import ParameterSource

from atelier.embedded.cluster import EmbeddedCluster
from atelier.settings import Settings

_Command = TypeVar("_Command", bound=Callable[..., Any])

DEFAULT_DATA_DIR = Path(".atelier")


def data_dir_option(command: _Command) -> _Command:
    """Adds `--data-dir`: where the embedded cluster and the running service are found."""
    return click.option(
        "--data-dir",
        type=click.Path(path_type=Path),
        default=DEFAULT_DATA_DIR,
        envvar="ATELIER_DATA_DIR",
        show_default=True,
        show_envvar=True,
        help="Folder of the embedded cluster.",
    )(command)


def json_option(command: _Command) -> _Command:
    """Adds `--json`."""
    return click.option("--json", "as_json", is_flag=True, help="Print one JSON document instead of text.")(command)


def tell(line: str) -> None:
    """Tells a person what happens, beside the output."""
    click.echo(line, err=True)


def find_environment(data_dir: Path) -> Mapping[str, str]:
    """Finds out which nodes and passwords a command is about.

    Returns:
        The cluster's in the data folder, if one was named, or if the environment names no nodes; else the environment.

    Raises:
        AtelierError: there is no cluster there.
    """
    named = click.get_current_context().get_parameter_source("data_dir") is not ParameterSource.DEFAULT
    if not named and any(name in os.environ for name in ("ATELIER_NODES", "ATELIER_NODES_FILE", "ATELIER_PATRONI")):
        return os.environ
    return over_environment(EmbeddedCluster.open(data_dir).environment())


def over_environment(names: Mapping[str, str]) -> dict[str, str]:
    """The environment of this process with some names set, which win over those that were there."""
    kept = {key: value for key, value in os.environ.items() if key.removesuffix("_FILE") not in names}
    return {**kept, **names}


def find_settings(data_dir: Path) -> Settings:
    """The settings of a service over what `find_environment` finds."""
    return Settings.from_environment(find_environment(data_dir))
