"""The server under the service: no WebSockets, a bound on connections, an end that comes whatever hangs, sessions left
as they were opened.
"""

import json
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import asyncpg
import httpx
import pytest

from atelier.cli.serve import make_server
from atelier.embedded.cluster import EmbeddedCluster
from atelier.problems import TYPES
from atelier.reads.connections import connect_reader
from atelier.reads.keys import KeyLookup
from tests.fixtures.reading import make_settings, open_shop
from tests.fixtures.remembering import open_remembering
from tests.reads.wire import ask
from tests.support import Service, end_service, plain_environment, wait_until

pytestmark = [pytest.mark.anyio, pytest.mark.cluster]


@pytest.mark.parametrize(
    ("first", "second"),
    [("/products/x", "/products?page=0"), ("/products/99999999999", "/nowhere"), ("/styles/99999999999", "/docs/x")],
)
def test_the_title_is_of_the_kind_and_the_detail_of_the_request(service: Service, first: str, second: str) -> None:
    """RFC 9457: two refusals of one kind have one title, and each its own detail; whoever refuses."""
    documents = [ask(service.url, target).json() for target in (first, second)]
    name = documents[0]["type"].removeprefix("/problems/")
    assert [document["type"] for document in documents] == [f"/problems/{name}"] * 2
    assert [document["title"] for document in documents] == [TYPES[name].title] * 2
    assert documents[0]["detail"] != documents[1]["detail"]
    assert TYPES[name].title not in [document["detail"] for document in documents]


def test_the_title_of_a_method_that_is_not_taken_is_that_of_its_kind(service: Service) -> None:
    """The framework's own refusal, too."""
    document = ask(service.url, "/health/live", "POST", body=b"").json()
    assert document["title"] == TYPES["method-not-allowed"].title
    assert document["detail"] == "This address does not take the method."


