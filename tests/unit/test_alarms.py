"""Many bounds in time on one timer."""

import asyncio
from collections.abc import Callable

import pytest

from atelier.alarms import Alarms

pytestmark = pytest.mark.anyio

SOON_S = 0.02
NEVER_S = 60.0


async def test_alarms_ring_in_their_time_whatever_the_order_they_were_set_in() -> None:
    """A sooner one that is set later does not wait for the one before; a cancelled one is silent."""
    alarms, rung, last = Alarms(), [], asyncio.Event()
    alarms.set(3 * SOON_S, lambda: (rung.append("late"), last.set()))
    cancelled = alarms.set(SOON_S, lambda: rung.append("cancelled"))
    alarms.set(2 * SOON_S, lambda: rung.append("soon"))
    cancelled.cancel()
    alarms.set(NEVER_S, lambda: rung.append("never"))
    await asyncio.wait_for(last.wait(), 5)
    assert rung == ["soon", "late"]


async def test_thousands_of_alarms_that_end_well_set_one_timer(monkeypatch: pytest.MonkeyPatch) -> None:
    """That is what they are for."""
    loop, timers = asyncio.get_running_loop(), []
    call_at = loop.call_at

    def count(when_s: float, call: Callable[[], object]) -> asyncio.TimerHandle:
        timers.append(when_s)
        return call_at(when_s, call)

    monkeypatch.setattr(loop, "call_at", count)
    alarms = Alarms()
    for _ in range(5_000):
        alarms.set(NEVER_S, lambda: None).cancel()
    assert len(timers) == 1


async def test_block_that_takes_too_long_ends_and_the_task_goes_on() -> None:
    """As with the library's own timeout: a TimeoutError, and the task is not cancelled afterwards."""
    alarms, task = Alarms(), asyncio.current_task()
    with pytest.raises(TimeoutError), alarms.bound(SOON_S):
        await asyncio.Event().wait()
    assert task is not None
    assert task.cancelling() == 0
    await asyncio.sleep(0)


async def test_block_that_ends_in_time_hears_nothing_of_its_bound() -> None:
    """Also when the task goes on for longer than the bound."""
    alarms, later = Alarms(), asyncio.Event()
    with alarms.bound(SOON_S):
        await asyncio.sleep(0)
    alarms.set(2 * SOON_S, later.set)
    await asyncio.wait_for(later.wait(), 5)


async def test_cancellation_from_elsewhere_stays_one() -> None:
    """The end of the process is not mistaken for a slow client."""
    alarms = Alarms()

    async def wait() -> None:
        with alarms.bound(NEVER_S):
            await asyncio.Event().wait()

    task = asyncio.create_task(wait())
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_bound_and_a_cancellation_at_once_is_a_cancellation() -> None:
    """Whoever cancelled is waiting for it."""
    alarms, begun = Alarms(), asyncio.Event()

    async def wait() -> None:
        with alarms.bound(SOON_S):
            begun.set()
            await asyncio.Event().wait()

    task = asyncio.create_task(wait())
    await begun.wait()
    alarms.set(SOON_S, task.cancel)  # due in the same look
    with pytest.raises(asyncio.CancelledError):
        await task
