"""The change feed over real HTTP and real replicas: complete, in commit order, from wherever one left off."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import asyncpg
import pytest

from atelier.embedded.cluster import EmbeddedCluster
from tests.commands.conftest import Shop, product, style, wait_until_blocked
from tests.commands.events import Events, change_and_follow, follow, next_about
from tests.conftest import ClusterFactory
from tests.support import role_dsn

pytestmark = [pytest.mark.anyio, pytest.mark.cluster, pytest.mark.soak]


async def test_every_kind_of_change_is_announced(shop: Shop) -> None:
    """Product created, updated, deleted; stock; each with version and a token that contains it."""
    async with follow(shop.http) as events:
        made = await shop.post("/products", product(styles=[style(5)]))
        made_id = made.json()["id"]
        created = await next_about(events, product_id=made_id)
        assert (created.name, created.data["kind"], created.data["version"]) == ("product", "created", 1)
        stocked = await next_about(events, product_id=made_id)
        assert (stocked.name, stocked.data["available"], stocked.data["version"]) == ("stock", 5, 1)
        sku_id = stocked.data["sku_id"]
        await shop.reserve((sku_id, 2))
        assert (await next_about(events, sku_id=sku_id)).data["available"] == 3
        await shop.send("PATCH", f"/products/{made_id}", {"name": "Cap"})
        updated = await next_about(events, product_id=made_id)
        assert (updated.data["kind"], updated.data["version"]) == ("updated", 2)
        read = await shop.http.get(f"/products/{made_id}", headers={"Atelier-Token": updated.data["token"]})
        assert read.json()["name"] == "Cap"


async def test_reconnecting_behind_an_event_misses_and_repeats_nothing(shop: Shop) -> None:
    """Every version of a SKU arrives exactly once over many short connections, while others write too."""
    [sku_id, noise] = await shop.stocked(0, 0)

    async def change() -> None:
        for _ in range(60):
            await asyncio.gather(shop.adjust(sku_id, 1), *(shop.adjust(noise, 1) for _ in range(3)))

    async with follow(shop.http) as events:
        changing = asyncio.create_task(change())
        seen = [await next_about(events, sku_id=sku_id, version=2)]
    last_id = seen[-1].id
    async with asyncio.timeout(60):
        while seen[-1].data["version"] < 61:
            async with follow(shop.http, last_id) as events:
                for _ in range(7):
                    event = await events.next()
                    # Of whatever it is: others may change seven things in a row, and one must get past them.
                    last_id = event.id
                    seen += [event] if event.data.get("sku_id") == sku_id else []
                    if seen[-1].data["version"] == 61:
                        break
    await changing
    assert [event.data["version"] for event in seen] == list(range(2, 62))


async def test_address_can_name_the_event_to_go_on_behind_as_the_header_does(shop: Shop) -> None:
    """From each of six events, by `after` as by `Last-Event-ID`: all that follow, each once, and under the same ids."""
    [sku_id] = await shop.stocked(0)
    told = await change_and_follow(shop, sku_id, 6)
    for index, event in enumerate(told[:-1]):
        async with follow(shop.http, event.id) as by_header, follow_url(shop, f"/changes?after={event.id}") as by_url:
            stories = [await read_positions(events, until=told[-1].id) for events in (by_header, by_url)]
        assert stories[0] == stories[1]
        mine = {position(one.id) for one in told}
        assert [one for one in stories[1] if one in mine] == [position(one.id) for one in told[index + 1 :]]


async def test_header_wins_over_the_event_that_the_address_names(shop: Shop) -> None:
    """A browser that reconnects sends the address that it began with, and where it has come to in the header."""
    [sku_id] = await shop.stocked(0)
    told = await change_and_follow(shop, sku_id, 4)
    for header, address, following in ((2, 0, 3), (0, 2, 1)):
        url, headers = f"/changes?after={told[address].id}", {"Last-Event-ID": told[header].id}
        async with follow_url(shop, url, headers) as events:
            assert (await next_about(events, sku_id=sku_id)).data["version"] == told[following].data["version"]


@asynccontextmanager
async def follow_url(shop: Shop, url: str, headers: dict[str, str] | None = None) -> AsyncIterator[Events]:
    """Opens the change feed by an address that says where."""
    async with shop.http.stream("GET", url, headers=headers) as response:
        assert response.status_code == 200, await response.aread()
        yield Events(response)


async def read_positions(events: Events, *, until: str) -> list[int]:
    """The places of the next events, up to that of an event."""
    positions: list[int] = []
    async with asyncio.timeout(15):
        while position(until) not in positions:
            positions.append(position((await events.next()).id))
    return positions


def position(event_id: str) -> int:
    """An event's place in the outbox, which is the readable part of its id."""
    return int(event_id.partition(".")[0])


