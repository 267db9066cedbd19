"""What pages without a version tell of it all the same, so that the checkers can judge the storefront's pages, too.

A product's page shows quantities: of a SKU to which every command adds exactly one, the quantity is the version, but
for where both began. The list shows slogans: of a product whose every change is guarded by the version before it and
writes the next one into the slogan, the slogan is the version.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from loadtest.history.record import Line
from loadtest.transport import Answer


@dataclass(frozen=True, slots=True)
class Tally:
    """A SKU to which every command adds one.

    Attributes:
        product_id: whose page shows it.
        sku_id: which it is.
        version: at the beginning.
        quantity: at the beginning; nothing of it is ever reserved.
    """

    product_id: int
    sku_id: int
    version: int
    quantity: int

    def line(self, quantity: int | None) -> Line:
        """What a page with this quantity shows; version 0 where it shows none."""
        version = 0 if quantity is None else self.version + quantity - self.quantity
        return Line(f"sku:{self.sku_id}", version)


def read_tallies(answer: Answer, tallies: Sequence[Tally]) -> tuple[Line, ...]:
    """What the styles of a product show of its tallies."""
    document = answer.json() if answer.is_ok else {"results": []}
    shown = {int(sku): told["quantity"] for style in document["results"] for sku, told in style["skus"].items()}
    return tuple(tally.line(shown.get(tally.sku_id)) for tally in tallies)


@dataclass(frozen=True, slots=True)
class Board:
    """A product whose slogan is its version, and the page of the list that it is on.

    Attributes:
        product_id: which it is.
        sku_id: the one thing to buy of it, which nobody buys.
        page: the number of the page; it stays there, as nothing before it goes.
        count: how many products are on a page.
    """

    product_id: int
    sku_id: int
    page: int
    count: int

    @property
    def path(self) -> str:
        """Of its page."""
        return f"/products?page={self.page}&count={self.count}"


def write_slogan(version: int) -> str:
    """What a board says at a version."""
    return f"Version {version} of the lab's board"


def read_board(answer: Answer, board: Board) -> tuple[Line, ...]:
    """What a page of the list shows of the board; nothing before it was first written on, version 0 where it is not."""
    products = answer.json() if answer.is_ok else []
    slogans = [product["slogan"] for product in products if product["id"] == board.product_id]
    if not slogans:
        return (Line(f"product:{board.product_id}", 0),)
    found = re.fullmatch(write_slogan(0).replace("0", r"(\d+)", 1), slogans[0])
    return (Line(f"product:{board.product_id}", int(found[1])),) if found else ()
