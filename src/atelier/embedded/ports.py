"""Free ports on loopback."""

import socket

from atelier.embedded.errors import EmbeddedError

FIRST = 5433
"""Beside a PostgreSQL that the machine may have on 5432."""
SPREAD = range(15_000, 30_000)
"""Below the ports that the kernel lends to outgoing connections."""

_TRIES = 2_000


def is_free(port: int) -> bool:
    """Whether a server could listen on the port now. Somebody may take it before it does: starting tells."""
    with socket.socket() as probe:
        # As PostgreSQL does: connections that ended a moment ago are no reason to leave a remembered port.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def find_free(taken: set[int], *, first: int = FIRST) -> int:
    """Finds the first free port that is not among the taken ones, which no server may be using yet.

    Raises:
        EmbeddedError: there is none.
    """
    for port in range(first, first + _TRIES):
        if port not in taken and is_free(port):
            return port
    raise EmbeddedError(f"no free port from {first} to {first + _TRIES - 1}")
