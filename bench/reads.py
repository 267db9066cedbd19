"""Reads: cold ones against the same SQL by pgbench, tokens, lone requests, the last page; and from memory."""

import http.client
import json
import re
import socket
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

from atelier.reads.position import POSITION
from atelier.reads.queries import load_statements
from bench.load import MIX, Load, Reads, run_load
from bench.stand import Running, Stand
from bench.table import Row, at_least, below

STYLES, PRODUCT, RELATED = "/products/ID/styles", "/products/ID", "/products/ID/related"
COLD = {"ATELIER_CACHE_BYTES": "0"}
# What a server of the common kind, one process with a query a request, made of the mix on the reference machine.
_EXPRESS_MIX = 2_740


def measure(stand: Stand) -> Iterator[Row]:
    """All rows of this subject, as they come."""
    raw = {name: run_statement(stand, name) for name in ("styles_documented", "product_documented")}
    yield Row("pgbench styles, 8 clients, one replica", f"{raw['styles_documented']:,.0f}/s")
    yield Row("pgbench product, 8 clients, one replica", f"{raw['product_documented']:,.0f}/s")
    with stand.serve(**COLD) as service:
        yield from _measure_cold(stand, service, raw)
        yield from _measure_waiting(stand, service)
    with stand.serve() as service:
        warm = warm_up(stand, service)
    yield at_least("warm mix, from memory", warm.per_s, _EXPRESS_MIX, 8, of="Express")
    yield Row("warm mix, 99th percentile", f"{warm.p99_ms:.1f} ms, {warm.errors} errors", "no error", warm.errors == 0)


def _measure_cold(stand: Stand, service: Running, raw: dict[str, float]) -> Iterator[Row]:
    run_load(service.url, Reads(MIX, stand.span), stand.folder, seconds=3)
    styles, product, mix = (ask(stand, service, paths) for paths in ((STYLES,), (PRODUCT,), MIX))
    yield at_least("cold styles", styles.per_s, raw["styles_documented"], 0.45, of="pgbench")
    yield at_least("cold product", product.per_s, raw["product_documented"], 0.6, of="pgbench")
    yield Row("processor time of the service: styles, product", f"{styles.cpu_us:.0f} us, {product.cpu_us:.0f} us")
    yield Row("cold mix", f"{mix.per_s:,.0f}/s, {mix.errors} errors", "no error", mix.errors == 0)
    yield below("cold mix, 99th percentile", mix.p99_ms, 50, "ms")
    costs = compare_tokens(stand, service)
    yield Row("product with a token against without", f"{costs:.2f}x", ">= 0.9x", costs >= 0.9)


def _measure_waiting(stand: Stand, service: Running) -> Iterator[Row]:
    causal = measure_causal(stand, service)
    yield Row("causal read right after a write, median", f"{statistics.median(causal):.2f} ms")
    yield below("causal read right after a write, 99th percentile", percentile(causal, 99), 10, "ms")
    yield below("lone product, median", measure_lone(stand, service, PRODUCT), 2, "ms")
    yield below("lone styles, median", measure_lone(stand, service, STYLES), 3, "ms")
    pages = measure_pages(service)
    yield Row("last page against first page", f"{pages:.2f}x", "<= 1.5x", pages <= 1.5)


def ask(stand: Stand, service: Running, paths: tuple[str, ...], **headers: str) -> Load:
    """One load of 32 connections."""
    what = Reads(paths, stand.span, headers)
    return run_load(service.url, what, stand.folder, seconds=stand.seconds, service=service)


def run_statement(stand: Stand, name: str) -> float:
    """A statement of the service without its position, by eight clients: transactions a second."""
    sql = load_statements()[name].sql.replace(POSITION.strip(), "(select true as here) as position")
    # pgbench takes `:null` within a JSON literal for a variable of its own.
    sql = sql.rstrip(";").replace('":null', '": null').replace("$1", "array[:id]")
    low, high = stand.span
    return stand.pgbench(f"\\set id random({low}, {high})\n{sql};\n", clients=8, node="pg2")


