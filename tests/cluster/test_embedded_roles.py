"""The roles: what each may do, on the primary too."""

from collections.abc import AsyncIterator

import asyncpg
import pytest

from atelier.embedded import build
from atelier.embedded.cluster import EmbeddedCluster
from tests.support import role_dsn

pytestmark = [pytest.mark.anyio, pytest.mark.cluster]

READ_ONLY = "25006"
DENIED = "42501"

# One of every kind of statement that changes something, for a role that has no right to any of them.
WRITES = {
    "insert": "insert into product (name, slogan, description, category, default_price) values ('x', '', '', '', 1)",
    "update": "update product set name = 'x'",
    "delete": "delete from product",
    "truncate": "truncate product cascade",
    "merge": "merge into product p using (select 1) s on false when matched then delete",
    "select for update": "select id from product for update",
    "select for key share": "select id from product for key share",
    "copy": "copy product (name) from stdin",
    "lock": "lock table product in row exclusive mode",
    "nextval": "select nextval('product_id_seq')",
    "setval": "select setval('product_id_seq', 1)",
    "create table": "create table atelier.mine (id int)",
    "create public table": "create table public.mine (id int)",
    "create temporary table": "create temporary table mine (id int)",
    "create schema": "create schema mine",
    "create function": "create function atelier.mine() returns int language sql return 1",
    "alter table": "alter table product add column mine int",
    "drop table": "drop table product cascade",
    "create index": "create index on product (name)",
    "comment": "comment on table product is 'mine'",
    "set role": "set role owner",
    "large object": "select lo_from_bytea(0, 'x')",
    "create large object": "select lo_create(0)",
    "wal message": "select pg_logical_emit_message(true, 'x', 'y')",
    "checkpoint": "checkpoint",
    "create role": "create role mine",
    "create database": "create database mine",
    "alter system": "alter system set jit = on",
    "replication slot": "select pg_create_physical_replication_slot('mine')",
    "read a file": "select pg_read_file('PG_VERSION')",
    "run a program": "copy product to program 'true'",
    "monitor's function": "select * from atelier_monitor.newest_history()",
}


# Every right to change something that `reader` has on anything that is not PostgreSQL's own, by name and right.
READERS_RIGHTS = """
with relation as (
    select oid, relkind, relnamespace::regnamespace || '.' || relname as name
      from pg_class where relnamespace::regnamespace::text !~ '^(pg_|information_schema$)'
)
select name, p as may from relation, unnest('{insert,update,delete,truncate,references,trigger,maintain}'::text[]) as p
 where relkind in ('r', 'p', 'v', 'm', 'f') and has_table_privilege('reader', oid, p)
union all
select name, p || ' of a column' from relation, unnest('{insert,update,references}'::text[]) as p
 where relkind in ('r', 'p', 'v', 'm', 'f') and has_any_column_privilege('reader', oid, p)
union all
select name, p from relation, unnest('{usage,update}'::text[]) as p
 where relkind = 'S' and has_sequence_privilege('reader', oid, p)
union all
select oid::regprocedure::text, 'execute as ' || proowner::regrole from pg_proc
 where prosecdef and has_function_privilege('reader', oid, 'execute')
union all
select nspname, 'create' from pg_namespace where has_schema_privilege('reader', oid, 'create')
union all
select datname, p from pg_database, unnest('{create,temporary}'::text[]) as p
 where has_database_privilege('reader', oid, p)
union all
select rolname, 'be a member' from pg_roles where rolname <> 'reader' and pg_has_role('reader', oid, 'member')
"""
# Tells which timeline a standby receives, and changes nothing.
READERS_ONLY_RIGHT = ("atelier_monitor.received_timeline()", "execute as postgres")

# What roles.sql makes, but for the passwords' hashes, whose salt is new each time.
MADE_BY_ROLES = {
    "roles": "select * from pg_roles order by rolname",
    "memberships": "select * from pg_auth_members order by oid",
    "settings": "select * from pg_db_role_setting order by setdatabase, setrole",
    "databases": "select oid, datname, datdba, datacl::text from pg_database order by oid",
    "schemas": "select oid, nspname, nspowner, nspacl::text from pg_namespace where nspname !~ '^pg_t' order by oid",
    "functions": "select oid, proname, proowner, prosrc, proconfig, proacl::text from pg_proc order by oid",
    "default rights": "select oid, defaclrole, defaclnamespace, defaclobjtype, defaclacl::text from pg_default_acl",
}


