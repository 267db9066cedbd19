"""Soils a generated catalogue with every fault that an import knows, and notes which rows it must refuse.

Two sorts: faults that an import repairs, put on good rows; and rows beside the good ones that it must refuse. So what
is left is the clean catalogue. The reasons stand here in words of their own, not taken from the import.
"""

import csv
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from random import Random

from atelier.loading.layout import LAYOUTS, MAX_ID, MAX_QUANTITY, Column, Kind, Layout
from atelier.loading.rejects import HEADER, show_raw

_FIRST_LOST_ID = 10**12
_UNKNOWN_PARENT = 10**15
_GOOD = {Kind.TEXT: '"odd"', Kind.PRICE: "5", Kind.QUANTITY: "3", Kind.FLAG: "0"}

Repair = Callable[[str], str]


@dataclass(frozen=True, slots=True)
class Wrong:
    """A row that must be refused, and why; `{first}` in the reason stands for the line of `copies`."""

    raw: bytes
    reason: str
    copies: str | None = None


class Dirt:
    """Soils one catalogue, block by block, in the order of the files."""

    def __init__(self, random: Random) -> None:
        """Takes where its choices come from."""
        self._random = random
        self._ids = count(_FIRST_LOST_ID)
        self._lines = {layout.title: 0 for layout in LAYOUTS}
        self._expected: dict[str, list[tuple[int, str, str]]] = {layout.title: [] for layout in LAYOUTS}
        self._lost = {"product": _UNKNOWN_PARENT, "style": _UNKNOWN_PARENT}

    def head(self, layout: Layout) -> bytes:
        """The first line of a file, or nothing; no line end."""
        names = [column.name for column in layout.columns]
        if layout.title == "features":
            return b""
        self._lines[layout.title] = 1
        if layout.title == "styles":
            names[1] = "styles.productId"
        separator = "," if layout.title == "related" else ", "
        mark = b"\xef\xbb\xbf" if layout.title == "product" else b""
        return mark + separator.join(names).encode()

    def soil(self, layout: Layout, rows: list[str]) -> bytes:
        """The lines of one block, out of order, soiled, with rows among them that must be refused."""
        if not rows:
            return b""
        lines = list(rows)
        self._random.shuffle(lines)
        self._damage(layout, lines)
        mixed: list[str | Wrong] = list(lines)
        for wrong in self._wrong_rows(layout, self._random.choice(sorted(set(lines) & set(rows)))):
            # A copy comes after its original: the first of two rows is the one that stays.
            after = mixed.index(wrong.copies) + 1 if wrong.copies else 0
            mixed.insert(self._random.randrange(after, len(mixed) + 1), wrong)
        mixed.insert(self._random.randrange(len(mixed)), "")
        mixed.insert(self._random.randrange(len(mixed)), "  ")
        return b"".join(self._put(layout, mixed))

    def tail(self, layout: Layout) -> bytes:
        """The end of a file: SKUs have no newline there."""
        return b"" if layout.title == "skus" else b"\n"

    def write_expected(self, path: Path) -> None:
        """Writes which rows an import must refuse, in the form of its report."""
        with path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(HEADER)
            for layout in LAYOUTS:
                for line, reason, raw in self._expected[layout.title]:
                    writer.writerow((f"{layout.title}.csv", line, reason, raw))

    def _damage(self, layout: Layout, lines: list[str]) -> None:
        """Puts each repairable fault on a good row of its own; one row at least stays as it is."""
        faults = _REPAIRABLE[layout.title][: len(lines) - 1]
        for at, damage in zip(self._random.sample(range(len(lines)), len(faults)), faults, strict=True):
            lines[at] = damage(lines[at])

    def _put(self, layout: Layout, mixed: list[str | Wrong]) -> Iterator[bytes]:
        at: dict[str, int] = {}
        for row in mixed:
            if self._lines[layout.title]:
                yield b"\n"
            self._lines[layout.title] += 1
            line = self._lines[layout.title]
            if isinstance(row, str):
                at[row] = line
                yield row.encode()
            else:
                reason = row.reason.replace("{first}", str(at.get(row.copies or "")))
                self._expected[layout.title].append((line, reason, show_raw(row.raw)))
                yield row.raw

    def _wrong_rows(self, layout: Layout, original: str) -> Iterator[Wrong]:
        """Every kind of row to refuse; `original` is a row whose parent is good and that may come twice."""
        parent = original.split(",")[1] if layout.parents else ""
        yield from self._wrong_shapes(layout, parent)
        for at, column in enumerate(layout.columns):
            for cell, reason in _wrong_cells(column):
                yield Wrong(self._row(layout, parent, {at: cell}), reason)
            if column.parent:
                yield self._orphan(layout, column, at, parent)
        if layout.title == "product":
            self._lost["product"] = next(self._ids)
            cells = [str(self._lost["product"]), *self._cells(layout, parent)[1:-1], "-20"]
            yield Wrong(",".join(cells).encode(), "default_price: negative")
        yield Wrong(original.encode(), "id: duplicate (of line {first})", copies=original)

    def _wrong_shapes(self, layout: Layout, parent: str) -> Iterator[Wrong]:
        cells, wanted = self._cells(layout, parent), len(layout.columns)
        yield Wrong(",".join(cells[:-1]).encode(), f"wrong number of fields ({wanted - 1} instead of {wanted})")
        yield Wrong(",".join([*cells, "1"]).encode(), f"wrong number of fields ({wanted + 1} instead of {wanted})")
        text = next((at for at, column in enumerate(layout.columns) if column.kind is Kind.TEXT), None)
        if text is not None:
            yield Wrong(self._row(layout, parent, {text: b'"od"d"'}), "quote out of place")
            yield Wrong(self._row(layout, parent, {text: b'"od\xff"'}), "not valid text (UTF-8)")
            yield Wrong(self._row(layout, parent, {text: b'"od\0d"'}), "NUL character")

    def _orphan(self, layout: Layout, column: Column, at: int, parent: str) -> Wrong:
        lost = self._lost[str(column.parent)] if at == 1 else _UNKNOWN_PARENT
        raw = self._row(layout, parent, {at: str(lost).encode()})
        if layout.title == "styles":
            self._lost["style"] = int(raw.split(b",")[0])
        return Wrong(raw, f"{column.name}: no {column.parent} {lost}")

    def _row(self, layout: Layout, parent: str, instead: dict[int, bytes]) -> bytes:
        cells = [cell.encode() for cell in self._cells(layout, parent)]
        return b",".join(instead.get(at, cell) for at, cell in enumerate(cells))

    def _cells(self, layout: Layout, parent: str) -> list[str]:
        """The values of a row that would be good."""
        return [
            str(next(self._ids)),
            *(parent if column.parent else _GOOD[column.kind] for column in layout.columns[1:]),
        ]


