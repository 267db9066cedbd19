"""What an answer to a catalogue command shows: the same JSON as the documented GET, formed by PostgreSQL.

And what the audit keeps of things that come and go whole: all that belongs to them, and stock as it is counted.
"""

from typing import Any

from msgspec import Raw
from sqlalchemy import TextClause, text

from atelier.writes.unit_of_work import UnitOfWork

_PRODUCT = text("""
select cast(row_to_json(shown) as text) as body from (
    select product.id, product.name, product.slogan, product.description, product.category,
           short_price(product.default_price) as default_price,
           (select coalesce(json_agg(json_build_object('feature', feature, 'value', value) order by id), '[]')
              from feature where product_id = product.id) as features
      from product where product.id = :id
) as shown
""")
_FEATURES = text("""
select cast(coalesce(json_agg(json_build_object('feature', feature, 'value', value) order by id), '[]') as text) as body
  from feature where product_id = :id
""")
_RELATED = text("""
select cast(coalesce(json_agg(related_product_id order by position), '[]') as text) as body
  from related where product_id = :id
""")
# The spaces in " : null" matter: text() would take ":null" for a parameter.
_STYLE = text("""
select cast(row_to_json(shown) as text) as body from (
    select style.id as style_id, style.name, short_price(style.original_price) as original_price,
           coalesce(short_price(style.sale_price), '0') as sale_price, cast(style.is_default as integer) as "default?",
           (select coalesce(json_agg(json_build_object('thumbnail_url', thumbnail_url, 'url', url) order by id),
                            '[{"thumbnail_url" : null, "url" : null}]')
              from photo where style_id = style.id) as photos,
           (select coalesce(json_object_agg(sku.id, json_build_object(
                       'quantity', stock.on_hand - stock.reserved, 'size', sku.size) order by sku.id), '{}')
              from sku join stock on stock.sku_id = sku.id where sku.style_id = style.id) as skus
      from style where style.id = :id
) as shown
""")
_STOCK = text("""
select cast(row_to_json(shown) as text) as body from (
    select sku_id, on_hand, reserved, on_hand - reserved as available, version from stock where sku_id = :id
) as shown
""")
_WHOLE_PRODUCT = text("""
select cast(row_to_json(whole) as text) as body from (
    select product.id, product.version, product.name, product.slogan, product.description, product.category,
           short_price(product.default_price) as default_price,
           (select coalesce(json_agg(json_build_object('feature', feature, 'value', value) order by id), '[]')
              from feature where product_id = product.id) as features,
           (select coalesce(json_agg(related_product_id order by position), '[]')
              from related where product_id = product.id) as related,
           (select coalesce(json_agg(distinct product_id), '[]')
              from related where related_product_id = product.id) as related_of,
           (select coalesce(json_agg(json_build_object(
                       'style_id', style.id, 'name', style.name, 'original_price', short_price(original_price),
                       'sale_price', short_price(sale_price), 'default?', is_default,
                       'photos', (select coalesce(json_agg(json_build_object(
                                             'thumbnail_url', thumbnail_url, 'url', url) order by photo.id), '[]')
                                    from photo where photo.style_id = style.id),
                       'skus', (select coalesce(json_agg(json_build_object(
                                           'sku_id', sku.id, 'size', sku.size, 'on_hand', on_hand,
                                           'reserved', reserved) order by sku.id), '[]')
                                  from sku join stock on stock.sku_id = sku.id where sku.style_id = style.id)
                   ) order by style.id), '[]')
              from style where style.product_id = product.id) as styles
      from product where product.id = :id
) as whole
""")
_WHOLE_SKU = text("""
select cast(row_to_json(whole) as text) as body from (
    select sku.id as sku_id, sku.style_id, sku.size, on_hand, reserved, version
      from sku join stock on stock.sku_id = sku.id where sku.id = :id
) as whole
""")


async def show_product(uow: UnitOfWork, product_id: int) -> Raw | None:
    """A product with its features; None when there is none."""
    return await _show(uow, _PRODUCT, product_id)


async def show_features(uow: UnitOfWork, product_id: int) -> Raw | None:
    """A product's features."""
    return await _show(uow, _FEATURES, product_id)


async def show_related(uow: UnitOfWork, product_id: int) -> Raw | None:
    """A product's related ids."""
    return await _show(uow, _RELATED, product_id)


async def show_style(uow: UnitOfWork, style_id: int) -> Raw | None:
    """A style with its photos and SKUs; None when there is none."""
    return await _show(uow, _STYLE, style_id)


async def show_stock(uow: UnitOfWork, sku_id: int) -> Raw | None:
    """The stock of a SKU; None when there is none."""
    return await _show(uow, _STOCK, sku_id)


async def record_product(uow: UnitOfWork, product_id: int) -> Raw | None:
    """A product with all that goes with it, for the audit: also whose related lists name it (`related_of`)."""
    return await _show(uow, _WHOLE_PRODUCT, product_id)


async def record_sku(uow: UnitOfWork, sku_id: int) -> Raw | None:
    """A SKU with its stock, for the audit."""
    return await _show(uow, _WHOLE_SKU, sku_id)


async def _show(uow: UnitOfWork, statement: TextClause, shown_id: int) -> Raw | None:
    rows: Any = await uow.execute(statement, {"id": shown_id})
    return Raw(rows[0].body.encode()) if rows else None
