"""An import that is killed at any moment, under reads and commands: the old catalogue as a whole, or the new one."""

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from random import Random

import anyio
import asyncpg
import pytest

from atelier.embedded.cluster import EmbeddedCluster
from atelier.loading.generate import generate_catalogue
from tests.conftest import ClusterFactory
from tests.importing.conftest import Database
from tests.support import role_dsn

pytestmark = pytest.mark.anyio

# One statement, so one snapshot: every table of the catalogue, and which catalogue it says it is.
LOOK = """
select (select catalogue_id from current_catalogue), (select count(*) from product), (select count(*) from feature),
       (select count(*) from style), (select count(*) from photo), (select count(*) from sku),
       (select count(*) from related), (select count(*) from stock), (select sum(products) from product_block)
"""
# What every command does: a lock on a swapped table first, then the present catalogue, stock and ledger.
COMMAND = """
with picked as (select catalogue_id from current_catalogue), changed as (
    update stock set on_hand = on_hand + 1, version = version + 1 where sku_id = $1 returning sku_id)
insert into stock_movement (catalogue_id, sku_id, delta, kind)
select catalogue_id, sku_id, 1, 'adjustment' from picked, changed
"""
BALANCED = """
select count(*) from stock left join (
    select sku_id, sum(delta) as delta from stock_movement
     where catalogue_id = (select catalogue_id from current_catalogue) group by sku_id) as ledger using (sku_id)
 where on_hand is distinct from delta
"""


@pytest.fixture(scope="module")
def catalogues(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two catalogues of different sizes."""
    folders = [tmp_path_factory.mktemp(name) for name in ("one", "two")]
    for folder, products in zip(folders, (600, 900), strict=True):
        generate_catalogue(folder, products=products, seed=products)
    return folders


class Load:
    """Reads and commands that run until they are stopped; whatever goes wrong with them fails the test."""

    def __init__(self, cluster: EmbeddedCluster, nodes: list[str]) -> None:
        self._cluster = cluster
        self._nodes = nodes
        self.seen: Counter[tuple[object, ...]] = Counter()
        self.commands = 0
        self.stopped = False

    async def read(self, node: str) -> None:
        connection = await asyncpg.connect(role_dsn(self._cluster, "reader", node=node), timeout=10)
        try:
            while not self.stopped:
                try:
                    self.seen[tuple(await connection.fetchrow(LOOK))[1:]] += 1
                except asyncpg.SerializationError:
                    await asyncio.sleep(0.01)  # the replica had to replay the swap: another node is asked, or again
        finally:
            await connection.close()

    async def command(self) -> None:
        connection = await asyncpg.connect(role_dsn(self._cluster, "writer"), timeout=10)
        try:
            while not self.stopped:
                async with connection.transaction():
                    await connection.execute("lock table stock in row exclusive mode")
                    await connection.execute(COMMAND, 1 + self.commands % 50)
                self.commands += 1
                await asyncio.sleep(0.002)
        finally:
            await connection.close()

    async def run_during(self, work: Callable[[], object]) -> None:
        """Runs beside some blocking work."""
        async with asyncio.TaskGroup() as tasks:
            for node in self._nodes:
                tasks.create_task(self.read(node))
            tasks.create_task(self.command())
            try:
                await anyio.to_thread.run_sync(work)
            finally:
                self.stopped = True


def start_import(cluster: EmbeddedCluster, folder: Path, rejects: Path) -> "subprocess.Popen[bytes]":
    """The real command, in a process of its own."""
    environ = {name: value for name, value in os.environ.items() if not name.startswith("ATELIER_")}
    command = [sys.executable, "-m", "atelier.cli.main", "import", str(folder), f"--rejects={rejects}"]
    return subprocess.Popen(
        command, env=environ | cluster.environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )


def kill_imports(database: Database, folders: list[Path], rejects: Path, *, times: int, random: Random) -> None:
    """Starts imports and kills each at a random moment; now and then one gets through."""
    database.load(folders[0])
    started_s = time.monotonic()
    whole = start_import(database.cluster, folders[1], rejects)
    assert whole.wait(timeout=60) == 0
    usual_s = time.monotonic() - started_s
    for attempt in range(times):
        process = start_import(database.cluster, folders[attempt % 2], rejects)
        try:
            process.wait(timeout=random.uniform(0.3, 1.1) * usual_s)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait(timeout=10)


@pytest.mark.parametrize("times", [4, pytest.param(20, marks=[pytest.mark.slow, pytest.mark.timeout(900)])])
async def test_killed_imports_leave_a_whole_catalogue(
    database: Database, catalogues: list[Path], tmp_path: Path, times: int
) -> None:
    """Every look, at any time, shows one of the two catalogues; commands never fail; the next import cleans up."""
    random = Random()
    load = Load(database.cluster, ["pg1"])

    def work() -> None:
        kill_imports(database, catalogues, tmp_path / "rejects.csv", times=times, random=random)
        database.load(catalogues[0])

    await anyio.to_thread.run_sync(lambda: database.load(catalogues[0]))
    await load.run_during(work)
    assert {seen[0] for seen in load.seen} == {600, 900}
    assert len(load.seen) == 2, load.seen
    assert all(seen[0] == seen[-1] and seen[4] == seen[6] for seen in load.seen)
    assert load.commands > times
    assert await anyio.to_thread.run_sync(lambda: database.value(BALANCED)) == 0
    schemas = "select count(*) from pg_namespace where nspname in ('atelier_import', 'atelier_retired')"
    assert await anyio.to_thread.run_sync(lambda: database.value(schemas)) == 0


@pytest.mark.cluster
async def test_replica_shows_the_old_catalogue_or_the_new_one(
    make_cluster: ClusterFactory, catalogues: list[Path]
) -> None:
    """Also while it replays the swap, and the drop of the old tables."""
    cluster = await anyio.to_thread.run_sync(lambda: make_cluster(replicas=1))
    database = Database(cluster)

    def work() -> None:
        for attempt in range(4):
            database.load(catalogues[attempt % 2])

    await anyio.to_thread.run_sync(lambda: database.load(catalogues[1]))
    load = Load(cluster, ["pg1", "pg2"])
    await load.run_during(work)
    assert {seen[0] for seen in load.seen} <= {0, 600, 900}
    assert len({seen for seen in load.seen if seen[0]}) == 2, load.seen
    assert await anyio.to_thread.run_sync(lambda: database.value(BALANCED)) == 0


@pytest.mark.cluster
async def test_import_waits_for_a_slow_replica_and_says_so(make_cluster: ClusterFactory, tmp_path: Path) -> None:
    """A replica that fetches nothing for a while keeps its slot, because the import waits for it."""
    extra = {"max_slot_wal_keep_size": "64MB", "wal_sender_timeout": "60s"}
    cluster = await anyio.to_thread.run_sync(lambda: make_cluster(replicas=1, extra=extra))
    database = Database(cluster)
    generate_catalogue(tmp_path, products=20_000, seed=1)
    await anyio.to_thread.run_sync(lambda: cluster.freeze("pg2"))
    try:
        task = database.start(tmp_path)
        async with asyncio.timeout(60):
            while not any(line.startswith("waiting for replica pg2") for line in database.told.lines):
                assert not task.done(), task.result()
                await asyncio.sleep(0.05)
    finally:
        await anyio.to_thread.run_sync(lambda: cluster.thaw("pg2"))
    report = await task
    assert report.files["product"].loaded == 20_000
    status = "select wal_status from pg_replication_slots where slot_name = 'pg2'"
    assert await anyio.to_thread.run_sync(lambda: database.value(status)) in {"reserved", "extended"}
