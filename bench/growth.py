"""What the size of the catalogue costs: the same reads of ten thousand, a hundred thousand and a million products.

Catalogues of several sizes stand side by side, so that they take turns, too.
"""

import statistics
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial

from bench.load import MIX, Reads
from bench.reads import COLD, PRODUCT, STYLES, ask, fill_memory, kept_span, measure_lone, run_statement
from bench.rounds import take_turns
from bench.stand import Running, Stand, open_stand
from bench.table import Row, spread

_SIZES = (10_000, 100_000)
# What is told of each size; the last has its unit.
_KINDS = ("pgbench product", "cold product", "cold styles", "warm mix", "lone product")


def measure(stand: Stand) -> Iterator[Row]:
    """All rows of this subject; the last size is that of the whole bench."""
    with ExitStack() as stack:
        stands = [
            stack.enter_context(open_stand(size, keep=None, seconds=stand.seconds, rounds=stand.rounds))
            for size in _SIZES if size < stand.products
        ]  # fmt: skip
        measures: dict[str, Callable[[], float]] = {}
        for one in [*stands, stand]:
            cold, warm = stack.enter_context(one.serve(**COLD)), stack.enter_context(one.serve())
            ask(one, cold, Reads((STYLES, PRODUCT), one.span))
            fill_memory(one, warm)
            measures |= _list_measures(one, cold, warm)
        seen = take_turns(stand.rounds, measures)
    for kind in _KINDS:
        yield from _tell_kind(kind, [one.products for one in [*stands, stand]], seen)


def _list_measures(stand: Stand, cold: Running, warm: Running) -> dict[str, Callable[[], float]]:
    def rate(service: Running, what: Reads) -> float:
        return ask(stand, service, what).per_s

    return {
        f"pgbench product {stand.products}": partial(run_statement, stand, "product_documented"),
        f"cold product {stand.products}": partial(rate, cold, Reads((PRODUCT,), stand.span)),
        f"cold styles {stand.products}": partial(rate, cold, Reads((STYLES,), stand.span)),
        f"warm mix {stand.products}": partial(rate, warm, Reads(MIX, kept_span(stand))),
        f"lone product {stand.products}": partial(measure_lone, stand, cold, PRODUCT),
    }


def _tell_kind(kind: str, sizes: list[int], seen: dict[str, list[float]]) -> Iterator[Row]:
    """A row for each size: the figure, and its ratio to that of the smallest in the same round."""
    unit, show = (" ms", "{:.2f}".format) if kind.startswith("lone") else ("/s", "{:,.0f}".format)
    smallest = seen[f"{kind} {sizes[0]}"]
    for size in sizes:
        values = seen[f"{kind} {size}"]
        ratios = [mine / theirs for mine, theirs in zip(values, smallest, strict=True)]
        middle = statistics.median(values)
        against = f" = {spread(ratios)}x" if size != sizes[0] else ""
        yield Row(f"{kind}, {size:,} products", f"{show(middle)}{unit}{against}", figure=middle, at=size)
