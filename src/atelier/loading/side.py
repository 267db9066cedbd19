"""Side tables: empty twins of the live tables in a schema of their own, which an import fills and swaps in.

Everything is copied from the live tables' own definitions: columns, defaults, checks, storage options first; keys,
indexes, triggers, grants and comments once the rows are in. So what a later migration adds to a table follows.

Definitions are read with the live schema alone in the search path, and so name tables without a schema; they are run
with the side schema in front of it, where the same names mean the twins.
"""

from dataclasses import dataclass

from atelier.loading.session import LIVE, RETIRED, SIDE, Connection, LoadingError

# In the order in which they reference each other.
TABLES = ("product", "feature", "style", "photo", "sku", "related", "stock")
LEDGER = "stock_movement"

_KEYS = """
select conname as name, contype = 'f' as is_foreign, pg_get_constraintdef(oid, true) as definition
  from pg_constraint where conrelid = $1::regclass and contype in ('p', 'u', 'x', 'f')
 order by array_position(array['p', 'u', 'x', 'f'], contype::text), conname
"""
_INDEXES = """
select pg_get_indexdef(indexrelid, 0, true) from pg_index
 where indrelid = $1::regclass and indisvalid
   and not exists (select from pg_constraint where conindid = indexrelid and contype in ('p', 'u', 'x'))
 order by 1
"""
_TRIGGERS = """
select pg_get_triggerdef(oid, true) from pg_trigger where tgrelid = $1::regclass and not tgisinternal order by tgname
"""
_DEFAULTS = """
select format('alter column %I set default %s', attname, pg_get_expr(adbin, adrelid))
  from pg_attrdef join pg_attribute on attrelid = adrelid and attnum = adnum
 where adrelid = $1::regclass and attgenerated = ''
"""
_GRANTS = """
with held as (
    select relowner, privilege_type || '' as privilege, acl.* from pg_class, aclexplode(relacl) as acl
     where oid = $1::regclass
    union all
    select relowner, format('%s (%I)', privilege_type, attname), acl.*
      from pg_class join pg_attribute on attrelid = pg_class.oid, aclexplode(attacl) as acl
     where pg_class.oid = $1::regclass
)
select format('grant %s on %s to %s%s', privilege, $2::text,
              case grantee when 0 then 'public' else quote_ident(pg_get_userbyid(grantee)) end,
              case when is_grantable then ' with grant option' else '' end)
  from held where grantee <> relowner
"""
_COMMENT = "select format('comment on table %s is %L', $2::text, obj_description($1::regclass, 'pg_class'))"
_OPTIONS = "select reloptions from pg_class where oid = $1::regclass"
# A view or a foreign key from elsewhere is bound to the table itself, not to its name: it would follow the old one.
_BOUND = """
select distinct case
         when depender.classid = 'pg_constraint'::regclass
         then 'foreign key ' || (select conname || ' of ' || conrelid::regclass from pg_constraint
                                  where oid = depender.objid)
         when depender.classid = 'pg_rewrite'::regclass
         then 'view ' || (select ev_class::regclass::text from pg_rewrite where oid = depender.objid)
         else 'function ' || depender.objid::regprocedure::text end
  from pg_depend as depender
 where depender.refclassid = 'pg_class'::regclass and depender.refobjid = any($1::regclass[])
   and (depender.classid = 'pg_rewrite'::regclass or depender.classid = 'pg_proc'::regclass
        or depender.classid = 'pg_constraint'::regclass
           and exists (select from pg_constraint where oid = depender.objid and contype = 'f'
                          and conrelid <> all($1::regclass[])))
"""


@dataclass(frozen=True, slots=True)
class Key:
    """A primary, unique or foreign key of a live table."""

    name: str
    is_foreign: bool
    definition: str


async def refuse_bound_objects(connection: Connection) -> None:
    """Makes sure that nothing outside would stay with the old tables.

    Raises:
        LoadingError: something would; the message names it.
    """
    bound = await connection.fetch(_BOUND, [f"{LIVE}.{table}" for table in TABLES])
    if bound:
        raise LoadingError(f"an import would leave {bound[0][0]} behind with the old tables")


async def make_tables(connection: Connection, *, version: int, unlogged: bool) -> None:
    """Makes the schema and the empty side tables.

    Args:
        connection: to the primary.
        version: that every product and stock row gets.
        unlogged: no WAL: for a trial that is never swapped in.
    """
    await connection.execute(f"create schema {SIDE}")
    kind = "unlogged table" if unlogged else "table"
    for table in TABLES:
        await make_twin(connection, table, table, kind=kind)
    for column, value in (("version", str(version)), ("created_at", "now()"), ("updated_at", "now()")):
        await _set_load_default(connection, "product", column, value)
    await _set_load_default(connection, "stock", "version", str(version))
    await connection.execute(
        f"create unlogged table {SIDE}.related_row"
        " (id bigint not null, product_id bigint not null, related_product_id bigint not null)"
        " with (autovacuum_enabled = false)"
    )


