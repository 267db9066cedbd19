"""Writes the present catalogue as the six clean files, from one snapshot of a replica.

A replica that has to replay what the snapshot still needs cancels it after a second
(https://www.postgresql.org/docs/18/hot-standby.html#HOT-STANDBY-CONFLICT); then the export begins anew, at last on the
primary, which cancels nothing. The second counts from when the log arrived, so that a replica which is behind would
cancel the next try at once: it gets the time to catch up before.
"""

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

from atelier.errors import PrimaryUnavailableError
from atelier.loading.layout import LAYOUTS, Kind, Layout
from atelier.loading.progress import Watcher
from atelier.loading.session import Connection, LoadingError, ReplayConflictError, connect, told

_COLUMNS = {
    "product": "id, name, slogan, description, category, short_price(default_price) as default_price",
    "style": "id, product_id, name, short_price(sale_price) as sale_price,"
    " short_price(original_price) as original_price, is_default::integer as is_default",
    "sku": "id, style_id, size, on_hand",
    "photo": "id, style_id, url, thumbnail_url",
    "feature": "id, product_id, feature, value",
    "related": "row_number() over (order by product_id, position) as id, product_id, related_product_id",
}
_SOURCES = {"sku": "sku join stock on sku_id = id"}
_ORDER = {"related": "product_id, position"}
_TRIES_PER_REPLICA = 2
_CATCH_UP_S = 10.0
_LOOK_S = 0.05
_RECEIVED = "select pg_last_wal_receive_lsn()::text"
_HAS_REPLAYED = "select coalesce(pg_last_wal_replay_lsn() >= cast($1::text as pg_lsn), true)"


@dataclass(frozen=True, slots=True)
class ExportNode:
    """A node that may be read.

    Attributes:
        name: of the node.
        dsn: as role `reader`.
        replica: it is one; the primary is asked last.
    """

    name: str
    dsn: str
    replica: bool


async def export_catalogue(folder: Path, nodes: Sequence[ExportNode], *, watcher: Watcher) -> str:
    """Writes the six files; all of them or none.

    Args:
        folder: made when it is missing; none of the files may be there yet.
        nodes: to read from, any number.
        watcher: told what happens.

    Returns:
        The name of the node that was read.

    Raises:
        LoadingError: no node could be read to the end, or a file could not be written.
    """
    paths = [folder / f"{layout.title}.csv" for layout in LAYOUTS]
    _refuse_existing(paths)
    problem = "no node is named"
    for node in _attempts(nodes):
        try:
            with told(f"exporting from {node.name}"):
                await _export_from(node, folder, watcher)
        except PrimaryUnavailableError as error:
            problem = str(error)
        except ReplayConflictError:
            problem = f"{node.name} had to replay changes to what was being read"
        else:
            return node.name
        watcher.say(f"beginning anew: {problem}")
        if node.replica:
            await _let_catch_up(node)
    raise LoadingError(f"the catalogue could not be exported: {problem}")


def _attempts(nodes: Sequence[ExportNode]) -> list[ExportNode]:
    replicas = [node for node in nodes if node.replica]
    return replicas * _TRIES_PER_REPLICA + [node for node in nodes if not node.replica]


async def _let_catch_up(node: ExportNode) -> None:
    """Waits until a replica has replayed what it had received, but not for long: it may be without its primary."""
    received: str | None = None
    with suppress(TimeoutError, PrimaryUnavailableError, LoadingError):
        async with asyncio.timeout(_CATCH_UP_S):
            while True:
                # Until then these questions are in the way of replay as much as any other.
                with suppress(ReplayConflictError), told(f"waiting for {node.name}"):
                    async with connect(node.dsn) as connection:
                        received = received or await connection.fetchval(_RECEIVED)
                        if await connection.fetchval(_HAS_REPLAYED, received):
                            return
                await asyncio.sleep(_LOOK_S)


def _refuse_existing(paths: list[Path]) -> None:
    there = [path for path in paths if path.exists()]
    if there:
        raise LoadingError(f"{there[0]} is there already; export into an empty folder")


async def _export_from(node: ExportNode, folder: Path, watcher: Watcher) -> None:
    parts = {layout.title: folder / f"{layout.title}.csv.part" for layout in LAYOUTS}
    try:
        async with connect(node.dsn, {"application_name": "atelier export"}) as connection:
            with ExitStack() as stack:
                files = {title: stack.enter_context(_open(path)) for title, path in parts.items()}
                async with connection.transaction(isolation="repeatable_read", readonly=True):
                    for layout in LAYOUTS:
                        await _export_file(connection, layout, files[layout.title], watcher)
        for part in parts.values():
            part.replace(part.with_suffix(""))
    finally:
        for part in parts.values():
            part.unlink(missing_ok=True)


def _open(path: Path) -> BinaryIO:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return path.open("wb")
    except OSError as error:
        raise LoadingError(f"{path} cannot be written: {error.strerror}") from error


async def _export_file(connection: Connection, layout: Layout, file: BinaryIO, watcher: Watcher) -> None:
    """Writes one file: header, rows, and rows whose texts run over several lines with their ids quoted."""
    watcher.file_began(layout.title, 0)
    write = partial(_write, file, layout, watcher)
    await write(",".join(column.name for column in layout.columns).encode() + b"\n")
    texts = [column.target for column in layout.columns if column.kind is Kind.TEXT]
    rows = f"select {_COLUMNS[layout.table]} from {_SOURCES.get(layout.table, layout.table)}"
    order = _ORDER.get(layout.table, "id")
    if not texts:
        await _copy_out(connection, f"{rows} order by {order}", [], write)
    else:
        breaks = f"strpos(concat({', '.join(texts)}), chr(10))"
        await _copy_out(connection, f"{rows} where {breaks} = 0 order by {order}", texts, write)
        await _copy_out(connection, f"{rows} where {breaks} > 0 order by {order}", ["id", *texts], write)
    watcher.file_ended(layout.title)


async def _copy_out(
    connection: Connection, query: str, quoted: list[str], write: Callable[[bytes], Coroutine[Any, Any, None]]
) -> None:
    await connection.copy_from_query(query, output=write, format="csv", null="null", force_quote=quoted or None)


async def _write(file: BinaryIO, layout: Layout, watcher: Watcher, data: bytes) -> None:
    try:
        file.write(data)
    except OSError as error:
        raise LoadingError(f"{layout.title}.csv cannot be written: {error.strerror}") from error
    watcher.file_moved(layout.title, done_bytes=file.tell(), rows=0)
