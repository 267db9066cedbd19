"""Where the tasks of a test that hangs stand: a traceback shows only the one that waits for all others."""

import asyncio
import gc
import sys
from collections.abc import Iterator
from types import CodeType
from typing import Any, TextIO


def print_tasks(out: TextIO | None = None) -> None:
    """Prints what each unfinished task of this process waits for; may be called from any thread.

    Args:
        out: where to; None for what is standard error at the moment.
    """
    out = out or sys.stderr
    for task in gc.get_objects():
        if isinstance(task, asyncio.Task) and not task.done():
            print(f"task {task.get_name()}:", file=out)
            for line in list_frames(task.get_coro()):
                print(f"    {line}", file=out)


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
