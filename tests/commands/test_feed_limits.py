"""Who follows the change feed too slowly, or for too many: bounded, told, and nothing is lost by going on.

And what following costs the nodes: one replica is asked, again when it did not answer, and the primary is left alone.
"""

import asyncio
import json
import socket
import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager
from types import SimpleNamespace

import asyncpg
import psutil
import pytest

from atelier.deadline import Deadline
from atelier.embedded.cluster import EmbeddedCluster
from atelier.errors import NoReplicaError, OverloadedError
from atelier.lsn import Lsn
from atelier.problems import ProblemError
from atelier.reads import tail
from atelier.reads.backlog import Backlog
from atelier.reads.feed import EventStream, Feed, FeedLimits, Start
from atelier.reads.tail import Change, ChangeTail
from atelier.token import CausalToken, History, TokenKeys
from atelier.topology.monitor import TopologyMonitor
from atelier.topology.sources import StaticNodes
from tests.commands.conftest import Shop
from tests.commands.events import Event, change_and_follow, follow, next_about
from tests.commands.writing import settings_of
from tests.support import Service

pytestmark = [pytest.mark.anyio, pytest.mark.cluster, pytest.mark.soak]


@asynccontextmanager
async def open_feed(cluster: EmbeddedCluster, **limits: float) -> AsyncIterator[Feed]:
    """The feed in the test's own process, with bounds of its own."""
    settings, clock = settings_of(cluster), time.monotonic
    monitor = TopologyMonitor(settings, StaticNodes(settings.nodes), clock=clock)
    following = ChangeTail(settings, monitor, clock=clock)
    async with monitor, following:
        await monitor.wait_until(lambda seen: len(seen.replicas) == 2, Deadline.after(15, clock))
        yield Feed(following, monitor, TokenKeys(settings.token_keys), clock=clock, limits=FeedLimits(**limits))


async def begin(feed: Feed) -> AsyncGenerator[bytes, None]:
    """A subscription from now on."""
    return feed.follow(await feed.find_start(None))


def read_events(chunk: bytes) -> list[Event]:
    """The events of a piece of the stream."""
    events = []
    for block in chunk.decode().split("\n\n"):
        fields = dict(line.split(": ", 1) for line in block.split("\n") if line and not line.startswith(":"))
        if "data" in fields:
            events.append(Event(fields.get("id", ""), fields["event"], json.loads(fields["data"])))
    return events


def versions_of(events: list[Event], sku_id: int) -> list[int]:
    """The versions of a SKU among events."""
    return [event.data["version"] for event in events if event.data.get("sku_id") == sku_id]


async def until(condition) -> None:
    """Waits until something came true."""
    async with asyncio.timeout(15):
        while not condition():
            await asyncio.sleep(0.01)


async def pull_until(chunks: AsyncIterator[bytes], sku_id: int, version: int) -> list[int]:
    """Takes from a stream up to a version of a SKU; gives all versions of it that came."""
    seen: list[int] = []
    async with asyncio.timeout(15):
        while version not in seen:
            seen += versions_of(read_events(await anext(chunks)), sku_id)
    return seen


async def test_subscriber_that_falls_behind_is_cut_with_the_id_to_go_on_from(
    shop: Shop, cluster: EmbeddedCluster
) -> None:
    """Up to date first, then it takes nothing while thirty changes come: a last event says why, and loses nothing."""
    [sku_id] = await shop.stocked(0)
    async with open_feed(cluster, behind=10) as feed:
        async with aclosing(await begin(feed)) as chunks:
            assert (await anext(chunks)).startswith(b"retry: 1000\n")
            await until(lambda: feed._tail.head is not None)
            await shop.adjust(sku_id, 1)
            await pull_until(chunks, sku_id, 2)
            waiting = asyncio.create_task(pull_until(chunks, sku_id, 3))
            await shop.adjust(sku_id, 1)
            seen = await waiting
            for _ in range(30):
                await shop.adjust(sku_id, 1)
            await until(lambda: 33 in [change.fields["version"] for change in feed._tail._recent])
            rest = [event async for chunk in chunks for event in read_events(chunk)]
        end = rest.pop()
        assert (end.name, end.data["reason"]) == ("end", "too-slow")
    seen += versions_of(rest, sku_id)
    async with follow(shop.http, end.data["last_event_id"]) as events:
        while seen[-1] < 33:
            seen.append((await next_about(events, sku_id=sku_id)).data["version"])
    assert seen == list(range(3, 34))


