"""Migrating a real primary: once, together, and beside running work."""

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import asyncpg
import pytest
from alembic import command
from alembic.config import Config
from sqlalchemy import Connection
from sqlalchemy.engine import URL
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.pool import NullPool

from atelier.embedded.cluster import EmbeddedCluster
from atelier.errors import PrimaryUnavailableError
from atelier.migrate import MIGRATION_LOCK, MigrationError, migrate
from atelier.resources import resource_dir
from tests.support import find_free_port, running_cluster

pytestmark = pytest.mark.anyio

SHAPE = """
select relname, attname, atttypid::regtype::text, attnotnull, relacl::text
from pg_class join pg_attribute on attrelid = pg_class.oid
where relnamespace = 'atelier'::regnamespace and attnum > 0 and not attisdropped
order by relname, attnum
"""


@pytest.fixture(scope="module")
def server() -> Iterator[EmbeddedCluster]:
    """A primary of this module's own, whose schema the tests may throw away."""
    with running_cluster(replicas=0) as opened:
        yield opened


@pytest.fixture
async def empty_schema(server: EmbeddedCluster) -> URL:
    """The address of a database as roles.sql leaves it: a schema, and nothing in it."""
    admin = await asyncpg.connect(server.superuser_dsn(server.primary.name), database="atelier")
    await admin.execute("drop schema atelier cascade; create schema atelier authorization owner")
    await admin.close()
    return URL.create(
        "postgresql+asyncpg",
        username="migrator",
        password=server.environment()["ATELIER_MIGRATOR_PASSWORD"],
        host="127.0.0.1",
        port=server.primary.port,
        database="atelier",
    )


@asynccontextmanager
async def connect(url: URL) -> AsyncIterator["asyncpg.Connection[asyncpg.Record]"]:
    """A connection as `migrator` that is closed in the end, also when a test fails."""
    connection = await asyncpg.connect(url.set(drivername="postgresql").render_as_string(hide_password=False))
    try:
        yield connection
    finally:
        connection.terminate()


async def until(watcher: "asyncpg.Connection[asyncpg.Record]", question: str) -> None:
    """Waits until the server says yes."""
    async with asyncio.timeout(10):
        while not await watcher.fetchval(question):
            await asyncio.sleep(0.01)


async def run(url: URL, said: list[str] | None = None, within_s: float = 20) -> str:
    """Migrates, collecting what is said."""
    return await migrate(url, clock=time.monotonic, within_s=within_s, say=(said if said is not None else []).append)


async def test_migrating_twice_changes_nothing_the_second_time(empty_schema: URL) -> None:
    """A start that finds the newest schema is quick and silent."""
    first, second = [], []
    assert await run(empty_schema, first) == await run(empty_schema, second)
    assert first
    assert second == []


async def test_processes_that_migrate_together_apply_each_migration_once(empty_schema: URL) -> None:
    """Three services that start at once need nobody to order them."""
    said: list[str] = []
    revisions = await asyncio.gather(*(run(empty_schema, said) for _ in range(3)))
    assert len(set(revisions)) == 1
    assert len(said) == len(set(said))


async def test_migration_gives_way_to_a_lock_and_comes_back(empty_schema: URL) -> None:
    """DDL that waits would make everybody behind it wait as well; so it gives up quickly and tries again."""
    await run(empty_schema)
    async with connect(empty_schema) as holder, connect(empty_schema) as watcher:
        await holder.execute("begin; lock table alembic_version in access exclusive mode")
        migrating = asyncio.create_task(run(empty_schema))
        await until(watcher, "select exists (select from pg_locks where not granted)")
        await holder.execute("commit")
        assert await migrating


async def test_migration_that_waits_in_a_circle_gives_way_and_comes_back(empty_schema: URL) -> None:
    """Somebody holds what it wants and wants what it holds: the server ends one of the two, and that is no failure."""
    newest = await run(empty_schema)
    await take_back(empty_schema, to="0009")
    async with connect(empty_schema) as holder, connect(empty_schema) as watcher:
        await holder.execute("begin; lock table stock in row exclusive mode")
        migrating = asyncio.create_task(run(empty_schema))
        await until(watcher, "select exists (select from pg_locks where not granted)")
        await holder.execute("lock table style in row exclusive mode")
        await holder.execute("commit")
        assert await migrating == newest
        await until(watcher, "select deadlocks > 0 from pg_stat_database where datname = current_database()")


async def test_migrating_a_server_that_is_not_there_is_one_clear_error() -> None:
    """No traceback of a driver reaches a person."""
    url = URL.create("postgresql+asyncpg", "migrator", "x", "127.0.0.1", find_free_port(), "atelier")
    with pytest.raises(PrimaryUnavailableError, match="the primary does not answer"):
        await run(url)


async def test_second_migrating_process_gives_up_in_time(empty_schema: URL) -> None:
    """A process that hangs with the lock does not hang the others."""
    async with connect(empty_schema) as holder:
        await holder.execute("select pg_advisory_lock($1, $2)", *MIGRATION_LOCK)
        with pytest.raises(MigrationError, match="another process"):
            await run(empty_schema, within_s=1)


async def test_failed_migration_is_one_clear_error_and_leaves_the_schema(empty_schema: URL) -> None:
    """What cannot be migrated stays as it was."""
    async with connect(empty_schema) as connection:
        await connection.execute("create table product (id bigint)")
        with pytest.raises(MigrationError, match='relation "product" already exists'):
            await run(empty_schema)
        assert await connection.fetchval("select to_regclass('stock')") is None


async def test_each_migration_can_be_taken_back(empty_schema: URL) -> None:
    """Down to nothing and up again leads to the same schema."""
    await run(empty_schema)
    async with connect(empty_schema) as connection:
        before = await connection.fetch(SHAPE)
        await take_back(empty_schema, to="base")
        left = await connection.fetch("select relname from pg_class where relnamespace = 'atelier'::regnamespace")
        assert {row["relname"] for row in left} == {"alembic_version", "alembic_version_pkc"}
        await run(empty_schema)
        assert await connection.fetch(SHAPE) == before


async def take_back(url: URL, *, to: str) -> None:
    """Downgrades to a revision, or to nothing."""
    engine = create_async_engine(url, poolclass=NullPool)
    config = Config()
    config.set_main_option("script_location", str(resource_dir("migrations")))

    def downgrade(connection: Connection) -> None:
        config.attributes["connection"] = connection
        command.downgrade(config, to)

    async with engine.connect() as connection:
        await connection.run_sync(downgrade)
        await connection.commit()
    await engine.dispose()
