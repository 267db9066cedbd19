"""The report of what an import refused: `rejects.csv`, in the order of the files, in bounded memory."""

import csv
import heapq
import re
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryFile
from types import TracebackType
from typing import Self, TextIO

from atelier.errors import AtelierError
from atelier.loading.layout import LAYOUTS

HEADER = ("file", "line", "reason", "raw text")
_MAX_RAW_CHARS = 2_000


class StrictError(AtelierError):
    """A row was refused, and none may be."""


class RejectLog:
    """Takes refused rows in any order and writes them sorted; a context manager that owns its temporary files.

    Each (file, stage) is reported in the order of its lines, so the whole is a merge of sorted parts.
    """

    def __init__(self, names: dict[str, str], *, strict: bool = False) -> None:
        """Takes the file's name for each title; with `strict` the first refused row ends the import."""
        self._names = names
        self._strict = strict
        self._stack = ExitStack()
        self._parts: dict[tuple[str, str], TextIO] = {}
        self.counts: dict[str, Counter[str]] = {layout.title: Counter() for layout in LAYOUTS}

    def __enter__(self) -> Self:
        """Nothing is made before the first refused row."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Removes the parts."""
        self._stack.close()

    def add(self, title: str, stage: str, *, line: int, reason: str, raw: bytes) -> None:
        """Notes a refused row.

        Raises:
            StrictError: none may be refused.
        """
        if self._strict:
            raise StrictError(f"{self._names[title]} line {line}: {reason}")
        self.counts[title][group_of(reason)] += 1
        csv.writer(self._part(title, stage)).writerow((self._names[title], line, reason, show_raw(raw)))

    def rejected(self, title: str) -> int:
        """How many rows of a file were refused."""
        return self.counts[title].total()

    def write(self, path: Path) -> None:
        """Writes the report, with its header even when nothing was refused; replaces an older one at once."""
        if path.exists() and not path.is_file():
            self._write(path)  # a pipe or a device is written to, never replaced
            return
        part = path.with_name(f"{path.name}.part")
        self._write(part)
        part.replace(path)

    def _write(self, path: Path) -> None:
        with path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(HEADER)
            for layout in LAYOUTS:
                writer.writerows(self._sorted(layout.title))

    def _part(self, title: str, stage: str) -> TextIO:
        if (title, stage) not in self._parts:
            # It has no name, so a kill leaves nothing.
            part = TemporaryFile("w+", encoding="utf-8", newline="")  # noqa: SIM115 - the stack closes it
            self._parts[title, stage] = self._stack.enter_context(part)
        return self._parts[title, stage]

    def _sorted(self, title: str) -> Iterator[list[str]]:
        parts = [part for (of, _), part in self._parts.items() if of == title]
        for part in parts:
            part.seek(0)
        return heapq.merge(*map(csv.reader, parts), key=lambda row: int(row[1]))


def group_of(reason: str) -> str:
    """The reason without its details, for counting: `productId: no product` of `productId: no product 7`."""
    return re.split(r"[ :]*[(\d]", reason, maxsplit=1)[0]


def show_raw(raw: bytes) -> str:
    """A row as text for the report: what is no text is shown escaped, what is endless is cut."""
    text = raw.decode(errors="backslashreplace").replace("\0", "\\x00")
    return text if len(text) <= _MAX_RAW_CHARS else text[:_MAX_RAW_CHARS] + "..."
