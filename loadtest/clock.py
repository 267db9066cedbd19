"""The one clock of a run: monotonic seconds from its start, the same for every process of one machine."""

import time
from collections.abc import Callable

Clock = Callable[[], float]


def start_clock(origin_s: float | None = None) -> Clock:
    """A clock that reads zero now, or at `origin_s` of the machine's monotonic clock."""
    origin = time.monotonic() if origin_s is None else origin_s
    return lambda: time.monotonic() - origin
