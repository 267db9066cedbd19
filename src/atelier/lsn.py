"""A position in PostgreSQL's write-ahead log."""

import re
from typing import Self

_TEXT = re.compile(r"[0-9A-Fa-f]{1,8}/[0-9A-Fa-f]{1,8}", re.ASCII)
_LARGEST = 2**64 - 1


class Lsn:
    """A byte position in the write-ahead log: 64 bits, written `X/Y` in hexadecimal.

    Positions compare only within one history; that is the business of `atelier.token`. Immutable and hashable.
    Source: https://www.postgresql.org/docs/18/datatype-pg-lsn.html
    """

    __slots__ = ("bytes",)

    bytes: int

    def __init__(self, position_bytes: int) -> None:
        """Takes the position in bytes from the beginning of the log.

        Raises:
            ValueError: it does not fit into 64 bits.
        """
        if not 0 <= position_bytes <= _LARGEST:
            raise ValueError("a log position has 64 bits")
        object.__setattr__(self, "bytes", position_bytes)

    def __setattr__(self, name: str, value: object) -> None:
        """Refuses: a position is a value."""
        raise AttributeError("an Lsn cannot be changed")

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

    def __eq__(self, other: object) -> bool:
        """Whether both are the same position."""
        return isinstance(other, Lsn) and self.bytes == other.bytes

    # All four by hand: every read compares positions several times, and functools.total_ordering calls twice for each.
    def __lt__(self, other: "Lsn") -> bool:
        """Whether this position comes before the other one."""
        return self.bytes < other.bytes

    def __le__(self, other: "Lsn") -> bool:
        """Whether this position is not after the other one."""
        return self.bytes <= other.bytes

    def __gt__(self, other: "Lsn") -> bool:
        """Whether this position comes after the other one."""
        return self.bytes > other.bytes

    def __ge__(self, other: "Lsn") -> bool:
        """Whether this position is not before the other one."""
        return self.bytes >= other.bytes

    def __hash__(self) -> int:
        """Equal positions hash alike."""
        return hash(self.bytes)

    def __sub__(self, other: "Lsn") -> int:
        """The distance in bytes; negative when this position comes first."""
        return self.bytes - other.bytes

    def next(self) -> "Lsn":
        """The position one byte further: reached only by a node that replayed the record that starts here."""
        return Lsn(min(self.bytes + 1, _LARGEST))
