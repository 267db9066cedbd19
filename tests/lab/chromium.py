"""A headless Chromium, driven through its debugging protocol: what a page shows, asks for and complains of."""

import itertools
import json
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import websocket

FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
    "--remote-debugging-port=0",
    "--remote-allow-origins=*",
)


def find_chromium() -> str:
    """Its program; skips the test, in one line, where there is none."""
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if program is None:
        pytest.skip("no Chromium: apt-get install chromium")
    return program


class Page:
    """One page."""

    def __init__(self, connection: websocket.WebSocket) -> None:
        self._connection = connection
        self._numbers = itertools.count(1)
        self.requests: list[str] = []
        self.complaints: list[str] = []
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: object) -> dict:
        """One command of the protocol, and its result."""
        number = next(self._numbers)
        self._connection.send(json.dumps({"id": number, "method": method, "params": parameters}))
        while True:
            message = self.receive()
            if message.get("id") == number:
                assert "error" not in message, message
                return message["result"]

    def receive(self) -> dict:
        """The next message; notes what the page asks for and what it complains of."""
        message = json.loads(self._connection.recv())
        match message.get("method"):
            case "Network.requestWillBeSent":
                self.requests.append(message["params"]["request"]["url"])
            case "Runtime.exceptionThrown":
                self.complaints.append(str(message["params"]["exceptionDetails"]))
            case "Runtime.consoleAPICalled":
                self.complaints.append(str(message["params"]["args"]))
            case "Log.entryAdded":
                self.complaints.append(message["params"]["entry"]["text"])
        return message

    def open(self, path: Path) -> None:
        """Opens a file and waits until it is loaded."""
        self.call("Page.navigate", url=path.as_uri())
        while self.receive().get("method") != "Page.loadEventFired":
            pass

    def evaluate(self, expression: str) -> object:
        """The value of an expression in the page."""
        result = self.call("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")


@contextmanager
def open_page(folder: Path) -> Iterator[Page]:
    """A page in a Chromium of its own, with an empty profile in `folder`."""
    command = [find_chromium(), *FLAGS, f"--user-data-dir={folder}", "about:blank"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        port = wait_for_port(folder / "DevToolsActivePort", process)
        target = json.loads(fetch(f"http://127.0.0.1:{port}/json/list"))[0]
        connection = websocket.create_connection(target["webSocketDebuggerUrl"], timeout=20)
        try:
            yield Page(connection)
        finally:
            connection.close()
    finally:
        process.terminate()
        process.wait(timeout=20)


def wait_for_port(path: Path, process: subprocess.Popen) -> int:
    """Where it listens, as soon as it says so."""
    deadline_s = time.monotonic() + 30
    while not (path.exists() and len(path.read_text().splitlines()) > 1):
        assert process.poll() is None, "Chromium ended"
        assert time.monotonic() < deadline_s, "Chromium does not say where it listens"
        time.sleep(0.05)
    return int(path.read_text().splitlines()[0])


def fetch(url: str) -> bytes:
    """What is at an address of this machine."""
    import httpx

    return httpx.get(url, timeout=10).content
