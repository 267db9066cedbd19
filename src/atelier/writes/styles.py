"""The handlers of commands on styles, photos and SKUs. They never commit."""

from collections.abc import Sequence
from typing import Any

from msgspec import UNSET, Raw
from sqlalchemy import text

from atelier.writes.commands import (
    CreateSku,
    CreateStyle,
    DeleteSku,
    DeleteStyle,
    PatchStyle,
    Photo,
    ReplacePhotos,
    Sku,
    Style,
)
from atelier.writes.documents import record_sku, show_stock, show_style
from atelier.writes.locking import lock_product, lock_sku, lock_style, raise_versions, remove_stock
from atelier.writes.unit_of_work import UnitOfWork
from atelier.writes.verdict import Done, Refused, Verdict

_DRAW = text("""
select array(select nextval('style_id_seq') from generate_series(1, cast(:styles as integer))) as styles,
       array(select nextval('sku_id_seq') from generate_series(1, cast(:skus as integer))) as skus
""")
_INSERT_STYLES = text("""
insert into style (id, product_id, name, original_price, sale_price, is_default)
select new.id, :product_id, new.name, cast(new.original_price as numeric), cast(new.sale_price as numeric),
       new.is_default
  from unnest(cast(:ids as bigint[]), cast(:names as text[]), cast(:original_prices as text[]),
              cast(:sale_prices as text[]), cast(:defaults as boolean[]))
    as new (id, name, original_price, sale_price, is_default)
""")
_INSERT_PHOTOS = text("""
insert into photo (style_id, url, thumbnail_url)
select new.* from unnest(cast(:styles as bigint[]), cast(:urls as text[]), cast(:thumbnails as text[])) as new
""")
_INSERT_SKUS = text("""
insert into sku (id, style_id, size)
select new.* from unnest(cast(:ids as bigint[]), cast(:styles as bigint[]), cast(:sizes as text[])) as new
""")
_INSERT_STOCK = text("""
with opened as (
    insert into stock (sku_id, on_hand)
    select new.* from unnest(cast(:ids as bigint[]), cast(:quantities as integer[])) as new
    returning sku_id, on_hand
)
insert into stock_movement (catalogue_id, sku_id, delta, kind, command_key)
select (select catalogue_id from current_catalogue), sku_id, on_hand, 'initial', :key
  from opened where on_hand > 0 order by sku_id
""")
_DEFAULTS = text("select id from style where product_id = :product_id and is_default order by id")
_CLEAR_DEFAULT = text("update style set is_default = false where product_id = :product_id and is_default")
_UPDATE_STYLE = text("""
update style
   set name = coalesce(cast(:name as text), name),
       original_price = coalesce(cast(cast(:original_price as text) as numeric), original_price),
       sale_price = case when cast(:sets_sale as boolean) then cast(cast(:sale_price as text) as numeric)
                         else sale_price end,
       is_default = coalesce(cast(:is_default as boolean), is_default)
 where id = :id
""")
_DELETE_STYLE = text("delete from style where id = :id")
_SKUS_OF_STYLE = text("select id from sku where style_id = :id")
_CLEAR_PHOTOS = text("delete from photo where style_id = :id")
_DELETE_SKU = text("delete from sku where id = :id")


async def create_style(command: CreateStyle, uow: UnitOfWork, key: str) -> Verdict:
    """Adds a style with its photos and SKUs."""
    if refused := await lock_product(uow, command.product_id, command.if_match):
        return refused
    replaced = await _find_defaults(uow, command.product_id) if command.body.is_default else []
    before = await _show_all(uow, replaced)
    tag = await _raise(uow, command.product_id)
    style_id = (await insert_styles(uow, command.product_id, [command.body], key))[0]
    document, *others = await _show_all(uow, [style_id, *replaced])
    headers = {"Location": f"/styles/{style_id}", "ETag": tag}
    return Done(201, document, headers, before=before or None, after=[document, *others] if others else document)


async def patch_style(command: PatchStyle, uow: UnitOfWork, _key: str) -> Verdict:
    """Sets some fields of a style."""
    product_id = await lock_style(uow, command.style_id, command.if_match)
    if isinstance(product_id, Refused):
        return product_id
    body = command.body
    defaults = await _find_defaults(uow, product_id) if body.is_default is True else []
    changed = [command.style_id, *(style_id for style_id in defaults if style_id != command.style_id)]
    before = await _show_all(uow, changed)
    tag = await _raise(uow, product_id)
    if defaults:
        await uow.execute(_CLEAR_DEFAULT, {"product_id": product_id})
    await uow.execute(
        _UPDATE_STYLE,
        {
            "id": command.style_id,
            "name": _or_none(body.name),
            "original_price": _or_none(body.original_price),
            "sets_sale": body.sale_price is not UNSET,
            "sale_price": _or_none(body.sale_price),
            "is_default": _or_none(body.is_default),
        },
    )
    after = await _show_all(uow, changed)
    if len(changed) == 1:
        return Done(200, after[0], {"ETag": tag}, before=before[0], after=after[0])
    return Done(200, after[0], {"ETag": tag}, before=before, after=after)


async def delete_style(command: DeleteStyle, uow: UnitOfWork, key: str) -> Verdict:
    """Takes a style away with its photos and SKUs."""
    product_id = await lock_style(uow, command.style_id, command.if_match)
    if isinstance(product_id, Refused):
        return product_id
    sku_ids = [row.id for row in await uow.execute(_SKUS_OF_STYLE, {"id": command.style_id})]
    if refused := await remove_stock(uow, sku_ids, key):
        return refused
    before = await show_style(uow, command.style_id)
    tag = await _raise(uow, product_id)
    await uow.execute(_DELETE_STYLE, {"id": command.style_id})
    return Done(204, headers={"ETag": tag}, before=before)


