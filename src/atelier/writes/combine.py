"""Gathers what arrives while others are being carried out, and hands it over in batches. Knows nothing of commands.

Where no lane is busy a lone item is not delayed: it waits for no company. Batches form because a lane is busy, and stay
because who was answered together is let come back together, for some milliseconds.
"""

import asyncio
import contextlib
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from atelier.alarms import Alarms
from atelier.deadline import Clock, Deadline
from atelier.errors import OutcomeUnknownError, OverloadedError

Item = TypeVar("Item")
Result = TypeVar("Result")

# Below this the fixed cost of a transaction outweighs what its commands cost: where the machine itself is slow, smaller
# batches would only make it slower.
_SMALLEST_BATCH = 32
# A second lane leaves what waits to the first one for this long, because one batch of all costs less than two of half;
# then it helps: the first one may stand before a lock.
_PATIENCE_S = 0.02
# Who was answered together comes back together. After a batch of so many the lane waits for all of them: it would carry
# out the first ones to come back at the price of a transaction, while the others wait for it. It waits so many seconds
# at most, and once they are coming, while they keep coming: a pause says that the others are on a longer way, or have
# left. (Measured on a busy machine: the first of 64 was back after 4 ms, 10 at most; each next one within 2.)
_COMPANY = 8
_GATHER_S = 0.01
_PAUSE_S = 0.003
_LAST_WORD_S = 0.2
# Answers to so many are formed in one turn of the event loop. With all of a batch in one turn, another lane's statement
# that has come back would wait for all of them, and the database with it.
_ANSWERED_TOGETHER = 8


@dataclass(slots=True, eq=False)
class _Ticket(Generic[Item, Result]):
    """One item that waits, and who waits for it."""

    item: Item
    future: "asyncio.Future[Result]"
    is_bulk: bool
    is_started: bool = False

    def give_up(self) -> None:
        """The deadline has come. Who carries it out has the same one, and knows more: it gets a moment to tell."""
        if self.future.done():
            return
        if self.is_started:
            self.future.get_loop().call_later(_LAST_WORD_S, self.give_up_for_good)
        else:
            self.future.set_exception(OverloadedError())

    def give_up_for_good(self) -> None:
        """Nobody has told what became of it."""
        if not self.future.done():
            self.future.set_exception(OutcomeUnknownError())


@dataclass(slots=True, eq=False)
class _Gathering:
    """A lane that waits until so many are there."""

    wanted: int
    is_over: "asyncio.Future[None]"


@dataclass(frozen=True, slots=True)
class QueueLimits:
    """Bounds of a combiner.

    Attributes:
        waiting: items in the queue, beyond them `OverloadedError` at once. Bulk takes half of it at most, so that it
            never keeps out who is not.
        lanes: batches at the same time.
        largest_batch: items in one batch.
        target_s: a batch that took longer makes the next ones smaller, a quick full one larger.
    """

    waiting: int
    lanes: int
    largest_batch: int
    target_s: float