async def test_whole_stream_is_the_outbox_in_commit_order(shop: Shop, database: asyncpg.Connection) -> None:
    """Two subscribers and the table tell the same story, also where commands are combined and rolled back."""
    skus = await shop.stocked(*[3] * 6)
    # A stream begins where its replica stands; the two are compared from here.
    begun = await database.fetchval("select max(position) from outbox")
    async with follow(shop.http) as first, follow(shop.http) as second:
        answers = await asyncio.gather(*(shop.reserve((sku, 1), (skus[0], 1)) for sku in skus[1:] * 3))
        assert {answer.status_code for answer in answers} == {201, 409}
        last = await shop.adjust(skus[0], 100)
        version = last.json()["lines"][0]["version"]
        stories = []
        for events in (first, second):
            story = []
            while True:
                event = await events.next()
                story.append(event)
                if (event.data.get("sku_id"), event.data.get("version")) == (skus[0], version):
                    break
            told = [(position(event.id), event.data.get("sku_id")) for event in story]
            stories.append([one for one in told if one[0] > begun])
    rows = await database.fetch(
        "select position, sku_id from outbox where position > $1 and position <= $2 order by position",
        begun, stories[0][-1][0],
    )  # fmt: skip
    assert stories[0] == stories[1] == [(row["position"], row["sku_id"]) for row in rows]


async def test_late_commit_does_not_hide_behind_a_later_position(shop: Shop, database: asyncpg.Connection) -> None:
    """A transaction that wrote first and commits last is announced last, and is announced."""
    [slow, quick] = await shop.stocked(5, 5)
    async with follow(shop.http) as events:
        async with database.transaction():
            await database.execute("update stock set on_hand = 9, version = version + 1 where sku_id = $1", slow)
            await shop.adjust(quick, 1)
            assert (await next_about(events, sku_id=quick, version=2)).data["available"] == 6
        assert (await next_about(events, sku_id=slow, version=2)).data["available"] == 9


async def test_position_is_drawn_in_the_order_of_commits(shop: Shop, database: asyncpg.Connection) -> None:
    """One has drawn its position and not committed yet: another commit waits for it, and is announced behind it."""
    [first, second] = await shop.stocked(5, 5)
    async with follow(shop.http) as events:
        async with database.transaction():
            await database.execute("update stock set on_hand = 9, version = version + 1 where sku_id = $1", first)
            await database.execute("set constraints all immediate")
            later = asyncio.create_task(shop.adjust(second, 1))
            await wait_until_blocked(database)
            assert not later.done()
        assert (await later).status_code == 200
        seen = []
        while len(seen) < 2:
            event = await events.next()
            is_new = event.data.get("sku_id") in (first, second) and event.data["available"] != 5
            seen += [event.data["sku_id"]] if is_new else []
    assert seen == [first, second]


async def test_transaction_announces_the_last_change_of_each_sku_once(shop: Shop, database: asyncpg.Connection) -> None:
    """However many statements and rows; what was rolled back to a savepoint is not told. No note of it is left."""
    skus = await shop.stocked(*[5] * 12)
    since = await database.fetchval("select max(position) from outbox")
    add = "update stock set on_hand = on_hand + $2, version = version + 1 where sku_id = any($1)"
    async with database.transaction():
        await database.execute(add, skus[:10], 1)
        with contextlib.suppress(ZeroDivisionError):
            async with database.transaction():
                await database.execute(add, skus[10:], 1)
                raise ZeroDivisionError
        await database.execute(add, skus[3:5], 2)
        # The order lock is taken inside COMMIT alone.
        assert not await database.fetchval(
            "select exists (select from pg_locks where locktype = 'advisory' and classid = 6386796 and objid = 2)"
        )
    rows = await database.fetch(
        "select sku_id, available, version from outbox where position > $1 and sku_id = any($2) order by position",
        since, skus,
    )  # fmt: skip
    told = [(row["sku_id"], row["available"], row["version"]) for row in rows]
    assert sorted(told) == [(sku_id, *((8, 3) if sku_id in skus[3:5] else (6, 2))) for sku_id in sorted(skus[:10])]


