"""What becomes of a test that hangs: it is told where its tasks stand, and ended."""

import asyncio
import gc
import sys
from collections.abc import Awaitable, Callable, Iterator
from functools import wraps
from types import CodeType
from typing import Any, TextIO


def print_tasks(out: TextIO | None = None) -> None:
    """Prints what each unfinished task of this process waits for; may be called from any thread.

    A traceback shows only the one that waits for all others.

    Args:
        out: where to; None for what is standard error at the moment.
    """
    out = out or sys.stderr
    for task in gc.get_objects():
        if isinstance(task, asyncio.Task) and not task.done():
            print(f"task {task.get_name()}:", file=out)
            for line in list_frames(task.get_coro()):
                print(f"    {line}", file=out)


def bound(test: Callable[..., Awaitable[None]], within_s: float) -> Callable[..., Awaitable[None]]:
    """The same test, which fails with `TimeoutError` when it takes longer.

    The failure that the runner's own timeout raises reaches nobody: it comes up in a callback of
    the loop, which logs it.
    """

    @wraps(test)
    async def bounded(**fixtures: Any) -> None:
        async with asyncio.timeout(within_s):
            await test(**fixtures)

    return bounded


def list_frames(awaitable: Any) -> Iterator[str]:
    """File, line and name of each coroutine or generator from the outermost inwards; last, what is waited for."""
    while awaitable is not None:
        code, frame, inner = _look_at(awaitable)
        if code is None:
            yield repr(awaitable)
            return
        yield f"{code.co_filename}:{frame.f_lineno if frame else '?'} {code.co_name}"
        awaitable = inner


def _look_at(awaitable: Any) -> tuple[CodeType | None, Any, Any]:
    for kind in ("cr", "gi", "ag"):
        if hasattr(awaitable, f"{kind}_code"):
            inner = "gi_yieldfrom" if kind == "gi" else f"{kind}_await"
            return getattr(awaitable, f"{kind}_code"), getattr(awaitable, f"{kind}_frame"), getattr(awaitable, inner)
    return None, None, None
