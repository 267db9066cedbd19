"""Those who work behind the shop."""

from typing import ClassVar

from locust import task
from locust.exception import StopTest

from loadtest.answers import version_of
from loadtest.client import CAUSAL, EVENTUAL, STRONG, Consistency
from loadtest.commands import adjust, count, pick_lines, update_product
from loadtest.tally import Board, write_slogan
from loadtest.users.base import LabUser

_BOUNDED = Consistency("bounded", 500)


class Warehouse(LabUser):
    """Puts goods in and takes them out, and now and then counts a shelf."""

    most_lines: ClassVar[int] = 3
    only_hot: ClassVar[bool] = True
    counts: ClassVar[bool] = False

    @task(6)
    def move_goods(self) -> None:
        """An adjustment, and a look at what it did."""
        world = self.stage.world
        chosen = pick_lines(self.rng, world.hot if self.only_hot else world.skus, self.most_lines)
        lines = [(sku, quantity * self.rng.choice((-1, 1))) for sku, quantity in chosen]
        self.session.command(adjust(lines))
        self.session.read_stock(lines[0][0], self.rng.choice((CAUSAL, CAUSAL, STRONG, _BOUNDED)))

    @task(1)
    def count_a_shelf(self) -> None:
        """A count guarded by the version that was seen; without permission to count, a look."""
        sku = self.rng.choice(self.stage.world.skus)
        seen = self.session.read_stock(sku, STRONG)
        if self.counts and seen.is_ok:
            document = seen.json()
            found = document["on_hand"] + self.rng.choice((-1, 0, 1))
            self.session.command(count(sku, max(found, document["reserved"]), document["version"]))
            self.session.read_stock(sku, CAUSAL)


class CatalogueAdmin(LabUser):
    """Rewrites product texts, half of the time only from the version it has seen."""

    @task
    def rewrite(self) -> None:
        """One change, and a look at it as the shoppers see it."""
        product_id = self.rng.choice(self.stage.world.products)
        seen = self.session.read_product(product_id, self.rng.choice((CAUSAL, STRONG)))
        version = version_of(seen) if self.rng.random() < 0.5 and seen.is_ok else None
        slogan = f"Slogan {self.rng.getrandbits(32):08x}"
        self.session.command(update_product(product_id, {"slogan": slogan}, version))
        self.session.read_product(product_id, CAUSAL)
        self.session.get(f"/products/{product_id}/styles", "/products/[id]/styles", EVENTUAL)


class Returner(LabUser):
    """Rewrites a product and leaves without a look; looks when it comes again.

    A memory that hears of no change passes for a good one with those who look at once: their tokens are beyond what it
    vouches for. By the time one comes again, it vouches for the token.
    """

    def on_start(self) -> None:
        """Has written nothing yet."""
        self._written: int | None = None
        super().on_start()

    @task
    def come_again(self) -> None:
        """A look at what was written last time, and something new to write."""
        if self._written is not None:
            self.session.read_product(self._written, self.rng.choice((CAUSAL, CAUSAL, _BOUNDED)))
        self._written = self.rng.choice(self.stage.world.products)
        slogan = f"Slogan {self.rng.getrandbits(32):08x}"
        self.session.command(update_product(self._written, {"slogan": slogan}))


class Refiller(LabUser):
    """Puts one piece after the other on a shelf, and looks at the product's page, whose quantity must have it."""

    @task
    def refill(self) -> None:
        """One piece, and the page as its shoppers see it."""
        tally = self.rng.choice(self.stage.world.tallies)
        self.session.command(adjust([(tally.sku_id, 1)]))
        self._look(tally.product_id, CAUSAL)

    @task(2)
    def look(self) -> None:
        """The page alone, in every way that a read can be asked for."""
        product_id = self.rng.choice(self.stage.world.tallies).product_id
        self._look(product_id, self.rng.choice((CAUSAL, STRONG, _BOUNDED, _BOUNDED)))

    def _look(self, product_id: int, consistency: Consistency) -> None:
        tallies = [tally for tally in self.stage.world.tallies if tally.product_id == product_id]
        self.session.read_styles(product_id, tallies, consistency)


class Editor(LabUser):
    """Writes its version on the board, and looks at the list, which must show it."""

    @task
    def write(self) -> None:
        """The next version, unless somebody else was faster; and the list and the product as shoppers see them."""
        board = self._board
        seen = self.session.read_product(board.product_id, STRONG)
        version = version_of(seen)
        self.session.command(update_product(board.product_id, {"slogan": write_slogan(version + 1)}, version))
        self.session.read_list(board, CAUSAL)
        self.session.read_product(board.product_id, CAUSAL)

    @task(2)
    def look(self) -> None:
        """The list alone, in every way that a read can be asked for."""
        self.session.read_list(self._board, self.rng.choice((CAUSAL, STRONG, _BOUNDED, _BOUNDED)))

    @property
    def _board(self) -> Board:
        board = self.stage.world.board
        if board is None:
            raise StopTest("this shop has no board")
        return board
