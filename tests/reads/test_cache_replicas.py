"""Memory over real replicas that lag, and what would happen without the rules."""

import asyncio
import random
import re
from collections.abc import AsyncIterator, Iterator
from typing import Any

import httpx
import msgspec
import pytest

from atelier.embedded.cluster import EmbeddedCluster
from atelier.reads.cache.answers import AnswerCache
from atelier.reads.document import Document
from atelier.reads.executor import Answer
from tests.fixtures.reading import Shop, flicker, make_settings, open_shop
from tests.fixtures.remembering import WITH_MEMORY, Remembering, count_hits, open_remembering
from tests.reads.conftest import connected
from tests.support import Service, role_dsn, running_cluster, running_service

pytestmark = [pytest.mark.anyio, pytest.mark.cluster]

WRITES = 1_000
PRODUCTS = 40
# What may differ between an answer from memory and one that was read: when and where, not what.
OWN = {"atelier-token", "atelier-served-by", "atelier-lag-ms", "server-timing", "date", "x-request-id"}


@pytest.fixture(scope="module")
def lagging() -> Iterator[EmbeddedCluster]:
    """A cluster whose replicas' replay the tests of this module pause."""
    with running_cluster() as cluster:
        yield cluster


@pytest.fixture
async def remembering(lagging: EmbeddedCluster) -> AsyncIterator[Remembering]:
    """A storefront over it that remembers."""
    async with open_remembering(make_settings(lagging, WITH_MEMORY)) as opened:
        yield opened


@pytest.fixture
async def shop(lagging: EmbeddedCluster) -> AsyncIterator[Shop]:
    """Writes to its primary."""
    async with open_shop(lagging) as opened:
        yield opened


def quantity(document: Document) -> int:
    """The quantity of the one SKU in a product's styles."""
    assert document.body is not None
    (style,) = msgspec.json.decode(document.body)["results"]
    (sku,) = style["skus"].values()
    return int(sku["quantity"])


async def write_and_read(remembering: Remembering, shop: Shop, writes: int) -> int:
    """Counts shelves up and reads them with the tokens of their last writes: how many reads were stale.

    The shelf that was just written is read at once, by its own writer, every other time; another one, written a while
    ago, is read then too: its token is one that memory vouches for by now, and a change unheard of would show.
    """
    shelves = [await shop.make_sku(on_hand=0) for _ in range(PRODUCTS)]
    written = dict.fromkeys(shelves, (await shop.token(), 0))
    dice, stale = random.Random(7), 0
    for number in range(1, writes + 1):
        shelf = dice.choice(shelves)
        written[shelf] = (await shop.set_stock(shelf[1], number), number)
        for read in (shelf, dice.choice(shelves))[number % 2 :]:
            token, least = written[read]
            document = await remembering.styles(read[0], remembering.reading.ask(token))
            stale += quantity(document) < least
            assert document.answer.token.lsn >= token.lsn
        # Others look too, so that there is always something in memory.
        await remembering.styles(dice.choice(shelves)[0])
    return stale


async def test_a_thousand_writes_are_each_seen_by_reads_with_their_tokens(
    lagging: EmbeddedCluster, remembering: Remembering, shop: Shop
) -> None:
    """None of fifteen hundred reads is stale, while replay stops and goes, and memory answers its share."""
    hits, done = count_hits(), asyncio.Event()
    lag = asyncio.create_task(flicker(lagging, done))
    try:
        assert await write_and_read(remembering, shop, WRITES) == 0
    finally:
        done.set()
        await lag
    assert count_hits() - hits > WRITES / 10


