"""Whether a port can be had: found out before anything is started, with patience only for who is known to leave."""

import socket
from threading import Timer

import pytest

from atelier.cli.serve import PortInUseError, ensure_port_free


@pytest.fixture
def taken() -> socket.socket:
    """Somebody who listens."""
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    listener.listen()
    return listener


def test_taken_port_is_told_at_once(taken: socket.socket) -> None:
    """In one line, with what to do."""
    with taken, pytest.raises(PortInUseError, match=r"^cannot listen on 127.0.0.1:\d+: .*; choose another --port$"):
        ensure_port_free("127.0.0.1", taken.getsockname()[1])


def test_port_is_waited_for_while_its_owner_leaves(taken: socket.socket) -> None:
    """The last threads of a killed process let go of it a moment after the process counts as ended."""
    port = taken.getsockname()[1]
    leaving = Timer(0.2, taken.close)
    leaving.start()
    try:
        ensure_port_free("127.0.0.1", port, patience_s=10)
    finally:
        leaving.join()
