"""One operator at a time: two commands on one data folder would start two primaries between them."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from atelier.embedded.errors import BusyError, DataFolderError
from atelier.embedded.waiting import wait_for


@contextmanager
def hold_lock(path: Path, *, timeout_s: float) -> Iterator[None]:
    """Holds the operator's lock of a data folder; the kernel lets it go when the process ends, however it ends.

    Raises:
        BusyError: somebody else held it for all of `timeout_s` seconds.
        DataFolderError: the file cannot be opened.
    """
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise DataFolderError(f"{path.parent} cannot be used: {error.strerror}") from error
    try:
        if not wait_for(lambda: _try_lock(descriptor), timeout_s=timeout_s):
            raise BusyError(f"another command (process {_holder(descriptor)}) is working on {path.parent}")
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, str(os.getpid()).encode(), 0)
        yield
    finally:
        os.close(descriptor)


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _holder(descriptor: int) -> str:
    return os.pread(descriptor, 20, 0).decode(errors="replace") or "unknown"
