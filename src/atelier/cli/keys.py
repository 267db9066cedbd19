"""`atelier key`: API keys, made, listed and revoked."""

from collections.abc import Sequence
from pathlib import Path

import click
from rich.console import Console
from rich.table import Table

from atelier.access.keys import SCOPES, KeySummary, create_key, list_keys, revoke_key
from atelier.cli.database import on_primary
from atelier.cli.options import data_dir_option, find_environment


@click.group()
def key() -> None:
    """Make, list and revoke API keys."""


@key.command()
@click.option("--name", required=True, help="Whose key it is; command keys are unique per name.")
@click.option("--scope", "scopes", multiple=True, required=True, type=click.Choice(SCOPES), help="May be repeated.")
@data_dir_option
def create(name: str, scopes: Sequence[str], data_dir: Path) -> None:
    """Make a key and print it. It is shown this once: only its hash is stored."""
    environ = find_environment(data_dir)
    click.echo(on_primary(environ, "writer", lambda connection: create_key(connection, name=name, scopes=scopes)))


@key.command("list")
@data_dir_option
def list_(data_dir: Path) -> None:
    """List all keys that were ever made; never their text."""
    keys = on_primary(find_environment(data_dir), "writer", list_keys)
    table = Table("prefix", "name", "scopes", "made", "ends", "state", "last used")
    for summary in keys:
        table.add_row(*_describe(summary))
    Console().print(table)


@key.command()
@click.argument("which")
@data_dir_option
def revoke(which: str, data_dir: Path) -> None:
    """Revoke a key by its prefix (the 8 characters after atl_), or all keys of a name."""
    revoked = on_primary(find_environment(data_dir), "writer", lambda connection: revoke_key(connection, which))
    click.echo(f"revoked: {', '.join(revoked)}")


def _describe(summary: KeySummary) -> list[str]:
    def moment(value: object) -> str:
        return f"{value:%Y-%m-%d %H:%M}" if value else ""

    return [
        summary.prefix,
        summary.name,
        " ".join(summary.scopes),
        moment(summary.created_at),
        moment(summary.expires_at) or "never",
        "revoked" if summary.revoked_at else "valid",
        moment(summary.last_used_at) or "never",
    ]


def register(group: click.Group) -> None:
    """Adds the commands."""
    group.add_command(key)
