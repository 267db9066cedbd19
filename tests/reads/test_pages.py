"""Pages of the list: exact and equally quick at any depth, whatever comes and goes meanwhile."""

import asyncio
import contextlib
import json
import random
import statistics
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import asyncpg
import pytest

from atelier.embedded.cluster import EmbeddedCluster
from atelier.reads.queries import load_statements
from tests.reads.conftest import LARGE, connected, fill_cluster
from tests.support import role_dsn, running_cluster

pytestmark = [pytest.mark.anyio, pytest.mark.cluster]

PAGE_SQL = load_statements()["list_documented"].sql

_INSERT = """
insert into product (id, name, slogan, description, category, default_price)
select id, 'New', '', '', '', 1 from unnest($1::bigint[]) as id on conflict do nothing
"""
# On a busy machine every try of a statement over the whole list may fall to replay for a while.
_IN_THE_WAY_S = 60
# About 400 changes a second over all writers.
_PACE_S = 0.005
_DELETE = """
delete from product where id in (select id from product where id = any($1) order by id for update)
"""
_BOTH = """
select array(select id from product order by id offset $3 limit $2) as ids, (select count(*) from product) as products,
       page.total, page.body
from ({page}) as page
"""
_PLAIN = "select id from product order by id offset $1 limit $2"


async def page_by_counts(connection: asyncpg.Connection, offset: int, count: int) -> Any:
    """The ids of a page, and how many products there are, by the statement of the service."""
    row = await connection.fetchrow(PAGE_SQL, [offset], count)
    return [item["id"] for item in json.loads(row["body"])], row["total"]


async def wrong_pages(connection: asyncpg.Connection, offsets: list[int], *, sql: str = PAGE_SQL) -> list[int]:
    """The offsets whose page differs from a plain OFFSET in the same snapshot."""
    both = _BOTH.format(page=sql.rstrip(";"))
    wrong = []
    for offset in offsets:
        row = await _fetch(connection, both, [offset], random.choice((1, 5, 600)), offset)
        if ([item["id"] for item in json.loads(row["body"])], row["total"]) != (row["ids"], row["products"]):
            wrong.append(offset)
    return wrong


async def _fetch(connection: asyncpg.Connection, sql: str, *arguments: Any) -> Any:
    """Runs the statement again when replay was in its way, as the service does."""
    async with asyncio.timeout(_IN_THE_WAY_S):
        while True:
            with contextlib.suppress(asyncpg.SerializationError):
                return await connection.fetchrow(sql, *arguments)


def some_offsets(count: int, *, seed: int = 0) -> list[int]:
    """Offsets over the whole list: its edges, edges of blocks and spans, and anything between."""
    dice = random.Random(seed)
    edges = [0, 1, 511, 512, 513, 32_767, 32_768, LARGE - 1, LARGE, LARGE + 10, LARGE * 7]
    return [*edges, *(dice.randrange(LARGE + 50) for _ in range(count))]


@asynccontextmanager
async def changing(cluster: EmbeddedCluster, *, writers: int) -> AsyncIterator[list[int]]:
    """Writers that insert and delete products anywhere until the block ends; gives how many changes each has made."""
    made, is_over = [0] * writers, asyncio.Event()
    async with asyncio.TaskGroup() as group:
        for seed in range(writers):
            group.create_task(_change(cluster, seed, made, is_over))
        try:
            yield made
        finally:
            is_over.set()


async def _change(cluster: EmbeddedCluster, seed: int, made: list[int], is_over: asyncio.Event) -> None:
    dice = random.Random(seed)
    async with connected(role_dsn(cluster, "writer")) as connection:
        while not is_over.is_set():
            # Sorted, as all writers do: two that meet in one row wait for each other in one order.
            ids = sorted({dice.randrange(1, LARGE + 40_000) for _ in range(dice.choice((1, 1, 3, 40)))})
            await connection.execute(_INSERT if dice.random() < 0.5 else _DELETE, ids)
            made[seed] += 1
            # A pace, no wait: a replica that cannot keep up cancels every read in its way, which is another story.
            await asyncio.sleep(_PACE_S)


async def test_every_page_is_exact_on_a_resting_catalogue(reader: asyncpg.Connection) -> None:
    """Against a plain OFFSET, page and total, from the first to past the last."""
    assert await wrong_pages(reader, some_offsets(60)) == []


@pytest.mark.parametrize("node", ["pg1", "pg2"])
@pytest.mark.soak
async def test_pages_are_exact_while_products_come_and_go(large_cluster: EmbeddedCluster, node: str) -> None:
    """On the primary and on the replica: counts and rows are of one snapshot."""
    async with (
        connected(role_dsn(large_cluster, "reader", node=node)) as connection,
        changing(large_cluster, writers=3) as made,
        asyncio.timeout(60),
    ):
        assert await wrong_pages(connection, some_offsets(60, seed=1)) == []
        while min(made) < 100:
            assert await wrong_pages(connection, some_offsets(10, seed=made[0])) == []


async def delete_until_unfolded(connection: asyncpg.Connection, ids: str) -> None:
    """Deletes the products of a query, again while it was a 256th change, which folds all of them at once."""
    while not await connection.fetchval("select exists (select from product_change)"):
        await connection.execute(f"delete from product where id in ({ids})")