@dataclass(slots=True)
class _Size:
    """The present size of a batch, between a few and the largest: halved when slow, grown by a quarter when quick."""

    limits: QueueLimits
    now: int = field(init=False)

    def __post_init__(self) -> None:
        self.now = self.limits.largest_batch

    def learn(self, taken: int, took_s: float) -> None:
        if took_s > self.limits.target_s:
            floor = min(_SMALLEST_BATCH, self.limits.largest_batch)
            self.now = max(floor, min(self.now, taken) // 2)
        elif taken >= self.now:
            self.now = min(self.limits.largest_batch, self.now + max(1, self.now // 4))


class Combiner(Generic[Item, Result]):
    """A bounded queue with two priorities, emptied in batches by a few lanes.

    Use it as an async context manager: leaving it finishes what is queued.
    """

    def __init__(
        self,
        run: Callable[[Sequence[Item]], Awaitable[Sequence[Result | Exception]]],
        limits: QueueLimits,
        *,
        clock: Clock,
    ) -> None:
        """Takes what carries a batch out.

        Args:
            run: gives one result, or one exception, per item, in their order.
            limits: the bounds.
            clock: monotonic, in seconds.
        """
        self._run = run
        self._limits = limits
        self._clock = clock
        self._size = _Size(limits)
        self._interactive: deque[_Ticket[Item, Result]] = deque()
        self._bulk: deque[_Ticket[Item, Result]] = deque()
        self._free: deque[asyncio.Future[None]] = deque()
        self._gatherings: list[_Gathering] = []
        self._arrived = 0
        self._lanes: list[asyncio.Task[None]] = []
        self._alarms = Alarms()
        self._is_closing = False
        self._running = 0
        self._finished = asyncio.Event()

    async def __aenter__(self) -> "Combiner[Item, Result]":
        """Opens the lanes."""
        self._lanes = [asyncio.create_task(self._drive(), name="combine") for _ in range(self._limits.lanes)]
        return self

    async def __aexit__(self, *_: object) -> None:
        """Takes nothing more, finishes what is queued, closes the lanes."""
        self._is_closing = True
        self._end_gatherings()
        while self._free:
            self._wake_one()
        await asyncio.gather(*self._lanes)

    @property
    def waiting(self) -> int:
        """How many items wait now."""
        return len(self._interactive) + len(self._bulk)

    @property
    def batch_now(self) -> int:
        """The most items that the next batch takes."""
        return self._size.now

    async def submit(self, item: Item, deadline: Deadline, *, is_bulk: bool = False) -> Result:
        """Queues an item and waits for its result.

        Args:
            item: what to carry out.
            deadline: when the answer is due.
            is_bulk: it waits behind everything that is not.

        Raises:
            OverloadedError: the queue is full, or the deadline came while the item was still waiting; nothing was done.
            OutcomeUnknownError: the deadline came while it was being carried out.
            Exception: what `run` gave for it.
        """
        if self._is_closing or not self._has_room(is_bulk=is_bulk):
            raise OverloadedError
        ticket: _Ticket[Item, Result] = _Ticket(item, self._alarms.loop.create_future(), is_bulk)
        queue = self._bulk if is_bulk else self._interactive
        queue.append(ticket)
        self._arrived += 1
        self._wake_one()
        if self._gatherings:
            self._end_gatherings()
        alarm = self._alarms.set(deadline.remaining_s(), ticket.give_up)
        try:
            # Who stops waiting takes nothing away from a batch that is under way: that is the lane's.
            return await ticket.future
        finally:
            alarm.cancel()
            if not ticket.is_started:
                with contextlib.suppress(ValueError):
                    queue.remove(ticket)

    def _has_room(self, *, is_bulk: bool) -> bool:
        if is_bulk and 2 * len(self._bulk) >= self._limits.waiting:
            return False
        return self.waiting < self._limits.waiting

    def _wake_one(self) -> None:
        while self._free:
            lane = self._free.popleft()
            if not lane.done():
                lane.set_result(None)
                return

    async def _drive(self) -> None:
        """One lane: takes what waits, carries it out, and so on until the combiner is closed."""
        while True:
            while not self.waiting:
                if self._is_closing:
                    return
                free: asyncio.Future[None] = asyncio.get_running_loop().create_future()
                self._free.append(free)
                await free
            if self._running and self.waiting < self._size.now and not self._is_closing:
                await self._leave_it_to_others()
                if not self.waiting:
                    continue
            batch = self._take()
            if not batch:
                continue
            self._running += 1
            try:
                await self._serve(batch)
            finally:
                self._running -= 1
                finished, self._finished = self._finished, asyncio.Event()
                finished.set()

    async def _serve(self, batch: list[_Ticket[Item, Result]]) -> None:
        """Carries a batch out, answers it, and lets those who wait for an answer come back."""
        started_s = self._clock()
        results = await self._carry_out(batch)
        # Nobody stands in front of a screen for bulk, and whoever does must not wait until bulk is back.
        returning = sum(not (ticket.is_bulk or ticket.future.done()) for ticket in batch)
        expected = len(self._interactive) + returning
        await self._answer(batch, results)
        self._size.learn(len(batch), self._clock() - started_s)
        if returning >= _COMPANY:
            await self._let_gather(expected)

    async def _let_gather(self, expected: int) -> None:
        """Waits until so many are there, or a full batch; not for long, and not beyond a pause in their coming."""
        gathering = _Gathering(expected, self._alarms.loop.create_future())
        self._gatherings.append(gathering)
        self._end_gatherings()
        loop, before_all = self._alarms.loop, self._arrived
        deadline_s = loop.time() + _GATHER_S
        while not gathering.is_over.done() and loop.time() < deadline_s:
            arrived = self._arrived
            await asyncio.wait((gathering.is_over,), timeout=_PAUSE_S)
            if before_all != self._arrived == arrived:
                break
        self._gatherings.remove(gathering)

    def _end_gatherings(self) -> None:
        """Lets those lanes go on whose items are there; all of them when the combiner closes."""
        for gathering in self._gatherings:
            is_complete = len(self._interactive) >= gathering.wanted or self.waiting >= self._size.now
            if (is_complete or self._is_closing) and not gathering.is_over.done():
                gathering.is_over.set_result(None)

    async def _leave_it_to_others(self) -> None:
        """Waits until a lane that is busy now is free, and takes what waits; not for long."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_PATIENCE_S):
                await self._finished.wait()
                # The lane that finished goes on in this turn of the loop; what it leaves is ours.
                await asyncio.sleep(0)

    def _take(self) -> list[_Ticket[Item, Result]]:
        batch: list[_Ticket[Item, Result]] = []
        for queue in (self._interactive, self._bulk):
            while queue and len(batch) < self._size.now:
                ticket = queue.popleft()
                if ticket.future.done():
                    # Its time was over in this very turn of the loop: it was told that nothing was done.
                    continue
                ticket.is_started = True
                batch.append(ticket)
        for gathering in self._gatherings:
            # Another lane has lost its patience, and takes what is being gathered: it is not waited for any more.
            gathering.wanted -= sum(not ticket.is_bulk for ticket in batch)
        return batch

    async def _carry_out(self, batch: list[_Ticket[Item, Result]]) -> Sequence[Result | Exception]:
        """A result for every ticket, whatever happens: a lane never dies and nobody waits for ever."""
        try:
            results = await self._run([ticket.item for ticket in batch])
            if len(results) != len(batch):
                raise RuntimeError(f"{len(batch)} items were carried out with {len(results)} results")
        except asyncio.CancelledError:
            # A driver lets the cancellation of something of its own escape when a connection is cut under it. Nobody
            # cancels a lane: what it carried is what is not known.
            return [OutcomeUnknownError()] * len(batch)
        except Exception as error:  # noqa: BLE001  it goes to those who wait
            return [error] * len(batch)
        return results

    async def _answer(self, batch: list[_Ticket[Item, Result]], results: Sequence[Result | Exception]) -> None:
        """Settles every ticket."""
        for index, (ticket, result) in enumerate(zip(batch, results, strict=True)):
            if index and index % _ANSWERED_TOGETHER == 0:
                await asyncio.sleep(0)
            if ticket.future.done():
                continue
            if isinstance(result, Exception):
                ticket.future.set_exception(result)
                # Its owner may have left already; then nobody is surprised.
                ticket.future.exception()
            else:
                ticket.future.set_result(result)
