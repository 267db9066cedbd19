"""How much of an endless answer its client has not taken yet.

The server takes whatever is sent and queues it without a bound and without a word, so a client that reads nothing would
make the process grow for ever. The kernel knows better: once a connection's send queue stands, so does the server's.
"""

import asyncio
import fcntl
import os
import socket
import struct
import termios
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from atelier.deadline import Clock

# Of a connection, in the kernel: what was not sent, or not acknowledged. More is no use to anybody.
LIMIT_BYTES = 64 * 1024
_LOOK_S = 0.05
_FILES = Path("/proc/self/fd")

Address = tuple[str, int]


class Backlog:
    """The send queue of one connection of this process. Owns nothing: the server may close it at any moment."""

    def __init__(self, client: Address, *, clock: Clock) -> None:
        """Takes the client's end of the connection. Does no I/O."""
        self._client = client
        self._clock = clock
        self._file: int | None = None

    async def wait_until_taken(self, stalled_s: float) -> None:
        """Waits until the client has taken most of what it was sent.

        Returns at once where the kernel cannot be asked, or when the connection is gone.

        Raises:
            TimeoutError: it has taken nothing at all for `stalled_s`.
        """
        before, moved_at_s = 0, self._clock()
        while (left := self._look(_count_unsent)) > LIMIT_BYTES:
            if left < before:
                moved_at_s = self._clock()
            before = left
            if self._clock() - moved_at_s > stalled_s:
                raise TimeoutError
            await asyncio.sleep(_LOOK_S)

    def cut(self) -> None:
        """Ends the connection, so that the server lets go of what it has queued."""
        self._look(_shut_down)

    def _look(self, do: Callable[[socket.socket], int]) -> int:
        """Does something with the connection's socket, if it is still there."""
        if self._file is None:
            self._file = _find_file(self._client)
        if self._file is None:
            return 0
        with suppress(OSError), _copy(self._file) as connection:
            # The number may stand for another connection by now.
            if connection.getpeername()[:2] == self._client:
                return do(connection)
        return 0


def _find_file(client: Address) -> int | None:
    """The file number of the connection to a client; None when there is none, or nobody can tell."""
    try:
        files = list(_FILES.iterdir())
    except OSError:
        return None
    for file in files:
        with suppress(OSError):
            if str(file.readlink()).startswith("socket:"):
                with _copy(int(file.name)) as connection:
                    if connection.getpeername()[:2] == client:
                        return int(file.name)
    return None


def _copy(number: int) -> socket.socket:
    """A copy to look at: whatever the server does with its own meanwhile, this one stays what it is."""
    copied = os.dup(number)
    try:
        return socket.socket(fileno=copied)
    except OSError:
        os.close(copied)
        raise


def _count_unsent(connection: socket.socket) -> int:
    """The bytes in the send queue."""
    unsent: int = struct.unpack("i", fcntl.ioctl(connection, termios.TIOCOUTQ, bytes(4)))[0]
    return unsent


def _shut_down(connection: socket.socket) -> int:
    connection.shutdown(socket.SHUT_RDWR)
    return 0
