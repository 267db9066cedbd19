"""Builds keys, indexes and what is derived on the side tables, while later files still load."""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass

import asyncpg

from atelier.loading.load import Loaded
from atelier.loading.pace import Pace
from atelier.loading.progress import Watcher
from atelier.loading.rejects import RejectLog
from atelier.loading.repair import reject_duplicates, reject_orphans
from atelier.loading.session import SIDE, Connection
from atelier.loading.side import (
    Key,
    add_indexes,
    add_ledger_keys,
    complete_key,
    declare_key,
    finish_table,
    make_ledger,
    read_keys,
)

# Pages of the ledger's source per transaction: 128 MiB.
_LEDGER_PAGES = 16_384
_PAGE_BYTES = 8_192

_POSITIONS = f"""
insert into {SIDE}.related (product_id, position, related_product_id)
select product_id, row_number() over (partition by product_id order by id), related_product_id
  from {SIDE}.related_row order by product_id, id
"""
_ROW_KEY = f"alter table {SIDE}.related_row add constraint related_row_pkey primary key (id)"
_ORPHANED = f"""
select exists (select from {SIDE}.related_row as child
                where not exists (select from {SIDE}.product where id = child.product_id)
                   or not exists (select from {SIDE}.product where id = child.related_product_id))
"""


@dataclass(frozen=True, slots=True)
class Builder:
    """Finishes side tables, one after the other, on a connection of its own; several share the work.

    Attributes:
        connection: to the primary.
        log: of the refused rows.
        pace: of this connection.
        watcher: told what is being built.
        catalogue_id: of the catalogue that is coming.
        unlogged: the tables are for a trial.
        built: by table, set when a table is finished; shared by all builders.
    """

    connection: Connection
    log: RejectLog
    pace: Pace
    watcher: Watcher
    catalogue_id: int
    unlogged: bool
    built: Mapping[str, asyncio.Event]

    async def build(self, loaded: Loaded) -> None:
        """Builds all that the rows of one file become, once its parents are built."""
        for column in loaded.layout.parents:
            await self.built[str(column.parent)].wait()
        if loaded.layout.table == "related":
            await self._derive_related(loaded)
        else:
            await self._finish(loaded.layout.table, loaded)
        if loaded.layout.table == "sku":
            await self._finish("stock", None)
            await self._derive_ledger()
        self.built[loaded.layout.table].set()

    async def _finish(self, table: str, loaded: Loaded | None) -> None:
        self.watcher.say(f"building keys and indexes of {table}")
        for key in await read_keys(self.connection, table):
            await self._keep_pace(table)
            await self._add_key(table, key, loaded)
        await self._keep_pace(table)
        await add_indexes(self.connection, table)
        await finish_table(self.connection, table, table)

    async def _add_key(self, table: str, key: Key, loaded: Loaded | None) -> None:
        """Adds a key; when the rows do not fit, takes out those that don't and tries again."""
        await declare_key(self.connection, table, key)
        try:
            await complete_key(self.connection, table, key)
        except (asyncpg.UniqueViolationError, asyncpg.ForeignKeyViolationError):
            if loaded is None:
                raise
            repair = reject_orphans if key.is_foreign else reject_duplicates
            await repair(self.connection, loaded, self.log)
            await complete_key(self.connection, table, key)

    async def _derive_related(self, loaded: Loaded) -> None:
        """Gives the related rows their positions: in the order of their ids, which are then forgotten."""
        try:
            await self.connection.execute(_ROW_KEY)
        except asyncpg.UniqueViolationError:
            await reject_duplicates(self.connection, loaded, self.log)
            await self.connection.execute(_ROW_KEY)
        if await self.connection.fetchval(_ORPHANED):
            await reject_orphans(self.connection, loaded, self.log)
        await self._keep_pace("related_row", 2)
        await self.connection.execute(_POSITIONS)
        await self.connection.execute(f"drop table {SIDE}.related_row")
        await self._finish("related", None)

    async def _derive_ledger(self) -> None:
        """Opens the ledger: one movement of kind `import` for each quantity."""
        self.watcher.say("opening the ledger")
        name = await make_ledger(self.connection, self.catalogue_id, unlogged=self.unlogged)
        pages = -(-await self._size_bytes("stock") // _PAGE_BYTES)
        for first in range(0, pages, _LEDGER_PAGES):
            await self._keep_pace("stock", pages=min(pages, _LEDGER_PAGES))
            await self.connection.execute(
                f"insert into {SIDE}.{name} (catalogue_id, sku_id, delta, kind)"
                f" select {int(self.catalogue_id)}, sku_id, on_hand, 'import' from {SIDE}.stock"
                f" where ctid >= '({first},0)' and ctid < '({first + _LEDGER_PAGES},0)'"
            )
        await self._keep_pace(name)
        await add_ledger_keys(self.connection, name)
        await finish_table(self.connection, "stock_movement", name)

    async def _keep_pace(self, table: str, times: int = 1, *, pages: int | None = None) -> None:
        """Waits until the replicas have room for a step that writes about as much WAL as a table (or part) is big."""
        if not self.unlogged:
            bytes_ = pages * _PAGE_BYTES * 2 if pages else await self._size_bytes(table) * times // 2
            await self.pace.keep(bytes_)

    async def _size_bytes(self, table: str) -> int:
        return int(await self.connection.fetchval("select pg_relation_size($1::regclass)", f"{SIDE}.{table}"))
