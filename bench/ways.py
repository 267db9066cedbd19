"""The same reads in many ways: what each part of the service is worth, or costs. Every way takes its turn once."""

from collections.abc import Iterator

from bench.load import MIX, Load, Reads, run_load
from bench.reads import COLD, PRODUCT, connect, run_statement, warm_up
from bench.stand import Running, Stand
from bench.table import Row

# The framework's own routing takes hosts that the short way leaves to it.
_ORDINARY = {"Host": "bench_ordinary"}


def measure(stand: Stand) -> Iterator[Row]:
    """All rows of this subject, as they come."""
    base = run_statement(stand, "product_documented")
    yield rate("pgbench, the same SQL, 8 clients", base, base)
    with stand.serve_app("bench.plain:create_app", PLAIN=stand.dsn_of("reader", "pg2")) as plain:
        yield tell("a plain handler, a query a request", load(stand, plain), base)
    with stand.serve(**COLD) as service:
        yield tell("merged reads, the framework's handler", load(stand, service, **_ORDINARY), base)
        yield tell("merged reads, the short way", load(stand, service), base)
        with connect(service) as send:
            token = send("GET", "/products/1")[1]["atelier-token"]
        yield tell("the same with a token", load(stand, service, **{"Atelier-Token": token}), base)
        yield tell("the same answered 304", load(stand, service, **{"If-None-Match": "*"}), base)
    nodes = stand.cluster.environment()["ATELIER_NODES"]
    with stand.serve(**COLD, ATELIER_NODES=",".join(nodes.split(",")[:2])) as service:
        yield tell("with one replica", load(stand, service), base)
    with stand.serve(**COLD, ATELIER_WORKERS="2") as service:
        yield tell("with two worker processes", load(stand, service), base)
    with stand.serve() as service:
        yield tell("from memory, the mix", warm_up(stand, service), base)
        low = stand.span[0]
        what = Reads(MIX, (low, low + 2_000), {"If-None-Match": "*"})
        yield tell("from memory, answered 304", run_load(service.url, what, stand.folder, seconds=stand.seconds), base)
    with stand.serve(ATELIER_WORKERS="2") as service:
        yield tell("from memory, two worker processes", warm_up(stand, service), base)


def load(stand: Stand, service: Running, **headers: str) -> Load:
    """Products, 32 connections, after a moment of warming up."""
    what = Reads((PRODUCT,), stand.span, headers)
    run_load(service.url, what, stand.folder, seconds=2)
    return run_load(service.url, what, stand.folder, seconds=stand.seconds, service=service)


def tell(name: str, seen: Load, base: float) -> Row:
    """A row of one way; errors are part of its name."""
    return rate(f"{name}{f' ({seen.errors} errors)' if seen.errors else ''}", seen.per_s, base)


def rate(name: str, per_s: float, base: float) -> Row:
    """A row of a rate and its ratio."""
    return Row(name, f"{per_s:,.0f}/s = {per_s / base:.2f}x pgbench", figure=per_s)
