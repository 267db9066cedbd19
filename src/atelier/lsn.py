"""A position in PostgreSQL's write-ahead log."""

import re
from typing import Self

import msgspec

_TEXT = re.compile(r"[0-9A-Fa-f]{1,8}/[0-9A-Fa-f]{1,8}", re.ASCII)
_LARGEST = 2**64 - 1


class Lsn(msgspec.Struct, frozen=True, order=True):
    """A byte position in the write-ahead log: 64 bits, written `X/Y` in hexadecimal.

    Positions compare only within one history; that is the business of `atelier.token`. Immutable and hashable.
    Source: https://www.postgresql.org/docs/18/datatype-pg-lsn.html

    Attributes:
        bytes: from the beginning of the log.
    """

    bytes: int

    def __post_init__(self) -> None:
        """Refuses what does not fit into 64 bits with a ValueError."""
        if not 0 <= self.bytes <= _LARGEST:
            raise ValueError("a log position has 64 bits")

    @classmethod
    def parse(cls, text: str) -> Self:
        """Reads PostgreSQL's `X/Y` form.

        Raises:
            ValueError: the text is no log position.
        """
        if not _TEXT.fullmatch(text):
            raise ValueError(f"not a log position: {text[:40]!r}")
        high, low = text.split("/")
        return cls(int(high, 16) << 32 | int(low, 16))

    def __str__(self) -> str:
        """The position as PostgreSQL writes it."""
        return f"{self.bytes >> 32:X}/{self.bytes & 0xFFFFFFFF:X}"

    def __repr__(self) -> str:
        """The position as one would write it in Python."""
        return f"Lsn.parse({str(self)!r})"

    def __sub__(self, other: "Lsn") -> int:
        """The distance in bytes; negative when this position comes first."""
        return self.bytes - other.bytes

    def next(self) -> "Lsn":
        """The position one byte further: reached only by a node that replayed the record that starts here."""
        return Lsn(min(self.bytes + 1, _LARGEST))
