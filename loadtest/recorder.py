"""Writes the history of a run while it happens, and keeps its figures second by second."""

import threading
from pathlib import Path

from loadtest.history.record import Op, write_op
from loadtest.metrics import Meter


class Recorder:
    """The one writer of a history file and of the figures of a run. Close it."""

    def __init__(self, path: Path | None, meter: Meter) -> None:
        """Begins a new file; with None only figures are kept."""
        self._file = path.open("w", encoding="utf-8") if path else None
        self._lock = threading.Lock()
        self._count = 0
        self.meter = meter

    def add(self, op: Op, *, error: str | None = None, timed: bool = True) -> None:
        """Writes one operation under the next number; `timed` ones count in the figures."""
        with self._lock:
            self._count += 1
            if self._file:
                self._file.write(write_op(op._replace(n=self._count)))
                self._file.write("\n")
            if timed:
                self.meter.add(op, error=error)

    @property
    def count(self) -> int:
        """How many operations were recorded."""
        return self._count

    def close(self) -> None:
        """Ends the file."""
        with self._lock:
            if self._file:
                self._file.close()
                self._file = None
