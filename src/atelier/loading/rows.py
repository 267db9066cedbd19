"""One line of a file: split, cleaned and checked, or refused with a reason. Pure.

The fast way through (`clean_lines`) only recognises lines that PostgreSQL may take as they stand; everything else
comes here, one line at a time.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from atelier.loading.layout import MAX_ID, MAX_QUANTITY, Column, Kind, Layout

Value = int | str | None
Values = tuple[Value, ...]

# Possessive and atomic, so that no line however odd costs more than one pass.
_QUOTED = re.compile(r'[ \t]*"((?:[^"]++|"")*+)"[ \t]*(,|\Z)')
_BARE = re.compile(r'([^,"]*+)(,|\Z)')
_UNCLOSED = re.compile(r'[ \t]*"((?:[^"]++|"")*+)()\Z')
_LABELLED = re.compile(r'[ \t]*"(\w++)"[ \t]*:([^,"]*+)(,|\Z)')
_WHOLE = re.compile(r"[+]?\d+", re.ASCII)
_NEGATIVE = re.compile(r"\$?[ ]*-[ ]*\$?[ ]*\d+(?:\.\d*)?", re.ASCII)
_PRICE = re.compile(r"\$?[ ]*(\d{1,9}(?:\.\d{1,2})?)", re.ASCII)
_FLAGS = {"1": 1, "0": 0, "true": 1, "false": 0}
# Any whole number with more digits than this is too large; int() of millions of digits would take seconds.
_MAX_DIGITS = 19


class RowError(ValueError):
    """The row is refused; the message is the reason that the report shows."""


@dataclass(frozen=True, slots=True)
class Field:
    """One value as it stands in the file; `quoted` tells the text "null" from NULL."""

    text: str
    quoted: bool


class ShapeError(RowError):
    """The line does not split into the right number of values."""


class RowParser:
    """Reads the rows of one file, whose columns stand in a known order."""

    def __init__(self, layout: Layout, order: Sequence[int]) -> None:
        """Takes the file's layout and, for each of its columns, where that stands in a row."""
        self._columns = tuple(zip(layout.columns, order, strict=True))
        self._as_written = [column for column, _ in sorted(self._columns, key=lambda pair: pair[1])]

    def parse(self, raw: bytes) -> Values:
        """Reads one row, given without its line end.

        Returns:
            The values in the layout's order: whole numbers as int, prices as text, NULL as None.

        Raises:
            RowError: the row is refused, with the reason.
        """
        fields = split_fields(decode(raw), self._as_written)
        if len(fields) != len(self._columns):
            raise ShapeError(f"wrong number of fields ({len(fields)} instead of {len(self._columns)})")
        return tuple(_read(column, fields[at]) for column, at in self._columns)


def decode(raw: bytes) -> str:
    """The text of a row; raises RowError for what PostgreSQL could not store."""
    try:
        text = raw.decode()
    except UnicodeDecodeError:
        raise RowError("not valid text (UTF-8)") from None
    if "\0" in text:
        raise RowError("NUL character")
    return text


def split_fields(text: str, columns: Sequence[Column] = ()) -> list[Field]:
    """Splits a row at its commas.

    Takes spaces around values, a quote that is never closed at the end of the row, and a value that repeats its own
    column's name (`"default_price": 49`).

    Raises:
        ShapeError: a quote stands where none can.
    """
    fields: list[Field] = []
    at, more = 0, True
    while more:
        column = columns[len(fields)] if len(fields) < len(columns) else None
        field, at, more = _take_field(text, at, column)
        fields.append(field)
    return fields


