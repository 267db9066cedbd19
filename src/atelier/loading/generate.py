"""Makes a catalogue of any size in the course's CSV form, with the proportions of the real one, from a seed.

Products are made in blocks. How many rows of each kind a block gets follows from its place alone, so the totals are
exact at the real size; how they are spread inside it is random.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from itertools import count, islice, repeat
from pathlib import Path
from random import Random
from typing import BinaryIO

from atelier.loading import words
from atelier.loading.dirt import Dirt
from atelier.loading.layout import LAYOUTS, Layout
from atelier.loading.session import LoadingError

# The real catalogue.
_PRODUCTS = 1_000_011
_TOTALS = {"features": 2_219_279, "styles": 1_958_102, "photos": 5_655_656, "skus": 11_323_917, "related": 4_508_263}
_BLOCK_PRODUCTS = 1_000
_MOST_SKUS = 60

Rows = dict[str, list[str]]


def generate_catalogue(folder: Path, *, products: int, seed: int, dirty: bool = False) -> dict[str, int]:
    """Writes the six files.

    Args:
        folder: made when it is missing.
        products: how many.
        seed: the same gives the same bytes.
        dirty: adds every fault that an import knows, and `expected-rejects.csv`. What is left when those rows are
            refused is the clean catalogue of the same seed.

    Returns:
        How many clean rows each file has, by title.

    Raises:
        LoadingError: a file could not be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return _generate(folder, products, Random(seed), Dirt(Random(seed)) if dirty else None)  # noqa: S311 - no secret
    except OSError as error:
        raise LoadingError(f"{error.filename or folder} cannot be written: {error.strerror}") from error


def _generate(folder: Path, products: int, random: Random, dirt: Dirt | None) -> dict[str, int]:
    maker = _Maker(random, products)
    written = {layout.title: 0 for layout in LAYOUTS}
    with ExitStack() as stack:
        files = {
            layout.title: stack.enter_context((folder / f"{layout.title}.csv").open("wb", buffering=1 << 20))
            for layout in LAYOUTS
        }
        for layout in LAYOUTS:
            files[layout.title].write(dirt.head(layout) if dirt else _head(layout))
        for first in range(1, products + 1, _BLOCK_PRODUCTS):
            block = maker.make_block(first, min(first + _BLOCK_PRODUCTS, products + 1))
            for layout in LAYOUTS:
                rows = block[layout.title]
                written[layout.title] += len(rows)
                _write(files[layout.title], layout, rows, dirt)
        if dirt:
            for layout in LAYOUTS:
                files[layout.title].write(dirt.tail(layout))
            dirt.write_expected(folder / "expected-rejects.csv")
    return written


def _head(layout: Layout) -> bytes:
    return ",".join(column.name for column in layout.columns).encode() + b"\n"


def _write(file: BinaryIO, layout: Layout, rows: list[str], dirt: Dirt | None) -> None:
    if dirt:
        file.write(dirt.soil(layout, rows))
    elif rows:
        file.write("\n".join(rows).encode() + b"\n")


