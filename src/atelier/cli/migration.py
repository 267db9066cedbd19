"""`atelier migrate`, and how a cluster is migrated at its start."""

import asyncio
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import click
from sqlalchemy.engine import URL

from atelier.cli.database import find_primary, password_of
from atelier.cli.options import data_dir_option, find_environment, tell
from atelier.migrate import migrate as apply_migrations
from atelier.settings import Settings

_WITHIN_S = 120.0


@click.command()
@data_dir_option
def migrate(data_dir: Path) -> None:
    """Bring the schema of the primary to the newest migration."""
    revision = migrate_primary(find_environment(data_dir), say=tell)
    click.echo(f"the schema is at migration {revision}")


def migrate_primary(environ: Mapping[str, str], *, say: Callable[[str], None]) -> str:
    """Applies the pending migrations to the primary of the nodes that the environment names.

    Returns:
        The revision that the schema is at now.

    Raises:
        AtelierError: there is no primary, or a migration failed.
    """
    return asyncio.run(_migrate_primary(environ, say))


async def _migrate_primary(environ: Mapping[str, str], say: Callable[[str], None]) -> str:
    settings = Settings.from_environment(environ)
    address = await find_primary(settings)
    url = URL.create(
        "postgresql+asyncpg",
        username="migrator",
        password=password_of(environ, "migrator"),
        host=address.host,
        port=address.port,
        database=settings.database,
    )
    return await apply_migrations(url, clock=time.monotonic, within_s=_WITHIN_S, say=say)


def register(group: click.Group) -> None:
    """Adds the command."""
    group.add_command(migrate)
