"""The short way answers what the ordinary handlers answer: the same status, headers, body, metrics and log line."""

import asyncio
import copy
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from atelier.app import create_app
from atelier.embedded.cluster import EmbeddedCluster
from atelier.lsn import Lsn
from atelier.reads import shortcut
from atelier.reads.shortcut import Shortcut
from atelier.telemetry import REGISTRY
from atelier.token import CausalToken, TokenKeys
from atelier.web.edge import Edge
from tests.fixtures.reading import make_settings

pytestmark = [pytest.mark.anyio, pytest.mark.cluster]

# What differs between two answers to one question, whichever way they went.
VARYING = {"x-request-id", "server-timing", "atelier-lag-ms", "atelier-served-by", "atelier-token"}
ADDRESSES = (
    "/products", "/products?page=2&count=3", "/products?after=2", "/products?page=99999", "/products?count=0",
    "/products?page=1&after=1", "/products?page=1&page=2", "/products?surprise=1",
    "/products/1", "/products/1/styles", "/products/1/related", "/products/1?x=y",
    "/products/999999999", "/products/999999999/styles", "/products/999999999/related",
    "/products/0", "/products/01", "/products/9223372036854775808", "/products/1_000", "/products/-1", "/products/x",
    "/products/1/reviews", "/products/1/styles/2", "/product",
)  # fmt: skip
HEADERS: tuple[dict[str, str], ...] = (
    {},
    {"if-none-match": "*"},
    {"atelier-consistency": "strong"},
    {"atelier-consistency": "bounded; max-lag-ms=60000"},
    {"atelier-consistency": "perhaps"},
    {"atelier-wait-ms": "soon"},
    {"atelier-token": "forged"},
    {"atelier-token": "LOST"},
    {"cookie": "other=1; atelier_token=forged"},
    {"cookie": "atelier_token=LOST"},
    {"origin": "https://pages.example"},
    {"host": "not a host"},
    {"host": "under_score.example"},
)
METHODS = ("GET", "HEAD", "POST", "DELETE", "OPTIONS")


@asynccontextmanager
async def running(app: Edge) -> AsyncIterator[None]:
    """The application between its start and its end."""
    asked: asyncio.Queue[dict[str, str]] = asyncio.Queue()
    told: asyncio.Queue[Any] = asyncio.Queue()
    life = asyncio.create_task(app({"type": "lifespan", "state": {}}, asked.get, told.put))

    async def go(step: str) -> None:
        await asked.put({"type": f"lifespan.{step}"})
        assert (await asyncio.wait_for(told.get(), 20))["type"] == f"lifespan.{step}.complete"

    await go("startup")
    try:
        yield
    finally:
        await go("shutdown")
        await life


async def ask(app: Edge, method: str, address: str, headers: dict[str, str]) -> dict[str, Any]:
    """One answer, with the names that it is counted and logged by."""
    sent: list[Any] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Any) -> None:
        sent.append(message)

    path, _, query = address.partition("?")
    scope = {
        "type": "http", "http_version": "1.1", "method": method, "path": path, "raw_path": path.encode(),
        "query_string": query.encode(), "root_path": "", "scheme": "http", "state": {},
        "headers": [(name.encode(), value.encode()) for name, value in ({"host": "shop.example"} | headers).items()],
    }  # fmt: skip
    await app(scope, receive, send)
    pairs = [(name.decode().lower(), value.decode()) for name, value in sent[0]["headers"]]
    return {
        "status": sent[0]["status"],
        "names": sorted(name for name, _ in pairs),
        "headers": sorted(pair for pair in pairs if pair[0] not in VARYING),
        "body": b"".join(message.get("body", b"") for message in sent[1:]),
        "template": scope.get("path_template"),
        "notes": sorted(scope["atelier"].notes),  # type: ignore[attr-defined]  # an Exchange
    }


async def until_ready(app: Edge) -> None:
    """Waits until every node has been seen: before that an answer depends on when it was asked for."""
    async with asyncio.timeout(10):
        while True:
            nodes = json.loads((await ask(app, "GET", "/cluster", {}))["body"])["nodes"]
            if all(node["role"] != "unknown" for node in nodes):
                return
            await asyncio.sleep(0.01)


async def test_short_way_answers_what_the_ordinary_handlers_answer(cluster: EmbeddedCluster) -> None:
    """Every address, as it is asked for in every way, one after the other over both."""
    settings = make_settings(cluster, {"ATELIER_CACHE_BYTES": "0", "ATELIER_CORS_ORIGINS": "https://pages.example"})
    short = create_app(settings)
    ordinary = copy.copy(short)
    assert isinstance(short._app, Shortcut)
    ordinary._app = short._app._app
    lost = TokenKeys(settings.token_keys).seal(CausalToken(1, 1, Lsn(1)))
    differing, counted = [], 0
    async with running(short):
        await until_ready(short)
        for method in METHODS:
            for address in ADDRESSES:
                for asked in HEADERS:
                    headers = {name: value.replace("LOST", lost) for name, value in asked.items()}
                    one, other = (
                        await ask(short, method, address, headers),
                        await ask(ordinary, method, address, headers),
                    )
                    counted += 1
                    if one != other:
                        differing.append((method, address, asked, one, other))
    assert counted == len(METHODS) * len(ADDRESSES) * len(HEADERS)
    assert not differing, differing[:3]


async def test_plain_reads_do_go_the_short_way(cluster: EmbeddedCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise the comparison above compares nothing; and a mistake of ours on it is a 500 in the usual form."""

    def fail(*_: object) -> None:
        raise RuntimeError("a mistake of ours")

    app = create_app(make_settings(cluster))
    monkeypatch.setattr(shortcut, "RESOURCES", dict.fromkeys(shortcut.RESOURCES, fail))
    assert isinstance(app._app, Shortcut)
    app._app = Shortcut(app._app._app, app._app._reads, app._app._refuse)
    async with running(app):
        for address in ("/products", "/products/1", "/products/1/styles", "/products/1/related"):
            answer = await ask(app, "GET", address, {})
            assert (answer["status"], json.loads(answer["body"])["type"]) == (500, "about:blank")
        await until_ready(app)
        assert (await ask(app, "GET", "/styles/1", {}))["status"] in (200, 404)
    assert REGISTRY.get_sample_value(
        "atelier_http_requests_total", {"method": "GET", "route": "/products/{product_id}", "status": "500"}
    )
