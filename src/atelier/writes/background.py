"""Work that a writing process does by itself, again and again until it is closed."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Self

import structlog

from atelier.errors import AtelierError

log = structlog.get_logger(__name__)

# How long the end of the process waits for a round. One that is longer at it waits for a primary that is away, or
# leaves the rest to the next round of another process.
_GRACE_S = 2.0


@dataclass(frozen=True, slots=True)
class Chore:
    """Something to do every now and then.

    Attributes:
        name: for the log.
        interval_s: the pause between two rounds.
        work: one round; bounded by a deadline of its own.
    """

    name: str
    interval_s: float
    work: Callable[[], Awaitable[object]]


class Background:
    """Does chores, each in a task of its own. Leaving it lets the present round of each end, for a moment."""

    def __init__(self, chores: Sequence[Chore]) -> None:
        """Takes the chores. Starts nothing."""
        self._chores = chores
        self._stop = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Self:
        """Starts."""
        self._tasks = [asyncio.create_task(self._do(chore), name=chore.name) for chore in self._chores]
        return self

    async def __aexit__(self, *_: object) -> None:
        """Stops, after the rounds that are under way; what takes too long is cancelled, and rolled back."""
        self._stop.set()
        late = (await asyncio.wait(self._tasks, timeout=_GRACE_S))[1] if self._tasks else ()
        for task in late:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _do(self, chore: Chore) -> None:
        while not self._stop.is_set():
            try:
                await chore.work()
            except AtelierError as error:
                log.warning("chore_failed", chore=chore.name, error=f"{type(error).__name__}: {error}")
            except Exception as error:
                log.exception("chore_broken", chore=chore.name, kind=type(error).__name__)
            await self._pause(chore.interval_s)

    async def _pause(self, interval_s: float) -> None:
        try:
            async with asyncio.timeout(interval_s):
                await self._stop.wait()
        except TimeoutError:
            return
