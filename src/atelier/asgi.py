"""What both sides use of ASGI itself: a request's headers by name, and an answer that is finished."""

from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from typing import Any

from litestar.types import Receive, Scope, Send


class RequestHeaders(Mapping[str, str]):
    """The headers of a request, by name in any case. The framework's own are made for more than a read looks at.

    Attributes:
        raw: the same as they came, by name in lower case.
    """

    __slots__ = ("raw",)

    def __init__(self, raw: Iterable[tuple[bytes, bytes]]) -> None:
        """Takes them as ASGI has them: names in lower case."""
        self.raw = dict(raw)

    def __getitem__(self, name: str) -> str:
        """The value of a header; of one that was sent twice, the last."""
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
