"""SKUs to which every command adds exactly one: what a product page shows of them tells which version it is of.

Pages show quantities and no versions. Of such a SKU the quantity is the version, but for where both began, and so the
checkers can judge the pages of the storefront, too.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from loadtest.history.record import Line
from loadtest.transport import Answer


@dataclass(frozen=True, slots=True)
class Tally:
    """One of them.

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