async def test_slow_subscriber_reads_why_it_was_cut_and_where_to_go_on(shop: Shop, cluster: EmbeddedCluster) -> None:
    """Over a real connection, with the service's own bounds: it stops reading while 6,000 changes come, then reads on.

    What was on its way to it still comes, then the reason; another connection goes on without a gap or a repeat.
    """
    [sku_id] = await shop.stocked(0)
    async with follow(shop.http) as events:
        seen = []
        for version in (2, 3):
            # The second is sent when the first was told, so the subscriber has been up to date by then.
            await shop.adjust(sku_id, 1)
            seen.append(await next_about(events, sku_id=sku_id, version=version))
        await announce(cluster, sku_id, range(4, 6_004))
        # Once another one has come to the end, the process that serves both knows of all of them.
        await read_up_to(shop, seen[-1].id, sku_id, 6_003)
        async with asyncio.timeout(15):
            while (end := await events.next()).name != "end":
                seen.append(end)
            with pytest.raises(EOFError):
                await events.next()
    assert end.data["reason"] == "too-slow"
    seen += await read_up_to(shop, end.data["last_event_id"], sku_id, 6_003)
    assert versions_of(seen, sku_id) == list(range(2, 6_004))


async def announce(cluster: EmbeddedCluster, sku_id: int, versions: range) -> None:
    """Commits many changes of a SKU at once; none of them is true."""
    admin = await asyncpg.connect(cluster.superuser_dsn(cluster.primary.name), database="atelier")
    try:
        await admin.execute(
            "insert into atelier.outbox (position, topic, kind, product_id, sku_id, available, version) "
            "select atelier.draw_outbox_position(), 'stock', 'updated', 1, $1, 3, n "
            "from generate_series($2::int, $3) as n",
            sku_id, versions[0], versions[-1],
        )  # fmt: skip
    finally:
        await admin.close()


async def read_up_to(shop: Shop, after: str, sku_id: int, version: int) -> list[Event]:
    """Goes on behind an event up to a change of a SKU, and as every client does also when it was cut."""
    seen: list[Event] = []
    async with asyncio.timeout(15):
        while True:
            async with follow(shop.http, after) as events:
                while (event := await events.next()).name != "end":
                    seen.append(event)
                    if (event.data.get("sku_id"), event.data.get("version")) == (sku_id, version):
                        return seen
                after = event.data["last_event_id"]


async def test_subscriber_from_long_ago_may_catch_up_at_its_own_pace(shop: Shop, cluster: EmbeddedCluster) -> None:
    """Being behind is no fault of who was never up to date: it reads from the table, and is not cut."""
    [sku_id] = await shop.stocked(0)
    first, *_ = await change_and_follow(shop, sku_id, 31)
    async with open_feed(cluster, behind=10) as feed, aclosing(feed.follow(await feed.find_start(first.id))) as chunks:
        await anext(chunks)
        await until(lambda: feed._tail.head is not None)
        assert await pull_until(chunks, sku_id, 32) == list(range(3, 33))


