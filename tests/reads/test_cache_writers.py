"""Whoever writes, and by whatever statement: what memory held of it before is not given after it."""

from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass

import asyncpg
import pytest

from atelier.embedded.cluster import EmbeddedCluster
from atelier.reads.document import Document
from atelier.reads.executor import Ask
from atelier.telemetry import CACHE_HITS
from tests.fixtures.reading import Shop, make_settings, open_shop
from tests.fixtures.remembering import WITH_MEMORY, Remembering, open_remembering
from tests.reads.conftest import connected
from tests.support import role_dsn, running_cluster

pytestmark = [pytest.mark.anyio, pytest.mark.cluster]

# What is shown where, of a product with one of everything and another beside it.
STATEMENTS = {
    "product, its row": ("product", "update product set name = 'Cap' where id = {product}"),
    "feature, put in": ("product", "insert into feature (product_id, feature) values ({product}, 'Lining')"),
    "feature, changed": ("product", "update feature set value = 'Silk' where product_id = {product}"),
    "feature, moved": ("product", "update feature set product_id = {other} where product_id = {product}"),
    "feature, taken out": ("product", "delete from feature where product_id = {product}"),
    "feature, emptied": ("product", "truncate feature"),
    "related, put in": ("related", "insert into related values ({product}, 2, {product})"),
    "related, changed": ("related", "update related set related_product_id = product_id where product_id = {product}"),
    "related, taken out": ("related", "delete from related where product_id = {product}"),
    "related, by its other end": ("related", "delete from product where id = {other}"),
    "related, emptied": ("related", "truncate related"),
    "style, put in": (
        "styles", "insert into style (product_id, name, original_price, is_default) values ({product}, 's', 2, false)",
    ),
    "style, changed": ("styles", "update style set sale_price = 1 where product_id = {product}"),
    "style, moved": ("styles", "update style set product_id = {other} where product_id = {product}"),
    "style, taken out": ("styles", "delete from style where product_id = {product}"),
    "style, emptied": ("styles", "truncate style cascade"),
    "photo, put in": ("styles", "insert into photo (style_id, url) values ({style}, 'https://b.example')"),
    "photo, changed": ("styles", "update photo set thumbnail_url = 'https://c.example' where style_id = {style}"),
    "photo, moved": ("styles", "update photo set style_id = {other_style} where style_id = {style}"),
    "photo, taken out": ("styles", "delete from photo where style_id = {style}"),
    "photo, emptied": ("styles", "truncate photo"),
    "sku, put in": (
        "styles",
        """with made as (insert into sku (style_id, size) values ({style}, 'L') returning id)
           insert into stock select id, 1 from made""",
    ),
    "sku, changed": ("styles", "update sku set size = 'XL' where id = {sku}"),
    "sku, moved": ("styles", "update sku set style_id = {other_style} where id = {sku}"),
    "sku, taken out": ("styles", "delete from sku where id = {sku}"),
    "sku, emptied": ("styles", "truncate sku cascade"),
    "stock, changed": ("styles", "update stock set on_hand = 8 where sku_id = {sku}"),
    "stock, moved": ("styles", "update stock set sku_id = {bare_sku} where sku_id = {sku}"),
    "stock, taken out": ("styles", "delete from stock where sku_id = {sku}"),
    "stock, emptied": ("styles", "truncate stock"),
    "product, emptied": ("list", "truncate product cascade"),
}  # fmt: skip
VERSIONS = "select id, version from product where id = any($1::bigint[])"
OUTBOX = "select topic, kind, product_id from outbox where position > $1 order by position"


@dataclass
class Hat:
    """A product with one of everything, and what else its tests name."""

    product: int
    style: int
    sku: int
    other: int
    other_style: int
    bare_sku: int


@pytest.fixture(scope="module")
def written() -> Iterator[EmbeddedCluster]:
    """A cluster whose catalogue the tests of this module empty."""
    with running_cluster() as cluster:
        yield cluster


@pytest.fixture
async def remembering(written: EmbeddedCluster) -> AsyncIterator[Remembering]:
    """A storefront over it that remembers."""
    async with open_remembering(make_settings(written, WITH_MEMORY)) as opened:
        yield opened


@pytest.fixture
async def shop(written: EmbeddedCluster) -> AsyncIterator[Shop]:
    """Writes to its primary as the service does."""
    async with open_shop(written) as opened:
        yield opened


@pytest.fixture
async def owner(written: EmbeddedCluster) -> AsyncIterator[asyncpg.Connection]:
    """Writes to it as who repairs something by hand."""
    async with connected(role_dsn(written, "migrator")) as connection:
        yield connection


async def make_hat(shop: Shop) -> Hat:
    """Makes it."""
    execute = shop.connection.fetchval
    product, sku = await shop.make_sku(on_hand=5)
    style = await execute("select style_id from sku where id = $1", sku)
    other, other_sku = await shop.make_sku(on_hand=5)
    other_style = await execute("select style_id from sku where id = $1", other_sku)
    bare_sku = await execute("insert into sku (style_id, size) values ($1, 'S') returning id", other_style)
    await execute("insert into feature (product_id, feature, value) values ($1, 'Fabric', 'Wool')", product)
    await execute("insert into photo (style_id, url) values ($1, 'https://a.example')", style)
    await execute("insert into related values ($1, 1, $2)", product, other)
    return Hat(product, style, sku, other, other_style, bare_sku)


