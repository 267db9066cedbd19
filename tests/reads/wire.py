"""A client that sends exactly the bytes it is given: others tidy addresses up before they send them."""

import json
import socket
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit


@dataclass(frozen=True)
class Reply:
    """One answer, as it came."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def problem(self) -> str | None:
        """The name of the problem that it is; None when it is none."""
        if self.headers.get("content-type") != "application/problem+json":
            return None
        document = json.loads(self.body)
        assert document["status"] == self.status
        return str(document["type"]).removeprefix("/problems/")

    def json(self) -> Any:
        """The body as a value."""
        return json.loads(self.body)


def ask(url: str, target: bytes | str, method: str = "GET", *, body: bytes | None = None, **headers: str) -> Reply:
    """Sends one request; `If_None_Match="..."` and the like are headers."""
    raw = target.encode("latin-1") if isinstance(target, str) else target
    lines = [f"{method} ".encode() + raw + b" HTTP/1.1", b"Connection: close"]
    headers = {"Host": "shop.example"} | headers
    lines += [f"{name.replace('_', '-')}: {value}".encode("latin-1") for name, value in headers.items()]
    if body is not None:
        lines.append(b"Content-Length: %d" % len(body))
    parts = urlsplit(url)
    with socket.create_connection((str(parts.hostname), int(parts.port or 80)), timeout=10) as connection:
        connection.sendall(b"\r\n".join(lines) + b"\r\n\r\n" + (body or b""))
        received = bytearray()
        while piece := connection.recv(65536):
            received += piece
    return _parse(bytes(received))


def _parse(received: bytes) -> Reply:
    head, _, body = received.partition(b"\r\n\r\n")
    first, *lines = head.decode("latin-1").split("\r\n")
    headers: dict[str, str] = {}
    for line in lines:
        name, _, value = line.partition(": ")
        headers[name.lower()] = f"{headers[name.lower()]}, {value}" if name.lower() in headers else value
    return Reply(int(first.split(" ")[1]), headers, body)
