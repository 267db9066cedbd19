"""The command line's own connections: short, bounded, to whichever node is the primary now."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import TypeVar

import asyncpg
import structlog

from atelier.deadline import Deadline
from atelier.environment import read_secret
from atelier.errors import DeadlineExceededError, PrimaryUnavailableError, SettingsError
from atelier.settings import NodeAddress, Settings
from atelier.topology.monitor import TopologyMonitor
from atelier.topology.sources import choose_source
from atelier.topology.state import ClusterSnapshot

_T = TypeVar("_T")
_LOOK_S = 5.0
_CONNECT_S = 5.0
_STATEMENT_S = 15.0

Connection = asyncpg.Connection


def quiet_logs() -> None:
    """Keeps what a service would log out of a command's output."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))


async def look(settings: Settings, wanted: Callable[[ClusterSnapshot], bool]) -> ClusterSnapshot:
    """Observes the nodes until what is wanted shows, or for a few seconds.

    Returns:
        The last snapshot, whether it has what was wanted or not.
    """
    quiet_logs()
    async with TopologyMonitor(settings, choose_source(settings)) as monitor:
        try:
            return await monitor.wait_until(wanted, Deadline.after(_LOOK_S, time.monotonic))
        except DeadlineExceededError:
            return monitor.snapshot


async def find_primary(settings: Settings) -> NodeAddress:
    """Finds the node that is the primary now.

    Raises:
        PrimaryUnavailableError: none of the nodes says so.
    """
    snapshot = await look(settings, lambda seen: seen.primary is not None)
    if snapshot.primary is None:
        raise PrimaryUnavailableError("no node is the primary, or it does not answer")
    return snapshot.primary.address


def password_of(environ: Mapping[str, str], role: str) -> str:
    """Reads a role's password.

    Raises:
        SettingsError: it is not set.
    """
    name = f"ATELIER_{role.upper()}_PASSWORD"
    if name in environ:
        return environ[name]
    try:
        return read_secret(Path(environ[f"{name}_FILE"]), f"{name}_FILE")
    except KeyError as error:
        raise SettingsError(f"{name} is not set") from error


def on_primary(environ: Mapping[str, str], role: str, work: Callable[["Connection"], Awaitable[_T]]) -> _T:
    """Runs some work on a connection to the primary, and closes it.

    Args:
        environ: names the nodes and holds the passwords.
        role: who connects.
        work: takes the connection.

    Raises:
        AtelierError: the primary is not to be reached, or the work was refused.
    """
    settings = Settings.from_environment(environ)
    return asyncio.run(_on_primary(settings, role, password_of(environ, role), work))


async def _on_primary(
    settings: Settings, role: str, password: str, work: Callable[["Connection"], Awaitable[_T]]
) -> _T:
    address = await find_primary(settings)
    try:
        connection = await asyncpg.connect(
            host=address.host,
            port=address.port,
            user=role,
            password=password,
            database=settings.database,
            timeout=_CONNECT_S,
            command_timeout=_STATEMENT_S,
        )
        try:
            return await work(connection)
        finally:
            await connection.close(timeout=_CONNECT_S)
    except (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError) as error:
        reason = str(error) or type(error).__name__
        raise PrimaryUnavailableError(f"{address.name} ({address.host}:{address.port}): {reason}") from error
