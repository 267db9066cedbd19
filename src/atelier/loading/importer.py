r"""Replaces the catalogue by the one in six CSV files: all of it or nothing, while everything else runs on.

```
files -> scan -> COPY in short transactions -> side tables -> keys, stock, ledger -> swap -> drop the old tables
              \-> rejects.csv                                (orphans, duplicates)
```
"""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from atelier.deadline import Clock, Deadline
from atelier.errors import AtelierError
from atelier.loading.build import Builder
from atelier.loading.layout import LAYOUTS
from atelier.loading.load import Loaded, load_file
from atelier.loading.pace import Pace
from atelier.loading.progress import FileReport, Report, Watcher
from atelier.loading.rejects import RejectLog
from atelier.loading.session import Connection, LoadingError, connect, siblings, told
from atelier.loading.side import drop_leftovers, make_tables, refuse_bound_objects
from atelier.loading.swap import Before, drop_old, look, swap

# Any number that no other advisory lock of this database uses in its two-integer form.
_IMPORT_LOCK = (0x61746C, 3)
_LOCK_WAIT_S = 5.0
# With the control connection that is three of the migrator's five.
_BUILDERS = 2
_CLEAN_UP_S = 20.0


@dataclass(frozen=True, slots=True)
class ImportOptions:
    """How to import.

    Attributes:
        strict: the first refused row ends the import.
        trial: do everything but the swap, in tables that write no WAL.
        only_if_empty: leave a catalogue that has products alone.
        rejects: where the report of the refused rows goes; None for no report.
        swap_wait_s: how long running transactions are waited for.
        origin: what the catalogue is remembered by.
    """

    strict: bool = False
    trial: bool = False
    only_if_empty: bool = False
    rejects: Path | None = None
    swap_wait_s: float = 60.0
    origin: str = "import"


async def import_catalogue(
    files: Mapping[str, Path], dsn: str, *, options: ImportOptions, watcher: Watcher, clock: Clock
) -> Report:
    """Imports a catalogue.

    Args:
        files: the six files by title.
        dsn: of the primary, as role `migrator`.
        options: how.
        watcher: told what happens.
        clock: monotonic, in seconds.

    Returns:
        What was done; `catalogue_id` is None when nothing was swapped in.

    Raises:
        LoadingError: another import runs, or the database refused; the old catalogue is untouched.
        PrimaryUnavailableError: the primary went away; the old catalogue is untouched.
        StrictError: a row was refused, and `strict` was asked for.
        HeaderError: a file has other columns.
    """
    started_s = clock()
    async with connect(dsn) as control:
        with told("starting the import"):
            await _lock(control, Deadline.after(_LOCK_WAIT_S, clock))
            before = await _prepare(control, watcher)
        if options.only_if_empty and not before.empty:
            return Report({}, None, None, clock() - started_s)
        with RejectLog({title: path.name for title, path in files.items()}, strict=options.strict) as log:
            async with _cleaned_up(dsn, watcher):
                one = _Import(control, dsn, before, options, log, watcher, clock)
                catalogue_id, loaded = await one.run(files)
            return Report(
                {file.layout.title: _file_report(file, log) for file in loaded},
                None if options.trial else catalogue_id,
                options.rejects,
                clock() - started_s,
                options.trial,
            )


async def _lock(control: Connection, deadline: Deadline) -> None:
    """Keeps other imports out for as long as the connection lives."""
    while not await control.fetchval("select pg_try_advisory_lock($1, $2)", *_IMPORT_LOCK):
        # One that was killed a moment ago holds its lock until its server process has noticed.
        if not deadline.remaining_s():
            raise LoadingError("another import is running")
        await asyncio.sleep(0.25)


async def _prepare(control: Connection, watcher: Watcher) -> Before:
    if await drop_leftovers(control):
        watcher.say("removed what an interrupted import had left")
    await refuse_bound_objects(control)
    return await look(control)


