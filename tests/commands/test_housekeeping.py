"""What is older than was promised to be kept goes, in batches; what is younger stays, and so does its meaning."""

import asyncio
import time

import asyncpg
import pytest

from atelier.app import write_policy_of
from atelier.deadline import Deadline
from atelier.embedded.cluster import EmbeddedCluster
from atelier.writes import housekeeping
from atelier.writes.housekeeping import prune_changes, prune_keys
from atelier.writes.policy import WritePolicy
from atelier.writes.primary import PrimaryGateway
from atelier.writes.unit_of_work import UnitOfWork
from tests.commands.conftest import Shop, new_key
from tests.commands.events import change_and_follow, follow, next_about
from tests.commands.writing import open_gateway, open_writes, settings_of

pytestmark = [pytest.mark.anyio, pytest.mark.cluster, pytest.mark.soak]

# Less than the shared service keeps, so that its own housekeeping leaves these tests' rows alone.
KEPT_S = 7_200
OLD_S, YOUNG_S = KEPT_S + 60.0, 60.0

INSERT_KEYS = """
insert into command_key (owner, key, fingerprint, status, headers, body, created_at)
select $1, $1 || n, '', 200, '{}', '', clock_timestamp() - $2 * interval '1 s' from generate_series(1, $3) as n
"""


class CountedUnits:
    """Units of work that count their commits."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.commits = 0
        counted = self

        class Counted(UnitOfWork):
            async def commit(self):
                counted.commits += 1
                return await super().commit()

        monkeypatch.setattr(housekeeping, "UnitOfWork", Counted)


def soon() -> Deadline:
    """Time enough for one statement."""
    return Deadline.after(10, time.monotonic)


async def keys_of(database: asyncpg.Connection, owner: str) -> int:
    """How many keys an owner has."""
    return await database.fetchval("select count(*) from command_key where owner = $1", owner)


async def test_old_keys_are_pruned_in_batches_and_young_ones_stay(
    database: asyncpg.Connection, cluster: EmbeddedCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Seven, three at a time: three transactions. Those of a minute ago stay."""
    monkeypatch.setattr(housekeeping, "_BATCH", 3)
    old, young = new_key(), new_key()
    await database.execute(INSERT_KEYS, old, OLD_S, 7)
    await database.execute(INSERT_KEYS, young, YOUNG_S, 7)
    async with open_gateway(settings_of(cluster)) as gateway:
        units = CountedUnits(monkeypatch)
        assert await prune_keys(gateway, soon(), kept_s=KEPT_S) == 7
    assert units.commits == 3
    assert (await keys_of(database, old), await keys_of(database, young)) == (0, 7)


async def test_writing_process_prunes_by_itself(database: asyncpg.Connection, cluster: EmbeddedCluster) -> None:
    """Every now and then, with no client asking; how long keys are kept is a setting."""
    settings = settings_of(cluster, ATELIER_COMMAND_KEYS_KEPT_S=str(KEPT_S))
    assert (write_policy_of(settings).keys_kept_s, WritePolicy().keys_kept_s) == (KEPT_S, 86_400)
    old, young = new_key(), new_key()
    await database.execute(INSERT_KEYS, old, OLD_S, 5_000)
    await database.execute(INSERT_KEYS, young, YOUNG_S, 5)
    async with open_writes(settings, WritePolicy(keys_kept_s=KEPT_S, prune_interval_s=0.02)), asyncio.timeout(15):
        while await keys_of(database, old):
            await asyncio.sleep(0.02)
    assert await keys_of(database, young) == 5


async def test_writing_process_prunes_changes_by_itself(
    shop: Shop, database: asyncpg.Connection, cluster: EmbeddedCluster
) -> None:
    """After a day, unless it is told otherwise; the younger ones stay."""
    assert WritePolicy().changes_kept_s == 86_400
    [sku_id] = await shop.stocked(0)
    old, young = await change_and_follow(shop, sku_id, 2)
    position = int(old.id.split(".")[0])
    await as_superuser(cluster, "update outbox set at = at - interval '3 hours' where position <= $1", position)
    left = "select min(position) from outbox"
    policy = WritePolicy(changes_kept_s=KEPT_S, prune_interval_s=0.02)
    async with open_writes(settings_of(cluster), policy), asyncio.timeout(15):
        while await database.fetchval(left) <= position:
            await asyncio.sleep(0.02)
    assert await database.fetchval(left) <= int(young.id.split(".")[0])


