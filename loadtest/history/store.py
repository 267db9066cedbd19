"""Histories that can be walked in any order without being held in memory.

A checker asks a history for its operations of some kinds, and to sort rows of its own making. A small history does
both in memory. A stored one was read once from JSON into chunks of plain tuples on disk, and sorts by merging chunks
that were sorted one by one, so a million operations cost time but no memory.
"""

import heapq
import marshal
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, Protocol, Self

from loadtest.history.record import COMMANDS, FINAL, Line, MalformedHistoryError, Op, read_op

Row = tuple[Any, ...]
"""Plain values (numbers, texts, None never beside them in a place that decides the order)."""

_CHUNK_ROWS = 40_000
_BLOCK_ROWS = 1_000
_LENGTH_BYTES = 8


class History(Protocol):
    """What checkers work with."""

    def ops(self, *kinds: str) -> Iterator[Op]:
        """The operations of these kinds (`read`, `event`, `command`, a final fact), each kind in recorded order."""

    def sort(self, name: str, rows: Callable[[], Iterable[Row]]) -> Iterator[Row]:
        """The rows in ascending order. The same name means the same rows: they may be made only once."""


class MemoryHistory:
    """A history held in memory: for tests, and for runs of seconds."""

    def __init__(self, ops: Iterable[Op]) -> None:
        """Takes the operations in recorded order."""
        self._ops = list(ops)

    def ops(self, *kinds: str) -> Iterator[Op]:
        """See `History`."""
        return (op for op in self._ops if kind_of(op) in kinds)

    def sort(self, name: str, rows: Callable[[], Iterable[Row]]) -> Iterator[Row]:  # noqa: ARG002 - nothing is kept
        """See `History`."""
        return iter(sorted(rows()))


class StoredHistory:
    """A history in files of plain tuples. Close it, or use it as a context manager: its folder goes with it."""

    def __init__(self, folder: Path | None = None) -> None:
        """Makes an empty one; `folder` is where its own temporary folder is made."""
        self._folder = tempfile.TemporaryDirectory(prefix="loadtest-", dir=folder)
        self._path = Path(self._folder.name)
        self._sorted: set[str] = set()
        self.count = 0

    def __enter__(self) -> Self:
        """Itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Removes its files."""
        self.close()

    def close(self) -> None:
        """Removes its files."""
        self._folder.cleanup()

    def load(self, lines: Iterable[str]) -> None:
        """Reads the JSON lines of a history; of several files (one a process), one after the other.

        Raises:
            MalformedHistoryError: a line is none of a history, or its number was there before.
        """
        writers: dict[str, _RowWriter] = {}
        try:
            for number, text in enumerate(lines, 1):
                op = _read_numbered(text, number)
                kind = kind_of(op)
                self.count += 1
                if kind not in writers:
                    writers[kind] = _RowWriter(self._file(f"ops-{kind}").open("ab"))
                writers[kind].add((self.count, *op[1:6], tuple([tuple(line) for line in op.lines]), *op[7:]))
        finally:
            for writer in writers.values():
                writer.close()

    def ops(self, *kinds: str) -> Iterator[Op]:
        """See `History`."""
        for kind in kinds:
            path = self._file(f"ops-{kind}")
            if path.exists():
                yield from map(_make_op, _read_rows(path))

    def sort(self, name: str, rows: Callable[[], Iterable[Row]]) -> Iterator[Row]:
        """See `History`."""
        path = self._file(f"sorted-{name}")
        if name not in self._sorted:
            _sort_into(path, rows())
            self._sorted.add(name)
        return _read_rows(path)

    def _file(self, name: str) -> Path:
        return self._path / name


def kind_of(op: Op) -> str:
    """The kind under which a history keeps an operation: all commands are of one kind."""
    return "command" if op.op in COMMANDS else op.op


def is_final(op: Op) -> bool:
    """Whether it tells of the state when all was over."""
    return op.op in FINAL


def _read_numbered(text: str, number: int) -> Op:
    try:
        op = read_op(text)
    except MalformedHistoryError as error:
        raise MalformedHistoryError(f"line {number}: {error}") from error
    if op.n != number:
        raise MalformedHistoryError(f"line {number}: its number is {op.n}")
    return op


def _make_op(row: Row) -> Op:
    lines = tuple([Line(*line) for line in row[6]])
    return Op._make((*row[:6], lines, *row[7:]))


class _RowWriter:
    """Appends rows to a file, many at a time."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._block: list[Row] = []

    def add(self, row: Row) -> None:
        self._block.append(row)
        if len(self._block) >= _BLOCK_ROWS:
            self._flush()

    def close(self) -> None:
        self._flush()
        self._file.close()

    def _flush(self) -> None:
        block = marshal.dumps(self._block)
        self._file.write(len(block).to_bytes(_LENGTH_BYTES, "little"))
        self._file.write(block)
        self._block = []


def _read_rows(path: Path) -> Iterator[Row]:
    with path.open("rb") as file:
        # Whole blocks: marshal.load asks a file for a few bytes at a time, which is several times slower.
        while length := file.read(_LENGTH_BYTES):
            block = file.read(int.from_bytes(length, "little"))
            yield from marshal.loads(block)  # noqa: S302 - a file that this process wrote into its own folder


def _sort_into(path: Path, rows: Iterable[Row]) -> None:
    chunks: list[Path] = []
    chunk: list[Row] = []

    def spill() -> None:
        chunk.sort()
        chunks.append(path.with_name(f"{path.name}.{len(chunks)}"))
        _write_rows(chunks[-1], chunk)
        chunk.clear()

    for row in rows:
        chunk.append(row)
        if len(chunk) >= _CHUNK_ROWS:
            spill()
    if not chunks:
        _write_rows(path, sorted(chunk))
        return
    spill()
    _write_rows(path, heapq.merge(*map(_read_rows, chunks)))
    for part in chunks:
        part.unlink()


def _write_rows(path: Path, rows: Iterable[Row]) -> None:
    writer = _RowWriter(path.open("wb"))
    try:
        for row in rows:
            writer.add(row)
    finally:
        writer.close()