def compare_tokens(stand: Stand, service: Running) -> float:
    """What a token costs: taking turns, the median of the ratios."""
    with connect(service) as send:
        token = send("GET", "/products/1")[1]["atelier-token"]
    ratios = []
    for _ in range(3):
        plain, sent = ask(stand, service, (PRODUCT,)), ask(stand, service, (PRODUCT,), **{"Atelier-Token": token})
        ratios.append(sent.per_s / plain.per_s)
    return statistics.median(ratios)


def warm_up(stand: Stand, service: Running) -> Load:
    """The mix over so few products that all of it is kept, after all of it has been asked for once."""
    low = stand.span[0]
    what = Reads(MIX, (low, low + 2_000))
    run_load(service.url, what, stand.folder, seconds=6)
    return run_load(service.url, what, stand.folder, seconds=stand.seconds, service=service)


def measure_causal(stand: Stand, service: Running, times: int = 300) -> list[float]:
    """How long a read takes that sends the token of the write before it, in milliseconds."""
    sku_id, took_ms = pick_sku(stand), []
    with connect(service) as send:
        for number in range(times):
            body = json.dumps({"reason": "bench", "lines": [{"sku_id": sku_id, "delta": 1}]})
            headers = {"Authorization": f"Bearer {stand.key}", "Content-Type": "application/json"}
            key = f"causal-{time.time_ns()}-{number}"
            status, answer, _ = send("POST", "/inventory/adjustments", body, {**headers, "Idempotency-Key": key})
            assert status == 200, status  # noqa: S101
            began_s = time.perf_counter()
            send("GET", f"/inventory/{sku_id}", None, {**headers, "Atelier-Token": answer["atelier-token"]})
            took_ms.append((time.perf_counter() - began_s) * 1000)
    return took_ms


def pick_sku(stand: Stand) -> int:
    """Some SKU in the middle of the catalogue."""
    return int(stand.ask("select sku_id from stock where sku_id > 1000 order by 1 limit 1"))


def measure_lone(stand: Stand, service: Running, path: str, times: int = 500) -> float:
    """The median of one request after another with no other load, in milliseconds."""
    low, high = stand.span
    with connect(service) as send:
        paths = [path.replace("ID", str(low + number * 37 % (high - low))) for number in range(times)]
        return statistics.median(timed(partial(send, "GET", path)) for path in paths)


def measure_pages(service: Running, times: int = 200) -> float:
    """The median of the last page against that of the first, taking turns."""
    with connect(service) as send:
        link = send("GET", "/products?page=1")[1]["link"]
        found = re.search(r"page=(\d+)[^>]*>; rel=\"last\"", link)
        last, first = (f"/products?page={found[1] if found else 1}"), "/products?page=1"
        pairs = [(timed(lambda: send("GET", last)), timed(lambda: send("GET", first))) for _ in range(times)]
    return statistics.median(pair[0] for pair in pairs) / statistics.median(pair[1] for pair in pairs)


def timed(call: Callable[[], object]) -> float:
    """How long a call takes, in milliseconds."""
    began_s = time.perf_counter()
    call()
    return (time.perf_counter() - began_s) * 1000


def percentile(values: list[float], percent: int) -> float:
    """The value that so many percent do not exceed."""
    return sorted(values)[min(len(values) - 1, len(values) * percent // 100)]


Send = Callable[..., tuple[int, dict[str, str], bytes]]


@contextmanager
def connect(service: Running) -> Iterator[Send]:
    """One kept connection to a service."""
    connection = http.client.HTTPConnection(service.url.removeprefix("http://"), timeout=10)

    def send(
        method: str, path: str, body: str | None = None, headers: dict[str, str] | None = None
    ) -> tuple[int, dict[str, str], bytes]:
        connection.request(method, path, body, headers or {})
        answer = connection.getresponse()
        content = answer.read()
        return answer.status, {name.lower(): value for name, value in answer.getheaders()}, content

    connection.connect()
    connection.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    try:
        yield send
    finally:
        connection.close()
