"""SKUs and styles that go to another product by hand, while commands are about them."""

import asyncio

import asyncpg
import pytest

from atelier.embedded.cluster import EmbeddedCluster
from tests.commands.conftest import Shop, product, style, wait_until_blocked
from tests.support import role_dsn

pytestmark = [pytest.mark.anyio, pytest.mark.cluster, pytest.mark.soak]


async def make_product(shop: Shop) -> tuple[int, int]:
    """A product with one style; gives the ids of both."""
    made = await shop.post("/products", product(styles=[style(5)]))
    styles = await shop.read(f"/products/{made.json()['id']}/styles", made)
    return made.json()["id"], styles.json()["results"][0]["style_id"]


MOVE = "update style set product_id = $2, is_default = false where id = $1"


async def test_sku_that_is_being_added_to_a_style_goes_with_it(
    shop: Shop, cluster: EmbeddedCluster, database: asyncpg.Connection
) -> None:
    """Whoever adds it has locked the old product; the move waits, and then finds the stock that was added."""
    (product_id, style_id), (other_id, _) = await make_product(shop), await make_product(shop)
    moving = await asyncpg.connect(role_dsn(cluster, "writer"))
    try:
        async with database.transaction():
            await database.execute("select from product where id = $1 for no key update", product_id)
            sku_id = await database.fetchval(
                "insert into sku (style_id, size) values ($1, 'XL') returning id", style_id
            )
            await database.execute("insert into stock (sku_id, on_hand) values ($1, 7)", sku_id)
            move = asyncio.create_task(moving.execute(MOVE, style_id, other_id))
            await wait_until_blocked(database)
        await move
    finally:
        moving.terminate()
    await shop.adjust(sku_id, 1)
    told = "select product_id, available from outbox where sku_id = $1 order by position desc limit 1"
    assert tuple(await database.fetchrow(told, sku_id)) == (other_id, 8)
    assert await database.fetchval("select product_id from stock where sku_id = $1", sku_id) == other_id


async def test_command_on_a_style_that_moves_while_it_waits_is_about_the_new_product(
    shop: Shop, database: asyncpg.Connection
) -> None:
    """It has waited for the product that the style was of, and begins anew with the one that it is of now."""
    (product_id, style_id), (other_id, _) = await make_product(shop), await make_product(shop)
    async with database.transaction():
        await database.execute(MOVE, style_id, other_id)
        patching = asyncio.create_task(shop.send("PATCH", f"/styles/{style_id}", {"name": "Blue"}))
        await wait_until_blocked(database)
    assert (await patching).status_code == 200
    versions = dict(await database.fetch("select id, version from product where id = any($1)", [product_id, other_id]))
    assert versions == {product_id: 2, other_id: 3}