@asynccontextmanager
async def _cleaned_up(dsn: str, watcher: Watcher) -> AsyncIterator[None]:
    """Drops side tables and old tables when the import ends in any way."""
    try:
        yield
    finally:
        task = asyncio.ensure_future(_clean_up(dsn, watcher))
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError:
            await task
            raise


async def _clean_up(dsn: str, watcher: Watcher) -> None:
    try:
        async with asyncio.timeout(_CLEAN_UP_S), connect(dsn) as connection:
            with told("cleaning up"):
                await drop_old(connection)
    except (AtelierError, TimeoutError):
        watcher.say("tables that are not used any more could not be dropped; the next import will do it")


@dataclass(frozen=True, slots=True)
class _Import:
    """One import under way."""

    control: Connection
    dsn: str
    before: Before
    options: ImportOptions
    log: RejectLog
    watcher: Watcher
    clock: Clock

    async def run(self, files: Mapping[str, Path]) -> tuple[int, list[Loaded]]:
        """Loads, builds and swaps; returns the new catalogue's id and what was loaded."""
        loaded = [Loaded(layout, files[layout.title]) for layout in LAYOUTS]
        with told("importing"):
            catalogue_id = int(await self.control.fetchval("select nextval('catalogue_id_seq')"))
            await make_tables(self.control, version=self.before.version_floor + 1, unlogged=self.options.trial)
        await self._fill(loaded, catalogue_id)
        # Before the swap: a report that can't be written must not be missed afterwards.
        if self.options.rejects:
            _write_rejects(self.log, self.options.rejects)
        if not self.options.trial:
            await self._swap(catalogue_id)
        return catalogue_id, loaded

    async def _fill(self, loaded: list[Loaded], catalogue_id: int) -> None:
        """Loads file by file on one connection and builds on another, one file behind; at last both build."""
        built = {file.layout.table: asyncio.Event() for file in loaded}
        queue: asyncio.Queue[Loaded | None] = asyncio.Queue(maxsize=len(loaded) + _BUILDERS)
        async with AsyncExitStack() as stack:
            builders = [
                Builder(
                    connection, self.log, self._pace(connection), self.watcher, catalogue_id, self.options.trial, built
                )
                for connection in [await stack.enter_async_context(connect(self.dsn)) for _ in range(_BUILDERS)]
            ]
            async with siblings() as tasks:
                tasks.create_task(self._load_and_build(builders[0], loaded, queue))
                tasks.create_task(self._build(builders[1], queue))

    async def _load_and_build(
        self, builder: Builder, loaded: list[Loaded], queue: "asyncio.Queue[Loaded | None]"
    ) -> None:
        for file in loaded:
            with told(f"loading {file.path.name}"):
                await load_file(builder.connection, file, log=self.log, pace=builder.pace, watcher=self.watcher)
            await queue.put(file)
        for _ in range(_BUILDERS):
            await queue.put(None)
        await self._build(builder, queue)

    async def _build(self, builder: Builder, queue: "asyncio.Queue[Loaded | None]") -> None:
        while file := await queue.get():
            with told(f"building the tables of {file.path.name}"):
                await builder.build(file)

    async def _swap(self, catalogue_id: int) -> None:
        self.watcher.say("swapping the new catalogue in")
        with told("swapping"):
            await swap(
                self.control,
                before=self.before,
                catalogue_id=catalogue_id,
                origin=self.options.origin,
                deadline=Deadline.after(self.options.swap_wait_s, self.clock),
                watcher=self.watcher,
            )

    def _pace(self, connection: Connection) -> Pace:
        return Pace(connection, clock=self.clock, say=self.watcher.say)


def _file_report(file: Loaded, log: RejectLog) -> FileReport:
    title = file.layout.title
    return FileReport(file.path.name, file.rows, log.rejected(title), log.counts[title])


def _write_rejects(log: RejectLog, path: Path) -> None:
    try:
        log.write(path)
    except OSError as error:
        raise LoadingError(f"{path} cannot be written: {error.strerror}") from error
