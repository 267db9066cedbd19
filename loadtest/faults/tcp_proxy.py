"""A TCP proxy in front of a service: slow, tight, or cutting connections around an answer. Threads (greenlets) only."""

import contextlib
import random
import socket
import threading
import time
from dataclasses import dataclass
from urllib.parse import urlsplit

_CHUNK_BYTES = 16_384
_IDLE_S = 60.0


@dataclass(slots=True)
class Weather:
    """What the proxy does to traffic from now on; may be changed at any time.

    Attributes:
        delay_ms: added to each direction.
        jitter_ms: at most so much more, at random.
        cut_chance: of each answer, the chance that the connection is cut around it: before the request is passed on,
            after that but before the answer, or in the middle of the answer.
        refuses: new connections are closed at once, and the open ones are cut.
    """

    delay_ms: float = 0.0
    jitter_ms: float = 0.0
    cut_chance: float = 0.0
    refuses: bool = False


class TcpProxy:
    """Passes connections on to one of several targets in turn. Close it."""

    def __init__(self, targets: list[str], *, seed: int = 0) -> None:
        """Listens on a free port of the loopback; `targets` are base URLs, and may be changed while it runs."""
        self.targets = targets
        self.weather = Weather()
        self.cuts = 0
        self._rng = random.Random(seed)
        self._turn = 0
        self._closing = False
        self._sockets: set[socket.socket] = set()
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=512)
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def cut_all(self) -> None:
        """Cuts every connection that is open now."""
        for each in list(self._sockets):
            _shut(each)

    def close(self) -> None:
        """Ends all connections and stops listening."""
        self._closing = True
        _shut(self._listener)
        self.cut_all()

    def _accept(self) -> None:
        while not self._closing:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        server = None if self.weather.refuses else self._connect()
        if server is None:
            _shut(client)
            return
        pair = {client, server}
        self._sockets |= pair
        try:
            back = threading.Thread(target=self._pump, args=(server, client, True), daemon=True)
            back.start()
            self._pump(client, server, False)  # noqa: FBT003 - the way that data go
            back.join(timeout=_IDLE_S)
        finally:
            for each in pair:
                _shut(each)
            self._sockets -= pair

    def _connect(self) -> socket.socket | None:
        """A connection to the next target that takes one."""
        for _ in range(len(self.targets)):
            self._turn += 1
            parts = urlsplit(self.targets[self._turn % len(self.targets)])
            try:
                server = socket.create_connection((parts.hostname or "", parts.port or 80), timeout=2)
            except OSError:
                continue
            server.settimeout(_IDLE_S)
            return server
        return None

    def _pump(self, source: socket.socket, sink: socket.socket, is_answer: bool) -> None:  # noqa: FBT001
        try:
            source.settimeout(_IDLE_S)
            while data := source.recv(_CHUNK_BYTES):
                weather = self.weather
                if weather.delay_ms or weather.jitter_ms:
                    time.sleep((weather.delay_ms + self._rng.random() * weather.jitter_ms) / 1000)
                if weather.cut_chance and self._rng.random() < weather.cut_chance / (1 if is_answer else 3):
                    self.cuts += 1
                    # Half of an answer is as good as none, and a request that was passed on may well be carried out.
                    if self._rng.random() < 0.5:
                        sink.sendall(data if not is_answer else data[: len(data) // 2])
                        time.sleep(self._rng.random() * 0.02)
                    return
                sink.sendall(data)
        except OSError:
            return
        finally:
            _shut(source)
            _shut(sink)


def _shut(each: socket.socket) -> None:
    with contextlib.suppress(OSError):
        each.shutdown(socket.SHUT_RDWR)
    each.close()
