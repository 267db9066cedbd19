"""Clients of the tests' own: they know the wire and nothing of the service, and remember what they were told."""

import http.client
import itertools
import json
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Self

from tests.e2e.stack import wait_for

BROKEN = (OSError, http.client.HTTPException)


@dataclass(frozen=True)
class Answer:
    """One HTTP answer."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        """The body, parsed."""
        return json.loads(self.body)

    @property
    def token(self) -> str:
        """The causal token that came with it."""
        return self.headers["atelier-token"]


class Client:
    """One keep-alive connection, opened anew when it was closed between two requests; it never sends one twice."""

    def __init__(self, port: int, *, key: str | None = None, timeout_s: float = 30) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=timeout_s)
        self._headers = {"Authorization": f"Bearer {key}"} if key else {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.close()

    def ask(self, method: str, path: str, *, body: Any = None, **headers: str) -> Answer:
        """Sends one request; header names are written with underscores."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        data = None
        if body is not None:
            data, named["Content-Type"] = json.dumps(body).encode(), "application/json"
        try:
            self._connection.request(method, path, body=data, headers={**self._headers, **named})
            answer = self._connection.getresponse()
            content = answer.read()
        except BROKEN:
            self._connection.close()
            raise
        return Answer(answer.status, {name.lower(): value for name, value in answer.getheaders()}, content)

    def open_stream(self, path: str, **headers: str) -> http.client.HTTPResponse:
        """Asks for a stream of events and leaves it open."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        self._connection.request("GET", path, headers={"Accept": "text/event-stream", **named})
        answer = self._connection.getresponse()
        assert answer.status == 200, answer.read(500)
        assert answer.getheader("content-type", "").startswith("text/event-stream")
        return answer

    def get(self, path: str, **headers: str) -> Answer:
        """Reads."""
        return self.ask("GET", path, **headers)


@dataclass
class Command:
    """One command: its key, and what became of it."""

    key: str
    statuses: list[int | str] = field(default_factory=list)
    """What each try brought: a status, or the name of what broke."""
    acknowledged_s: float | None = None


class Load:
    """Threads that do something over and over until the block ends."""

    def __init__(self, work: Callable[[int, threading.Event], None], *, threads: int) -> None:
        self._stop = threading.Event()
        self._mistakes: list[BaseException] = []
        self._work = work
        self._threads = [threading.Thread(target=self._run, args=(number,)) for number in range(threads)]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(timeout=120)
        assert not any(thread.is_alive() for thread in self._threads), "a client did not come to an end"
        assert not self._mistakes, self._mistakes

    def _run(self, number: int) -> None:
        try:
            self._work(number, self._stop)
        except BaseException as error:  # noqa: BLE001 - told by the thread that waits for this one
            self._mistakes.append(error)


class CommandLoad(Load):
    """Writers that add one piece to a SKU, each with a new key, and retry until it is acknowledged."""

    def __init__(self, port: int, key: str, sku_ids: list[int], *, threads: int = 4, pause_s: float = 0.005) -> None:
        super().__init__(self._write, threads=threads)
        self._port, self._key, self._pause_s = port, key, pause_s
        self._sku_ids = sku_ids
        self.run = uuid.uuid4().hex[:12]
        self.commands: list[Command] = []
        self.token: str | None = None

    @property
    def acknowledged(self) -> list[Command]:
        """Those that were answered with 200."""
        return [command for command in self.commands if command.acknowledged_s is not None]

    @property
    def refused(self) -> Counter[int | str]:
        """What the tries brought that were not acknowledged."""
        return Counter(status for command in self.commands for status in command.statuses if status != 200)

    @property
    def longest_gap_s(self) -> float:
        """The longest time in which no command at all was acknowledged."""
        times = sorted(command.acknowledged_s for command in self.acknowledged if command.acknowledged_s)
        return max((after - before for before, after in itertools.pairwise(times)), default=0.0)

    def wait_for_more(self, count: int, *, within_s: float = 60) -> None:
        """Waits until so many more commands were acknowledged; fails the test when they are not in time."""
        wanted = len(self.acknowledged) + count
        wait_for(lambda: len(self.acknowledged) >= wanted, within_s=within_s, what=f"{count} more commands")

    def _write(self, number: int, stop: threading.Event) -> None:
        sku_id = self._sku_ids[number % len(self._sku_ids)]
        with Client(self._port, key=self._key) as client:
            for count in itertools.count():
                if stop.is_set():
                    return
                command = Command(f"{self.run}-{number}-{count}")
                self.commands.append(command)
                self._carry_out(client, command, sku_id)
                time.sleep(self._pause_s)

    def _carry_out(self, client: Client, command: Command, sku_id: int) -> None:
        body = {"reason": self.run, "lines": [{"sku_id": sku_id, "delta": 1}]}
        give_up_s = time.monotonic() + 90
        while time.monotonic() < give_up_s:
            try:
                answer = client.ask("POST", "/inventory/adjustments", body=body, Idempotency_Key=command.key)
            except BROKEN as error:
                command.statuses.append(type(error).__name__)
            else:
                command.statuses.append(answer.status)
                if answer.status == 200:
                    command.acknowledged_s = time.monotonic()
                    self.token = answer.token
                    return
                assert answer.status in (409, 503), (answer.status, answer.body)
            time.sleep(0.1)


class ReadLoad(Load):
    """Readers that ask for the storefront's pages; every second one sends back the token of its last answer."""

    PATHS = ("/products/{id}", "/products/{id}/styles", "/products/{id}/related", "/products?count=5")

    def __init__(self, port: int, *, threads: int = 4, pause_s: float = 0.005) -> None:
        super().__init__(self._read, threads=threads)
        self._port, self._pause_s = port, pause_s
        self.served: Counter[str] = Counter()
        self.failures: list[str] = []
        self.slowest_s = 0.0

    def _read(self, number: int, stop: threading.Event) -> None:
        headers: dict[str, str] = {}
        with Client(self._port) as client:
            for count in itertools.count(number):
                if stop.is_set():
                    return
                path = self.PATHS[count % len(self.PATHS)].format(id=1 + count % 30)
                self._ask(client, path, headers, keeps_token=number % 2 == 1)
                time.sleep(self._pause_s)

    def _ask(self, client: Client, path: str, headers: dict[str, str], *, keeps_token: bool) -> None:
        begun_s = time.monotonic()
        try:
            answer = client.get(path, **headers)
        except BROKEN as error:
            self.failures.append(f"{path}: {type(error).__name__} after {time.monotonic() - begun_s:.2f} s")
            return
        self.slowest_s = max(self.slowest_s, time.monotonic() - begun_s)
        if answer.status != 200:
            self.failures.append(f"{path} {headers and 'with a token'}: {answer.status} {answer.body[:200]!r}")
            headers.clear()
            return
        self.served[answer.headers["atelier-served-by"]] += 1
        if keeps_token:
            headers["Atelier_Token"] = answer.token


