"""The handlers of commands on products: create, replace, patch, delete, features, related. They never commit."""

from collections.abc import Sequence
from typing import Any

from msgspec import UNSET
from sqlalchemy import text

from atelier.writes.commands import (
    CreateProduct,
    DeleteProduct,
    Feature,
    PatchProduct,
    ReplaceFeatures,
    ReplaceProduct,
    ReplaceRelated,
    VersionMatch,
)
from atelier.writes.documents import record_product, show_features, show_product, show_related
from atelier.writes.failures import ConflictError
from atelier.writes.locking import (
    check_related,
    judge_version,
    lock_product,
    lock_products,
    raise_versions,
    remove_stock,
)
from atelier.writes.styles import insert_styles
from atelier.writes.unit_of_work import UnitOfWork
from atelier.writes.verdict import Done, Verdict

_FIELDS = ("name", "slogan", "description", "category", "default_price")

_INSERT = text("""
insert into product (name, slogan, description, category, default_price)
values (:name, :slogan, :description, :category, cast(cast(:default_price as text) as numeric))
returning id, version
""")
_UPDATE = text("""
update product
   set name = coalesce(cast(:name as text), name),
       slogan = coalesce(cast(:slogan as text), slogan),
       description = coalesce(cast(:description as text), description),
       category = coalesce(cast(:category as text), category),
       default_price = coalesce(cast(cast(:default_price as text) as numeric), default_price),
       version = version + 1, updated_at = clock_timestamp()
 where id = :id
returning version
""")
_DELETE = text("delete from product where id = :id")
_SKUS = text("select sku.id from sku join style on style.id = style_id where product_id = :id")
_REFERRING = text("select distinct product_id from related where related_product_id = :id")
_CLEAR_FEATURES = text("delete from feature where product_id = :id")
_INSERT_FEATURES = text("""
insert into feature (product_id, feature, value)
select :id, new.feature, new.value
  from unnest(cast(:features as text[]), cast(:values as text[])) as new (feature, value)
""")
_CLEAR_RELATED = text("delete from related where product_id = :id")
_INSERT_RELATED = text("""
insert into related (product_id, position, related_product_id)
select :id, new.position, new.related_id
  from unnest(cast(:related as bigint[])) with ordinality as new (related_id, position)
""")


async def create_product(command: CreateProduct, uow: UnitOfWork, key: str) -> Verdict:
    """Makes a whole product."""
    body = command.body
    await check_related(uow, body.related, None, path="related")
    row = (await uow.execute(_INSERT, {name: getattr(body, name) for name in _FIELDS}))[0]
    await _insert_features(uow, row.id, body.features)
    await _insert_related(uow, row.id, body.related)
    await insert_styles(uow, row.id, body.styles, key)
    document = await show_product(uow, row.id)
    headers = {"Location": f"/products/{row.id}", "ETag": f'"{row.version}"'}
    return Done(201, document, headers, after=await record_product(uow, row.id))


async def replace_product(command: ReplaceProduct, uow: UnitOfWork, _key: str) -> Verdict:
    """Sets all five fields."""
    fields = {name: getattr(command.body, name) for name in _FIELDS}
    return await _update(uow, command.product_id, fields, command.if_match)


async def patch_product(command: PatchProduct, uow: UnitOfWork, _key: str) -> Verdict:
    """Sets some of the five fields; an empty patch is a change of nothing that raises the version all the same."""
    fields = {name: None if (value := getattr(command.body, name)) is UNSET else value for name in _FIELDS}
    return await _update(uow, command.product_id, fields, command.if_match)


async def delete_product(command: DeleteProduct, uow: UnitOfWork, key: str) -> Verdict:
    """Takes a product away; products whose related list named it get a new version, because their list changes."""
    product_id = command.product_id
    referring = await _find_referring(uow, product_id)
    versions = await lock_products(uow, [product_id, *referring])
    if refused := judge_version(product_id, versions.get(product_id), command.if_match):
        return refused
    if await _find_referring(uow, product_id) - referring:
        raise ConflictError
    sku_ids = [row.id for row in await uow.execute(_SKUS, {"id": product_id})]
    if refused := await remove_stock(uow, sku_ids, key):
        return refused
    before = await record_product(uow, product_id)
    await raise_versions(uow, referring - {product_id})
    await uow.execute(_DELETE, {"id": product_id})
    return Done(204, before=before)


async def replace_features(command: ReplaceFeatures, uow: UnitOfWork, _key: str) -> Verdict:
    """Sets the list of features."""
    product_id = command.product_id
    if refused := await lock_product(uow, product_id, command.if_match):
        return refused
    before, tag = await show_features(uow, product_id), await _raise(uow, product_id)
    await uow.execute(_CLEAR_FEATURES, {"id": product_id})
    await _insert_features(uow, product_id, command.body)
    return _changed(tag, before, await show_features(uow, product_id))


async def replace_related(command: ReplaceRelated, uow: UnitOfWork, _key: str) -> Verdict:
    """Sets the list of related products."""
    product_id = command.product_id
    versions = await check_related(uow, command.body, product_id, path="")
    if refused := judge_version(product_id, versions.get(product_id), command.if_match):
        return refused
    before, tag = await show_related(uow, product_id), await _raise(uow, product_id)
    await uow.execute(_CLEAR_RELATED, {"id": product_id})
    await _insert_related(uow, product_id, command.body)
    return _changed(tag, before, await show_related(uow, product_id))


async def _update(uow: UnitOfWork, product_id: int, fields: dict[str, Any], if_match: VersionMatch) -> Verdict:
    if refused := await lock_product(uow, product_id, if_match):
        return refused
    before = await show_product(uow, product_id)
    version = (await uow.execute(_UPDATE, {"id": product_id, **fields}))[0].version
    after = await show_product(uow, product_id)
    return Done(200, after, {"ETag": f'"{version}"'}, before=before, after=after)


async def _raise(uow: UnitOfWork, product_id: int) -> str:
    """Raises the version, before the parts change: triggers raise it for whoever has not, and it is to rise once."""
    return f'"{(await raise_versions(uow, [product_id]))[product_id]}"'


def _changed(tag: str, before: Any, after: Any) -> Done:
    return Done(200, after, {"ETag": tag}, before=before, after=after)


async def _find_referring(uow: UnitOfWork, product_id: int) -> set[int]:
    return {row.product_id for row in await uow.execute(_REFERRING, {"id": product_id})}


async def _insert_features(uow: UnitOfWork, product_id: int, features: Sequence[Feature]) -> None:
    if features:
        columns = {"features": [f.feature for f in features], "values": [f.value for f in features]}
        await uow.execute(_INSERT_FEATURES, {"id": product_id, **columns})


async def _insert_related(uow: UnitOfWork, product_id: int, related: Sequence[int]) -> None:
    if related:
        await uow.execute(_INSERT_RELATED, {"id": product_id, "related": list(related)})
