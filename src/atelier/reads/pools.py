"""One asyncpg pool per node and purpose, as role `reader`; opened at first use, closed when the node leaves."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Literal

import asyncpg

from atelier.deadline import Deadline
from atelier.settings import NodeAddress, Settings

# A node is asked as replica or as primary: reads that fell back to the primary have a pool, and so a cap, of their own.
Purpose = Literal["replica", "primary"]

ReaderConnection = "asyncpg.pool.PoolConnectionProxy[asyncpg.Record]"


class ReadPools:
    """Owns all reading connections of the process."""

    def __init__(self, settings: Settings) -> None:
        """Takes the credentials and bounds. Does no I/O."""
        self._settings = settings
        self._pools: dict[tuple[NodeAddress, Purpose], asyncpg.Pool[asyncpg.Record]] = {}
        self._opening = asyncio.Lock()

    @asynccontextmanager
    async def acquire(
        self, address: NodeAddress, purpose: Purpose, deadline: Deadline
    ) -> AsyncIterator["asyncpg.pool.PoolConnectionProxy[asyncpg.Record]"]:
        """Lends a connection until the block ends.

        Raises:
            OSError, asyncpg.PostgresError: the node cannot be reached.
            TimeoutError: no connection was free, or could be made, before the deadline.
            DeadlineExceededError: the deadline has passed already.
        """
        pool = self._pools.get((address, purpose)) or await self._open(address, purpose)
        async with pool.acquire(timeout=deadline.spend_s(self._settings.timeouts.connect_ms / 1000)) as connection:
            yield connection

    async def close(self) -> None:
        """Closes everything; connections that are still lent are cut after the drain time."""
        pools, self._pools = list(self._pools.values()), {}
        await asyncio.gather(*(self._close_pool(pool) for pool in pools))

    async def _open(self, address: NodeAddress, purpose: Purpose) -> "asyncpg.Pool[asyncpg.Record]":
        async with self._opening:
            key = (address, purpose)
            if key not in self._pools:
                limits = self._settings.pools
                # With min_size 0 nothing is connected here, so a dead node cannot hold the lock.
                self._pools[key] = await asyncpg.create_pool(
                    host=address.host,
                    port=address.port,
                    user="reader",
                    password=self._settings.reader_password,
                    database=self._settings.database,
                    min_size=0,
                    max_size=limits.replica if purpose == "replica" else limits.primary_reads,
                    timeout=self._settings.timeouts.connect_ms / 1000,
                    command_timeout=self._settings.timeouts.statement_ms / 1000,
                    init=_prepare,
                    reset=_keep_session,
                )
            return self._pools[key]

    async def _close_pool(self, pool: "asyncpg.Pool[asyncpg.Record]") -> None:
        try:
            async with asyncio.timeout(self._settings.timeouts.drain_ms / 1000):
                await pool.close()
        except TimeoutError:
            pool.terminate()


async def _prepare(connection: "asyncpg.Connection[asyncpg.Record]") -> None:
    """Hands JSON through as the bytes that PostgreSQL made."""
    await connection.set_type_codec(
        "json", schema="pg_catalog", encoder=bytes, decoder=bytes, format="binary"
    )


async def _keep_session(_connection: "asyncpg.Connection[asyncpg.Record]") -> None:
    """Resets nothing: no read ever sets session state, and the default reset costs half of a pooled read's time."""
