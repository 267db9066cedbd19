"""Those who look and those who buy."""

from typing import ClassVar

from locust import task

from loadtest.client import CAUSAL, EVENTUAL, Consistency
from loadtest.commands import confirm, pick_lines, release, reserve
from loadtest.users.base import LabUser
from loadtest.world import IdChooser

_BOUNDED = Consistency("bounded", 500)


class Shopper(LabUser):
    """Walks through product pages: the list, a product, its styles and related ones, and each of these as a card."""

    way: ClassVar[str] = "zipf"
    related: ClassVar[int] = 4

    def on_start(self) -> None:
        """Chooses among the shop's products."""
        self._ids = IdChooser(self.stage.world.products, way=self.way)
        super().on_start()

    @task
    def look_at_a_page(self) -> None:
        """One page view with all its requests."""
        page = self.rng.randint(1, max(1, len(self.stage.world.products) // 5))
        self.session.get(f"/products?page={page}&count=5", "/products", EVENTUAL)
        product_id = self._ids.choose(self.rng)
        self.session.read_product(product_id, CAUSAL)
        self.session.get(f"/products/{product_id}/styles", "/products/[id]/styles")
        related = self.session.get(f"/products/{product_id}/related", "/products/[id]/related")
        for other in (related.json() or [])[: self.related] if related.is_ok else []:
            self.session.read_product(other, CAUSAL)
            self.session.get(f"/products/{other}/styles", "/products/[id]/styles")


class Checkout(LabUser):
    """Reserves a basket, looks at what is left, and buys, gives back or walks away."""

    basket: ClassVar[int] = 3
    only_hot: ClassVar[bool] = False
    ttl_s: ClassVar[int] = 60

    @task
    def check_out(self) -> None:
        """One basket."""
        world = self.stage.world
        lines = pick_lines(self.rng, world.hot if self.only_hot else world.skus, self.basket)
        self.session.read_stock(lines[0][0], CAUSAL)
        answer = self.session.command(reserve(lines, self.ttl_s))
        if not answer.is_ok:
            self.session.read_stock(lines[0][0], CAUSAL)
            return
        reservation = str(answer.json()["reservation_id"])
        self.stage.reservations.append(reservation)
        self.session.read_reservation(reservation)
        self.session.read_stock(lines[-1][0], CAUSAL)
        self._settle(reservation, lines)

    def _settle(self, reservation: str, lines: list[tuple[int, int]]) -> None:
        decision = self.rng.random()
        if decision < 0.65:
            self.session.command(confirm(reservation, lines))
        elif decision < 0.9:
            self.session.command(release(reservation, lines))
        self.session.read_stock(lines[0][0], CAUSAL)


class Buyer(Checkout):
    """One of thousands who want the same thing at the same time."""

    basket = 1
    only_hot = True


class Onlooker(LabUser):
    """Looks at stock only, in every way that a read can be asked for."""

    @task
    def look_at_stock(self) -> None:
        """One SKU, twice: a client that sends its token back never sees it go back."""
        world = self.stage.world
        sku = self.rng.choice(world.hot or world.skus)
        self.session.read_stock(sku, self.rng.choice((CAUSAL, CAUSAL, _BOUNDED)))
        self.session.read_stock(self.rng.choice(world.hot or world.skus), CAUSAL)
