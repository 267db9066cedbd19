"""How catalogue commands lock: products first, sorted, then stock, sorted; the order lock comes inside COMMIT.

Every command on a product holds the product's row, so whatever hangs on it (features, styles, photos, SKUs, the list
of related) changes under that one lock, and the version tells whether it did.
"""

from collections.abc import Iterable

from sqlalchemy import text

from atelier.problems import ProblemError
from atelier.writes.commands import VersionMatch
from atelier.writes.failures import ConflictError
from atelier.writes.unit_of_work import UnitOfWork
from atelier.writes.verdict import Refused, refuse

# Also referenced products are locked like this and not left to their foreign key: its lock would come later, out of
# order, and two commands that name each other's products would wait for each other.
_LOCK_PRODUCTS = text("""
select id, version from product where id = any(cast(:ids as bigint[])) order by id for no key update
""")
_LOCK_STOCK = text("""
select sku_id, on_hand, reserved from stock where sku_id = any(cast(:ids as bigint[])) order by sku_id for update
""")
_RAISE = text("""
update product set version = version + 1, updated_at = clock_timestamp()
 where id = any(cast(:ids as bigint[])) returning id, version
""")
_REMOVE = text("""
insert into stock_movement (catalogue_id, sku_id, delta, kind, command_key)
select (select catalogue_id from current_catalogue), gone.sku_id, gone.delta, 'removed', :key
  from unnest(cast(:ids as bigint[]), cast(:deltas as integer[])) as gone (sku_id, delta)
""")
_PRODUCT_OF_STYLE = text("select product_id from style where id = :id")
_PRODUCT_OF_SKU = text("select product_id from sku join style on style.id = style_id where sku.id = :id")


async def lock_products(uow: UnitOfWork, ids: Iterable[int]) -> dict[int, int]:
    """Locks products in id order; gives the version of each that exists."""
    rows = await uow.execute(_LOCK_PRODUCTS, {"ids": sorted(set(ids))})
    return {row.id: row.version for row in rows}


async def lock_product(uow: UnitOfWork, product_id: int, if_match: VersionMatch) -> Refused | None:
    """Locks one product; gives the refusal when it does not exist, or is not at the version the client saw."""
    return judge_version(product_id, (await lock_products(uow, [product_id])).get(product_id), if_match)


def judge_version(product_id: int, version: int | None, if_match: VersionMatch) -> Refused | None:
    """The refusal that a version (None: no such product) calls for; None when the command may go on."""
    if version is None:
        return refuse("not-found", f"There is no product {product_id}.")
    if not if_match.allows(version):
        return refuse("precondition-failed", f"The version of product {product_id} is {version} now.")
    return None


async def lock_style(uow: UnitOfWork, style_id: int, if_match: VersionMatch) -> int | Refused:
    """Locks the product of a style; gives its id."""
    return await _lock_owner(uow, ("style", style_id), if_match)


async def lock_sku(uow: UnitOfWork, sku_id: int, if_match: VersionMatch) -> int | Refused:
    """Locks the product of a SKU; gives its id."""
    return await _lock_owner(uow, ("SKU", sku_id), if_match)


async def raise_versions(uow: UnitOfWork, ids: Iterable[int]) -> dict[int, int]:
    """Raises the versions of locked products by one; gives the new ones."""
    rows = await uow.execute(_RAISE, {"ids": sorted(set(ids))})
    return {row.id: row.version for row in rows}


async def remove_stock(uow: UnitOfWork, sku_ids: Iterable[int], key: str) -> Refused | None:
    """Locks the stock of SKUs that are about to go, and writes off what is on hand.

    Returns:
        The refusal when any of it is reserved; None when the SKUs may be deleted.
    """
    wanted = sorted(sku_ids)
    if not wanted:
        return None
    rows = await uow.execute(_LOCK_STOCK, {"ids": wanted})
    reserved = [row.sku_id for row in rows if row.reserved]
    if reserved:
        return refuse("stock-reserved", "Stock of it is reserved.", sku_ids=reserved)
    gone = [row for row in rows if row.on_hand]
    if gone:
        columns = {"ids": [row.sku_id for row in gone], "deltas": [-row.on_hand for row in gone], "key": key}
        await uow.execute(_REMOVE, columns)
    return None


async def check_related(uow: UnitOfWork, related: list[int], product_id: int | None, *, path: str) -> dict[int, int]:
    """Locks the products of a related list, and the product itself where it exists already, in one order.

    Args:
        uow: the transaction.
        related: the ids, which may name one twice.
        product_id: the product whose list it is; None while it is being made.
        path: of the list in the body that was sent; empty when it is the body.

    Returns:
        The versions of all that were locked.

    Raises:
        ProblemError: `invalid-request`: a related product does not exist.
    """
    versions = await lock_products(uow, related if product_id is None else [*related, product_id])
    for index, related_id in enumerate(related):
        if related_id not in versions and related_id != product_id:
            raise ProblemError("invalid-request", f"There is no product {related_id}.", field=f"{path}[{index}]")
    return versions


async def _lock_owner(uow: UnitOfWork, what: tuple[str, int], if_match: VersionMatch) -> int | Refused:
    """Finds the product, locks it, and looks again: the style or SKU may have gone, or moved, while we waited."""
    kind, wanted_id = what
    find = _PRODUCT_OF_STYLE if kind == "style" else _PRODUCT_OF_SKU
    rows = await uow.execute(find, {"id": wanted_id})
    if rows:
        product_id: int = rows[0].product_id
        versions = await lock_products(uow, [product_id])
        again = await uow.execute(find, {"id": wanted_id})
        if again and again[0].product_id != product_id:
            raise ConflictError(f"{kind} {wanted_id} has gone to another product meanwhile")
        if again:
            return judge_version(product_id, versions.get(product_id), if_match) or product_id
    return refuse("not-found", f"There is no {kind} {wanted_id}.")