@pytest.mark.parametrize(("prune", "turn"), [(prune_keys, 5), (prune_changes, 6)])
async def test_two_writers_never_prune_at_the_same_time(
    database: asyncpg.Connection, cluster: EmbeddedCluster, prune, turn: int
) -> None:
    """The second one passes instead of waiting for the first one's rows."""
    owner = new_key()
    await database.execute(INSERT_KEYS, owner, OLD_S, 5)
    async with open_gateway(settings_of(cluster)) as gateway:
        async with database.transaction():
            await database.execute("select pg_advisory_xact_lock(6386796, $1)", turn)
            assert await prune(gateway, soon(), kept_s=KEPT_S) == 0
        assert await keys_of(database, owner) == 5
        await prune_keys(gateway, soon(), kept_s=KEPT_S)
    assert await keys_of(database, owner) == 0


async def test_forgotten_key_may_carry_another_command(
    shop: Shop, database: asyncpg.Connection, cluster: EmbeddedCluster
) -> None:
    """The promise ends with the row: until then the first answer, after it a new command."""
    [sku_id] = await shop.stocked(0)
    key = new_key()
    for replayed in (None, "true"):
        done = await shop.adjust(sku_id, 1, Idempotency_Key=key)
        assert (done.json()["lines"][0]["on_hand"], done.headers.get("Idempotency-Replayed")) == (1, replayed)
    aged = "update command_key set created_at = created_at - interval '3 hours' where key = $1"
    await as_superuser(cluster, aged, key)
    async with open_gateway(settings_of(cluster)) as gateway:
        await prune_keys(gateway, soon(), kept_s=KEPT_S)
    assert (await shop.http.get(f"/commands/{key}")).status_code == 404
    assert (await shop.adjust(sku_id, 1, Idempotency_Key=key)).json()["lines"][0]["on_hand"] == 2


async def test_old_changes_are_pruned_from_the_low_end_and_their_ids_expire(
    shop: Shop, database: asyncpg.Connection, cluster: EmbeddedCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By age and in batches; an id behind which something is gone is 410, the next one goes on without a gap."""
    [sku_id] = await shop.stocked(0)
    first, second, third, fourth = await change_and_follow(shop, sku_id, 4)
    await as_superuser(
        cluster,
        "update atelier.outbox set at = at - interval '3 hours' where position <= $1",
        int(second.id.split(".")[0]),
    )
    old = await database.fetchval("select count(*) from outbox where at < now() - interval '2 hours'")
    async with open_gateway(settings_of(cluster)) as gateway:
        monkeypatch.setattr(housekeeping, "_BATCH", max(1, old // 3))
        units = CountedUnits(monkeypatch)
        assert await prune_changes(gateway, soon(), kept_s=KEPT_S) == old
        assert units.commits >= 3 or old < 3
        await wait_until_replicated(cluster, gateway)
    async with follow(shop.http, second.id) as events:
        for expected in (third, fourth):
            assert (await next_about(events, sku_id=sku_id)).data["version"] == expected.data["version"]
    refused = await shop.http.get("/changes", headers={"Last-Event-ID": first.id})
    assert (refused.status_code, refused.json()["type"]) == (410, "/problems/cursor-expired")


async def as_superuser(cluster: EmbeddedCluster, statement: str, *arguments: object) -> None:
    """What no role of the service may do: change the past."""
    admin = await asyncpg.connect(cluster.superuser_dsn(cluster.primary.name), database="atelier")
    try:
        await admin.execute("set search_path = atelier")
        await admin.execute(statement, *arguments)
    finally:
        await admin.close()


async def wait_until_replicated(cluster: EmbeddedCluster, gateway: PrimaryGateway) -> None:
    """Waits until all replicas show what is committed now."""
    async with UnitOfWork(gateway, soon()) as uow:
        token = await uow.position()
    for node in cluster.nodes:
        if node == cluster.primary.name:
            continue
        replica = await asyncpg.connect(cluster.superuser_dsn(node))
        async with asyncio.timeout(10):
            while not await replica.fetchval("select pg_last_wal_replay_lsn() >= $1::text::pg_lsn", str(token.lsn)):
                await asyncio.sleep(0.01)
        await replica.close()
