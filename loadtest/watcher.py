"""Follows the change feed over any number of reconnects, in a thread of its own, and records what it is told."""

import contextlib
import http.client
import json
import socket
import threading
import time
from collections.abc import Iterator
from urllib.parse import urlsplit

from loadtest.clock import Clock
from loadtest.history.record import EVENT, Line, Op
from loadtest.recorder import Recorder

_READ_S = 20.0
_RETRY_S = 0.3
_MOST_LINE_BYTES = 100_000


class Watcher:
    """One follower of `/changes`. Start it, and close it: it ends within a moment."""

    def __init__(self, name: str, base_url: str, recorder: Recorder, *, clock: Clock) -> None:
        """Connects to nothing yet."""
        self.name = name
        self._address = urlsplit(base_url)
        self._recorder = recorder
        self._clock = clock
        self._closing = threading.Event()
        self._opened = threading.Event()
        self._socket: socket.socket | None = None
        self._last_id: str | None = None
        self._seen: dict[str, int] = {}
        self._lives = 1
        self.lost: list[str] = []
        """Why a stream could not go on where it had ended, if that was ever so."""
        self._thread = threading.Thread(target=self._run, daemon=True)

    def start(self, *, within_s: float) -> bool:
        """Begins to follow; whether the stream was open in time."""
        self._thread.start()
        return self._opened.wait(within_s)

    def wait_for(self, key: str, version: int, *, within_s: float) -> bool:
        """Waits until it was told of a version of a key."""
        deadline_s = time.monotonic() + within_s
        while self._seen.get(key, 0) < version and time.monotonic() < deadline_s:
            time.sleep(0.05)
        return self._seen.get(key, 0) >= version

    def close(self, *, until_s: float | None = None) -> None:
        """Ends the stream and says in the history until when it was told of everything.

        Args:
            until_s: that moment; None means now.
        """
        now_s = self._clock()
        self.leave()
        self._record((), now_s if until_s is None else until_s, state="closed")

    def leave(self) -> None:
        """Ends the stream without a word about until when it was told of everything: that is not known."""
        self._closing.set()
        self._hang_up()
        self._thread.join(timeout=5)

    # ------------------------------------------------------------ its thread

    def _run(self) -> None:
        while not self._closing.is_set():
            # Cut or refused: it goes on from the last id.
            with contextlib.suppress(OSError, http.client.HTTPException, ValueError, AttributeError):
                self._follow()
            self._closing.wait(_RETRY_S)

    def _follow(self) -> None:
        address = self._address
        connection = http.client.HTTPConnection(address.hostname or "", address.port or 80, timeout=_READ_S)
        try:
            connection.connect()
            self._socket = connection.sock
            self._read_stream(connection)
        finally:
            self._socket = None
            connection.close()

    def _read_stream(self, connection: http.client.HTTPConnection) -> None:
        headers = {"Accept": "text/event-stream"} | ({"Last-Event-ID": self._last_id} if self._last_id else {})
        connection.request("GET", self._address.path.rstrip("/") + "/changes", headers=headers)
        response = connection.getresponse()
        if response.status in (409, 410):
            self._begin_anew(response.read()[:500].decode(errors="replace"))
            return
        if response.status != http.HTTPStatus.OK:
            return
        for event in read_events(response):
            self._take(event)
            if self._closing.is_set():
                return

    def _take(self, event: dict[str, str]) -> None:
        if "comment" in event:
            # The first comment tells where the stream begins: with nothing lost before the first event.
            words = event["comment"].split()
            if words[:1] == ["follows"] and len(words) > 1:
                self._last_id = words[1]
            if not self._opened.is_set():
                self._record((), self._clock(), state="open")
                self._opened.set()
            return
        told = json.loads(event.get("data", "{}"))
        line = _line_of(event.get("event", ""), told)
        if line is None:
            return
        self._last_id = event.get("id", self._last_id)
        self._seen[line.key] = max(self._seen.get(line.key, 0), line.version or 0)
        self._record((line,), self._clock(), position=self._last_id)

    def _begin_anew(self, why: str) -> None:
        """Its place in the feed was lost with a part of history: what follows is another watcher's account."""
        self.lost.append(why)
        self._record((), self._clock(), state="closed")
        self._lives += 1
        self._last_id = None
        self._opened.clear()

    def _record(
        self, lines: tuple[Line, ...], at_s: float, *, state: str | None = None, position: str | None = None
    ) -> None:
        name = self.name if self._lives == 1 else f"{self.name}#{self._lives}"
        self._recorder.add(Op(0, name, EVENT, at_s, at_s, lines=lines, state=state, position=position), timed=False)

    def _hang_up(self) -> None:
        """Ends the stream under the reader, which then finds its end."""
        open_socket = self._socket
        if open_socket is not None:
            with contextlib.suppress(OSError):
                open_socket.shutdown(socket.SHUT_RDWR)


def read_events(lines: Iterator[bytes] | http.client.HTTPResponse) -> Iterator[dict[str, str]]:
    """The events of a stream, each with its fields; a comment is one with the field `comment`."""
    event: dict[str, str] = {}
    for raw in _read_lines(lines):
        line = raw.decode("utf-8", errors="replace").rstrip("\r\n")
        if not line:
            if event:
                yield event
            event = {}
        elif line.startswith(":"):
            yield {"comment": line[1:].strip()}
        else:
            name, _, value = line.partition(":")
            event[name] = value.removeprefix(" ")


def _read_lines(lines: Iterator[bytes] | http.client.HTTPResponse) -> Iterator[bytes]:
    if isinstance(lines, http.client.HTTPResponse):
        while line := lines.readline(_MOST_LINE_BYTES):
            yield line
    else:
        yield from lines


def _line_of(topic: str, told: dict[str, object]) -> Line | None:
    version = told.get("version")
    if topic not in ("stock", "product") or not isinstance(version, int):
        return None
    name = "sku" if topic == "stock" else "product"
    return Line(f"{name}:{told[f'{name}_id']}", version)
