"""Bounds in time for what ends well almost always: one timer for all of them, where each would cost one of its own."""

import asyncio
import math
from collections.abc import Callable
from types import TracebackType

# What is due within one look of another rings with it.
_TOGETHER_S = 0.001


class Alarm:
    """One moment at which something is called, unless it is cancelled before."""

    __slots__ = ("_alarms", "_ring", "due_s")

    def __init__(self, alarms: "Alarms", due_s: float, ring: Callable[[], object]) -> None:
        """Made by `Alarms.set`."""
        self._alarms = alarms
        self.due_s = due_s
        self._ring = ring

    def cancel(self) -> None:
        """It will not ring any more."""
        self._alarms.forget(self)

    def ring(self) -> None:
        """Calls what was set."""
        self._ring()


class Alarms:
    """Alarms of one event loop."""

    def __init__(self) -> None:
        """Starts nothing."""
        self._loop: asyncio.AbstractEventLoop | None = None
        self._open: set[Alarm] = set()
        self._looks_at_s = math.inf
        self._timer: asyncio.TimerHandle | None = None

    def set(self, within_s: float, ring: Callable[[], object]) -> Alarm:
        """Has something called in so many seconds; `ring` must be quick, and never raise."""
        loop = self.loop
        due_s = loop.time() + within_s
        alarm = Alarm(self, due_s, ring)
        self._open.add(alarm)
        if due_s < self._looks_at_s:
            self._look_at(due_s, loop)
        return alarm

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        """The loop; kept, because before Python 3.12 asking which one is running is a system call."""
        if self._loop is None:
            self._loop = asyncio.get_running_loop()
        return self._loop

    def forget(self, alarm: Alarm) -> None:
        """What `Alarm.cancel` does. The timer stays, and finds nothing or the next."""
        self._open.discard(alarm)

    def bound(self, within_s: float) -> "Bound":
        """A bound on a block of the running task: after so many seconds the block ends with `TimeoutError`."""
        return Bound(self, within_s)

    def _look_at(self, due_s: float, loop: asyncio.AbstractEventLoop) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._looks_at_s = due_s
        self._timer = loop.call_at(due_s, self._look)

    def _look(self) -> None:
        loop = self.loop
        self._timer, self._looks_at_s = None, math.inf
        until_s = loop.time() + _TOGETHER_S
        due = [alarm for alarm in self._open if alarm.due_s <= until_s]
        self._open.difference_update(due)
        for alarm in due:
            alarm.ring()
        next_s = min((alarm.due_s for alarm in self._open), default=math.inf)
        if next_s < self._looks_at_s:
            self._look_at(next_s, loop)


class Bound:
    """`asyncio.timeout` without a timer of its own: `with alarms.bound(10): ...`."""

    __slots__ = ("_alarm", "_alarms", "_before", "_is_over", "_task", "_within_s")

    def __init__(self, alarms: Alarms, within_s: float) -> None:
        """Made by `Alarms.bound`."""
        self._alarms = alarms
        self._within_s = within_s
        self._is_over = False

    def __enter__(self) -> None:
        """Begins."""
        task = asyncio.current_task(self._alarms.loop)
        if task is None:
            raise RuntimeError("a bound is for a task")
        self._task, self._before = task, task.cancelling()
        self._alarm = self._alarms.set(self._within_s, self._end)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Ends; the cancellation that was this bound's own becomes `TimeoutError`, anybody else's stays one.

        Raises:
            TimeoutError: the block took too long.
        """
        self._alarm.cancel()
        if self._is_over and self._task.uncancel() <= self._before and kind is asyncio.CancelledError:
            raise TimeoutError from error

    def _end(self) -> None:
        self._is_over = True
        self._task.cancel()
