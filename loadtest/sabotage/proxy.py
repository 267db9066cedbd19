"""An HTTP proxy between clients and service that breaks one promise on purpose. Threads (greenlets) only.

It stands where a broken service would: what comes out of it is what clients of such a service would get.
"""

import contextlib
import http.client
import random
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import BinaryIO
from urllib.parse import urlsplit

from loadtest.transport import Answer

_MOST_HEAD_BYTES = 65_536
_UPSTREAM_S = 30.0
_HOP_HEADERS = frozenset({"connection", "transfer-encoding", "content-length", "keep-alive"})


@dataclass(slots=True)
class Message:
    """A request on its way."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes


Forward = Callable[[Message], Answer]


@dataclass(slots=True)
class Malice:
    """A sabotage that does nothing; each kind overrides what it breaks."""

    rng: random.Random

    def handle(self, message: Message, forward: Forward) -> Answer | None:
        """The answer to a request; None cuts the connection instead."""
        return forward(message)

    def bend_events(self, events: Iterator[bytes]) -> Iterator[bytes]:
        """The events of a feed."""
        return events


@dataclass(slots=True)
class StripTokens(Malice):
    """Reads lose their tokens on the way."""

    def handle(self, message: Message, forward: Forward) -> Answer | None:
        """Passes a request on without its token."""
        message.headers.pop("atelier-token", None)
        return forward(message)


@dataclass(slots=True)
class ChangeKeys(Malice):
    """Some answers are lost, and the attempt after that carries another key."""

    cut: dict[str, str] = field(default_factory=dict)

    def handle(self, message: Message, forward: Forward) -> Answer | None:
        """Cuts after the command was done, or repeats it as if it were a new one."""
        key = message.headers.get("idempotency-key")
        if key is None or message.method != "POST":
            return forward(message)
        if key in self.cut:
            message.headers["idempotency-key"] = self.cut.pop(key)
            return forward(message)
        answer = forward(message)
        if message.path == "/inventory/adjustments" and self.rng.random() < 0.2:
            self.cut[key] = f"{key}-anew"
            return None
        return answer


@dataclass(slots=True)
class SendTwice(Malice):
    """Some commands arrive twice, each time under a key of its own."""

    def handle(self, message: Message, forward: Forward) -> Answer | None:
        """Sends an adjustment once more."""
        answer = forward(message)
        if message.path == "/inventory/adjustments" and self.rng.random() < 0.2:
            message.headers["idempotency-key"] += "-twice"
            forward(message)
        return answer


@dataclass(slots=True)
class AnswerFromThePast(Malice):
    """Some reads are answered as they were answered before.

    Attributes:
        strong: those of a deposed primary (strong reads), or those of a lagging replica (all others).
        chance: of a read to be answered so.
        age_s: how old the answer is at least.
    """

    strong: bool = False
    chance: float = 0.3
    age_s: float = 0.3
    past: dict[str, tuple[float, Answer]] = field(default_factory=dict)

    def handle(self, message: Message, forward: Forward) -> Answer | None:
        """An old answer where there is one; else a fresh one, which is kept."""
        asked = message.headers.get("atelier-consistency", "") == "strong"
        if message.method != "GET" or asked != self.strong or message.path.startswith("/health"):
            return forward(message)
        kept_s, kept = self.past.get(message.path, (0.0, None))
        if kept is not None and time.monotonic() - kept_s > self.age_s and self.rng.random() < self.chance:
            return kept
        answer = forward(message)
        if answer.is_ok and kept is None:
            self.past[message.path] = time.monotonic(), answer
        return answer


@dataclass(slots=True)
class StaleCache(Malice):
    """A cache before the storefront that no write empties: for a while it answers what it has, whoever asks.

    Attributes:
        keep_s: how long it keeps an answer.
        kept: by path, when and what.
    """

    keep_s: float = 2.0
    kept: dict[str, tuple[float, Answer]] = field(default_factory=dict)

    def handle(self, message: Message, forward: Forward) -> Answer | None:
        """Only strong reads, which nobody may answer from memory, are always passed on."""
        is_strong = message.headers.get("atelier-consistency") == "strong"
        if message.method != "GET" or is_strong or not message.path.startswith("/products"):
            return forward(message)
        kept_s, kept = self.kept.get(message.path, (0.0, None))
        if kept is not None and time.monotonic() - kept_s < self.keep_s:
            return kept
        answer = forward(message)
        if answer.is_ok:
            self.kept[message.path] = time.monotonic(), answer
        return answer


@dataclass(slots=True)
class DropEvents(Malice):
    """Some events never come."""

    def bend_events(self, events: Iterator[bytes]) -> Iterator[bytes]:
        """Leaves events out."""
        return (event for event in events if not is_event(event) or self.rng.random() > 0.1)


@dataclass(slots=True)
class ReorderEvents(Malice):
    """Some events come before the one that they followed."""

    def bend_events(self, events: Iterator[bytes]) -> Iterator[bytes]:
        """Holds an event back until the next one is out."""
        held: bytes | None = None
        for event in events:
            if held is not None:
                yield event
                yield held
                held = None
            elif is_event(event) and self.rng.random() < 0.2:
                held = event
            else:
                yield event


def is_event(block: bytes) -> bool:
    """Whether a block of a stream tells of a change."""
    return b"\ndata:" in block or block.startswith(b"data:")


MALICE: dict[str, Callable[[random.Random], Malice]] = {
    "strip-tokens": StripTokens,
    "change-keys": ChangeKeys,
    "send-twice": SendTwice,
    "lagging-node": AnswerFromThePast,
    "deposed-node": lambda rng: AnswerFromThePast(rng, strong=True),
    "stale-cache": StaleCache,
    "drop-events": DropEvents,
    "reorder-events": ReorderEvents,
}
"""Every sabotage that the proxy can do."""


class SabotageProxy:
    """Serves HTTP in front of a service. Close it."""

    def __init__(self, target: str, malice: Malice) -> None:
        """Listens on a free port of the loopback."""
        self._target = urlsplit(target)
        self._malice = malice
        self._closing = False
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=512)
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        """Stops listening; what is open ends with its client."""
        self._closing = True
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _accept(self) -> None:
        while not self._closing:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        upstream = http.client.HTTPConnection(self._target.hostname or "", self._target.port or 80, timeout=_UPSTREAM_S)
        try:
            with client, client.makefile("rb") as incoming:
                while message := read_message(incoming):
                    if message.path.partition("?")[0] == "/changes":
                        self._stream(message, upstream, client)
                        return
                    answer = self._malice.handle(message, lambda sent: _forward(sent, upstream))
                    if answer is None or not answer.status:
                        return
                    client.sendall(_render(answer))
        except (OSError, http.client.HTTPException, ValueError):
            return
        finally:
            upstream.close()

    def _stream(self, message: Message, upstream: http.client.HTTPConnection, client: socket.socket) -> None:
        upstream.request("GET", message.path, headers=message.headers)
        response = upstream.getresponse()
        if response.status != http.HTTPStatus.OK:
            client.sendall(_render(_collect(response)))
            return
        client.sendall(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n")
        for event in self._malice.bend_events(_blocks(response)):
            client.sendall(event)


def read_message(incoming: BinaryIO) -> Message | None:
    """The next request of a connection; None at its end."""
    first = incoming.readline(_MOST_HEAD_BYTES).decode("latin-1").split()
    if len(first) != 3:
        return None
    headers: dict[str, str] = {}
    while (line := incoming.readline(_MOST_HEAD_BYTES).decode("latin-1").rstrip("\r\n")) != "":
        name, _, value = line.partition(":")
        headers[name.strip().lower()] = value.strip()
    body = incoming.read(int(headers.get("content-length", "0")))
    return Message(first[0], first[1], headers, body)


def _forward(message: Message, upstream: http.client.HTTPConnection) -> Answer:
    headers = {name: value for name, value in message.headers.items() if name not in _HOP_HEADERS}
    upstream.request(message.method, message.path, message.body or None, headers)
    return _collect(upstream.getresponse())


def _collect(response: http.client.HTTPResponse) -> Answer:
    headers = {name.lower(): value for name, value in response.getheaders()}
    return Answer(response.status, headers, response.read())


def _render(answer: Answer) -> bytes:
    lines = [f"HTTP/1.1 {answer.status} {http.client.responses.get(answer.status, '')}"]
    lines += [f"{name}: {value}" for name, value in answer.headers.items() if name not in _HOP_HEADERS]
    return "\r\n".join([*lines, f"content-length: {len(answer.body)}", "", ""]).encode("latin-1") + answer.body


def _blocks(response: http.client.HTTPResponse) -> Iterator[bytes]:
    """The blocks of a stream of events, each with its empty line."""
    block: list[bytes] = []
    while line := response.readline():
        block.append(line)
        if line in (b"\n", b"\r\n"):
            yield b"".join(block)
            block = []