def _wrong_cells(column: Column) -> list[tuple[bytes, str]]:
    """What a column must not hold, with the reasons."""
    name = column.name
    if column.kind is Kind.TEXT:
        wrong = [
            (b'"' + b"x" * (column.max_chars + 1) + b'"', f"{name}: too long (over {column.max_chars} characters)")
        ]
        wrong += [(b'""', f"{name}: empty")] if column.min_chars else []
    elif column.kind is Kind.FLAG:
        wrong = [(b"maybe", f"{name}: neither yes nor no (1 or 0)")]
    elif column.kind is Kind.PRICE:
        wrong = [(cell, f"{name}: not a price") for cell in (b"cheap", b"1.999", b"1234567890", b"1e3")]
        wrong += [(b"-5", f"{name}: negative"), (b"$-5", f"{name}: negative")]
    else:
        low, high = (1, MAX_ID) if column.kind is Kind.ID else (0, MAX_QUANTITY)
        wrong = [(cell, f"{name}: not a whole number") for cell in (b"many", b"1.5", b"")]
        wrong += [(cell, f"{name}: out of range ({low} to {high})") for cell in (str(high + 1).encode(), b"9" * 400)]
        wrong += [(b"-1", f"{name}: negative")]
        wrong += [(b"0", f"{name}: out of range ({low} to {high})")] if low else []
    return wrong if column.nullable else [*wrong, (b"null", f"{name}: null is not allowed")]


def _space(row: str) -> str:
    first, _, rest = row.partition(",")
    return f" {first} ,\t{rest} "


def _carriage_return(row: str) -> str:
    return row + "\r"


def _dollar_last(row: str) -> str:
    front, _, price = row.rpartition(",")
    return f"{front},${price}"


def _label_last(row: str) -> str:
    front, _, price = row.rpartition(",")
    return f'{front},"default_price": {price}'


def _dollar_before_last(row: str) -> str:
    front, price, flag = row.rsplit(",", 2)
    return f"{front}, $ {price} ,{flag}"


def _unclosed(row: str) -> str:
    return row.removesuffix('"')


_ANYWHERE: tuple[Repair, ...] = (_space, _carriage_return)
_REPAIRABLE: dict[str, tuple[Repair, ...]] = {
    "product": (*_ANYWHERE, _dollar_last, _label_last),
    "features": _ANYWHERE,
    "styles": (*_ANYWHERE, _dollar_before_last),
    "photos": (*_ANYWHERE, _unclosed, _unclosed, lambda row: _unclosed(row) + "\r"),
    "skus": _ANYWHERE,
    "related": _ANYWHERE,
}
