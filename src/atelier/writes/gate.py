"""A bounded way to what is asked beside the commands, so that no flood of questions takes their connections."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from atelier.deadline import Deadline
from atelier.errors import OverloadedError


class Gate:
    """Lets a few through at a time, in their order, and few wait."""

    def __init__(self, lanes: int, *, waiting: int) -> None:
        """Takes how many may be inside at the same time, and how many may wait for that."""
        self._free = asyncio.Semaphore(lanes)
        self._most = lanes + waiting
        self._present = 0

    @asynccontextmanager
    async def enter(self, deadline: Deadline) -> AsyncIterator[None]:
        """Waits for its turn.

        Raises:
            OverloadedError: too many wait already, or the deadline came first; nothing was asked.
        """
        if self._present >= self._most:
            raise OverloadedError
        self._present += 1
        try:
            await self._wait(deadline)
            try:
                yield
            finally:
                self._free.release()
        finally:
            self._present -= 1

    async def _wait(self, deadline: Deadline) -> None:
        try:
            async with asyncio.timeout(deadline.remaining_s()):
                await self._free.acquire()
        except TimeoutError as error:
            raise OverloadedError from error