async def replace_photos(command: ReplacePhotos, uow: UnitOfWork, _key: str) -> Verdict:
    """Sets the list of a style's photos."""
    product_id = await lock_style(uow, command.style_id, command.if_match)
    if isinstance(product_id, Refused):
        return product_id
    before = await show_style(uow, command.style_id)
    tag = await _raise(uow, product_id)
    await uow.execute(_CLEAR_PHOTOS, {"id": command.style_id})
    await _insert_photos(uow, [(command.style_id, photo) for photo in command.body])
    after = await show_style(uow, command.style_id)
    return Done(200, after, {"ETag": tag}, before=before, after=after)


async def create_sku(command: CreateSku, uow: UnitOfWork, key: str) -> Verdict:
    """Adds a size to a style."""
    product_id = await lock_style(uow, command.style_id, command.if_match)
    if isinstance(product_id, Refused):
        return product_id
    tag = await _raise(uow, product_id)
    sku_id = (await uow.execute(_DRAW, {"styles": 0, "skus": 1}))[0].skus[0]
    await _insert_skus(uow, [sku_id], [(command.style_id, command.body)], key)
    document = await show_stock(uow, sku_id)
    headers = {"Location": f"/inventory/{sku_id}", "ETag": tag}
    return Done(201, document, headers, after=await record_sku(uow, sku_id))


async def delete_sku(command: DeleteSku, uow: UnitOfWork, key: str) -> Verdict:
    """Takes a SKU away."""
    product_id = await lock_sku(uow, command.sku_id, command.if_match)
    if isinstance(product_id, Refused):
        return product_id
    if refused := await remove_stock(uow, [command.sku_id], key):
        return refused
    before = await record_sku(uow, command.sku_id)
    tag = await _raise(uow, product_id)
    await uow.execute(_DELETE_SKU, {"id": command.sku_id})
    return Done(204, headers={"ETag": tag}, before=before)


async def insert_styles(uow: UnitOfWork, product_id: int, styles: Sequence[Style], key: str) -> list[int]:
    """Inserts styles with photos, SKUs, stock and opening ledger rows, under a product that is locked or new.

    Returns:
        Their ids, in order. Of several defaults, the product's present one included, the last one stays.
    """
    if not styles:
        return []
    sku_count = sum(len(style.skus) for style in styles)
    drawn = (await uow.execute(_DRAW, {"styles": len(styles), "skus": sku_count}))[0]
    ids: list[int] = list(drawn.styles)
    if any(style.is_default for style in styles):
        await uow.execute(_CLEAR_DEFAULT, {"product_id": product_id})
    await uow.execute(_INSERT_STYLES, {"product_id": product_id, **_style_columns(ids, styles)})
    pairs = list(zip(ids, styles, strict=True))
    await _insert_photos(uow, [(style_id, photo) for style_id, style in pairs for photo in style.photos])
    await _insert_skus(uow, list(drawn.skus), [(style_id, sku) for style_id, style in pairs for sku in style.skus], key)
    return ids


def _style_columns(ids: list[int], styles: Sequence[Style]) -> dict[str, Any]:
    last_default = max((index for index, style in enumerate(styles) if style.is_default), default=-1)
    return {
        "ids": ids,
        "names": [style.name for style in styles],
        "original_prices": [style.original_price for style in styles],
        "sale_prices": [style.sale_price for style in styles],
        "defaults": [index == last_default for index in range(len(styles))],
    }


async def _insert_photos(uow: UnitOfWork, photos: Sequence[tuple[int, Photo]]) -> None:
    if photos:
        columns = {
            "styles": [style_id for style_id, _ in photos],
            "urls": [photo.url for _, photo in photos],
            "thumbnails": [photo.thumbnail_url for _, photo in photos],
        }
        await uow.execute(_INSERT_PHOTOS, columns)


async def _insert_skus(uow: UnitOfWork, ids: list[int], skus: Sequence[tuple[int, Sku]], key: str) -> None:
    if skus:
        styles, sizes = [style_id for style_id, _ in skus], [sku.size for _, sku in skus]
        await uow.execute(_INSERT_SKUS, {"ids": ids, "styles": styles, "sizes": sizes})
        await uow.execute(_INSERT_STOCK, {"ids": ids, "quantities": [sku.quantity for _, sku in skus], "key": key})


async def _find_defaults(uow: UnitOfWork, product_id: int) -> list[int]:
    """The styles that another default takes the place of: one at most, but for rows that somebody wrote by hand."""
    return [row.id for row in await uow.execute(_DEFAULTS, {"product_id": product_id})]


async def _show_all(uow: UnitOfWork, style_ids: Sequence[int]) -> list[Raw | None]:
    """Styles for an answer and for the audit, which keeps a list where a command has changed several."""
    return [await show_style(uow, style_id) for style_id in style_ids]


async def _raise(uow: UnitOfWork, product_id: int) -> str:
    """Raises the product's version; gives the entity tag that it is now.

    Before its parts change: triggers raise it for whoever has not, and it is to rise once.
    """
    return f'"{(await raise_versions(uow, [product_id]))[product_id]}"'


def _or_none(value: Any) -> Any:
    return None if value is UNSET else value
