"""The short way answers what the ordinary handlers answer: the same status, headers, body, metrics and log line."""

import asyncio
import copy
import json
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from atelier.app import create_app
from atelier.embedded.cluster import EmbeddedCluster
from atelier.lsn import Lsn
from atelier.reads import shortcut
from atelier.reads.shortcut import Shortcut
from atelier.telemetry import CACHE_HITS, REGISTRY
from atelier.token import CausalToken, TokenKeys
from atelier.web.edge import Edge
from tests.fixtures.reading import make_settings, open_shop
from tests.reads.conftest import connected

pytestmark = [pytest.mark.anyio, pytest.mark.cluster]

# What differs between two answers to one question, whichever way they went.
VARYING = {"x-request-id", "server-timing", "atelier-lag-ms", "atelier-served-by", "atelier-token"}
# ID is that of a product with one of everything.
IN_BOTH_DIALECTS = (
    "/products", "/products?page=2&count=1", "/products?after=0&count=2", "/products?page=99999", "/products?count=0",
    "/products?page=1&after=1", "/products?page=1&page=2", "/products?surprise=1",
    "/products/ID", "/products/ID/styles", "/products/ID/related", "/products/ID?x=y",
    "/products/999999999", "/products/999999999/styles", "/products/999999999/related",
    "/products/0", "/products/01", "/products/9223372036854775808", "/products/1_000", "/products/-1", "/products/x",
    "/products/ID/reviews", "/products/ID/styles/2", "/products/ID/", "/product",
)  # fmt: skip
ADDRESSES = (
    *IN_BOTH_DIALECTS, *(f"/api/fec2/hr-rfp{address}" for address in IN_BOTH_DIALECTS),
    "/api/fec2/HR/products/ID", "/api/fec2//products/ID", f"/api/fec2/{'c' * 33}/products", "/api/fec2/h_r/products",
    "/api/fec2/hr-rfp", "/api/fec3/hr-rfp/products", "/api/fec2/hr/rfp/products/ID/styles",
)  # fmt: skip
# What there is an answer of 200 for.
WHOLE = tuple(
    f"{dialect}/products{rest}"
    for dialect in ("", "/api/fec2/hr-rfp")
    for rest in ("", "/ID", "/ID/styles", "/ID/related")
)
HEADERS: tuple[dict[str, str], ...] = (
    {},
    {"if-none-match": "*"},
    {"if-none-match": "TAG"},
    {"if-none-match": '"other", TAG'},
    {"if-none-match": "W/TAG"},
    {"if-none-match": '"other"'},
    {"atelier-token": "GOOD"},
    {"cookie": "atelier_token=GOOD; other=1"},
    {"atelier-token": "GOOD", "if-none-match": "TAG"},
    {"atelier-token": "GOOD", "atelier-consistency": "eventual"},
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
# What the short way leaves alone is asked for in fewer ways.
OF_OTHERS: tuple[dict[str, str], ...] = ({}, {"origin": "https://pages.example"}, {"host": "not a host"})


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
        "token": dict(pairs).get("atelier-token"),
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


async def make_whole_product(cluster: EmbeddedCluster) -> tuple[int, CausalToken]:
    """A product with one of everything, and the token of the last of it, which all replicas have replayed."""
    async with open_shop(cluster) as shop:
        product_id, sku_id = await shop.make_sku(on_hand=5)
        related_id, _ = await shop.make_sku(on_hand=1)
        execute = shop.connection.execute
        await execute("insert into feature (product_id, feature) values ($1, 'Fabric')", product_id)
        await execute("insert into photo (style_id, url) select style_id, 'https://a' from sku where id = $1", sku_id)
        await execute("insert into related values ($1, 1, $2)", product_id, related_id)
        token = await shop.token()
    for name in cluster.nodes:
        async with connected(cluster.superuser_dsn(name)) as node, asyncio.timeout(10):
            while await node.fetchval("select pg_last_wal_replay_lsn() < $1::text::pg_lsn", str(token.lsn)):
                await asyncio.sleep(0.01)
    return product_id, token


@pytest.mark.parametrize("cache_bytes", ["0", "67108864"])
async def test_short_way_answers_what_the_ordinary_handlers_answer(cluster: EmbeddedCluster, cache_bytes: str) -> None:
    """Every address, as it is asked for in every way, one after the other over both, with and without memory."""
    settings = make_settings(
        cluster, {"ATELIER_CACHE_BYTES": cache_bytes, "ATELIER_CORS_ORIGINS": "https://pages.example"}
    )
    short = create_app(settings)
    ordinary = copy.copy(short)
    assert isinstance(short._app, Shortcut)
    ordinary._app = short._app._app
    product_id, good = await make_whole_product(cluster)
    keys = TokenKeys(settings.token_keys)
    sealed = {"LOST": keys.seal(CausalToken(1, 1, Lsn(1))), "GOOD": keys.seal(good)}
    statuses: Counter[int] = Counter()
    hits = count_hits()
    async with running(short):
        await until_ready(short)
        for template in ADDRESSES:
            address = template.replace("ID", str(product_id))
            first = await ask(ordinary, "GET", address, {})
            words = {**sealed, "TAG": dict(first["headers"]).get("etag", '"none"')}
            for method in METHODS:
                for asked in HEADERS if method in ("GET", "HEAD") else OF_OTHERS:
                    headers = {name: fill(value, words) for name, value in asked.items()}
                    one, other = (
                        await ask(short, method, address, headers),
                        await ask(ordinary, method, address, headers),
                    )
                    for answer in (one, other):
                        token = answer.pop("token")
                        if token and "GOOD" in " ".join(asked.values()):
                            assert keys.open(token).lsn >= good.lsn, (method, address, asked)
                    assert one == other, (method, address, asked)
                    statuses[one["status"]] += method == "GET"
    assert all(statuses[status] >= len(WHOLE) for status in (200, 304, 400, 404, 409)), statuses
    assert (count_hits() > hits) == (cache_bytes != "0")


def fill(value: str, words: dict[str, str]) -> str:
    """A header with what its words stand for."""
    for word, meaning in words.items():
        value = value.replace(word, meaning)
    return value


def count_hits() -> float:
    """How many reads of one product memory has answered in this process, in both dialects."""
    return CACHE_HITS.value("product_documented") + CACHE_HITS.value("product_live")


async def test_plain_reads_do_go_the_short_way(cluster: EmbeddedCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise the comparison above compares nothing; and a mistake of ours on it is a 500 in the usual form."""

    def fail(*_: object) -> None:
        raise RuntimeError("a mistake of ours")

    app = create_app(make_settings(cluster))
    monkeypatch.setattr(shortcut, "RESOURCES", dict.fromkeys(shortcut.RESOURCES, fail))
    assert isinstance(app._app, Shortcut)
    app._app = Shortcut(app._app._app, app._app._reads, app._app._refuse)
    async with running(app):
        for address in WHOLE:
            answer = await ask(app, "GET", address.replace("ID", "1"), {})
            assert (answer["status"], json.loads(answer["body"])["type"]) == (500, "about:blank")
        await until_ready(app)
        assert (await ask(app, "GET", "/styles/1", {}))["status"] in (200, 404)
    for route in ("/products/{product_id}", "/api/fec2/{campus}/products/{product_id}"):
        labels = {"method": "GET", "route": route, "status": "500"}
        assert REGISTRY.get_sample_value("atelier_http_requests_total", labels)
