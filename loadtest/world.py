"""The shop of a run: products and SKUs made for it through the API, which nobody else touches."""

import random
from bisect import bisect
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate

from loadtest.client import STRONG, Session
from loadtest.commands import create_product
from loadtest.history.record import Line
from loadtest.tally import Board, Tally

_FEATURES = [{"feature": "Fabric", "value": "Canvas"}, {"feature": "Cut", "value": "Loose"}]

_TALLIES = 2
_ON_A_PAGE = 10


class SetUpError(Exception):
    """The service does not let the lab make what it needs."""


@dataclass(frozen=True, slots=True)
class Shop:
    """How big the shop of a scenario is.

    Attributes:
        products: how many; each has one style.
        skus: of each product.
        stock: of each SKU at first.
    """

    products: int = 20
    skus: int = 2
    stock: int = 100_000


@dataclass(frozen=True, slots=True)
class World:
    """What the users of a run work on.

    Attributes:
        products: ids, in order.
        skus: ids, in order.
        canary: a SKU that only the end of the run touches.
        canary_product: the product that it belongs to.
        hot: the SKUs that heavy traffic aims at: the first ones.
        tallies: SKUs of a product of their own, to which every command adds one.
        board: a product whose slogan is its version.
    """

    products: Sequence[int]
    skus: Sequence[int]
    canary: int
    canary_product: int
    hot: Sequence[int] = field(default_factory=tuple)
    tallies: Sequence[Tally] = field(default_factory=tuple)
    board: Board | None = None

    @property
    def all_skus(self) -> list[int]:
        """Every SKU that a run may have changed."""
        boards = [self.board.sku_id] if self.board else []
        return [*self.skus, self.canary, *(tally.sku_id for tally in self.tallies), *boards]

    @property
    def all_products(self) -> list[int]:
        """Every product that the lab has made."""
        boards = [self.board.product_id] if self.board else []
        return [*self.products, self.canary_product, *{tally.product_id for tally in self.tallies}, *boards]


class IdChooser:
    """Chooses ids as shoppers do: by Zipf's law, or evenly among the newest tenth."""

    def __init__(self, ids: Sequence[int], *, way: str = "zipf", exponent: float = 1.0) -> None:
        """Prepares the choice.

        Args:
            ids: what to choose from, the most wanted first.
            way: `zipf` or `last-tenth`.
            exponent: how much the first are preferred by `zipf`.
        """
        self._ids = ids if way == "zipf" else ids[-max(1, len(ids) // 10) :]
        weights = (1 / rank**exponent if way == "zipf" else 1.0 for rank in range(1, len(self._ids) + 1))
        self._cumulated = list(accumulate(weights))

    def choose(self, rng: random.Random) -> int:
        """One id."""
        return self._ids[bisect(self._cumulated, rng.random() * self._cumulated[-1])]


def make_world(session: Session, shop: Shop, *, hot: int) -> World:
    """Makes the products of a shop, one for the canary, one for the tallies, and the board.

    Raises:
        SetUpError: the service refuses.
    """
    products: list[int] = []
    skus: list[int] = []
    for _ in range(shop.products):
        product_id, made = _make_product(session, shop, related=products[-4:])
        products.append(product_id)
        skus += made
    canary_product, canaries = _make_product(session, Shop(skus=1), related=[])
    tallies = _make_tallies(session)
    board = _make_board(session)
    return World(products, skus, canaries[0], canary_product, tuple(skus[:hot]), tallies, board)


def _make_tallies(session: Session) -> tuple[Tally, ...]:
    product_id, skus = _make_product(session, Shop(skus=_TALLIES, stock=1000), related=[])
    told = [session.read_stock(sku, STRONG).json() for sku in skus]
    return tuple(Tally(product_id, stock["sku_id"], stock["version"], stock["on_hand"]) for stock in told)


def _make_board(session: Session) -> Board:
    product_id, (sku_id,) = _make_product(session, Shop(skus=1), related=[])
    # Products come in the order of their ids, which may have gaps: the page is this one or an earlier one.
    low, high = 1, -(-product_id // _ON_A_PAGE)
    while low < high:
        middle = (low + high + 1) // 2
        answer = session.get(f"/products?page={middle}&count={_ON_A_PAGE}", "/products", STRONG)
        if not answer.is_ok:
            raise SetUpError(f"reading the list failed: {answer.status} {answer.problem or answer.error}")
        shown = answer.json()
        low, high = (middle, high) if shown and shown[0]["id"] <= product_id else (low, middle - 1)
    return Board(product_id, sku_id, low, _ON_A_PAGE)


def _make_product(session: Session, shop: Shop, *, related: Sequence[int]) -> tuple[int, list[int]]:
    """One product with its SKUs."""
    sizes = [{"size": f"size {number}", "quantity": shop.stock} for number in range(shop.skus)]
    style = {"name": "Plain", "original_price": "140", "sale_price": None, "default?": True, "skus": sizes}
    body = {
        "name": f"Lab coat {session.rng.getrandbits(24):06x}",
        "slogan": "Made to be tested",
        "description": "One of many, made by the lab and left behind.",
        "category": "Coats",
        "default_price": "140",
        "features": _FEATURES,
        "related": list(related),
        "styles": [style],
    }
    answer = session.command(create_product(body))
    if not answer.is_ok:
        raise SetUpError(f"making a product failed: {answer.status} {answer.problem or answer.error}")
    product_id = int(answer.json()["id"])
    styles = session.get(f"/products/{product_id}/styles", "/products/[id]/styles", STRONG).json()
    skus = sorted(int(sku) for style in styles["results"] for sku in style["skus"])
    session.tell_stock([Line(f"sku:{sku}", None, shop.stock, 0, shop.stock) for sku in skus])
    return product_id, skus
