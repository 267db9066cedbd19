"""A process that is about to end says so first: whoever spreads requests over several takes it out in good time."""

import asyncio
import signal

# Sent by the server's first process to its workers. Nobody else's: it has no meaning to the server itself.
NOTICE = signal.SIGUSR1


class Draining:
    """Whether this process has been told that it will end soon.

    From then on it is not ready, and each answer is the last one on its connection, so that a client's next request
    opens a new one, elsewhere. Requests are answered as ever until the server stops.
    """

    def __init__(self) -> None:
        """Starts with no end in sight."""
        self.has_begun = False

    def begin(self) -> None:
        """The end is near."""
        self.has_begun = True

    def listen(self) -> None:
        """Begins when the notice comes, from now on; called in the running event loop."""
        asyncio.get_running_loop().add_signal_handler(NOTICE, self.begin)
