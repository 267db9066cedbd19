"""What an import tells while it works; the command line shows it, tests collect it."""

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol


class Watcher(Protocol):
    """Sees an import or an export happen."""

    def say(self, line: str) -> None:
        """Takes one line for a person."""

    def file_began(self, title: str, total_bytes: int) -> None:
        """A file is being read; its size in bytes."""

    def file_moved(self, title: str, *, done_bytes: int, rows: int) -> None:
        """So much of the file has been read; `rows` counts from its beginning, refused ones included."""

    def file_ended(self, title: str) -> None:
        """The file has been read whole."""


@dataclass(frozen=True, slots=True)
class FileReport:
    """What became of one file.

    Attributes:
        name: of the file.
        rows: that it holds, without header and blank lines.
        rejected: how many were refused; all others were loaded.
        reasons: how often for each reason.
    """

    name: str
    rows: int
    rejected: int
    reasons: Counter[str] = field(default_factory=Counter)

    @property
    def loaded(self) -> int:
        """The rows that the catalogue has now (or would have, after a trial)."""
        return self.rows - self.rejected


@dataclass(frozen=True, slots=True)
class Report:
    """What an import did.

    Attributes:
        files: by title.
        catalogue_id: of the new catalogue; None when nothing was swapped in: a trial, or a catalogue was there.
        rejects: the report of the refused rows; None when none was asked for.
        elapsed_s: from start to end.
        trial: nothing was to be swapped in.
    """

    files: dict[str, FileReport]
    catalogue_id: int | None
    rejects: Path | None
    elapsed_s: float
    trial: bool = False

    @property
    def rejected(self) -> int:
        """The refused rows of all files."""
        return sum(file.rejected for file in self.files.values())


class Silent:
    """A watcher that looks away."""

    def say(self, line: str) -> None:
        """Says nothing."""

    def file_began(self, title: str, total_bytes: int) -> None:
        """Shows nothing."""

    def file_moved(self, title: str, *, done_bytes: int, rows: int) -> None:
        """Shows nothing."""

    def file_ended(self, title: str) -> None:
        """Shows nothing."""
