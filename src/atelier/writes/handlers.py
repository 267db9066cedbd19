"""Which handler carries out which command."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

from atelier.problems import ProblemError
from atelier.writes import commands as c
from atelier.writes import products, styles
from atelier.writes.commands import Command
from atelier.writes.dispatch import Handler
from atelier.writes.envelope import Envelope
from atelier.writes.inventory import INVENTORY_COMMANDS, change_stock
from atelier.writes.unit_of_work import UnitOfWork
from atelier.writes.verdict import Refused, Verdict

Single = Callable[[Any, UnitOfWork, str], Awaitable[Verdict]]
"""Carries out one command under its key."""


def one_by_one(handle: Single) -> Handler:
    """Makes a handler of batches from one of single commands; a batch of several shares the transaction.

    A `ProblemError` that the single one raises is a refusal: it has changed nothing by then.
    """

    async def handle_all(orders: Sequence[Envelope], uow: UnitOfWork) -> list[Verdict]:
        verdicts: list[Verdict] = []
        for order in orders:
            try:
                verdicts.append(await handle(order.command, uow, order.key))
            except ProblemError as problem:
                verdicts.append(Refused(problem))
        return verdicts

    return handle_all


HANDLERS: Mapping[type[Command], Handler] = {
    **dict.fromkeys(INVENTORY_COMMANDS, change_stock),
    c.CreateProduct: one_by_one(products.create_product),
    c.ReplaceProduct: one_by_one(products.replace_product),
    c.PatchProduct: one_by_one(products.patch_product),
    c.DeleteProduct: one_by_one(products.delete_product),
    c.ReplaceFeatures: one_by_one(products.replace_features),
    c.ReplaceRelated: one_by_one(products.replace_related),
    c.CreateStyle: one_by_one(styles.create_style),
    c.PatchStyle: one_by_one(styles.patch_style),
    c.DeleteStyle: one_by_one(styles.delete_style),
    c.ReplacePhotos: one_by_one(styles.replace_photos),
    c.CreateSku: one_by_one(styles.create_sku),
    c.DeleteSku: one_by_one(styles.delete_sku),
}
