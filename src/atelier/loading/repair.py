"""Takes rows out of a side table that no single line shows to be wrong: duplicate ids and orphans.

PostgreSQL finds them, set by set, and only when building a key has failed: a clean catalogue pays nothing. Then the
file is read once more for their lines. Of several rows with one id the first in the file stays.
"""

import asyncio
from array import array
from bisect import bisect_left
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass

from atelier.loading.layout import Column, Layout
from atelier.loading.load import Loaded, copy_in, row_data, targets_of
from atelier.loading.rejects import RejectLog
from atelier.loading.rows import RowParser, Values
from atelier.loading.scan import Line, Scanner, Span
from atelier.loading.session import SIDE, Connection

_RESTORE_ROWS = 10_000


@dataclass(frozen=True, slots=True)
class Found:
    """A row of a file whose id was looked for; `first_line` is where that id stood first."""

    line: int
    first_line: int
    raw: bytes
    values: Values


async def reject_duplicates(connection: Connection, loaded: Loaded, log: RejectLog) -> None:
    """Keeps, of the rows with one id, the first in the file, and notes the others."""
    source, *_ = targets_of(loaded.layout)
    ids = await _note_offenders(
        connection, loaded.layout, f"select id from {SIDE}.{source.table} group by id having count(*) > 1"
    )
    await _delete_offenders(connection, loaded.layout)
    kept: list[Values] = []
    async with aclosing(_find_rows(loaded, ids)) as rows:
        async for row in rows:
            if row.line == row.first_line:
                kept.append(row.values)
            else:
                reason = f"id: duplicate (of line {row.first_line})"
                log.add(loaded.layout.title, "duplicate", line=row.line, reason=reason, raw=row.raw)
            if len(kept) >= _RESTORE_ROWS:
                await _restore(connection, loaded.layout, kept)
                kept = []
    await _restore(connection, loaded.layout, kept)


async def reject_orphans(connection: Connection, loaded: Loaded, log: RejectLog) -> None:
    """Takes out the rows whose parents are not there (any more), and notes them."""
    source, *_ = targets_of(loaded.layout)
    for column in loaded.layout.parents:
        ids = await _note_offenders(
            connection,
            loaded.layout,
            f"select id from {SIDE}.{source.table} as child"
            f" where not exists (select from {SIDE}.{column.parent} as parent where parent.id = child.{column.target})",
        )
        if ids:
            await _delete_offenders(connection, loaded.layout)
            await _note_orphans(loaded, column, ids, log)


async def _note_orphans(loaded: Loaded, column: Column, ids: "array[int]", log: RejectLog) -> None:
    at = loaded.layout.columns.index(column)
    async with aclosing(_find_rows(loaded, ids)) as rows:
        async for row in rows:
            # Later rows with this id were refused as duplicates before.
            if row.line == row.first_line:
                reason = f"{column.name}: no {column.parent} {row.values[at]}"
                log.add(loaded.layout.title, f"orphan-{column.name}", line=row.line, reason=reason, raw=row.raw)


async def _note_offenders(connection: Connection, layout: Layout, query: str) -> "array[int]":
    """Keeps the ids in a table for the delete, and hands them out sorted: eight bytes each, however many."""
    offender = _offender(layout)
    await connection.execute(f"drop table if exists {offender}")
    await connection.execute(f"create unlogged table {offender} as {query}")
    ids = array("q")
    tail = b""

    async def take(data: bytes) -> None:
        nonlocal tail
        whole, _, tail = (tail + data).rpartition(b"\n")
        ids.extend(map(int, whole.split()))

    await connection.copy_from_query(f"select id from {offender} order by id", output=take)
    return ids


def _offender(layout: Layout) -> str:
    return f"{SIDE}.offender_{layout.table}"


async def _delete_offenders(connection: Connection, layout: Layout) -> None:
    for target in targets_of(layout):
        await connection.execute(
            f"delete from {SIDE}.{target.table} as bad using {_offender(layout)} as offender"
            f" where bad.{target.columns[0]} = offender.id"
        )


async def _restore(connection: Connection, layout: Layout, rows: list[Values]) -> None:
    data = [row_data(layout, values) for values in rows]
    for at, target in enumerate(targets_of(layout)):
        await copy_in(connection, target, [pieces[at] for pieces in data])


async def _find_rows(loaded: Loaded, ids: "array[int]") -> AsyncGenerator[Found]:
    """Reads a file again for the good rows with these (sorted) ids."""
    first_lines = array("q", bytes(8 * len(ids)))
    parser = RowParser(loaded.layout, range(len(loaded.layout.columns)))
    with loaded.path.open("rb", buffering=0) as file:
        for item in Scanner(file, loaded.layout):
            await asyncio.sleep(0)
            for line, row_id, raw, values in _rows(item):
                at = bisect_left(ids, row_id)
                if at == len(ids) or ids[at] != row_id:
                    continue
                first_lines[at] = first_lines[at] or line
                yield Found(line, first_lines[at], raw, values or parser.parse(raw))


def _rows(item: Span | Line) -> list[tuple[int, int, bytes, Values | None]]:
    if isinstance(item, Line):
        return [(item.line, int(item.values[0] or 0), item.raw, item.values)] if item.values else []
    lines = item.data.split(b"\n")[:-1]
    return [(item.line + at, int(raw[: raw.index(b",")]), raw, None) for at, raw in enumerate(lines)]
