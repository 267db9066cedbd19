"""The audit: written with every command, sealed within seconds, and a change of it shows."""

import asyncio
import os
import subprocess
import sys

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


@pytest.mark.soak
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


def run_verify(cluster: EmbeddedCluster) -> "subprocess.CompletedProcess[str]":
    """`atelier audit verify`, as an operator runs it."""
    environ = {key: value for key, value in os.environ.items() if not key.startswith("ATELIER_")}
    command = [sys.executable, "-P", "-m", "atelier.cli.main", "audit", "verify"]
    return subprocess.run(
        command, env=environ | cluster.environment(), capture_output=True, text=True, timeout=60, check=False
    )


async def test_operator_is_told_what_is_sealed_what_is_not_yet_and_what_is_broken(
    shop: Shop, database: asyncpg.Connection, cluster: EmbeddedCluster
) -> None:
    """A transaction that is open holds the sealing up: what it may still precede is named, not passed over."""
    [sku_id] = await shop.stocked(5)
    early, late = new_key(), new_key()
    await shop.adjust(sku_id, -1, Idempotency_Key=early)
    entry = await entry_of(database, early)
    await wait_until_sealed(database, entry["entry_id"])
    admin = await asyncpg.connect(cluster.superuser_dsn(cluster.primary.name), database="atelier")
    try:
        async with admin.transaction():
            await admin.execute("select pg_current_xact_id()")
            await shop.adjust(sku_id, -1, Idempotency_Key=late)
            waiting = await entry_of(database, late)
            told = await asyncio.to_thread(run_verify, cluster)
        assert told.returncode == 0, told.stderr
        assert "sealed: " in told.stdout
        [line] = [line for line in told.stdout.splitlines() if line.startswith("not sealed yet: ")]
        assert str(waiting["entry_id"]) in line
        await wait_until_sealed(database, waiting["entry_id"])
        change = "update atelier.audit_entry set status = $2 where entry_id = $1"
        await admin.execute(change, entry["entry_id"], 500)
        told = await asyncio.to_thread(run_verify, cluster)
        await admin.execute(change, entry["entry_id"], entry["status"])
    finally:
        await admin.close()
    assert (told.returncode, told.stderr.count("broken: ")) == (1, 1), told.stderr
    assert "Traceback" not in told.stderr
