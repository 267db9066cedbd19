"""How PostgreSQL runs the reads at 100,000 products: by indexes, every one of them."""

import json
from collections.abc import Iterator
from typing import Any

import asyncpg
import pytest

from atelier.reads.queries import Statement, load_statements
from tests.reads.conftest import LARGE

pytestmark = [pytest.mark.anyio, pytest.mark.cluster]

STATEMENTS = load_statements()

# Read whole on purpose: the spans are one row per 32,768 ids, the changes are folded every 256; a test holds that.
SPAN_IDS = 32_768
FOLDED_EVERY = 256
COUNTS = {"product_span", "product_change"}
ONE_ROW = {"current_catalogue", "outbox_floor"}

_INSERT = """
insert into product (id, name, slogan, description, category, default_price) values ($1, 'New', '', '', '', 1)
"""

_UNINDEXED = """
select con.conrelid::regclass::text as source, con.conname
  from pg_constraint con
 where con.contype = 'f' and con.connamespace = 'atelier'::regnamespace
   and not exists (
       select from pg_index as index
        where index.indrelid = con.conrelid and index.indpred is null
          and (index.indkey::int2[])[0:cardinality(con.conkey) - 1] @> con.conkey)
"""


async def test_every_foreign_key_has_an_index(reader: asyncpg.Connection) -> None:
    """PostgreSQL makes none by itself, and each is on the way of a join or of a cascade."""
    assert await reader.fetch(_UNINDEXED) == []


async def test_the_question_for_unindexed_keys_finds_one(admin: asyncpg.Connection) -> None:
    """The check above can fail: without its index, a key is found."""
    change = admin.transaction()
    await change.start()
    await admin.execute("drop index photo_style_id_idx")
    assert [row["source"] for row in await admin.fetch(_UNINDEXED)] == ["photo"]
    await change.rollback()


@pytest.mark.parametrize("name", sorted(STATEMENTS))
async def test_no_read_scans_a_table(reader: asyncpg.Connection, name: str) -> None:
    """Neither by the plan that is kept for all arguments, nor by one made for these."""
    statement = STATEMENTS[name]
    for plan in (await _generic_plan(reader, statement), await _plan(reader, statement)):
        assert _scanned(plan) - COUNTS - ONE_ROW == set(), json.dumps(plan, indent=1)


async def test_tables_that_reads_scan_stay_small(
    reader: asyncpg.Connection, writer: asyncpg.Connection, admin: asyncpg.Connection
) -> None:
    """While products come one by one: never more changes than one fold takes, as few spans as the ids need."""
    await writer.execute("select fold_product_changes()")
    before = await _scanned_rows(reader, "product_span")
    assert before <= 1 + await admin.fetchval("select max(span) from product_span")
    added = range(LARGE + 50_000, LARGE + 50_000 + 2 * FOLDED_EVERY)  # where no other test has products
    unfolded = []
    try:
        for product_id in added:
            await writer.execute(_INSERT, product_id)
            unfolded.append(await _scanned_rows(reader, "product_change"))
        assert FOLDED_EVERY - 10 < max(unfolded) < FOLDED_EVERY
        spans = {product_id // SPAN_IDS for product_id in added}
        assert await _scanned_rows(reader, "product_span") <= before + len(spans)
    finally:
        await writer.execute("delete from product where id = any($1)", list(added))
    for table in sorted(ONE_ROW):
        assert await admin.fetchval(f"select count(*) from {table}") == 1
        with pytest.raises(asyncpg.IntegrityConstraintViolationError):
            await admin.execute(f"insert into {table} select * from {table}")


async def test_the_look_for_scans_finds_one(reader: asyncpg.Connection) -> None:
    """The check above can fail: an offset does scan."""
    plan = await _plan(reader, Statement("offset", "select name from product where name like $1"), "%9")
    assert _scanned(plan) == {"product"}


def _arguments(name: str) -> tuple[Any, ...]:
    campus = ("hr",) if name.endswith("_live") else ()
    match name.removesuffix("_live").removesuffix("_documented"):
        case "list" | "after":
            return ([LARGE - 7], 5, *campus)
        case "product":
            return ([LARGE - 7], *campus)
        case "movements":
            return ([LARGE - 7], 3, 5)
        case "changes" | "changes_condensed":
            return (LARGE - 7, 5)
        case "changes_head":
            return ()
        case _:
            return ([LARGE - 7, 3],)


def _literal(value: Any) -> str:
    return f"'{{{','.join(map(str, value))}}}'" if isinstance(value, list) else repr(value)


async def _generic_plan(connection: asyncpg.Connection, statement: Statement) -> Any:
    literals = ", ".join(map(_literal, _arguments(statement.name)))
    await connection.execute("set plan_cache_mode = force_generic_plan")
    await connection.execute(f"prepare asked as {statement.sql}")
    call = f"asked({literals})" if literals else "asked"
    return json.loads(await connection.fetchval(f"explain (format json) execute {call}"))[0]["Plan"]


async def _plan(connection: asyncpg.Connection, statement: Statement, *arguments: Any) -> Any:
    given = arguments or _arguments(statement.name)
    return json.loads(await connection.fetchval(f"explain (format json) {statement.sql}", *given))[0]["Plan"]


def _scanned(plan: dict[str, Any]) -> set[str]:
    return {node["Relation Name"] for node in _nodes(plan) if node["Node Type"] == "Seq Scan"}


async def _scanned_rows(reader: asyncpg.Connection, table: str) -> int:
    """How many rows of a table the list of products scans now."""
    asked = f"explain (analyze, format json) {STATEMENTS['list_documented'].sql}"
    plan = json.loads(await reader.fetchval(asked, *_arguments("list_documented")))[0]["Plan"]
    [scan] = [node for node in _nodes(plan) if node.get("Relation Name") == table]
    assert scan["Node Type"] == "Seq Scan"
    return int(scan["Actual Rows"] * scan["Actual Loops"])


def _nodes(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield plan
    for child in plan.get("Plans", ()):
        yield from _nodes(child)
