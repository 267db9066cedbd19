"""How a long command shows its progress: bars on a terminal, plain lines otherwise; both on standard error."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import click
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table

from atelier.cli.options import tell
from atelier.deadline import Clock
from atelier.loading.progress import Report, Watcher

_LINE_INTERVAL_S = 5.0
_MIB = 1 << 20


@contextmanager
def show_progress() -> Iterator[Watcher]:
    """Shows what a command does until it ends."""
    if not sys.stderr.isatty():
        yield LineWatcher(time.monotonic)
        return
    with Progress(
        TextColumn("{task.description:9}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f} %"),
        TextColumn("{task.fields[rows]:>12,} rows"),
        TextColumn("{task.fields[rate]:>10,} rows/s"),
        TimeRemainingColumn(),
        console=Console(stderr=True),
    ) as progress:
        yield BarWatcher(progress, time.monotonic)


class BarWatcher:
    """One bar for each file."""

    def __init__(self, progress: Progress, clock: Clock) -> None:
        """Takes a running display, and a monotonic clock in seconds."""
        self._progress = progress
        self._clock = clock
        self._tasks: dict[str, TaskID] = {}
        self._began_at_s = 0.0

    def say(self, line: str) -> None:
        """Prints a line above the bars."""
        self._progress.console.print(line, style="dim", highlight=False, markup=False)

    def file_began(self, title: str, total_bytes: int) -> None:
        """Adds a bar."""
        self._began_at_s = self._clock()
        self._tasks[title] = self._progress.add_task(title, total=total_bytes or None, rows=0, rate=0)

    def file_moved(self, title: str, *, done_bytes: int, rows: int) -> None:
        """Moves the bar."""
        rate = int(rows / max(self._clock() - self._began_at_s, 0.001))
        self._progress.update(self._tasks[title], completed=done_bytes, rows=rows, rate=rate)

    def file_ended(self, title: str) -> None:
        """Fills the bar."""
        task = self._progress.tasks[self._progress.task_ids.index(self._tasks[title])]
        self._progress.update(task.id, total=task.completed)


class LineWatcher:
    """A line every few seconds, and one at the end of each file."""

    def __init__(self, clock: Clock) -> None:
        """Takes a monotonic clock in seconds."""
        self._clock = clock
        self._began_at_s = self._told_at_s = 0.0
        self._total_bytes = self._rows = 0

    def say(self, line: str) -> None:
        """Prints the line."""
        tell(line)

    def file_began(self, title: str, total_bytes: int) -> None:
        """Remembers when and how big."""
        del title  # told with each line
        self._began_at_s = self._told_at_s = self._clock()
        self._total_bytes, self._rows = total_bytes, 0

    def file_moved(self, title: str, *, done_bytes: int, rows: int) -> None:
        """Prints a line when the last one is some seconds old."""
        self._rows = rows
        now_s = self._clock()
        if now_s - self._told_at_s < _LINE_INTERVAL_S:
            return
        self._told_at_s = now_s
        left_s = (now_s - self._began_at_s) * (self._total_bytes - done_bytes) / max(done_bytes, 1)
        of = f" of {self._total_bytes // _MIB}" if self._total_bytes else ""
        left = f", {left_s:.0f} s left" if self._total_bytes else ""
        tell(f"{title}: {done_bytes // _MIB}{of} MiB, {rows} rows, {self._rate(now_s)} rows/s{left}")

    def file_ended(self, title: str) -> None:
        """Prints what was read in all."""
        tell(f"{title}: {self._rows} rows, {self._rate(self._clock())} rows/s" if self._rows else f"{title}: done")

    def _rate(self, now_s: float) -> int:
        return int(self._rows / max(now_s - self._began_at_s, 0.001))


def show_report(report: Report) -> None:
    """Prints the summary of an import."""
    table = Table("file", "rows", "loaded", "refused", "why", box=None, header_style="bold", padding=(0, 2, 0, 0))
    for column in table.columns[1:4]:
        column.justify = "right"
    for file in report.files.values():
        reasons = "\n".join(f"{count} x {reason}" for reason, count in file.reasons.most_common())
        table.add_row(file.name, str(file.rows), str(file.loaded), str(file.rejected), reasons)
    Console(width=None if sys.stdout.isatty() else 120, markup=False, highlight=False).print(table)
    click.echo(_summary(report))
    if report.rejected:
        click.echo(f"the refused rows are listed in {report.rejects}")


def _summary(report: Report) -> str:
    took = f"in {report.elapsed_s:.1f} s"
    if report.trial:
        return f"a trial {took}: nothing was changed; {report.rejected} rows would be refused"
    return f"catalogue {report.catalogue_id} is in place {took}; {report.rejected} rows were refused"
