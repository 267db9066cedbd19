"""Streams one file into its side tables: reading runs while PostgreSQL copies, in short transactions."""

import asyncio
import re
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from atelier.loading.layout import SKUS, Layout
from atelier.loading.pace import Pace
from atelier.loading.progress import Watcher
from atelier.loading.rejects import RejectLog
from atelier.loading.rows import Values, encode_row
from atelier.loading.scan import BLOCK_BYTES, Line, Scanner, Span
from atelier.loading.session import SIDE, Connection, LoadingError, siblings

# One transaction's worth: long enough that its commit costs nothing, short enough that nobody waits for it.
_BATCH_BYTES = 16 << 20
_BREATHE_LINES = 500
_QUANTITY = re.compile(rb",[0-9]+\n")
_STOCK = re.compile(rb"([0-9]+),[^\n]*,([0-9]+)\n")


@dataclass(frozen=True, slots=True)
class Target:
    """A side table, and the columns of it that a file fills."""

    table: str
    columns: tuple[str, ...]


@dataclass(slots=True)
class _Batch:
    """Lines on their way to the tables of one file: for each target its pieces of CSV."""

    pieces: list[list[bytes]]
    size_bytes: int = 0
    rows: int = 0
    done_bytes: int = 0

    @classmethod
    def for_file(cls, layout: Layout) -> "_Batch":
        return cls([[] for _ in targets_of(layout)])

    def closed(self, rows: int, done_bytes: int) -> "_Batch":
        self.rows, self.done_bytes = rows, done_bytes
        return self

    def add(self, data: tuple[bytes, ...]) -> None:
        for pieces, piece in zip(self.pieces, data, strict=True):
            pieces.append(piece)
        self.size_bytes += sum(map(len, data))


@dataclass(slots=True)
class Loaded:
    """One file, loaded; counts its rows as they come, refused ones included."""

    layout: Layout
    path: Path
    rows: int = field(default=0)


def targets_of(layout: Layout) -> tuple[Target, ...]:
    """The side tables that a file goes to: a SKU's quantity is stock, related rows wait for their positions."""
    columns = tuple(column.target for column in layout.columns)
    if layout is SKUS:
        return Target("sku", columns[:3]), Target("stock", ("sku_id", "on_hand"))
    return (Target("related_row" if layout.table == "related" else layout.table, columns),)


def span_data(layout: Layout, data: bytes) -> tuple[bytes, ...]:
    """Clean lines of a file as CSV for each of its targets."""
    if layout is SKUS:
        return _QUANTITY.sub(b"\n", data), _STOCK.sub(rb"\1,\2\n", data)
    return (data,)


def row_data(layout: Layout, values: Values) -> tuple[bytes, ...]:
    """One row that was read with care as CSV for each of its file's targets."""
    if layout is SKUS:
        return encode_row(values[:3]), encode_row((values[0], values[3]))
    return (encode_row(values),)


async def load_file(connection: Connection, loaded: Loaded, *, log: RejectLog, pace: Pace, watcher: Watcher) -> None:
    """Copies the good rows of a file into its side tables and notes the others in the log.

    Raises:
        HeaderError: the file's first line names other columns.
        StrictError: a row was refused and none may be.
    """
    title = loaded.layout.title
    with _told_reading(loaded.path):
        watcher.file_began(title, loaded.path.stat().st_size)
    queue: asyncio.Queue[_Batch | None] = asyncio.Queue(maxsize=1)
    async with siblings() as tasks:
        tasks.create_task(_read_file(loaded, log, queue))
        tasks.create_task(_copy_batches(connection, loaded, queue, pace=pace, watcher=watcher))
    watcher.file_ended(title)


async def _read_file(loaded: Loaded, log: RejectLog, queue: "asyncio.Queue[_Batch | None]") -> None:
    with _told_reading(loaded.path), loaded.path.open("rb", buffering=0) as file:
        await _read(file, loaded, log, queue)


@contextmanager
def _told_reading(path: Path) -> Iterator[None]:
    """Tells a file that cannot be read from a server that cannot be reached."""
    try:
        yield
    except OSError as error:
        raise LoadingError(f"reading {path.name}: {error.strerror}") from error


async def _read(file: BinaryIO, loaded: Loaded, log: RejectLog, queue: "asyncio.Queue[_Batch | None]") -> None:
    """Fills batches and queues them, and None after the last."""
    scanner, batch = Scanner(file, loaded.layout), _Batch.for_file(loaded.layout)
    for number, item in enumerate(scanner):
        loaded.rows += item.rows if isinstance(item, Span) else 1
        _take(item, loaded.layout, log, batch)
        if batch.size_bytes >= _BATCH_BYTES:
            await queue.put(batch.closed(loaded.rows, scanner.done_bytes))
            batch = _Batch.for_file(loaded.layout)
        elif isinstance(item, Span) or not number % _BREATHE_LINES:
            # Reading never waits by itself: without this the copying beside it would stand still.
            await asyncio.sleep(0)
    await queue.put(batch.closed(loaded.rows, scanner.done_bytes))
    await queue.put(None)


def _take(item: Span | Line, layout: Layout, log: RejectLog, batch: _Batch) -> None:
    if isinstance(item, Span):
        batch.add(span_data(layout, item.data))
    elif item.values is not None:
        batch.add(row_data(layout, item.values))
    else:
        log.add(layout.title, "form", line=item.line, reason=item.reason or "", raw=item.raw)


async def _copy_batches(
    connection: Connection,
    loaded: Loaded,
    queue: "asyncio.Queue[_Batch | None]",
    *,
    pace: Pace,
    watcher: Watcher,
) -> None:
    targets = targets_of(loaded.layout)
    while (batch := await queue.get()) is not None:
        await pace.keep()
        for target, pieces in zip(targets, batch.pieces, strict=True):
            await copy_in(connection, target, pieces)
        watcher.file_moved(loaded.layout.title, done_bytes=batch.done_bytes, rows=batch.rows)


async def copy_in(connection: Connection, target: Target, pieces: Iterable[bytes]) -> None:
    """Copies lines of CSV into a side table, in one transaction."""
    await connection.copy_to_table(
        target.table,
        schema_name=SIDE,
        columns=target.columns,
        source=_joined(pieces),
        format="csv",
        null="null",
    )


async def _joined(pieces: Iterable[bytes]) -> AsyncIterator[bytes]:
    """The pieces in messages of a good size: single lines would cost a message each."""
    waiting: list[bytes] = []
    size = 0
    for piece in pieces:
        waiting.append(piece)
        size += len(piece)
        if size >= BLOCK_BYTES // 4:
            yield b"".join(waiting)
            waiting, size = [], 0
    if waiting:
        yield b"".join(waiting)
