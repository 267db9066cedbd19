"""What both sides use of ASGI itself: a request's headers by name, its body, and an answer that is finished."""

import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from functools import lru_cache
from typing import Any

from litestar.types import Receive, Scope, Send

from atelier.alarms import Alarms
from atelier.problems import ProblemError

# The framework refuses hosts that are none; those it would have to look at closer are left to it.
_HOST = re.compile(rb"[A-Za-z0-9.:-]{1,253}", re.ASCII)
# Of these, several lines are one list (RFC 9110, 5.3), with what stands between its parts.
_LISTS = {b"if-match": b", ", b"if-none-match": b", ", b"cookie": b"; "}
# So much of a body that is too large is read all the same: who is cut off while sending does not see the answer.
_LINGER_BYTES = 4 * 1024 * 1024
_TOO_LARGE = "The body is larger than this service takes."


class RequestHeaders(Mapping[str, str]):
    """The headers of a request, by name in any case. The framework's own are made for more than a read looks at.

    Attributes:
        raw: the same as they came, by name in lower case. Lines of a header that is a list are joined; of any other
            the last counts.
        doubled: the names of those that were sent more than once and are no lists.
    """

    __slots__ = ("doubled", "raw")

    def __init__(self, raw: Collection[tuple[bytes, bytes]]) -> None:
        """Takes them as ASGI has them: names in lower case."""
        self.raw = dict(raw)
        self.doubled: frozenset[str] = frozenset()
        if len(self.raw) != len(raw):
            self._join(raw)

    def _join(self, raw: Iterable[tuple[bytes, bytes]]) -> None:
        lines: dict[bytes, list[bytes]] = {}
        for name, value in raw:
            lines.setdefault(name, []).append(value)
        several = {name: values for name, values in lines.items() if len(values) > 1}
        self.raw.update({name: _LISTS[name].join(values) for name, values in several.items() if name in _LISTS})
        self.doubled = frozenset(name.decode("latin-1") for name in several if name not in _LISTS)

    def __getitem__(self, name: str) -> str:
        """The value of a header."""
        return self.raw[_to_raw(name)].decode("latin-1")

    def get(self, name: str, default: Any = None) -> Any:
        """The same, or the default: without the exception that most look-ups would end in."""
        value = self.raw.get(_to_raw(name))
        return default if value is None else value.decode("latin-1")

    def __contains__(self, name: object) -> bool:
        """Whether it was sent."""
        return isinstance(name, str) and _to_raw(name) in self.raw

    def __iter__(self) -> Iterator[str]:
        """The names, in lower case."""
        return (name.decode("latin-1") for name in self.raw)

    def __len__(self) -> int:
        """How many names there are."""
        return len(self.raw)


def headers_of(scope: Any) -> RequestHeaders:
    """The headers of a request, taken apart once for all who ask."""
    headers: RequestHeaders | None = scope.get("atelier.headers")
    if headers is None:
        headers = scope["atelier.headers"] = RequestHeaders(scope["headers"])
    return headers


def has_plain_host(scope: Any) -> bool:
    """Whether a request names no host, or one that need not be looked at closer."""
    return _HOST.fullmatch(headers_of(scope).raw.get(b"host", b"-")) is not None


async def read_body(scope: Any, receive: Receive, *, most_bytes: int, within_s: float, alarms: Alarms) -> bytes:
    """Reads the body of a request whole.

    Raises:
        ProblemError: it is larger than allowed, it did not come in time, or its sender left.
    """
    declared = headers_of(scope).raw.get(b"content-length", b"")
    if declared.isdigit() and int(declared) > most_bytes + _LINGER_BYTES:
        raise ProblemError("payload-too-large", _TOO_LARGE)
    try:
        with alarms.bound(within_s):
            return await _read_parts(receive, most_bytes)
    except TimeoutError as error:
        raise ProblemError("invalid-request", "The body did not arrive in time.") from error


async def _read_parts(receive: Receive, most_bytes: int) -> bytes:
    body, size = b"", 0
    is_whole = False
    while not is_whole and size <= most_bytes + _LINGER_BYTES:
        message: dict[str, Any] = await receive()  # type: ignore[assignment]  # a union of dictionaries
        if message["type"] != "http.request":
            raise ProblemError("invalid-request", "The body ended early.")
        part: bytes = message.get("body", b"")
        size += len(part)
        body = body + part if size <= most_bytes else b""
        is_whole = not message.get("more_body", False)
    if size > most_bytes:
        raise ProblemError("payload-too-large", _TOO_LARGE)
    return body


@lru_cache(maxsize=256)
def _to_raw(name: str) -> bytes:
    return name.lower().encode("latin-1")


class Sent:
    """A finished answer as ASGI: the framework's own class costs a third of the way through it."""

    __slots__ = ("_body", "_headers", "_status")

    def __init__(self, status: int, headers: list[tuple[bytes, bytes]], body: bytes) -> None:
        """Takes the answer as it goes out."""
        self._status = status
        self._headers = headers
        self._body = body

    async def __call__(self, _scope: Scope, _receive: Receive, send: Send) -> None:
        """Sends it."""
        await send({"type": "http.response.start", "status": self._status, "headers": self._headers})
        await send({"type": "http.response.body", "body": self._body, "more_body": False})


def describe_body(media_type: str, body: bytes) -> tuple[tuple[bytes, bytes], tuple[bytes, bytes]]:
    """The two headers that every answer with a body has."""
    return (b"content-type", media_type.encode()), (b"content-length", str(len(body)).encode())
