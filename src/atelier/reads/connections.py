"""Connections to one node, as role `reader`: bounded, opened as they are needed, never reset.

Not asyncpg's pool, for two reasons that were measured: it costs as much time as a read itself, and it gives a
cancelled statement's connection back only after the server has confirmed the cancellation, which a frozen one never
does. Here a statement that nobody wants any more runs to its end, or loses its connection.
"""

import asyncio
from collections.abc import Callable
from typing import TypeAlias

import asyncpg

from atelier.settings import NodeAddress, Settings

ReaderConnection: TypeAlias = "asyncpg.Connection[asyncpg.Record]"

# What opening a connection, or a statement on it, can end in through no fault of ours.
NODE_FAILURES = (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError)

# What a statement asks for comes in an array, and the best plan is the same for all of them; planned anew for every
# array, as the server would choose to, a read takes three times as long.
_SETTINGS = {"plan_cache_mode": "force_generic_plan"}


class ConnectionPool:
    """The connections of one process to one node for one purpose. Not a queue: the owner keeps those who wait."""

    def __init__(
        self,
        settings: Settings,
        address: NodeAddress,
        *,
        limit: int,
        on_ready: Callable[[], None],
        on_failure: Callable[[Exception], None],
    ) -> None:
        """Does no I/O.

        Args:
            settings: the credentials and bounds.
            address: the node.
            limit: the most connections, those being opened included.
            on_ready: called when a connection that was asked for by `grow` can be taken.
            on_failure: called with the reason when one could not be opened.
        """
        self._settings = settings
        self._address = address
        self._limit = limit
        self._on_ready = on_ready
        self._on_failure = on_failure
        self._idle: list[ReaderConnection] = []
        self._lent: set[ReaderConnection] = set()
        self._openers: set[asyncio.Task[None]] = set()

    @property
    def size(self) -> int:
        """The connections that are open or being opened."""
        return len(self._idle) + len(self._lent) + len(self._openers)

    @property
    def lent(self) -> int:
        """The connections that run a statement now."""
        return len(self._lent)

    def take(self) -> "ReaderConnection | None":
        """An open connection, the one used last, whose plans and buffers are warmest; None when none is idle."""
        while self._idle:
            connection = self._idle.pop()
            if not connection.is_closed():
                self._lent.add(connection)
                return connection
        return None

    def give(self, connection: ReaderConnection) -> None:
        """Takes a connection back; one that was closed meanwhile makes room for another."""
        self._lent.discard(connection)
        if not connection.is_closed():
            self._idle.append(connection)

    def grow(self, wanted: int) -> None:
        """Opens connections until so many are on their way, or the limit is reached. Returns at once."""
        while len(self._openers) < wanted and self.size < self._limit:
            opener = asyncio.create_task(self._open(), name=f"connect-{self._address.name}")
            self._openers.add(opener)

    def drop_idle(self) -> None:
        """Closes what nobody uses: the server has shown that it is not what it was."""
        while self._idle:
            self._idle.pop().terminate()

    async def close(self) -> None:
        """Cuts everything, also what still runs."""
        openers, self._openers = self._openers, set()
        for opener in openers:
            opener.cancel()
        await asyncio.gather(*openers, return_exceptions=True)
        self.drop_idle()
        for connection in self._lent:
            connection.terminate()

    async def _open(self) -> None:
        task = asyncio.current_task()
        try:
            connection = await connect_reader(self._settings, self._address)
        except NODE_FAILURES as error:
            self._end_opener(task)
            self._on_failure(error)
        except BaseException:
            self._end_opener(task)
            raise
        else:
            self._end_opener(task)
            self._idle.append(connection)
            self._on_ready()

    def _end_opener(self, task: "asyncio.Task[None] | None") -> None:
        if task is not None:
            self._openers.discard(task)


async def connect_reader(settings: Settings, address: NodeAddress) -> ReaderConnection:
    """Opens one connection that hands JSON through as the bytes that PostgreSQL made.

    Raises:
        OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError: the node does not take it, or not in time.
    """
    connect_s = settings.timeouts.connect_ms / 1000
    async with asyncio.timeout(connect_s):
        connection = await asyncpg.connect(
            host=address.host,
            port=address.port,
            user="reader",
            password=settings.reader_password,
            database=settings.database,
            timeout=connect_s,
            max_cached_statement_lifetime=0,
            server_settings=_SETTINGS,
            ssl="prefer",
        )
        try:
            await connection.set_type_codec("json", schema="pg_catalog", encoder=bytes, decoder=bytes, format="binary")
        except BaseException:
            connection.terminate()
            raise
    return connection