async def read(remembering: Remembering, what: str, product_id: int, ask: Ask) -> Document:
    """Reads what a statement changes."""
    storefront = remembering.storefront
    if what == "styles":
        return await storefront.styles(product_id, live=False, ask=ask)
    if what == "related":
        return await storefront.related(product_id, ask)
    if what == "list":
        return await storefront.page(1, 5, None, path="/products", ask=ask)
    return await storefront.product(product_id, None, ask)


def count_hits() -> float:
    """How many reads memory has answered in this process."""
    return sum(
        CACHE_HITS.value(name) for name in ("styles_documented", "product_documented", "related", "list_documented")
    )


async def warm(remembering: Remembering, what: str, product_id: int) -> Document:
    """Reads until memory answers; gives what it says."""
    before = count_hits()
    while True:
        document = await read(remembering, what, product_id, remembering.reading.ask())
        if count_hits() > before:
            return document


@pytest.mark.parametrize("name", STATEMENTS)
async def test_what_any_statement_changes_is_not_remembered(
    name: str, remembering: Remembering, shop: Shop, owner: asyncpg.Connection
) -> None:
    """With its token, within a bound and with neither: the answer is the primary's, under another tag."""
    hat = await make_hat(shop)
    what, statement = STATEMENTS[name]
    await remembering.until_heard(await shop.token())
    before = await warm(remembering, what, hat.product)
    await owner.execute(statement.format(**vars(hat)))
    token = await shop.token()
    # By now memory vouches for the token: an entry that was not dropped would be given for it.
    await remembering.until_heard(token)
    ask = remembering.reading.ask
    truth = await read(remembering, what, hat.product, ask(consistency="strong"))
    assert truth.body != before.body
    for asked in (ask(token), ask(consistency="bounded; max-lag-ms=60000"), ask(), ask(token, "eventual")):
        document = await read(remembering, what, hat.product, asked)
        assert (document.body, document.tag) == (truth.body, truth.tag)
        assert document.tag != before.tag


async def announced(remembering: Remembering, shop: Shop, since: int) -> list[tuple[str, str, int | None]]:
    """What was announced behind a position of the outbox."""
    return [tuple(row) for row in await shop.connection.fetch(OUTBOX, since)]


async def head(shop: Shop) -> int:
    """The last position of the outbox."""
    return await shop.connection.fetchval("select max(position) from outbox")


async def test_transaction_announces_each_product_once(remembering: Remembering, shop: Shop) -> None:
    """However many statements of it touched the product, and its version is one higher."""
    hat = await make_hat(shop)
    versions = dict(await shop.connection.fetch(VERSIONS, [hat.product, hat.other]))
    since = await head(shop)
    async with shop.connection.transaction():
        await shop.connection.execute("update feature set value = 'Silk' where product_id = $1", hat.product)
        await shop.connection.execute("update photo set url = null where style_id = $1", hat.style)
        await shop.connection.execute("update sku set size = 'XS' where id = any($1)", [hat.sku, hat.bare_sku])
        await shop.connection.execute("delete from style where id = $1", hat.style)
        # The order lock is taken inside COMMIT alone.
        assert not await shop.connection.fetchval(
            "select exists (select from pg_locks where locktype = 'advisory' and classid = 6386796 and objid = 2)"
        )
    assert await announced(remembering, shop, since) == [
        ("product", "updated", hat.product), ("product", "updated", hat.other)
    ]  # fmt: skip
    assert dict(await shop.connection.fetch(VERSIONS, [hat.product, hat.other])) == {
        product_id: version + 1 for product_id, version in versions.items()
    }


async def test_emptied_tables_are_one_new_catalogue(
    remembering: Remembering, shop: Shop, owner: asyncpg.Connection
) -> None:
    """A TRUNCATE of all announces itself once, and no version that was in use may come back."""
    hat = await make_hat(shop)
    highest = dict(await shop.connection.fetch(VERSIONS, [hat.product]))[hat.product]
    since = await head(shop)
    await owner.execute("truncate product cascade")
    assert await announced(remembering, shop, since) == [("catalogue", "replaced", None)]
    assert await shop.connection.fetchval("select version_floor from current_catalogue") > highest


async def test_who_may_write_a_part_alone_may_still_write_it(
    written: EmbeddedCluster, remembering: Remembering, shop: Shop
) -> None:
    """What announces the product is the owner's business, not the writer's."""
    hat = await make_hat(shop)
    since = await head(shop)
    async with connected(written.superuser_dsn(written.primary.name)) as admin:
        await admin.execute(
            "set search_path = atelier; grant usage on schema atelier to monitor; grant select, update on feature to "
            "monitor; set session authorization monitor"
        )
        await admin.execute(f"update feature set value = 'Felt' where product_id = {hat.product}")
        await admin.execute("reset session authorization; revoke all on feature from monitor")
    assert await announced(remembering, shop, since) == [("product", "updated", hat.product)]