MANY_SKUS = """
with made as (
    insert into product (name, slogan, description, category, default_price) values ('hot', '', '', '', 1) returning id
), styled as (
    insert into style (product_id, name, original_price, is_default) select id, 'hot', 1, true from made returning id
)
insert into sku (style_id, size) select id, number::text from styled, generate_series(1, $1) as number returning id
"""


@pytest.fixture
async def superuser(cluster: EmbeddedCluster) -> AsyncIterator["asyncpg.Connection[asyncpg.Record]"]:
    """A connection as the superuser, to the primary."""
    connection = await asyncpg.connect(cluster.superuser_dsn("pg1"), statement_cache_size=0)
    yield connection
    await connection.close()


@pytest.fixture
async def reader(cluster: EmbeddedCluster) -> AsyncIterator["asyncpg.Connection[asyncpg.Record]"]:
    """A connection as `reader`, to the primary."""
    connection = await asyncpg.connect(role_dsn(cluster, "reader"), statement_cache_size=0)
    yield connection
    await connection.close()


@pytest.mark.parametrize("kind", WRITES)
async def test_reader_cannot_write_on_the_primary(reader: "asyncpg.Connection[asyncpg.Record]", kind: str) -> None:
    """As the pools connect: the transaction is read-only, or the right is missing."""
    assert await _refusal(reader, WRITES[kind]) in {READ_ONLY, DENIED}


@pytest.mark.parametrize("kind", WRITES)
async def test_reader_cannot_write_when_it_makes_its_transactions_writable(
    reader: "asyncpg.Connection[asyncpg.Record]", kind: str
) -> None:
    """The default is only a default: the rights must be missing, too."""
    await reader.execute("set default_transaction_read_only = off")
    assert await _refusal(reader, WRITES[kind]) == DENIED


async def test_reader_is_only_warned_where_postgresql_refuses_nothing(
    reader: "asyncpg.Connection[asyncpg.Record]",
) -> None:
    """VACUUM and GRANT skip what one may not touch, with a warning: nothing may have changed."""
    await reader.execute("set default_transaction_read_only = off")
    before = await reader.fetchval("select pg_relation_filenode('product')")
    await reader.execute("vacuum (full) product")
    await reader.execute("grant insert on product to reader")
    assert await reader.fetchval("select pg_relation_filenode('product')") == before
    assert await reader.fetchval("select has_table_privilege('product', 'insert')") is False


async def test_every_write_is_one_that_the_superuser_may_do(cluster: EmbeddedCluster) -> None:
    """A statement that fails for another reason, a missing table for instance, would prove nothing about rights."""
    connection = await asyncpg.connect(cluster.superuser_dsn("pg1"))
    await connection.execute("set search_path = atelier")
    not_in_a_transaction = {"create database", "alter system", "checkpoint", "run a program", "copy"}
    try:
        for kind in WRITES.keys() - not_in_a_transaction:
            transaction = connection.transaction()
            await transaction.start()
            await connection.execute(WRITES[kind])
            await transaction.rollback()
            if kind == "replication slot":
                await connection.execute("select pg_drop_replication_slot('mine')")
    finally:
        await connection.close()


async def test_reader_has_no_right_to_change_anything(superuser: "asyncpg.Connection[asyncpg.Record]") -> None:
    """Whatever a migration has made, or will: no relation, column or sequence, and one function of another's rights."""
    assert await _rights(superuser) == {READERS_ONLY_RIGHT}
    assert await superuser.fetchval("select count(*) from pg_class where relnamespace = 'atelier'::regnamespace") > 20


