"""Reads one file as a stream: long spans of clean lines as they stand, everything else line by line.

One line is one row: a quote that is never closed ends with its line and cannot swallow the next. Only where the id
itself is quoted, as other programs write it, quotes are trusted over line ends. Memory is bounded by one block.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import BinaryIO

from atelier.errors import AtelierError
from atelier.loading.layout import Layout
from atelier.loading.rows import RowError, RowParser, ShapeError, Values, clean_lines, decode, split_fields

BLOCK_BYTES = 1 << 20
# Four texts of 10,000 characters of four bytes fit; a file without any line end must not fill the memory.
MAX_ROW_BYTES = 256 * 1024
_BOM = b"\xef\xbb\xbf"


class HeaderError(AtelierError):
    """The first line of a file names columns that do not belong to it."""


@dataclass(frozen=True, slots=True)
class Span:
    """Clean lines, one row each, ready for COPY.

    Attributes:
        line: the number of the first, from 1.
        rows: how many.
        data: the lines, each ended by one newline.
    """

    line: int
    rows: int
    data: bytes


@dataclass(frozen=True, slots=True)
class Line:
    """One row that was read with care.

    Attributes:
        line: its number, from 1; of its first line when it has several.
        raw: as it stands in the file, without the line end.
        values: in the layout's order; None when it was refused.
        reason: why it was refused; None when it was not.
    """

    line: int
    raw: bytes
    values: Values | None
    reason: str | None = None


def read_header(layout: Layout, raw: bytes) -> tuple[int, ...] | None:
    """Tells from a file's first line in which order its columns stand.

    Returns:
        For each column of the layout its place in a row; None when the line is no header but a row.

    Raises:
        HeaderError: it is a header, and a column is unknown, missing or there twice.
    """
    try:
        names = [_plain(field.text) for field in split_fields(decode(raw))]
    except RowError:
        return None
    known = [{_plain(column.name), _plain(column.target)} for column in layout.columns]
    if names[0].isdecimal() or not any(name in names for both in known for name in both):
        return None
    found = [next((at for at, name in enumerate(names) if name in both), -1) for both in known]
    unknown = [name for at, name in enumerate(names) if at not in found]
    missing = [column.name for column, at in zip(layout.columns, found, strict=True) if at < 0]
    if unknown or missing:
        wrong = [f"no column {name!r}" for name in missing] + [f"unknown column {name!r}" for name in unknown]
        raise HeaderError(f"{layout.title}: {', '.join(wrong)}")
    return tuple(found)


def _plain(name: str) -> str:
    """The name of a column without what differs between exports: `styles.productId`, ` product_id`."""
    return re.sub(r"[\s_]", "", name.rpartition(".")[2]).lower()


class Scanner:
    """Iterates over the spans and lines of one file, once."""

    def __init__(self, source: BinaryIO, layout: Layout) -> None:
        """Takes the open file; the caller closes it."""
        self._source = source
        self._layout = layout
        self._buffer = b""
        self._at = 0
        self._line = 1
        self._ended = False
        self._read_bytes = 0

    @property
    def done_bytes(self) -> int:
        """How much of the file has been handed out."""
        return self._read_bytes - (len(self._buffer) - self._at)

    def __iter__(self) -> Iterator[Span | Line]:
        """Hands out every row of the file, in its order."""
        order = self._take_header()
        parser = RowParser(self._layout, order)
        clean = clean_lines(self._layout) if list(order) == sorted(order) else None
        while self._has_line():
            if clean and (end := self._end_of_clean(clean)) > self._at:
                yield from self._take_span(end, parser)
            elif line := self._take_line(parser):
                yield line

    def _take_header(self) -> Sequence[int]:
        canonical = range(len(self._layout.columns))
        while self._has_line():
            if self._line == 1 and self._buffer.startswith(_BOM):
                self._at = len(_BOM)
            end = self._buffer.find(b"\n", self._at)
            raw = self._buffer[self._at : end] if end >= 0 else b""
            if end >= 0 and not raw.strip():
                self._advance(end + 1)
                continue
            order = read_header(self._layout, raw.rstrip(b"\r"))
            if order is not None:
                self._advance(end + 1)
            return order or canonical
        return canonical

    def _has_line(self) -> bool:
        """Reads until a whole line is there, or more than a line may have; False at the end of the file."""
        while self._buffer.find(b"\n", self._at) < 0:
            if self._ended:
                if self._at == len(self._buffer):
                    return False
                self._buffer += b"\n"
            elif len(self._buffer) - self._at > MAX_ROW_BYTES:
                return True
            else:
                self._grow()
        return True

    def _grow(self) -> None:
        more = self._source.read(BLOCK_BYTES)
        self._ended = not more
        self._read_bytes += len(more)
        self._buffer = self._buffer[self._at :] + more
        self._at = 0

    def _advance(self, end: int) -> None:
        self._line += self._buffer.count(b"\n", self._at, end)
        self._at = end

    def _end_of_clean(self, clean: re.Pattern[bytes]) -> int:
        match = clean.match(self._buffer, self._at)
        return match.end() if match else self._at

    def _take_span(self, end: int, parser: RowParser) -> Iterator[Span | Line]:
        data = self._buffer[self._at : end]
        if not _is_utf8(data):
            left = len(self._buffer) - end
            while len(self._buffer) - self._at > left:
                if line := self._take_line(parser):
                    yield line
            return
        first = self._line
        self._advance(end)
        yield Span(first, self._line - first, data.replace(b"\r\n", b"\n") if b"\r" in data else data)

    def _take_line(self, parser: RowParser) -> Line | None:
        """The next row; None for a blank line."""
        end = self._buffer.find(b"\n", self._at)
        if end < 0 or end - self._at > MAX_ROW_BYTES:
            return self._skip_endless()
        raw, line = self._buffer[self._at : end], self._line
        if raw.lstrip().startswith(b'"') and (several := self._take_several(parser)):
            return several
        self._advance(end + 1)
        raw = raw.removesuffix(b"\r")
        return _parsed(parser, line, raw) if raw.strip() else None

    def _take_several(self, parser: RowParser) -> Line | None:
        """A row with a quoted id that runs over several lines; None when its quotes do not close to a row."""
        end = self._end_of_quotes()
        if end is None:
            return None
        raw, line = self._buffer[self._at : end].removesuffix(b"\r"), self._line
        try:
            values = parser.parse(raw)
        except ShapeError:
            return None
        except RowError as error:
            self._advance(end + 1)
            return Line(line, raw, None, str(error))
        self._advance(end + 1)
        return Line(line, raw, values)

    def _end_of_quotes(self) -> int | None:
        """Where the line ends in which every quote that was opened is closed; None when there is none near."""
        start, quotes = 0, 0
        while start <= MAX_ROW_BYTES:
            end = self._buffer.find(b"\n", self._at + start)
            if end < 0:
                if self._ended:
                    return None
                self._grow()
                continue
            quotes += self._buffer.count(b'"', self._at + start, end)
            if not quotes % 2:
                return end
            start = end + 1 - self._at
        return None

    def _skip_endless(self) -> Line:
        """Skips a line that is too long to be a row; keeps its beginning for the report."""
        line, raw = self._line, self._buffer[self._at : self._at + MAX_ROW_BYTES]
        while (end := self._buffer.find(b"\n", self._at)) < 0:
            if self._ended:
                end = len(self._buffer) - 1
                break
            self._at = len(self._buffer)
            self._grow()
        self._advance(end + 1)
        return Line(line, raw, None, f"line too long (over {MAX_ROW_BYTES} bytes)")


def _parsed(parser: RowParser, line: int, raw: bytes) -> Line:
    try:
        return Line(line, raw, parser.parse(raw))
    except RowError as error:
        return Line(line, raw, None, str(error))


def _is_utf8(data: bytes) -> bool:
    if data.isascii():
        return True
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True
