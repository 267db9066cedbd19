"""`atelier key`: API keys, made, listed and revoked."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

import click
from rich.console import Console
from rich.table import Table

from atelier.access.keys import SCOPES, KeySummary, create_key, list_keys, revoke_key
from atelier.cli.database import on_primary
from atelier.cli.options import data_dir_option, find_environment

_LONGEST_DAYS = 36_500
_CAPTION = "Times are UTC. Last used: for a command, or to ask what became of one. Reads are not noted."


@click.group()
def key() -> None:
    """Make, list and revoke API keys."""


@key.command()
@click.option("--name", required=True, help="Whose key it is; command keys are unique per name.")
@click.option("--scope", "scopes", multiple=True, required=True, type=click.Choice(SCOPES), help="May be repeated.")
@click.option(
    "--expires-in",
    "days",
    type=click.FloatRange(min=0, max=_LONGEST_DAYS, min_open=True),
    metavar="DAYS",
    help="It ends by itself after so many days (0.5 is twelve hours); without this, never.",
)
@data_dir_option
def create(name: str, scopes: Sequence[str], days: float | None, data_dir: Path) -> None:
    """Make a key and print it. It is shown this once: only its hash is stored."""
    expires_at = None if days is None else datetime.now(UTC) + timedelta(days=days)
    text = on_primary(
        find_environment(data_dir),
        "writer",
        lambda connection: create_key(connection, name=name, scopes=scopes, expires_at=expires_at),
    )
    click.echo(text)


@key.command("list")
@data_dir_option
def list_(data_dir: Path) -> None:
    """List all keys that were ever made; never their text."""
    keys, now = on_primary(find_environment(data_dir), "writer", list_keys), datetime.now(UTC)
    table = Table("prefix", "name", "scopes", "made", "ends", "state", "last used", caption=_CAPTION)
    for summary in keys:
        table.add_row(*_describe(summary, now))
    Console().print(table)


@key.command()
@click.argument("which")
@data_dir_option
def revoke(which: str, data_dir: Path) -> None:
    """Revoke a key by its prefix (the 8 characters after atl_), or all keys of a name."""
    revoked = on_primary(find_environment(data_dir), "writer", lambda connection: revoke_key(connection, which))
    click.echo(f"revoked: {', '.join(revoked)}")


def _describe(summary: KeySummary, now: datetime) -> list[str]:
    return [
        summary.prefix,
        summary.name,
        " ".join(summary.scopes),
        _show(summary.created_at),
        _show(summary.expires_at) or "never",
        summary.state_at(now),
        _show(summary.last_used_at) or "never",
    ]


def _show(moment: datetime | None) -> str:
    return "" if moment is None else f"{moment.astimezone(UTC):%Y-%m-%d %H:%M}"


def register(group: click.Group) -> None:
    """Adds the commands."""
    group.add_command(key)
