"""The swap: all that belongs to the live tables follows, nothing that was used comes back, nobody is trampled on."""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import asyncpg
import pytest

from atelier.errors import AtelierError, PrimaryUnavailableError
from atelier.loading import importer
from atelier.loading.generate import generate_catalogue
from atelier.loading.rejects import StrictError
from atelier.loading.seed import DEMO_FOLDER
from atelier.loading.session import LoadingError
from atelier.loading.side import TABLES
from tests.importing.conftest import Database
from tests.oracle import Oracle
from tests.random_catalogue import write_random_catalogue

DEMO_SKUS = Oracle(DEMO_FOLDER).quantities()

SHAPE = """
select relname || ' ' || what from pg_class, lateral (
    select format('column %s %s %s %s', attname, format_type(atttypid, atttypmod), attnotnull,
                  pg_get_expr(adbin, adrelid)) as what
      from pg_attribute left join pg_attrdef on adrelid = attrelid and adnum = attnum
     where attrelid = pg_class.oid and attnum > 0
    union all select format('%s %s %s', conname, contype, pg_get_constraintdef(oid)) from pg_constraint
     where conrelid = pg_class.oid
    union all select pg_get_indexdef(indexrelid) from pg_index where indrelid = pg_class.oid and indisvalid
    union all select pg_get_triggerdef(oid) from pg_trigger where tgrelid = pg_class.oid and not tgisinternal
    union all select format('grants %s', (select string_agg(one::text, ' ' order by one::text)
                                            from unnest(relacl) as one))
    union all select format('column grants %s %s', attname, attacl) from pg_attribute
     where attrelid = pg_class.oid and attacl is not null
    union all select format('options %s', reloptions)
    union all select format('owner %s', relowner::regrole)
    union all select format('comment %s %s', objsubid, description) from pg_description where objoid = pg_class.oid
) as shape where relnamespace = 'atelier'::regnamespace and relname = any($1::text[]) order by 1
"""
FUTURE = """
alter table stock add column shelf text not null default 'A', add constraint stock_shelf_named check (shelf <> '');
create index stock_shelf_idx on stock (shelf) where reserved > 0;
create function noticed() returns trigger language plpgsql as 'begin return null; end';
create trigger stock_noticed after update on stock for each statement execute function noticed();
grant update (shelf) on stock to monitor;
grant select on stock to monitor with grant option;
alter table stock set (fillfactor = 60);
comment on table stock is 'What is on the shelf.';
comment on column stock.shelf is 'Where.';
alter table product add constraint product_name_once unique (name, id);
"""
PAST = """
alter table stock drop column shelf;
drop trigger stock_noticed on stock;
drop function noticed;
revoke all on stock from monitor;
alter table product drop constraint product_name_once;
"""


def shape_of(database: Database) -> list[str]:
    """All that belongs to the live tables but their rows."""
    return [row[0] for row in database.fetch(SHAPE, list(TABLES))]


def run(database: Database, script: str) -> None:
    """Runs several statements as the owner."""

    async def work() -> None:
        connection = await asyncpg.connect(database.dsn)
        try:
            await connection.execute(script)
        finally:
            await connection.close()

    asyncio.run(work())


def signature(database: Database) -> tuple[object, ...]:
    """What tells one catalogue from another."""
    return tuple(
        database.fetch(
            "select catalogue_id, (select count(*) from product), (select sum(on_hand) from stock),"
            " (select sum(delta) from stock_movement as m where m.catalogue_id = c.catalogue_id),"
            " (select string_agg(nspname, ',') from pg_namespace"
            "   where nspname in ('atelier_import', 'atelier_retired'))"
            " from current_catalogue as c"
        )[0]
    )


@pytest.fixture
def future(database: Database) -> Iterator[Database]:
    """A schema with things that no migration of today has."""
    database.load(DEMO_FOLDER)
    run(database, FUTURE)
    yield database
    run(database, PAST)


def test_whatever_a_later_migration_adds_follows(future: Database) -> None:
    """Columns, defaults, checks, keys, indexes, triggers, grants, options, comments: all as before, swap after swap."""
    before = shape_of(future)
    for _ in range(2):
        future.load(DEMO_FOLDER)
        assert shape_of(future) == before


