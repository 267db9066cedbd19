"""How a request gets to the service and its answer back, whatever carries it."""

import http.client
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol
from urllib.parse import urlsplit


@dataclass(frozen=True, slots=True)
class Request:
    """One request.

    Attributes:
        method: GET, POST, PUT, PATCH.
        path: with its query.
        name: under which figures are kept: the path with its ids left out.
        headers: without those that the transport adds.
        body: JSON text; None for none.
    """

    method: str
    path: str
    name: str
    headers: Mapping[str, str]
    body: bytes | None = None


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back. `status` 0: nothing did."""

    status: int
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""
    error: str = ""
    never_sent: bool = False

    @property
    def is_ok(self) -> bool:
        """Whether the service did what was asked."""
        return 200 <= self.status < 300

    def header(self, name: str) -> str | None:
        """A header, whatever its case."""
        return self.headers.get(name.lower())

    def json(self) -> Any:
        """The body; None where it is no JSON."""
        try:
            return json.loads(self.body)
        except ValueError:
            return None

    @property
    def problem(self) -> str | None:
        """The name of the problem that a refusal tells of."""
        if self.is_ok or not self.body:
            return None
        document = self.json()
        name = document.get("type") if isinstance(document, dict) else None
        return name.rpartition("/")[2] if isinstance(name, str) else None


class Transport(Protocol):
    """Sends one request at a time."""

    def send(self, request: Request) -> Answer:
        """The answer; never raises for what the network or the service does."""


class PlainTransport:
    """One kept connection through the standard library, with a bound on every wait. Close it."""

    def __init__(self, base_url: str, *, timeout_s: float = 12.0) -> None:
        """Opens nothing yet."""
        parts = urlsplit(base_url)
        self._prefix = parts.path.rstrip("/")
        self._connection = http.client.HTTPConnection(parts.hostname or "", parts.port or 80, timeout=timeout_s)

    def send(self, request: Request) -> Answer:
        """See `Transport`."""
        try:
            self._connection.connect() if self._connection.sock is None else None
        except OSError as error:
            return Answer(0, error=f"{type(error).__name__}: {error}", never_sent=True)
        try:
            self._connection.request(request.method, self._prefix + request.path, request.body, dict(request.headers))
            response = self._connection.getresponse()
            body = response.read()
        except (OSError, http.client.HTTPException) as error:
            self._connection.close()
            return Answer(0, error=f"{type(error).__name__}: {error}")
        return Answer(response.status, {name.lower(): value for name, value in response.getheaders()}, body)

    def close(self) -> None:
        """Closes the connection."""
        self._connection.close()