@pytest.mark.parametrize(
    ("grant", "found"),
    [
        ("grant insert on atelier.product to reader", ("atelier.product", "insert")),
        ("grant maintain on atelier.stock to public", ("atelier.stock", "maintain")),
        ("grant update (name) on atelier.product to reader", ("atelier.product", "update of a column")),
        ("grant usage on sequence atelier.product_id_seq to reader", ("atelier.product_id_seq", "usage")),
        (
            "grant execute on function atelier_monitor.newest_history() to reader",
            ("atelier_monitor.newest_history()", "execute as postgres"),
        ),
        ("grant create on schema atelier to reader", ("atelier", "create")),
        ("grant temporary on database atelier to reader", ("atelier", "temporary")),
        ("grant pg_write_all_data to reader", ("pg_write_all_data", "be a member")),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
async def test_right_that_reader_should_not_have_is_found(
    superuser: "asyncpg.Connection[asyncpg.Record]", grant: str, found: tuple[str, str]
) -> None:
    """The control of the test above; nothing of it is kept."""
    transaction = superuser.transaction()
    await transaction.start()
    try:
        await superuser.execute(grant)
        assert found in await _rights(superuser)
    finally:
        await transaction.rollback()


async def test_reader_reads(reader: "asyncpg.Connection[asyncpg.Record]") -> None:
    """The rights that it has are there: every refusal above is not for want of a way in."""
    assert await reader.fetchval("select count(*) from product") is not None
    assert await reader.fetchval("show default_transaction_read_only") == "on"


@pytest.mark.parametrize("role", ["reader", "writer", "monitor", "migrator", "replicator"])
async def test_role_has_every_timeout(cluster: EmbeddedCluster, role: str) -> None:
    """Nobody waits for ever, whatever its client asks for, in a database; a standby's connection is in none."""
    password = cluster._server.secrets.passwords[role]
    database = "postgres" if role == "replicator" else "atelier"
    connection = await asyncpg.connect(
        host="127.0.0.1", port=cluster.primary.port, user=role, password=password, database=database
    )
    try:
        for setting in ("statement", "lock", "idle_in_transaction_session", "transaction"):
            assert await connection.fetchval(f"show {setting}_timeout") != "0"
    finally:
        await connection.close()


async def test_no_role_of_the_service_has_more_rights_than_its_name(
    superuser: "asyncpg.Connection[asyncpg.Record]",
) -> None:
    """No superuser, no makers of roles or databases, and replication for the replicator alone."""
    rows = await superuser.fetch(
        "select rolname, rolsuper or rolcreaterole or rolcreatedb or rolbypassrls as mighty, rolreplication,"
        " rolcanlogin from pg_roles where rolname !~ '^pg_' and rolname <> 'postgres'"
    )
    assert {row["rolname"] for row in rows} == {"owner", "migrator", "writer", "reader", "monitor", "replicator"}
    assert not any(row["mighty"] for row in rows)
    assert [row["rolname"] for row in rows if row["rolreplication"]] == ["replicator"]
    assert [row["rolname"] for row in rows if not row["rolcanlogin"]] == ["owner"]


async def test_every_password_is_kept_as_a_scram_verifier(superuser: "asyncpg.Connection[asyncpg.Record]") -> None:
    """Of every role that may log in, the superuser too; an md5 hash could be replayed by who reads it."""
    rows = await superuser.fetch("select rolname, rolpassword from pg_authid where rolcanlogin")
    assert {row["rolname"] for row in rows} == {"postgres", "migrator", "writer", "reader", "monitor", "replicator"}
    assert all((row["rolpassword"] or "").startswith("SCRAM-SHA-256$") for row in rows)


async def test_public_has_no_rights_on_anything_of_ours(cluster: EmbeddedCluster) -> None:
    """Databases, schemas, tables, sequences and functions: nothing is open to every role there may come to be."""
    connection = await asyncpg.connect(cluster.superuser_dsn("pg1"))
    try:
        found = await connection.fetch(
            """
            select 'database', datname::text from pg_database, aclexplode(coalesce(datacl, acldefault('d', datdba)))
             where grantee = 0 and datallowconn
            union all
            select 'schema', nspname from pg_namespace, aclexplode(coalesce(nspacl, acldefault('n', nspowner)))
             where grantee = 0 and nspname in ('public', 'atelier', 'atelier_monitor')
            union all
            select 'relation', relname from pg_class, aclexplode(relacl)
             where grantee = 0 and relnamespace::regnamespace::text like 'atelier%'
            union all
            select 'function', proname from pg_proc, aclexplode(coalesce(proacl, acldefault('f', proowner)))
             where grantee = 0 and pronamespace::regnamespace::text like 'atelier%'
            """
        )
    finally:
        await connection.close()
    assert [tuple(row) for row in found] == []


@pytest.mark.parametrize("role", ["reader", "writer", "monitor"])
@pytest.mark.parametrize("database", ["postgres", "template1"])
async def test_role_cannot_enter_another_database(cluster: EmbeddedCluster, role: str, database: str) -> None:
    """A role that could would make temporary tables there, on the primary's disk."""
    with pytest.raises((asyncpg.InvalidAuthorizationSpecificationError, asyncpg.InsufficientPrivilegeError)):
        await asyncpg.connect(role_dsn(cluster, role).replace("/atelier", f"/{database}"))


async def test_wrong_password_is_refused(cluster: EmbeddedCluster) -> None:
    """Passwords everywhere; nobody is trusted for being on this machine."""
    with pytest.raises(asyncpg.InvalidPasswordError):
        await asyncpg.connect(role_dsn(cluster, "reader"), password="wrong")


async def test_migrator_acts_as_owner(cluster: EmbeddedCluster) -> None:
    """What a migration makes belongs to `owner`, who cannot log in."""
    connection = await asyncpg.connect(role_dsn(cluster, "migrator"))
    try:
        assert await connection.fetchval("select current_user") == "owner"
        assert await connection.fetchval("select current_schema()") == "atelier"
    finally:
        await connection.close()


async def test_functions_of_the_owner_are_closed_until_granted(cluster: EmbeddedCluster) -> None:
    """PostgreSQL opens new functions to everybody; default privileges close them."""
    connection = await asyncpg.connect(role_dsn(cluster, "migrator"))
    try:
        async with connection.transaction():
            await connection.execute("create function mine() returns int language sql return 1")
            may = "select has_function_privilege('reader', 'mine()', 'execute')"
            assert await connection.fetchval(may) is False
            await connection.execute("drop function mine()")
    finally:
        await connection.close()


async def test_monitor_reads_positions_and_timelines_of_every_node(cluster: EmbeddedCluster) -> None:
    """Through pg_monitor and one function of the superuser's, without the right to read files."""
    for name in cluster.nodes:
        connection = await asyncpg.connect(role_dsn(cluster, "monitor", node=name))
        try:
            assert await connection.fetch("select * from atelier_monitor.newest_history()") == []
            assert await connection.fetchval("select count(*) from pg_stat_wal_receiver") == (name != "pg1")
            with pytest.raises(asyncpg.InsufficientPrivilegeError):
                await connection.fetchval("select pg_read_file('PG_VERSION')")
        finally:
            await connection.close()


async def test_roles_can_be_made_again(
    cluster: EmbeddedCluster, superuser: "asyncpg.Connection[asyncpg.Record]"
) -> None:
    """A second run of roles.sql changes nothing, and the passwords stay."""
    before = await _made_by_roles(superuser)
    text, _ = build.read_roles()
    build.run_roles(cluster._server, cluster.primary, text)
    after = await _made_by_roles(superuser)
    assert all(before.values())
    assert after == before
    connection = await asyncpg.connect(role_dsn(cluster, "reader"))
    await connection.close()


async def test_update_of_stock_is_a_hot_one_on_every_page(cluster: EmbeddedCluster) -> None:
    """The pages keep room for it, so that a sale writes no index entry; filled to the brim they would have none."""
    connection = await asyncpg.connect(role_dsn(cluster, "writer"))
    transaction = connection.transaction()
    await transaction.start()
    try:
        skus = await connection.fetch(MANY_SKUS, 2_000)
        sku_ids = [row["id"] for row in skus]
        await connection.execute("insert into stock (sku_id, on_hand) select unnest($1::bigint[]), 9", sku_ids)
        pages = "select count(distinct (ctid::text::point)[0]) from stock where sku_id = any ($1)"
        assert await connection.fetchval(pages, sku_ids) > 5
        some = sku_ids[::10]
        await connection.execute("update stock set reserved = reserved + 1 where sku_id = any ($1)", some)
        counts = "select n_tup_upd, n_tup_hot_upd from pg_stat_xact_user_tables where relname = 'stock'"
        assert tuple(await connection.fetchrow(counts)) == (len(some), len(some))
    finally:
        await transaction.rollback()
        await connection.close()


async def test_no_password_reaches_a_log(cluster: EmbeddedCluster) -> None:
    """Neither when the roles are made, nor when making them fails."""
    secrets = cluster._server.secrets.passwords.values()
    for node in cluster.nodes.values():
        text = node.log.read_text()
        assert not [secret for secret in secrets if secret in text]


async def _refusal(connection: "asyncpg.Connection[asyncpg.Record]", statement: str) -> str | None:
    """The SQLSTATE of the refusal; fails the test when there is none. Nothing is kept in any case."""
    transaction = connection.transaction()
    alone = statement.startswith(("create database", "alter system"))
    if not alone:
        await transaction.start()
    try:
        if statement.startswith("copy product (name)"):
            work = connection.copy_to_table("product", source=_one_row(), columns=["name"])
        else:
            work = connection.execute(statement)
        with pytest.raises(asyncpg.PostgresError) as caught:
            await work
        return caught.value.sqlstate
    finally:
        if not alone:
            await transaction.rollback()


async def _rights(superuser: "asyncpg.Connection[asyncpg.Record]") -> set[tuple[str, str]]:
    return {(row["name"], row["may"]) for row in await superuser.fetch(READERS_RIGHTS)}


async def _made_by_roles(superuser: "asyncpg.Connection[asyncpg.Record]") -> dict[str, list[tuple[object, ...]]]:
    return {what: [tuple(row) for row in await superuser.fetch(sql)] for what, sql in MADE_BY_ROLES.items()}


async def _one_row() -> AsyncIterator[bytes]:
    yield b"x\n"