async def test_reads_go_stale_when_changes_are_not_heard_of(
    lagging: EmbeddedCluster, remembering: Remembering, shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The test above can fail: with the invalidation taken out, it does."""
    monkeypatch.setattr(AnswerCache, "_drop", lambda *_: None)
    done = asyncio.Event()
    lag = asyncio.create_task(flicker(lagging, done))
    try:
        assert await write_and_read(remembering, shop, WRITES // 2) > 0
    finally:
        done.set()
        await lag


async def test_tokens_of_answers_never_lead_back_in_time(
    lagging: EmbeddedCluster, remembering: Remembering, shop: Shop
) -> None:
    """A client that sends each answer's token back sees a quantity that only rises, from memory or not."""
    product_id, sku_id = await shop.make_sku(on_hand=0)
    done = asyncio.Event()
    lag = asyncio.create_task(flicker(lagging, done))

    async def count_up() -> None:
        for number in range(1, 10**6):
            if done.is_set():
                return
            await shop.set_stock(sku_id, number)
            await asyncio.sleep(0.005)

    token, seen = await shop.token(), 0
    counting = asyncio.create_task(count_up())
    for _ in range(1_000):
        document = await remembering.styles(product_id, remembering.reading.ask(token))
        assert quantity(document) >= seen
        token, seen = document.answer.token, quantity(document)
    done.set()
    await asyncio.gather(lag, counting)
    assert seen > 0


async def test_change_is_in_sight_of_those_who_ask_for_nothing(remembering: Remembering, shop: Shop) -> None:
    """An eventual read sees a sale shortly after it, though it is answered from memory until then."""
    product_id, sku_id = await shop.make_sku(on_hand=1)
    await remembering.reading.until_replayed(await shop.token())
    for number in range(2, 30):
        assert quantity(await remembering.styles(product_id)) == number - 1
        hits = count_hits()
        await remembering.styles(product_id)
        await remembering.reading.until_replayed(await shop.set_stock(sku_id, number))
        async with asyncio.timeout(5):
            while quantity(await remembering.styles(product_id)) != number:
                await asyncio.sleep(0.001)
        assert count_hits() > hits


async def test_new_catalogue_ends_all_that_was_kept(
    lagging: EmbeddedCluster, remembering: Remembering, shop: Shop
) -> None:
    """An import announces itself in one row."""
    product_id, sku_id = await shop.make_sku(on_hand=1)
    await remembering.reading.until_replayed(await shop.token())
    await remembering.styles(product_id)
    async with connected(lagging.superuser_dsn(lagging.primary.name)) as admin:
        await admin.execute("set search_path = atelier; set session_replication_role = replica")
        await admin.execute(
            f"begin; update stock set on_hand = 5 where sku_id = {sku_id}; select announce_catalogue(); commit"
        )
    async with asyncio.timeout(5):
        while quantity(await remembering.styles(product_id)) != 5:
            await asyncio.sleep(0.005)


async def test_readers_with_a_token_each_run_few_statements_when_all_is_forgotten(
    lagging: EmbeddedCluster, remembering: Remembering, shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A new catalogue while everybody looks: one statement for each page and dialect, not one for each reader."""
    run, reads = remembering.reading.executor.run, 0

    async def count(*arguments: Any) -> Answer:
        nonlocal reads
        reads += 1
        return await run(*arguments)

    shelves = [await shop.make_sku(on_hand=1) for _ in range(10)]
    tokens = [await shop.set_stock(shelves[0][1], number) for number in range(1, 31)]
    await remembering.until_heard(tokens[-1])
    for product_id, _ in shelves:
        await remembering.styles(product_id)
    async with connected(role_dsn(lagging, "migrator")) as owner:
        await owner.execute("select announce_catalogue()")
    await remembering.until_heard(await shop.token())
    monkeypatch.setattr(remembering.reading.executor, "run", count)
    asks = [(product_id, remembering.reading.ask(token)) for token in tokens for product_id, _ in shelves]
    shown = await asyncio.gather(*(remembering.styles(product_id, ask) for product_id, ask in asks))
    assert [quantity(document) for document in shown] == [30, *[1] * 9] * 30
    assert reads <= 2 * len(shelves)


async def test_more_changes_than_one_look_takes_are_all_heard_of(
    remembering: Remembering, shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Until they are, what is kept vouches for no new position."""
    monkeypatch.setattr("atelier.reads.cache.follow.BATCH", 3)
    shelves = [await shop.make_sku(on_hand=0) for _ in range(40)]
    await remembering.reading.until_replayed(await shop.token())
    for round_ in range(1, 6):
        for product_id, _ in shelves:
            await remembering.styles(product_id)
        async with shop.connection.transaction():
            for _, sku_id in shelves:
                await shop.connection.execute("update stock set on_hand = $2 where sku_id = $1", sku_id, round_)
        token = await shop.token()
        for product_id, _ in reversed(shelves):
            assert quantity(await remembering.styles(product_id, remembering.reading.ask(token))) == round_


async def test_feed_goes_on_where_it_was_cut(lagging: EmbeddedCluster, remembering: Remembering, shop: Shop) -> None:
    """A lost connection loses nothing: what was kept stays, and changes made meanwhile are heard of."""
    shelves = [await shop.make_sku(on_hand=0) for _ in range(10)]
    await remembering.until_heard(await shop.token())
    sources = {name: remembering.cache.source(name) for name in ("pg2", "pg3")}
    for number in range(1, 4):
        for product_id, _ in shelves:
            await remembering.styles(product_id)
        for name in sources:
            async with connected(lagging.superuser_dsn(name)) as admin:
                await admin.execute("select pg_terminate_backend(pid) from pg_stat_activity where usename = 'reader'")
        for _, sku_id in shelves[:5]:
            token = await shop.set_stock(sku_id, number)
        await remembering.until_heard(token)
        hits, ask = count_hits(), remembering.reading.ask(token)
        shown = [quantity(await remembering.styles(product_id, ask)) for product_id, _ in shelves]
        assert shown == [number] * 5 + [0] * 5
        assert count_hits() - hits == 5
    assert {name: remembering.cache.source(name) for name in sources} == sources


@pytest.fixture
def broken() -> Iterator[EmbeddedCluster]:
    """A cluster with one replica, which a test breaks."""
    with running_cluster(replicas=1) as cluster:
        yield cluster


async def test_killed_replica_answers_from_memory_no_more(broken: EmbeddedCluster) -> None:
    """What it answered is forgotten, and reads go on."""
    async with open_remembering(make_settings(broken, WITH_MEMORY)) as remembering, open_shop(broken) as shop:
        product_id, sku_id = await shop.make_sku(on_hand=1)
        await remembering.reading.until_replayed(await shop.token())
        first = await remembering.styles(product_id)
        assert first.answer.node == "pg2"
        await asyncio.to_thread(broken.kill, "pg2")
        await shop.set_stock(sku_id, 2)
        async with asyncio.timeout(10):
            while quantity(await remembering.styles(product_id)) != 2:
                await asyncio.sleep(0.01)
        await asyncio.to_thread(broken.start_node, "pg2")
        await remembering.reading.until_roles(pg2="replica")
        token = await shop.set_stock(sku_id, 3)
        await remembering.until_followed()
        assert quantity(await remembering.styles(product_id, remembering.reading.ask(token))) == 3


@pytest.fixture(scope="module")
def services(lagging: EmbeddedCluster) -> Iterator[tuple[Service, Service]]:
    """One that remembers, and one that does not."""
    with (
        running_service(lagging, settings=WITH_MEMORY) as remembering,
        running_service(lagging, settings={"ATELIER_CACHE_BYTES": "0"}) as forgetful,
    ):
        yield remembering, forgetful


async def test_answers_from_memory_differ_in_nothing(services: tuple[Service, Service], shop: Shop) -> None:
    """Bytes, status and headers of all four reads, in both dialects, with and without conditions."""
    product_id, _ = await shop.make_sku(on_hand=3)
    paths = [f"{base}/products{path}" for base in ("", "/api/fec2/hr-rfp") for path in _paths(product_id)]
    asked: list[dict[str, str]] = [{}, {"If-None-Match": "*"}, {"Atelier-Consistency": "causal"}]
    async with httpx.AsyncClient(base_url=services[0].url) as one, httpx.AsyncClient(base_url=services[1].url) as two:
        made = await one.get("/products/1", headers={"Atelier-Consistency": "strong"})
        token = {"Atelier-Token": made.headers["Atelier-Token"]}
        for path in paths:
            for method in ("GET", "HEAD"):
                for headers in [*asked, token, {**token, "Atelier-Consistency": "eventual"}]:
                    plain = await two.request(method, path, headers=headers)
                    await one.get(path, headers=headers)
                    kept = await one.request(method, path, headers=headers)
                    assert kept.content == plain.content, path
                    assert kept.status_code == plain.status_code
                    assert _comparable(kept) == _comparable(plain), (path, headers)
                    assert set(kept.headers) == set(plain.headers)
        metrics = [(await client.get("/metrics")).text for client in (one, two)]
    for statement in ("product", "styles", "list"):
        for dialect in ("documented", "live"):
            assert _hits(metrics[0], f"{statement}_{dialect}") > 0
    assert _hits(metrics[0], "related") > 0
    assert "atelier_cache_hits_total{" not in metrics[1]
    for name in ("atelier_cache_entries", "atelier_cache_bytes"):
        assert float(_value(metrics[0], name)) > 0
        assert float(_value(metrics[1], name)) == 0
    assert "atelier_cache_coherence_seconds{node=" in metrics[0]
    assert 'atelier_cache_misses_total{reason="absent"}' in metrics[0]


async def test_stampede_on_one_changed_product_runs_few_statements(
    services: tuple[Service, Service], shop: Shop, lagging: EmbeddedCluster
) -> None:
    """Hundreds ask for one product at once, again and again, and it changes all the time."""
    product_id, sku_id = await shop.make_sku(on_hand=0)
    limits = httpx.Limits(max_connections=100)
    async with httpx.AsyncClient(base_url=services[0].url, limits=limits, timeout=15) as client:
        before = sum(_counts((await client.get("/metrics")).text))
        for number in range(1, 6):
            await shop.set_stock(sku_id, number)
            answers = await asyncio.gather(*(client.get(f"/products/{product_id}/styles") for _ in range(200)))
            assert {answer.status_code for answer in answers} == {200}
        read = sum(_counts((await client.get("/metrics")).text)) - before
    assert read <= 5 * 10


def _paths(product_id: int) -> list[str]:
    return [f"/{product_id}", f"/{product_id}/styles", f"/{product_id}/related", "", "?page=2&count=2", "/999999999"]


def _comparable(answer: httpx.Response) -> dict[str, str]:
    return {name: value for name, value in answer.headers.items() if name not in OWN}


def _value(metrics: str, name: str) -> str:
    found = re.search(rf"^{re.escape(name)} (\S+)$", metrics, re.MULTILINE)
    assert found, name
    return found[1]


def _hits(metrics: str, statement: str) -> float:
    found = re.search(rf'^atelier_cache_hits_total{{statement="{statement}"}} (\S+)$', metrics, re.MULTILINE)
    return float(found[1]) if found else 0.0


def _counts(metrics: str) -> list[float]:
    """The reads that a node has run, by node and reason."""
    found = re.findall(r'^atelier_read_decisions_total{node="[^"]+",reason="([^"]+)"} (\S+)$', metrics, re.MULTILINE)
    return [float(count) for reason, count in found if reason != "memory"]