def _take_field(text: str, at: int, column: Column | None) -> tuple[Field, int, bool]:
    if match := _QUOTED.match(text, at):
        return Field(match[1].replace('""', '"'), quoted=True), match.end(), bool(match[2])
    if match := _BARE.match(text, at):
        return Field(match[1].strip(), quoted=False), match.end(), bool(match[2])
    if (match := _LABELLED.match(text, at)) and column and match[1] == column.name and column.kind is not Kind.TEXT:
        return Field(match[2].strip(), quoted=False), match.end(), bool(match[3])
    if match := _UNCLOSED.match(text, at):
        return Field(match[1].replace('""', '"'), quoted=True), match.end(), False
    raise ShapeError("quote out of place")


def encode_row(values: Values) -> bytes:
    """The row as a clean line of CSV."""
    return (",".join(map(_encode, values)) + "\n").encode()


def _encode(value: Value) -> str:
    if value is None:
        return "null"
    return str(value) if isinstance(value, int) else '"' + value.replace('"', '""') + '"'


def _read(column: Column, field: Field) -> Value:
    if not field.quoted and field.text == "null":
        if not column.nullable:
            raise RowError(f"{column.name}: null is not allowed")
        return None
    return _READERS[column.kind](column, field.text)


def _read_text(column: Column, text: str) -> str:
    if len(text) < column.min_chars:
        raise RowError(f"{column.name}: empty")
    if len(text) > column.max_chars:
        raise RowError(f"{column.name}: too long (over {column.max_chars} characters)")
    return text


def _read_id(column: Column, text: str) -> int:
    return _whole(column, text, 1, MAX_ID)


def _read_quantity(column: Column, text: str) -> int:
    return _whole(column, text, 0, MAX_QUANTITY)


def _whole(column: Column, text: str, low: int, high: int) -> int:
    digits = text.strip()
    if _NEGATIVE.fullmatch(digits):
        raise RowError(f"{column.name}: negative")
    if not _WHOLE.fullmatch(digits):
        raise RowError(f"{column.name}: not a whole number")
    significant = digits.lstrip("+0") or "0"
    number = int(significant) if len(significant) <= _MAX_DIGITS else high + 1
    if not low <= number <= high:
        raise RowError(f"{column.name}: out of range ({low} to {high})")
    return number


def _read_price(column: Column, text: str) -> str | None:
    price = text.strip()
    if not price and column.nullable:
        return None
    if _NEGATIVE.fullmatch(price):
        raise RowError(f"{column.name}: negative")
    match = _PRICE.fullmatch(price)
    if not match:
        raise RowError(f"{column.name}: not a price")
    return match[1]


def _read_flag(column: Column, text: str) -> int:
    flag = _FLAGS.get(text.strip().lower())
    if flag is None:
        raise RowError(f"{column.name}: neither yes nor no (1 or 0)")
    return flag


_READERS: dict[Kind, Callable[[Column, str], Value]] = {
    Kind.ID: _read_id,
    Kind.TEXT: _read_text,
    Kind.PRICE: _read_price,
    Kind.QUANTITY: _read_quantity,
    Kind.FLAG: _read_flag,
}


def clean_lines(layout: Layout) -> re.Pattern[bytes]:
    """A pattern that matches as many lines from a position on as PostgreSQL may read as they stand.

    A line that it does not match is not wrong: it only has to be read with care.
    """
    fields = b",".join(_clean_field(column) for column in layout.columns)
    return re.compile(rb"(?>" + fields + rb"\r?\n)*+")


def _clean_field(column: Column) -> bytes:
    pattern = {
        Kind.ID: rb"[1-9][0-9]{0,17}",
        # Bytes are counted here: never fewer than the characters.
        Kind.TEXT: rb'(?:"[^"\r\n\0]{%d,%d}"|[0-9.]{1,9})' % (column.min_chars, column.max_chars),
        Kind.PRICE: rb"[0-9]{1,9}(?:\.[0-9]{1,2})?",
        Kind.QUANTITY: rb"[0-9]{1,9}",
        Kind.FLAG: rb"[01]",
    }[column.kind]
    return rb"(?:" + pattern + rb"|null)" if column.nullable else pattern
