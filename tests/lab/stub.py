"""A stand-in for the service: answers over real HTTP as a test tells it to."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

Answering = Callable[[BaseHTTPRequestHandler, bytes], tuple[int, dict[str, str], bytes]]


class Stub(ThreadingHTTPServer):
    """Keeps what it was asked."""

    daemon_threads = True

    def __init__(self, answering: Answering) -> None:
        self.answering = answering
        self.seen: list[tuple[str, str, dict[str, str], bytes]] = []
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_address[1]}"

    def handle_error(self, request, client_address):
        """A client that is gone is no news."""


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        """Says nothing."""

    def answer(self):
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        self.server.seen.append((self.command, self.path, {k.lower(): v for k, v in self.headers.items()}, body))
        status, headers, document = self.server.answering(self, body)
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("content-length", str(len(document)))
        self.end_headers()
        self.wfile.write(document)

    do_GET = do_POST = do_PUT = do_PATCH = answer  # noqa: N815 - the names that the server looks for


@contextmanager
def serving(answering: Answering) -> Iterator[Stub]:
    """A stub, for as long as the block lasts."""
    stub = Stub(answering)
    thread = threading.Thread(target=stub.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield stub
    finally:
        stub.shutdown()
        thread.join(timeout=5)
        stub.server_close()


def reply(status: int, document: object = None, **headers: str) -> tuple[int, dict[str, str], bytes]:
    """An answer with a JSON body."""
    return status, {name.replace("_", "-"): value for name, value in headers.items()}, json.dumps(document).encode()


def refuse(status: int, name: str) -> tuple[int, dict[str, str], bytes]:
    """A problem document."""
    return reply(status, {"type": f"/problems/{name}", "status": status}, content_type="application/problem+json")


def wait_until(condition: Callable[[], bool], within_s: float = 10.0) -> None:
    """Waits for a condition, and fails when it does not come true in time."""
    deadline_s = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline_s, "it did not come true in time"
        time.sleep(0.01)