async def test_pages_without_the_unfolded_changes_would_be_wrong(
    reader: asyncpg.Connection, writer: asyncpg.Connection
) -> None:
    """The check above can fail: counts alone, without the changes since the last fold, are not exact."""
    forgetful = PAGE_SQL.replace("from product_change group by", "from product_change where false group by")
    assert forgetful != PAGE_SQL
    await writer.execute("select fold_product_changes()")
    await delete_until_unfolded(writer, "select min(id) from product")
    assert await wrong_pages(reader, [0, 5, 600], sql=forgetful) == [0, 5, 600]
    assert await wrong_pages(reader, [0, 5, 600]) == []


@pytest.mark.soak
async def test_an_open_insert_holds_up_no_other(writer: asyncpg.Connection, other: asyncpg.Connection) -> None:
    """There is no hot row: a neighbour inserts, folds and commits while another insert is undecided."""
    base = 3_000_000
    undecided = other.transaction()
    await undecided.start()
    await other.execute(_INSERT, [base])
    await writer.execute("set lock_timeout = '300ms'")
    for number in range(1, 300):
        await writer.execute(_INSERT, [base + number])
    await writer.execute("select fold_product_changes()")
    await undecided.commit()
    assert await wrong_pages(writer, [LARGE - 5, LARGE, LARGE + 200]) == []
    await writer.execute("delete from product where id >= $1", base)


@pytest.mark.soak
async def test_a_second_fold_leaves_the_work_to_the_first(
    writer: asyncpg.Connection, other: asyncpg.Connection
) -> None:
    """Nobody waits for a fold."""
    await writer.execute(_INSERT, [4_000_000 + number for number in range(10)])
    await writer.execute("select fold_product_changes()")
    folding = other.transaction()
    await folding.start()
    await delete_until_unfolded(other, "select max(id) from product")
    assert await other.fetchval("select fold_product_changes()") >= 1
    await writer.execute(_INSERT, [4_001_000])
    assert await writer.fetchval("select fold_product_changes()") == 0
    await folding.rollback()
    assert await wrong_pages(writer, [LARGE, LARGE + 1]) == []
    assert await writer.fetchval("select fold_product_changes()") >= 1
    await writer.execute("delete from product where id >= 4000000")


async def test_the_id_of_a_product_never_changes(writer: asyncpg.Connection) -> None:
    """Counts by id would not notice."""
    with pytest.raises(asyncpg.IntegrityConstraintViolationError, match="never changes"):
        await writer.execute("update product set id = 5000000 where id = (select max(id) from product)")


async def test_nobody_writes_the_counts_by_hand(writer: asyncpg.Connection) -> None:
    """They change with the products, and in no other way."""
    for statement in ("insert into product_change (block, products) values (1, 1)", "delete from product_span"):
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await writer.execute(statement)


async def test_counts_are_right_after_everything_was_removed_at_once(admin: asyncpg.Connection) -> None:
    """TRUNCATE fires no row and no transition table; rolled back, all is as before."""
    before = await page_by_counts(admin, 0, 3)
    emptying = admin.transaction()
    await emptying.start()
    await admin.execute("truncate product cascade")
    assert await page_by_counts(admin, 0, 3) == ([], 0)
    await admin.execute(_INSERT, [7])
    assert await page_by_counts(admin, 0, 3) == ([7], 1)
    await emptying.rollback()
    assert await page_by_counts(admin, 0, 3) == before


async def median_ms(connection: asyncpg.Connection, offsets: list[int], *, rounds: int) -> list[float]:
    """The median time of a page at each offset, taken in turns."""
    statement = await connection.prepare(PAGE_SQL)
    times: list[list[float]] = [[] for _ in offsets]
    for _ in range(rounds):
        for at, offset in enumerate(offsets):
            started_s = time.perf_counter()
            await statement.fetchrow([offset], 5)
            times[at].append((time.perf_counter() - started_s) * 1000)
    return [statistics.median(taken) for taken in times]


@pytest.mark.timing
async def test_the_last_page_costs_what_the_first_costs(large_cluster: EmbeddedCluster) -> None:
    """At 100,000 products on the replica, also with changes that nobody has folded yet."""
    async with connected(role_dsn(large_cluster, "reader", node="pg2")) as connection:
        first, last = await median_ms(connection, [0, LARGE - 3_000], rounds=150)
    assert last <= 1.5 * first, f"{last:.3f} ms against {first:.3f} ms"


@pytest.mark.slow
@pytest.mark.timing
def test_the_last_page_of_a_million_costs_what_the_first_costs() -> None:
    """The target, at its size; a plain OFFSET takes far longer there."""
    million = 1_000_000

    async def measure() -> tuple[float, float, float]:
        async with connected(role_dsn(cluster, "reader")) as connection:
            first, last = await median_ms(connection, [0, million - 5], rounds=300)
            started_s = time.perf_counter()
            await connection.fetch(_PLAIN, million - 5, 5)
            return first, last, (time.perf_counter() - started_s) * 1000

    with running_cluster(replicas=0) as cluster:
        fill_cluster(cluster, million, with_parts=False)
        first_ms, last_ms, plain_ms = asyncio.run(measure())
    assert last_ms <= 1.5 * first_ms, f"{last_ms:.3f} ms against {first_ms:.3f} ms"
    assert plain_ms > 10 * last_ms, f"{plain_ms:.3f} ms against {last_ms:.3f} ms"