async def make_twin(connection: Connection, live: str, twin: str, *, kind: str) -> None:
    """Makes one empty side table like a live one: columns, defaults, checks, options; no keys yet."""
    await connection.execute(
        f"create {kind} {SIDE}.{twin} (like {LIVE}.{live} including defaults including constraints"
        " including generated including storage including compression including statistics including comments)"
    )
    options = list(await connection.fetchval(_OPTIONS, f"{LIVE}.{live}") or [])
    # Autovacuum would compete with the load for the disk, and lose its locks to every key that is built.
    await connection.execute(f"alter table {SIDE}.{twin} set ({', '.join([*options, 'autovacuum_enabled = false'])})")


async def _set_load_default(connection: Connection, table: str, column: str, value: str) -> None:
    constant = await connection.fetchval(f"select quote_literal({value})")
    await connection.execute(f"alter table {SIDE}.{table} alter column {column} set default {constant}")


async def read_keys(connection: Connection, table: str) -> list[Key]:
    """The keys of a live table: its own first, then the foreign ones."""
    return [Key(**row) for row in await connection.fetch(_KEYS, f"{LIVE}.{table}")]


async def declare_key(connection: Connection, table: str, key: Key) -> None:
    """Puts a foreign key on a side table without a look at its rows.

    That takes the lock on the parent for a moment only; the look, which takes long, lets others do the same meanwhile.
    """
    if key.is_foreign:
        await _as_twin(connection, f'alter table {table} add constraint "{key.name}" {key.definition} not valid')


async def complete_key(connection: Connection, table: str, key: Key) -> None:
    """Looks whether the rows fit a key, and builds it, under the name that it has on the live table."""
    action = f'validate constraint "{key.name}"' if key.is_foreign else f'add constraint "{key.name}" {key.definition}'
    await _as_twin(connection, f"alter table {table} {action}")


async def add_indexes(connection: Connection, table: str) -> None:
    """Builds the indexes that belong to no key."""
    for (definition,) in await connection.fetch(_INDEXES, f"{LIVE}.{table}"):
        await _as_twin(connection, definition)


async def finish_table(connection: Connection, live: str, twin: str) -> None:
    """Gives a filled side table the rest: real defaults, triggers, grants, comment, statistics."""
    name = f"{SIDE}.{twin}"
    for (action,) in await connection.fetch(_DEFAULTS, f"{LIVE}.{live}"):
        await _as_twin(connection, f"alter table {twin} {action}")
    if live == twin:
        for (definition,) in await connection.fetch(_TRIGGERS, f"{LIVE}.{live}"):
            await _as_twin(connection, definition)
    for (grant,) in await connection.fetch(_GRANTS, f"{LIVE}.{live}", name):
        await connection.execute(grant)
    await connection.execute(await connection.fetchval(_COMMENT, f"{LIVE}.{live}", name))
    await connection.execute(f"analyze {name}")


async def restore_options(connection: Connection, live: str, twin: str) -> None:
    """Gives a finished side table the storage options of the live one: autovacuum may come now."""
    await connection.execute(f"alter table {SIDE}.{twin} reset (autovacuum_enabled)")
    options = list(await connection.fetchval(_OPTIONS, f"{LIVE}.{live}") or [])
    if options:
        await connection.execute(f"alter table {SIDE}.{twin} set ({', '.join(options)})")


async def make_ledger(connection: Connection, catalogue_id: int, *, unlogged: bool) -> str:
    """Makes the empty partition of the ledger for a catalogue; returns its name."""
    name = f"{LEDGER}_{catalogue_id}"
    await make_twin(connection, LEDGER, name, kind="unlogged table" if unlogged else "table")
    await _set_load_default(connection, name, "at", "now()")
    # The partition's bound, known to hold already: attaching it does not read the table again.
    await connection.execute(
        f"alter table {SIDE}.{name} add constraint bound check (catalogue_id = {int(catalogue_id)})"
    )
    return name


async def add_ledger_keys(connection: Connection, name: str) -> None:
    """Builds what the ledger has on its new partition, under names of the partition's own."""
    for key in await read_keys(connection, LEDGER):
        await _as_twin(connection, f"alter table {name} add {key.definition}")
    for (definition,) in await connection.fetch(_INDEXES, f"{LIVE}.{LEDGER}"):
        unique = "unique " if definition.startswith("CREATE UNIQUE") else ""
        _, _, how = definition.partition(" USING ")
        await _as_twin(connection, f"create {unique}index on {name} using {how}")


async def drop_leftovers(connection: Connection) -> bool:
    """Drops what an interrupted import left, and old tables that were swapped out; True when there was something."""
    found = False
    for schema in (SIDE, RETIRED):
        if await connection.fetchval("select to_regnamespace($1) is not null", schema):
            await connection.execute(f"drop schema {schema} cascade")
            found = True
    return found


async def _as_twin(connection: Connection, statement: str) -> None:
    async with connection.transaction():
        await connection.execute(f"set local search_path = {SIDE}, {LIVE}")
        await connection.execute(statement)