def test_new_partition_of_the_ledger_is_like_the_first(database: Database) -> None:
    """Its key is part of the ledger's key, and the roles may do the same with it."""
    report = database.load(DEMO_FOLDER)
    parts = [
        [row[0].replace(name, "x") for row in database.fetch(SHAPE, [name]) if "comment" not in row[0]]
        for name in ("stock_movement_1", f"stock_movement_{report.catalogue_id}")
    ]
    first, new = ([line for line in part if "grants" not in line] for part in parts)
    assert new == first
    command = "insert into stock_movement (catalogue_id, sku_id, delta, kind) values ($1, 1, 0, 'adjustment')"
    database.fetch(command, report.catalogue_id, role="writer")


def test_opening_ledger_holds_every_quantity(database: Database) -> None:
    """One movement of kind `import` for each SKU, also for those with nothing on the shelf."""
    report = database.load(DEMO_FOLDER)
    rows = database.fetch(
        "select sku_id, delta, kind, movement_id from stock_movement where catalogue_id = $1", report.catalogue_id
    )
    assert {row["sku_id"]: row["delta"] for row in rows} == DEMO_SKUS
    assert {row["kind"] for row in rows} == {"import"}
    assert len({row["movement_id"] for row in rows}) == len(DEMO_SKUS)


def test_old_movements_stay_with_their_catalogue(database: Database) -> None:
    """Sums are per catalogue: a sale before the swap does not count after it."""
    old = database.load(DEMO_FOLDER).catalogue_id
    run(
        database,
        "update stock set on_hand = on_hand - 1, version = version + 1 where sku_id = 1;"
        f"insert into stock_movement (catalogue_id, sku_id, delta, kind) values ({old}, 1, -1, 'sale')",
    )
    new = database.load(DEMO_FOLDER).catalogue_id
    sums = database.fetch("select catalogue_id, sum(delta) from stock_movement where sku_id = 1 group by 1")
    assert {row[0]: row[1] for row in sums}[old] == DEMO_SKUS[1] - 1
    assert {row[0]: row[1] for row in sums}[new] == DEMO_SKUS[1]
    assert database.value("select on_hand from stock where sku_id = 1") == DEMO_SKUS[1]


def test_versions_begin_above_every_version_ever_used(database: Database) -> None:
    """Also above those of rows that were deleted, and of an import before."""
    database.load(DEMO_FOLDER)
    run(database, "update stock set version = version + 700 where sku_id = 3; delete from product where id = 7")
    used = database.value("select greatest(max(version), (select version_floor from current_catalogue)) from stock")
    database.load(DEMO_FOLDER)
    assert database.value("select min(version) from stock") > used
    assert database.value("select min(version) from product") > used
    assert database.value("select version_floor from current_catalogue") >= used


def test_sequences_go_beyond_the_import_and_never_back(database: Database, tmp_path: Path) -> None:
    """New ids do not meet imported ones, nor ids that were given out before."""
    random = write_random_catalogue(tmp_path, seed=5, products=40)
    database.load(random)
    highest = {table: database.value(f"select max(id) from {table}") for table in ("product", "sku")}
    drawn = {table: database.value(f"select nextval('{table}_id_seq')") for table in highest}
    assert all(drawn[table] > highest[table] for table in highest)
    far = database.value("select setval('sku_id_seq', nextval('sku_id_seq') + 1000)")
    database.load(DEMO_FOLDER)
    assert database.value("select nextval('sku_id_seq')") > far


def test_swap_is_one_event_and_counts_pages_anew(database: Database) -> None:
    """The feed says `catalogue replaced` once, and no product or SKU is announced by itself."""
    before = database.value("select coalesce(max(position), 0) from outbox")
    database.load(DEMO_FOLDER)
    events = database.fetch("select topic, kind from outbox where position > $1", before)
    assert [tuple(event) for event in events] == [("catalogue", "replaced")]
    assert database.value("select sum(products) from product_block") == 36