class _Maker:
    """Makes block after block; ids count on from one to the next."""

    def __init__(self, random: Random, products: int) -> None:
        self._random, self._products = random, products
        self._names, self._styles, self._features = words.product_names(), words.style_names(), words.features()
        self._descriptions, self._photos = words.descriptions(self._random), words.photos(self._random)
        self._sizes = words.sizes()
        self._ids = {layout.title: count(1) for layout in LAYOUTS}

    def make_block(self, first: int, end: int) -> Rows:
        """The rows of the products from `first` to before `end`, as lines of each file."""
        totals = {title: _upto(total, end - 1) - _upto(total, first - 1) for title, total in _TOTALS.items()}
        ids = range(first, end)
        prices = [self._price() for _ in ids]
        styles, style_lines = self._make_styles(ids, prices, totals["styles"])
        return {
            "product": self._make_products(ids, prices),
            "features": self._pick("features", ids, self._features, totals["features"], without=0.1),
            "styles": style_lines,
            "photos": self._pick("photos", styles, self._photos, totals["photos"], without=0.05),
            "skus": self._make_skus(styles, totals["skus"]),
            "related": self._make_related(ids, totals["related"]),
        }

    def _make_products(self, ids: range, prices: list[str]) -> list[str]:
        names = self._random.choices(self._names, k=len(ids))
        texts = self._random.choices(self._descriptions, k=len(ids))
        return [
            f"{product_id},{name},{text},{category},{price}"
            for product_id, (name, category), text, price in zip(ids, names, texts, prices, strict=True)
        ]

    def _make_styles(self, ids: range, prices: list[str], total: int) -> tuple[list[int], list[str]]:
        counts = _spread(self._random, len(ids), total, without=0.2)
        owners = [(at, number) for at, many in enumerate(counts) for number in range(many)]
        names = self._random.choices(self._styles, k=len(owners))
        style_ids = list(self._take("styles", len(owners)))
        lines = [
            f"{style_id},{ids[at]},{name},{self._sale(prices[at])},{prices[at]},{int(not number)}"
            for style_id, (at, number), name in zip(style_ids, owners, names, strict=True)
        ]
        return style_ids, lines

    def _make_skus(self, styles: list[int], total: int) -> list[str]:
        counts = _spread(self._random, len(styles), total, without=0.05)
        systems = self._random.choices(self._sizes, k=len(styles))
        owners = [
            (style_id, size)
            for style_id, many, system in zip(styles, counts, systems, strict=True)
            for size in system[min(many, _MOST_SKUS)]
        ]
        quantities = self._random.choices(range(60), k=len(owners))
        return [
            f"{sku_id},{style_id},{size},{quantity}"
            for sku_id, (style_id, size), quantity in zip(
                self._take("skus", len(owners)), owners, quantities, strict=True
            )
        ]

    def _make_related(self, ids: range, total: int) -> list[str]:
        owners = _owners(ids, _spread(self._random, len(ids), total, without=0.05))
        others = [1 + int(self._random.random() * self._products) for _ in owners]
        # Some name the one before once more, or themselves: real catalogues do.
        for at in range(9, len(others), 40):
            others[at] = others[at - 1]
            others[at - 5] = owners[at - 5]
        return [
            f"{row_id},{owner},{other}"
            for row_id, owner, other in zip(self._take("related", len(owners)), owners, others, strict=True)
        ]

    def _pick(self, title: str, parents: Sequence[int], pool: list[str], total: int, *, without: float) -> list[str]:
        owners = _owners(parents, _spread(self._random, len(parents), total, without=without))
        picked = self._random.choices(pool, k=len(owners)) if owners else []
        ids = self._take(title, len(owners))
        return [f"{row_id},{owner},{text}" for row_id, owner, text in zip(ids, owners, picked, strict=True)]

    def _take(self, title: str, many: int) -> Iterator[int]:
        return islice(self._ids[title], many)

    def _price(self) -> str:
        price = int(self._random.random() ** 2 * 990) + 5
        return str(price) if self._random.random() < 0.9 else f"{price}.{self._random.choice(('50', '95', '90'))}"

    def _sale(self, price: str) -> str:
        return "null" if self._random.random() < 0.7 else str(int(float(price) * 0.8))


def _upto(total: int, products: int) -> int:
    """How many rows of a kind the first so many products have together."""
    return total * products // _PRODUCTS


def _spread(random: Random, slots: int, total: int, *, without: float) -> list[int]:
    """Spreads a total over slots at random; a share of them gets nothing, every other at least one if it can."""
    counts = [0] * slots
    chosen = random.sample(range(slots), max(slots - int(slots * without), min(slots, 1)))
    if not chosen:
        return counts
    for slot in [*chosen[:total], *random.choices(chosen, k=max(total - len(chosen), 0))]:
        counts[slot] += 1
    return counts


def _owners(parents: Sequence[int], counts: list[int]) -> list[int]:
    return [parent for parent, many in zip(parents, counts, strict=True) for _ in repeat(None, many)]
