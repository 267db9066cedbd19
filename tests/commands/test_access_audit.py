"""The audit: written with every command, sealed within seconds, and a change of it shows."""

import asyncio

import asyncpg
import pytest

from atelier.access.sealer import verify_audit
from atelier.embedded.cluster import EmbeddedCluster
from tests.commands.conftest import Shop, new_key

pytestmark = pytest.mark.anyio


async def wait_until_sealed(database: asyncpg.Connection, entry_id: int) -> None:
    """Waits until an entry has a seal."""
    sealed = "select count(*) from audit_seal where last_entry_id >= $1"
    async with asyncio.timeout(10):
        while not await database.fetchval(sealed, entry_id):
            await asyncio.sleep(0.05)


async def entry_of(database: asyncpg.Connection, key: str) -> asyncpg.Record:
    """The audit entry of a command."""
    return await database.fetchrow("select * from audit_entry where command_key = $1", key)


async def test_every_command_leaves_actor_target_before_and_after(shop: Shop, database: asyncpg.Connection) -> None:
    """Committed with the command, also where the outcome was a refusal."""
    [sku_id] = await shop.stocked(5)
    done, refused = new_key(), new_key()
    await shop.adjust(sku_id, -2, Idempotency_Key=done)
    await shop.adjust(sku_id, -9, Idempotency_Key=refused)
    entry = await entry_of(database, done)
    assert (entry["command"], entry["target"], entry["status"]) == ("AdjustStock", "/inventory/adjustments", 200)
    assert entry["actor"].startswith("test-")
    assert '"on_hand":5' in entry["before"]
    assert '"on_hand":3' in entry["after"]
    entry = await entry_of(database, refused)
    assert (entry["status"], entry["before"], entry["after"]) == (409, None, None)


async def test_chain_holds_and_a_changed_entry_breaks_it(
    shop: Shop, database: asyncpg.Connection, cluster: EmbeddedCluster
) -> None:
    """Sealed within seconds; whoever may change the table is caught by the chain."""
    [sku_id] = await shop.stocked(5)
    key = new_key()
    await shop.adjust(sku_id, -2, Idempotency_Key=key)
    entry = await entry_of(database, key)
    entry_id = entry["entry_id"]
    await wait_until_sealed(database, entry_id)
    report = await verify_audit(database)
    assert (report.broken, report.entries > 0, report.newest_hash is not None) == ([], True, True)
    admin = await asyncpg.connect(cluster.superuser_dsn(cluster.primary.name), database="atelier")
    change = "update atelier.audit_entry set actor = $2 where entry_id = $1"
    try:
        await admin.execute(change, entry_id, "nobody")
        broken = (await verify_audit(database)).broken
        await admin.execute(change, entry_id, entry["actor"])
    finally:
        await admin.close()
    assert len(broken) == 1
    assert (await verify_audit(database)).broken == []