def test_pending_reservations_are_released(database: Database) -> None:
    """What was promised from the old shelf is not promised from the new one."""
    catalogue_id = database.load(DEMO_FOLDER).catalogue_id
    query = (
        "insert into reservation (catalogue_id, state, expires_at)"
        " values ($1, $2, clock_timestamp() + interval '1 hour') returning reservation_id"
    )
    pending, confirmed = (database.fetch(query, catalogue_id, state)[0][0] for state in ("pending", "confirmed"))
    database.load(DEMO_FOLDER)
    rows = database.fetch("select state, reason from reservation where reservation_id = any($1)", [pending, confirmed])
    assert {tuple(row) for row in rows} == {("released", "catalogue-replaced"), ("confirmed", None)}


def test_strict_import_with_a_refused_row_changes_nothing(database: Database, tmp_path: Path) -> None:
    """The first refused row ends it; so does an orphan that only the database finds."""
    database.load(DEMO_FOLDER)
    before = signature(database)
    for row in ("x,1,1", "99999,1,424242"):
        made = write_random_catalogue(tmp_path, seed=1)
        with (made / "related.csv").open("a") as file:
            file.write(row + "\n")
        with pytest.raises(StrictError, match=r"related\.csv line \d+: "):
            database.load(made, strict=True)
        assert signature(database) == before


def test_trial_reports_and_changes_nothing(database: Database, tmp_path: Path) -> None:
    """The report is that of an import, the catalogue is as it was, and hardly any WAL is written."""
    database.load(DEMO_FOLDER)
    before = signature(database)
    made = write_random_catalogue(tmp_path / "made", seed=4)
    with (made / "related.csv").open("a") as file:
        file.write("99999,1,424242\n")
    report = database.load(made, trial=True, rejects=tmp_path / "rejects.csv")
    assert (report.catalogue_id, report.rejected) == (None, 1)
    assert "99999,1,424242" in (tmp_path / "rejects.csv").read_text()
    assert signature(database) == before


