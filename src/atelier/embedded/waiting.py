"""The one bounded wait that everything here uses."""

import time
from collections.abc import Callable

POLL_S = 0.02


def wait_for(condition: Callable[[], bool], *, timeout_s: float) -> bool:
    """Waits until the condition holds, looking again every few milliseconds.

    Returns:
        True once it held; False when it did not within `timeout_s` seconds. It is looked at once at least.
    """
    deadline_s = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() >= deadline_s:
            return False
        time.sleep(POLL_S)
    return True