@pytest.mark.parametrize("path", ["/products", "/changes?after=x", "/nowhere"])
def test_a_web_socket_is_never_opened(service: Service, path: str) -> None:
    """Who asks for one is answered as if he had not: by a document."""
    head = (
        f"GET {path} HTTP/1.1\r\nHost: shop.example\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
        "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    )
    with connect(service.url) as connection:
        connection.sendall(head.encode())
        first, *lines = read_head(connection)
    plain = ask(service.url, path)
    assert first.startswith(f"HTTP/1.1 {plain.status} ")
    assert not any(line.lower().startswith(("upgrade:", "sec-websocket")) for line in lines)


def connect(url: str) -> socket.socket:
    """A connection of the test's own."""
    parts = urlsplit(url)
    return socket.create_connection((str(parts.hostname), int(parts.port or 80)), timeout=10)


def read_head(connection: socket.socket) -> list[str]:
    """The lines of an answer's head."""
    received = b""
    while b"\r\n\r\n" not in received:
        piece = connection.recv(65536)
        assert piece, received
        received += piece
    return received.partition(b"\r\n\r\n")[0].decode("latin-1").split("\r\n")


# In the place of the service's application: answers, or hangs where it is asked to.
APPLICATION = """
import time

def make():
    async def answer(scope, receive, send):
        if scope["type"] != "http":
            return
        if scope["path"] == "/hang":
            print("it hangs", flush=True)
            time.sleep(600)
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
        await send({"type": "http.response.body", "body": b"ok"})
    return answer
"""
# The server as the service makes it, with other numbers.
SERVER = """
import os
import signal
from atelier.cli import serve
from atelier.settings import Settings

serve._MOST_CONNECTIONS = 4
serve._KILL_MARGIN_S = -8  # of the ten seconds that it drains

if __name__ == "__main__":
    for told in (serve.NOTICE, serve.LAST_CALL):
        signal.signal(told, signal.SIG_IGN)
    server = serve.make_server(Settings.from_environment(os.environ))
    server.target = "application:make"
    server.serve()
"""


@contextmanager
def bounded_server(
    cluster: EmbeddedCluster, port: int, folder: Path
) -> Iterator[tuple[str, "subprocess.Popen[bytes]", Callable[[], str]]]:
    """A server with room for four connections, that waits two seconds at its end: its address, it, and its log."""
    (folder / "application.py").write_text(APPLICATION)
    (folder / "server.py").write_text(SERVER)
    environ = plain_environment() | cluster.environment() | {"ATELIER_PORT": str(port)}
    del environ["ATELIER_MIGRATOR_PASSWORD"]
    log = folder / "log"
    with log.open("wb") as output:
        server = subprocess.Popen([sys.executable, "server.py"], cwd=folder, env=environ, stdout=output, stderr=output,
                                  start_new_session=True)  # fmt: skip
    url = f"http://127.0.0.1:{port}"

    def is_up() -> bool:
        assert server.poll() is None, log.read_text()
        with suppress(httpx.TransportError):
            return httpx.get(url, timeout=2).status_code == 200
        return False

    try:
        wait_until(is_up, what="the server")
        yield url, server, log.read_text
    finally:
        end_service(server)


def test_connections_beyond_the_bound_wait_until_others_leave(
    cluster: EmbeddedCluster, free_port: int, tmp_path: Path
) -> None:
    """Connections, not requests: four that are kept open and idle are all that there are."""
    request = b"GET / HTTP/1.1\r\nHost: shop.example\r\n\r\n"
    with bounded_server(cluster, free_port, tmp_path) as (url, _, _), ExitStack() as stack:
        kept = [stack.enter_context(connect(url)) for _ in range(4)]
        for connection in kept:
            connection.sendall(request)
            assert read_head(connection)[0] == "HTTP/1.1 200 OK"
        late = stack.enter_context(connect(url))
        late.sendall(request)
        late.settimeout(0.5)
        with pytest.raises(TimeoutError):
            late.recv(1)
        kept[0].close()
        late.settimeout(10)
        assert read_head(late)[0] == "HTTP/1.1 200 OK"


def test_a_worker_that_hangs_is_killed_when_the_time_to_drain_is_over(
    cluster: EmbeddedCluster, free_port: int, tmp_path: Path
) -> None:
    """A stop ends, whatever a request is stuck in; here for ten minutes."""
    with bounded_server(cluster, free_port, tmp_path) as (url, server, read_log), connect(url) as connection:
        connection.sendall(b"GET /hang HTTP/1.1\r\nHost: shop.example\r\n\r\n")
        wait_until(lambda: "it hangs" in read_log(), what="a request that hangs")
        server.send_signal(signal.SIGTERM)
        server.wait(timeout=20)


def test_the_server_has_the_bounds_that_its_settings_say(cluster: EmbeddedCluster) -> None:
    """A worker takes 1,024 connections, and gets five seconds more than it may drain."""
    settings = make_settings(cluster)
    server: Any = make_server(settings)
    assert server.backpressure == 1024
    assert server.websockets is False
    assert server.workers_kill_timeout == settings.timeouts.drain_ms / 1000 + 5


# What a session can carry from one read to the next. The driver switches `jit` off and back when it meets a type.
STATE = """
select (select json_agg(json_build_array(name, setting, case when name <> 'jit' then source end) order by name)
        from pg_settings) as settings,
       (select count(*) from pg_class where relnamespace = pg_my_temp_schema()) as temporary,
       (select count(*) from pg_prepared_statements where from_sql) as prepared,
       (select count(*) from pg_cursors where name <> '' and is_holdable) as cursors,
       (select count(*) from pg_listening_channels()) as listening,
       (select count(*) from pg_locks where pid = pg_backend_pid() and locktype = 'advisory') as locks,
       current_user as who, current_setting('transaction_read_only') as read_only
"""


async def look(connection: "asyncpg.Connection[asyncpg.Record]") -> dict[str, Any]:
    """The state of one session."""
    row = dict(await connection.fetchrow(STATE))
    return row | {"settings": {name: rest for name, *rest in json.loads(row["settings"])}}


async def test_no_read_leaves_anything_behind_in_its_session(cluster: EmbeddedCluster) -> None:
    """Pooled connections are never reset, so after every kind of read each is as it was when it was opened."""
    settings = make_settings(cluster, {"ATELIER_CACHE_BYTES": "0"})
    async with open_shop(cluster) as shop, open_remembering(settings) as opened:
        product_id, sku_id = await shop.make_sku(5)
        reading, storefront = opened.reading, opened.storefront
        await reading.until_replayed(await shop.token())
        keys = KeyLookup(settings, reading.executor, clock=reading.pools._clock)
        for consistency in ("eventual", "strong"):
            for number in range(30):
                ask = reading.ask(consistency=consistency)
                for campus in (None, "hr"):
                    await storefront.page(1 + number, 5, campus, path="/products", ask=ask)
                    await storefront.after(number, 5, campus, path="/products", ask=ask)
                    await storefront.product(product_id, campus, ask)
                for live in (False, True):
                    await storefront.styles(product_id, live=live, ask=ask)
                await storefront.related(product_id, ask)
                await storefront.style(1, ask)
                await storefront.inventory(sku_id, ask)
                await storefront.movements(sku_id, 0, 10, ask)
                await storefront.reservation(1, ask)
                await keys.find("a" * 8)
        looked_at = 0
        for node in reading.monitor.snapshot.nodes:
            fresh = await connect_reader(settings, node.address)
            untouched = await look(fresh)
            fresh.terminate()
            pool = reading.pools.reader(node).pool
            while (used := pool.take()) is not None:
                looked_at += 1
                assert await look(used) == untouched, node.name
                used.terminate()
                pool.give(used)
        assert looked_at >= 3


def test_the_versions_that_are_installed_are_not_below_the_floors() -> None:
    """Below these, some of what is held here does not hold."""
    floors = {"litestar": (2, 25), "granian": (2, 8), "sqlalchemy": (2, 0, 50), "multipart": (1, 3, 1)}
    text = (Path(__file__).parents[2] / "requirements" / "service.txt").read_text(encoding="utf-8")
    locked = dict(re.findall(r"^([a-z0-9-]+)(?:\[[^\]]*\])?==([0-9.]+)", text, re.MULTILINE))
    for name, floor in floors.items():
        assert tuple(int(part) for part in locked[name].strip(".").split(".")) >= floor, name