def test_second_import_is_refused(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two at once would take each other's tables away."""
    monkeypatch.setattr(importer, "_LOCK_WAIT_S", 0.0)

    async def work() -> None:
        connection = await asyncpg.connect(database.dsn)
        try:
            await connection.execute("select pg_advisory_lock($1, $2)", *importer._IMPORT_LOCK)
            with pytest.raises(LoadingError, match="another import is running"):
                await database.load_async(DEMO_FOLDER)
        finally:
            await connection.close()

    asyncio.run(work())


async def wait_for_line(database: Database, task: "asyncio.Task[object]", line: str) -> None:
    """Returns when the import has said the line; fails when it ends before."""
    async with asyncio.timeout(20):
        while line not in database.told.lines:
            assert not task.done(), task.result()
            await asyncio.sleep(0.01)


def test_swap_waits_for_a_running_command(database: Database) -> None:
    """A command that commits before the swap belongs to the old catalogue, and is neither lost nor cancelled."""
    old = database.load(DEMO_FOLDER).catalogue_id

    async def work() -> None:
        connection = await asyncpg.connect(database.dsn)
        try:
            async with connection.transaction():
                await connection.execute(
                    "update stock set on_hand = on_hand + 5, version = version + 1 where sku_id = 2"
                )
                task = database.start(DEMO_FOLDER)
                await wait_for_line(database, task, "waiting for running transactions to end")
                await connection.execute(
                    "insert into stock_movement (catalogue_id, sku_id, delta, kind)"
                    " select catalogue_id, 2, 5, 'adjustment' from current_catalogue"
                )
            await task
        finally:
            await connection.close()

    asyncio.run(work())
    assert database.value("select on_hand from stock where sku_id = 2") == DEMO_SKUS[2]
    query = "select sum(delta) from stock_movement where sku_id = 2 and catalogue_id = $1"
    assert database.value(query, old) == DEMO_SKUS[2] + 5


def test_swap_gives_up_when_the_tables_stay_busy(database: Database) -> None:
    """The wait is bounded, the message names who is in the way, and nothing has changed."""
    database.load(DEMO_FOLDER)
    before = signature(database)

    async def work() -> None:
        connection = await asyncpg.connect(database.dsn)
        try:
            async with connection.transaction():
                await connection.execute("lock table feature in access share mode")
                with pytest.raises(LoadingError, match=r"busy for too long; migrator, process \d+, holds feature$"):
                    await database.load_async(DEMO_FOLDER, swap_wait_s=0.1)
        finally:
            await connection.close()

    asyncio.run(work())
    assert signature(database) == before


def test_leftovers_of_a_killed_import_are_removed_at_the_next_start(database: Database) -> None:
    """Both schemas may be there, filled; a person is told."""
    run(
        database,
        "create schema atelier_import; create table atelier_import.product (id bigint);"
        "create schema atelier_retired; create table atelier_retired.product (id bigint)",
    )
    database.load(DEMO_FOLDER)
    assert "removed what an interrupted import had left" in database.told.lines
    assert signature(database)[-1] is None


def test_what_is_bound_to_the_old_tables_stops_an_import_at_once(database: Database) -> None:
    """A view would go on showing the old catalogue: refused before any row is read."""
    run(database, "create view cheap as select id from product where default_price < 10")
    try:
        with pytest.raises(LoadingError, match="view cheap behind"):
            database.load(DEMO_FOLDER)
    finally:
        run(database, "drop view cheap")


def test_import_over_a_migration_is_refused(database: Database) -> None:
    """Side tables are copies of the schema as it was: a schema that changed meanwhile is not replaced by them."""
    revision = database.value("select version_num from alembic_version")

    async def work() -> None:
        connection = await asyncpg.connect(database.dsn)
        try:
            async with connection.transaction():
                await connection.execute("lock table feature in access share mode")
                task = database.start(DEMO_FOLDER)
                await wait_for_line(database, task, "waiting for running transactions to end")
                await connection.execute("update alembic_version set version_num = 'other'")
            with pytest.raises(LoadingError, match="was migrated while the import ran"):
                await task
        finally:
            await connection.execute("update alembic_version set version_num = $1", revision)
            await connection.close()

    asyncio.run(work())


@pytest.fixture(scope="session")
def big(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A catalogue whose import takes long enough to come to something in the middle of it."""
    folder = tmp_path_factory.mktemp("big")
    generate_catalogue(folder, products=4_000, seed=1)
    return folder


def test_cancelled_import_leaves_nothing(database: Database, big: Path) -> None:
    """Ctrl-C cancels the task: the old catalogue is untouched, and the side tables are gone at once."""
    database.load(DEMO_FOLDER)
    before = signature(database)

    async def work() -> None:
        task = database.start(big)
        await wait_for_line(database, task, "building keys and indexes of sku")
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(work())
    assert signature(database) == before


def test_lost_connections_end_an_import_in_one_line(database: Database, big: Path) -> None:
    """As when the primary goes away: the old catalogue is untouched."""
    database.load(DEMO_FOLDER)
    before = signature(database)

    async def work() -> None:
        connection = await asyncpg.connect(database.cluster.superuser_dsn("pg1"))
        try:
            task = database.start(big)
            await wait_for_line(database, task, "building keys and indexes of style")
            await connection.execute(
                "select pg_terminate_backend(pid) from pg_stat_activity where application_name = 'atelier import'"
            )
            with pytest.raises(PrimaryUnavailableError) as ended:
                await task
            assert len(str(ended.value).splitlines()) == 1
        finally:
            await connection.close()

    asyncio.run(work())
    assert signature(database)[:-1] == before[:-1]
    assert database.load(DEMO_FOLDER).catalogue_id is not None


FULL = """
create function disk_is_there() returns boolean language plpgsql as $$
begin raise exception 'could not extend file "base/1/2"' using errcode = 'disk_full'; end $$;
alter table photo add constraint photo_fits check (disk_is_there()) not valid
"""


def test_full_disk_ends_an_import_in_one_line(database: Database) -> None:
    """PostgreSQL's own error, raised where a row is stored."""
    database.load(DEMO_FOLDER)
    run(database, FULL)
    before = signature(database)
    try:
        with pytest.raises(AtelierError, match=r"^loading photos\.csv: the disk of the database is full$"):
            database.load(DEMO_FOLDER)
        assert signature(database) == before
    finally:
        run(database, "alter table photo drop constraint photo_fits; drop function disk_is_there")
