"""A process that is about to end says so first: whoever spreads requests over several takes it out in good time."""

import asyncio
import signal
from collections.abc import Callable

# Sent by the server's first process to its workers. Nobody else's: they have no meaning to the server itself.
NOTICE = signal.SIGUSR1
LAST_CALL = signal.SIGUSR2
# Read the list of nodes again. The server itself gets SIGHUP for that.
RELIST = signal.Signals(signal.SIGRTMIN)


class Draining:
    """Whether this process has been told that it will end soon.

    From then on it is not ready, and each answer is the last one on its connection, so that a client's next request
    opens a new one, elsewhere. Requests are answered as ever until the server stops. Streams would hold up the stop:
    they end at the last call, when a client that comes back at once is served elsewhere already.
    """

    def __init__(self) -> None:
        """Starts with no end in sight."""
        self.has_begun = False

    def begin(self) -> None:
        """The end is near."""
        self.has_begun = True

    def listen(self, end_streams: Callable[[], None]) -> None:
        """Begins when the notice comes, ends the streams at the last call; called in the running event loop."""
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(NOTICE, self.begin)
        loop.add_signal_handler(LAST_CALL, end_streams)