async def test_stock_is_announced_with_the_product_that_it_belongs_to_now(
    cluster: EmbeddedCluster, shop: Shop, database: asyncpg.Connection
) -> None:
    """Also after its SKU or its style went to another product, and where the row does not know its product yet."""
    [sku_id], [other] = await shop.stocked(5), await shop.stocked(5)
    find_style = "select style_id from sku where id = $1"
    find_product = "select product_id from sku join style on style.id = style_id where sku.id = $1"
    style_id, other_style = await database.fetchval(find_style, sku_id), await database.fetchval(find_style, other)
    product_id, other_product = (
        await database.fetchval(find_product, sku_id),
        await database.fetchval(find_product, other),
    )

    async def told() -> tuple[int, int]:
        """Whose the stock is by its last announcement, and by its own row."""
        return await database.fetchrow(
            "select outbox.product_id, stock.product_id from outbox join stock using (sku_id)"
            " where sku_id = $1 order by position desc limit 1", sku_id,
        )  # fmt: skip

    assert await told() == (product_id, product_id)
    await database.execute("update sku set style_id = $2 where id = $1", sku_id, other_style)
    assert await told() == (other_product, other_product)
    await database.execute("update sku set style_id = $2 where id = $1", sku_id, style_id)
    await database.execute(
        "update style set product_id = $2, is_default = false where id = $1", style_id, other_product
    )
    assert await told() == (other_product, other_product)
    await database.execute("update stock set product_id = $2 where sku_id = $1", sku_id, product_id)
    assert await told() == (other_product, other_product)
    # As an import leaves it.
    cluster.primary.sql(
        f"set session_replication_role = replica; update atelier.stock set product_id = null where sku_id = {sku_id}",
        database="atelier",
    )
    await shop.adjust(sku_id, 1)
    assert await told() == (other_product, other_product)


async def test_notes_of_what_was_touched_are_nobody_s_and_do_not_stay(
    cluster: EmbeddedCluster, shop: Shop, database: asyncpg.Connection
) -> None:
    """Who writes stock can neither read nor write them, so that nothing is announced that was not changed."""
    [sku_id] = await shop.stocked(5)
    await shop.adjust(sku_id, 1)
    assert cluster.primary.sql("select count(*) from atelier.stock_touched", database="atelier") == "0"
    for statement in ("select from stock_touched", "delete from stock_touched", "insert into stock_touched values (1)"):
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await database.execute(statement)


@pytest.mark.parametrize("has_lock", [True, False])
async def test_control_without_the_order_lock_a_late_commit_is_never_told(
    make_cluster: ClusterFactory, *, has_lock: bool
) -> None:
    """Who reads behind the last position: with the lock the later one waits; without it, the earlier one is missed."""
    cluster = await asyncio.to_thread(make_cluster, replicas=0)
    if not has_lock:
        admin = await asyncpg.connect(cluster.superuser_dsn(cluster.primary.name), database="atelier")
        await admin.execute(
            "create or replace function atelier.draw_outbox_position() returns bigint language sql "
            "as $$ select nextval('atelier.outbox_position_seq') $$"
        )
        await admin.close()
    announce = "insert into outbox (position, topic, kind) values (draw_outbox_position(), 'catalogue', 'replaced')"
    behind = "select position from outbox where position > $1 order by position"
    async with connected(cluster) as first, connected(cluster) as second, connected(cluster) as reader:
        async with first.transaction():
            await first.execute(announce)
            later = asyncio.create_task(second.execute(announce))
            if has_lock:
                await wait_until_blocked(first)
            else:
                await later
            seen = [row["position"] for row in await reader.fetch(behind, 0)]
        await later
        seen += [row["position"] for row in await reader.fetch(behind, max(seen, default=0))]
    assert seen == ([1, 2] if has_lock else [2])


@asynccontextmanager
async def connected(cluster: EmbeddedCluster) -> AsyncIterator[asyncpg.Connection]:
    """A connection as the service's own writing role."""
    connection = await asyncpg.connect(role_dsn(cluster, "writer"))
    try:
        yield connection
    finally:
        await connection.close()


async def test_foreign_and_pruned_event_ids_are_told_apart(shop: Shop, database: asyncpg.Connection) -> None:
    """400 for what is no id of ours, 410 for one whose successors are gone."""
    async with follow(shop.http) as events:
        await shop.stocked(1)
        event = await events.next()
    for nonsense in ("1", "x.y", f"{event.id}x", "-1." + event.id.split(".")[1]):
        refused = await shop.http.get("/changes", headers={"Last-Event-ID": nonsense})
        assert (refused.status_code, refused.json()["type"]) == (400, "/problems/invalid-token")
    await database.execute("update outbox_floor set position = greatest(position, 1)")
    old = f"0.{event.id.split('.')[1]}"
    await wait_for_floor(shop, old)
    refused = await shop.http.get(f"/changes?after={old}")
    assert (refused.status_code, refused.json()["type"]) == (410, "/problems/cursor-expired")


async def wait_for_floor(shop: Shop, event_id: str) -> None:
    """Waits until the replicas know the floor."""
    async with asyncio.timeout(10):
        while True:
            async with shop.http.stream("GET", "/changes", headers={"Last-Event-ID": event_id}) as response:
                if response.status_code == 410:
                    return
            await asyncio.sleep(0.05)