async def test_read_that_no_node_answered_does_not_make_a_subscriber_up_to_date(
    shop: Shop, cluster: EmbeddedCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One statement fails while it catches up from long ago: it is asked again at once, and the subscriber not cut."""
    [sku_id] = await shop.stocked(0)
    first, *_ = await change_and_follow(shop, sku_id, 31)
    async with (
        open_feed(cluster, behind=10, heartbeat_s=5.0) as feed,
        aclosing(feed.follow(await feed.find_start(first.id))) as chunks,
    ):
        await anext(chunks)
        await until(lambda: feed._tail.head is not None)
        fail_first(feed._tail, 1, monkeypatch)
        next_chunk = await anext(chunks)
        assert next_chunk != b": heartbeat\n\n"
        seen = versions_of(read_events(next_chunk), sku_id)
        while seen[-1:] != [32]:
            seen += versions_of(read_events(await anext(chunks)), sku_id)
    assert seen == list(range(3, 33))


async def test_stream_shows_that_it_is_alive_while_no_node_answers(
    cluster: EmbeddedCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Asking again and again takes nobody's heartbeat away."""
    async with open_feed(cluster, heartbeat_s=0.5) as feed, aclosing(await begin(feed)) as chunks:
        await anext(chunks)
        fail_first(feed._tail, 1_000, monkeypatch)
        async with asyncio.timeout(10):
            assert await anext(chunks) == b": heartbeat\n\n"


def fail_first(following: ChangeTail, count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets the next so many reads of subscribers end as they do when no node answers."""
    failures, read_after = iter([NoReplicaError] * count), following.read_after

    async def fail_or_read(position: int) -> list[Change]:
        for failure in failures:
            raise failure
        return await read_after(position)

    monkeypatch.setattr(following, "read_after", fail_or_read)


async def test_one_subscriber_too_many_is_refused(cluster: EmbeddedCluster) -> None:
    """503 with Retry-After, instead of slowing down those that are there."""
    async with open_feed(cluster, subscribers=1) as feed:
        start = await feed.find_start(None)
        async with aclosing(feed.follow(start)) as chunks:
            await anext(chunks)
            with pytest.raises(OverloadedError):
                await feed.find_start(None)
        await feed.find_start(None)


async def test_feed_asks_a_replica_and_never_the_primary(shop: Shop, cluster: EmbeddedCluster) -> None:
    """Told by the nodes themselves: which of them has a session of this process that has looked into the outbox."""
    [sku_id] = await shop.stocked(0)
    async with open_feed(cluster) as feed, aclosing(await begin(feed)) as chunks:
        await anext(chunks)
        await shop.adjust(sku_id, 1)
        await pull_until(chunks, sku_id, 2)
        ports = [found.laddr.port for found in psutil.Process().net_connections("tcp") if found.raddr]
        asked = {name for name in cluster.nodes if await count_outbox_sessions(cluster, name, ports)}
    # Two of them where one was slow for a moment, and the tail went on from the other.
    assert asked
    assert asked <= cluster.nodes.keys() - {cluster.primary.name}


async def count_outbox_sessions(cluster: EmbeddedCluster, node: str, client_ports: list[int]) -> int:
    """The sessions of these connections whose last statement was about the outbox."""
    admin = await asyncpg.connect(cluster.superuser_dsn(node), database="atelier")
    try:
        return await admin.fetchval(
            "select count(*) from pg_stat_activity"
            " where client_port = any($1) and query like '%outbox%' and pid <> pg_backend_pid()",
            client_ports,
        )
    finally:
        await admin.close()


async def test_quiet_stream_shows_that_it_is_alive(cluster: EmbeddedCluster) -> None:
    """A comment now and then, which clients pass over."""
    async with (
        open_feed(cluster, heartbeat_s=0.1) as feed,
        aclosing(feed.follow(await feed.find_start(None))) as chunks,
    ):
        async with asyncio.timeout(10):
            while await anext(chunks) != b": heartbeat\n\n":
                pass


async def test_subscriber_that_takes_nothing_at_all_is_let_go() -> None:
    """Not even the last event can be told to a connection that stands still: it ends, and so does its generator."""
    ended = asyncio.Event()

    async def chunks():
        try:
            while True:
                yield b"data: {}\n\n"
        finally:
            ended.set()

    async def send(message) -> None:
        if message["type"] == "http.response.body":
            await asyncio.Event().wait()

    async def receive():
        await asyncio.Event().wait()

    async with asyncio.timeout(5):
        await EventStream(chunks(), send_s=0.05, clock=time.monotonic)({}, receive, send)
    assert ended.is_set()


async def test_backlog_is_what_the_client_has_not_taken() -> None:
    """A server that queues without a word is stopped by what the kernel says of the connection, and cut by it."""
    accepted: asyncio.Queue[asyncio.StreamWriter] = asyncio.Queue()
    server = await asyncio.start_server(lambda _, writer: accepted.put_nowait(writer), "127.0.0.1", 0)
    reader, client = await asyncio.open_connection(*server.sockets[0].getsockname(), limit=4096)
    writer = await accepted.get()
    backlog = Backlog(client.get_extra_info("sockname"), clock=time.monotonic)
    await backlog.wait_until_taken(0.0)
    writer.write(bytes(16_000_000))
    with pytest.raises(TimeoutError):
        await backlog.wait_until_taken(0.3)
    taking = asyncio.create_task(reader.readexactly(16_000_000))
    async with asyncio.timeout(10):
        await backlog.wait_until_taken(5.0)
        await taking
    backlog.cut()
    assert await reader.read() == b""
    writer.transport.abort()
    await until(writer.transport.is_closing)
    await backlog.wait_until_taken(0.0)
    client.close()
    server.close()


async def test_subscriber_that_the_pruning_overtakes_is_told_so(
    shop: Shop, cluster: EmbeddedCluster, database: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It catches up, two at a time, and what comes next is gone: a last event says so, and nothing is passed over."""
    monkeypatch.setattr(tail, "BATCH", 2)
    [sku_id] = await shop.stocked(0)
    told = await change_and_follow(shop, sku_id, 8)
    async with open_feed(cluster) as feed, aclosing(feed.follow(await feed.find_start(told[0].id))) as chunks:
        await anext(chunks)
        seen = read_events(await anext(chunks))
        assert versions_of(seen, sku_id) == [3, 4]
        pruned = int(told[5].id.split(".")[0])
        async with database.transaction():
            await database.execute("delete from outbox where position <= $1", pruned)
            await database.execute("update outbox_floor set position = greatest(position, $1)", pruned)
        async with asyncio.timeout(15):
            while (await feed._tail.look())[1] < pruned:
                await asyncio.sleep(0.01)
            rest = [event async for chunk in chunks for event in read_events(chunk)]
    assert [(event.name, event.data["reason"]) for event in rest] == [("end", "cursor-expired")]
    assert rest[0].data["last_event_id"].split(".")[0] == seen[-1].id.split(".")[0]
    refused = await shop.http.get("/changes", headers={"Last-Event-ID": rest[0].data["last_event_id"]})
    assert (refused.status_code, refused.json()["type"]) == (410, "/problems/cursor-expired")


class ToldTail(ChangeTail):
    """A tail that asks no node: the test says what the outbox has, and when an answer comes."""

    def __init__(self, *, highest: int, floor: int = 0) -> None:
        super().__init__(SimpleNamespace(), SimpleNamespace(), clock=time.monotonic)
        self.highest, self.floor, self.answers = highest, floor, asyncio.Event()
        self.answers.set()

    async def _ask(self, name: str, *arguments: int):
        position = arguments[0] if arguments else self.highest
        about = {"topic": "catalogue", "kind": "replaced", "floor": self.floor, "head": self.highest}
        rows = [about | {"change_id": found} for found in range(max(position, self.floor) + 1, self.highest + 1)]
        await self.answers.wait()
        return rows or [about | {"change_id": None}], CausalToken(7, 1, Lsn(self.highest))


@pytest.mark.parametrize("is_lost", [False, True])
async def test_answer_from_before_everything_was_forgotten_is_thrown_away(*, is_lost: bool) -> None:
    """A poll is under way while the last one leaves (or history is lost) and another joins, who misses nothing."""
    told = ToldTail(highest=10)
    told.join()
    await told._poll()
    told.highest = 12
    await told._poll()
    assert [change.position for change in await told.read_after(10)] == [11, 12]
    told.answers.clear()
    told.highest = 13
    polling = asyncio.create_task(told._poll())
    await asyncio.sleep(0)
    if is_lost:
        told._forget_everything()
    else:
        told.leave()
        told.join()
    told.answers.set()
    assert not await polling
    for _ in range(2):
        assert [change.position for change in await told.read_after(10)] == [11, 12, 13]
        await told._poll()
    told.highest = 14
    await told._poll()
    assert [change.position for change in await told.read_after(13)] == [14]
    assert [change.position for change in await told.read_after(10)] == [11, 12, 13, 14]


async def test_tail_that_the_pruning_overtakes_begins_anew() -> None:
    """After a long time without an answer: what it remembers has a hole, so nobody is served from it."""
    told = ToldTail(highest=10)
    told.join()
    await told._poll()
    told.highest, told.floor = 20, 15
    assert not await told._poll()
    with pytest.raises(ProblemError):
        await told.read_after(10)
    await told._poll()
    told.highest = 21
    await told._poll()
    assert [change.position for change in await told.read_after(20)] == [21]
    with pytest.raises(ProblemError):
        await told.read_after(10)


class OtherHistory:
    """A tail that has only ever seen the history behind a fork; it knows nothing of what others told before."""

    is_closing, head, moved = False, None, asyncio.Event()

    def join(self) -> int:
        return 0

    def leave(self) -> None:
        """Nobody counts."""

    def check(self, _joined_at: int) -> None:
        """It has lost nothing itself."""

    async def read_after(self, position: int) -> list[Change]:
        stock = {"sku_id": 1, "product_id": 1, "available": 1, "version": 1}
        return [Change(position + 1, "stock", stock, CausalToken(7, 2, Lsn(50)))]


@pytest.mark.parametrize(("told_at", "reason"), [(40, "history-lost"), (30, None)])
async def test_subscriber_of_a_process_that_saw_more_is_told_what_was_lost(told_at: int, reason: str | None) -> None:
    """Positions repeat behind a fork: who was told more, by whomever, does not go on as if nothing were missing."""
    keys, history = TokenKeys((bytes(32),)), History(7, 2, ((1, Lsn(30)),))
    monitor = SimpleNamespace(snapshot=SimpleNamespace(judge=history.judge))
    feed = Feed(OtherHistory(), monitor, keys, clock=time.monotonic, limits=FeedLimits())
    async with aclosing(feed.follow(Start(4, CausalToken(7, 1, Lsn(told_at))))) as chunks:
        first = await anext(chunks)
        [event] = read_events(await anext(chunks))
    assert event.data.get("reason") == reason
    if reason:
        assert f": follows {event.data['last_event_id']}\n".encode() in first


@pytest.mark.slow
async def test_subscriber_that_reads_nothing_costs_no_memory_and_is_cut(
    service: Service, cluster: EmbeddedCluster
) -> None:
    """Over a real connection, with 60 MB of changes for it: the process grows by little, and lets it go in the end."""
    host, port = service.url.removeprefix("http://").split(":")
    worker = next(p for p in psutil.Process(service.process.pid).children() if p.memory_info().rss > 40_000_000)
    before = worker.memory_info().rss
    with socket.socket() as deaf:
        deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        deaf.connect((host, int(port)))
        deaf.sendall(b"GET /changes HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert deaf.recv(12) == b"HTTP/1.1 200"
        own = deaf.getsockname()
        await announce(cluster, 2, range(1, 200_001))
        grown = 0
        async with asyncio.timeout(60):
            while any(c.raddr and tuple(c.raddr) == own for c in worker.net_connections("tcp")):
                grown = max(grown, worker.memory_info().rss - before)
                await asyncio.sleep(0.1)
    assert grown < 30_000_000
