"""The same reads in many ways: what each part of the service is worth, or costs. pgbench and the ways take turns."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from functools import partial

from bench.load import MIX, Load, Reads, run_load
from bench.reads import COLD, PRODUCT, fill_memory, kept_span, make_tokens, run_statement
from bench.rounds import take_turns
from bench.stand import Running, Stand
from bench.table import Row, spread

# The framework's own routing takes hosts that the short way leaves to it.
_ORDINARY = {"Host": "bench_ordinary"}
_BASE = "pgbench, the same SQL, 8 clients"

Serve = Callable[[], AbstractContextManager[Running]]


def measure(stand: Stand) -> Iterator[Row]:
    """All rows of this subject."""
    measures: dict[str, Callable[[], Load]] = {
        _BASE: lambda: Load(run_statement(stand, "product_documented"), 0, 0, 0),
        **{name: partial(_measure_way, stand, serve, what) for name, (serve, what) in list_ways(stand).items()},
    }
    seen = take_turns(stand.rounds, measures)
    yield from (tell(name, loads, seen[_BASE]) for name, loads in seen.items())


def list_ways(stand: Stand) -> dict[str, tuple[Serve, Reads]]:
    """Who serves and what is asked for, by name."""
    replica = ",".join(stand.cluster.environment()["ATELIER_NODES"].split(",")[:2])
    cold, warm = partial(stand.serve, **COLD), stand.serve
    product, kept = Reads((PRODUCT,), stand.span), kept_span(stand)
    plain = partial(stand.serve_app, "bench.plain:create_app", PLAIN=stand.dsn_of("reader", "pg2"))
    return {
        "a plain handler, a query a request": (plain, product),
        "merged reads, the framework's handler": (cold, Reads((PRODUCT,), stand.span, _ORDINARY)),
        "merged reads, the short way": (cold, product),
        "the same with one of 4,000 tokens": (cold, Reads((PRODUCT,), stand.span, tokens=make_tokens(stand))),
        "the same answered 304": (cold, Reads((PRODUCT,), stand.span, {"If-None-Match": "*"})),
        "with one replica": (partial(stand.serve, **COLD, ATELIER_NODES=replica), product),
        "with two worker processes": (partial(stand.serve, **COLD, ATELIER_WORKERS="2"), product),
        "from memory, the mix": (warm, Reads(MIX, kept)),
        "from memory, answered 304": (warm, Reads(MIX, kept, {"If-None-Match": "*"})),
        "from memory, two worker processes": (partial(stand.serve, ATELIER_WORKERS="2"), Reads(MIX, kept)),
    }


def tell(name: str, loads: list[Load], base: list[Load]) -> Row:
    """A row of one way: its rate, and its ratio to pgbench of the same round. Errors are part of its name."""
    errors = sum(load.errors for load in loads)
    ratios = [load.per_s / other.per_s for load, other in zip(loads, base, strict=True)]
    middle = sorted(load.per_s for load in loads)[len(loads) // 2]
    words = f"{middle:,.0f}/s = {spread(ratios)}x pgbench"
    return Row(f"{name}{f' ({errors} errors)' if errors else ''}", words, figure=middle)


def _measure_way(stand: Stand, serve: Serve, what: Reads) -> Load:
    with serve() as service:
        if what.span == stand.span:
            run_load(service.url, what, stand.folder, seconds=2)
        else:
            fill_memory(stand, service)
        return run_load(service.url, what, stand.folder, seconds=stand.seconds)
