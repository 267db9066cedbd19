"""What the size of the catalogue costs: the same reads of ten thousand, a hundred thousand and a million products."""

from collections.abc import Iterator

from bench.reads import COLD, PRODUCT, STYLES, ask, measure_lone, measure_pages
from bench.stand import Stand, open_stand
from bench.table import Row

_SIZES = (10_000, 100_000)


def measure(stand: Stand) -> Iterator[Row]:
    """All rows of this subject, as they come; the last size is that of the whole bench."""
    for size in _SIZES:
        if size < stand.products:
            with open_stand(size, keep=None, seconds=stand.seconds, rounds=stand.rounds) as small:
                yield from _measure_size(small)
    yield from _measure_size(stand)


def _measure_size(stand: Stand) -> Iterator[Row]:
    with stand.serve(**COLD) as service:
        ask(stand, service, (STYLES, PRODUCT))
        for name, path in (("product", PRODUCT), ("styles", STYLES)):
            seen = ask(stand, service, (path,))
            yield Row(f"{stand.products:,} products: cold {name}", f"{seen.per_s:,.0f}/s", figure=seen.per_s)
        alone_ms, pages = measure_lone(stand, service, PRODUCT), measure_pages(service)
        yield Row(f"{stand.products:,} products: lone product", f"{alone_ms:.2f} ms", figure=alone_ms)
        yield Row(f"{stand.products:,} products: last page against first", f"{pages:.2f}x", figure=pages)