class Follower:
    """Follows a SKU's stock over the change feed; whenever the stream ends, comes back behind what it has seen."""

    def __init__(self, port: int, sku_id: int) -> None:
        self._client, self._sku_id = Client(port, timeout_s=20), sku_id
        self._stream = self._client.open_stream("/changes")
        self._last_id = ""
        self.versions: list[int] = []
        self.ends: list[str] = []
        """Why each stream ended; `cut` where it did not say so."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._client.__exit__()

    def listen_while(self, is_wanted: Callable[[], bool]) -> None:
        """Reads on; asks after each event whether more is wanted, so events have to go on coming."""
        while is_wanted():
            event = self._read_event()
            if event is None:
                self._come_back("cut")
            elif event["event"] == "end":
                self._come_back(json.loads(event["data"])["reason"])
            else:
                self._note(event)

    def _read_event(self) -> dict[str, str] | None:
        """The next event's fields; None where the stream ends without one."""
        fields: dict[str, str] = {}
        try:
            for line in self._stream:
                name, _, value = line.decode().rstrip("\n").partition(": ")
                if value.startswith("follows "):
                    self._last_id = value.removeprefix("follows ")
                elif name:
                    fields[name] = value
                elif "data" in fields:
                    return fields
        except BROKEN:
            pass
        return None

    def _come_back(self, reason: str) -> None:
        self.ends.append(reason)
        self._client.__exit__()
        self._stream = self._client.open_stream("/changes", Last_Event_ID=self._last_id)

    def _note(self, event: dict[str, str]) -> None:
        self._last_id = event["id"]
        data = json.loads(event["data"])
        if data.get("sku_id") == self._sku_id:
            self.versions.append(data["version"])


def make_product(port: int, key: str, *, skus: int = 4) -> tuple[int, list[int]]:
    """Makes a product whose SKUs are nobody else's.

    Returns:
        Its id, and those of its SKUs.
    """
    style = {
        "name": "one",
        "original_price": "10",
        "sale_price": None,
        "default?": True,
        "skus": [{"size": f"S{number}", "quantity": 1000} for number in range(skus)],
    }
    body = {"name": "e2e", "slogan": "", "description": "", "category": "e2e", "default_price": "10", "styles": [style]}
    with Client(port, key=key) as client:
        made = client.ask("POST", "/products", body=body, Idempotency_Key=uuid.uuid4().hex)
        assert made.status == 201, made.body
        product_id = made.json["id"]
        styles = client.get(f"/products/{product_id}/styles", Atelier_Token=made.token)
    return product_id, [int(sku) for sku in styles.json["results"][0]["skus"]]


@contextmanager
def traffic(port: int, key: str, sku_ids: list[int]) -> Iterator[tuple[CommandLoad, ReadLoad]]:
    """Writers and readers at the same time, until the block ends."""
    with ReadLoad(port) as reads, CommandLoad(port, key, sku_ids) as commands:
        yield commands, reads
