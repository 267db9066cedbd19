"""Reads: cold ones against the same SQL by pgbench, tokens, lone requests, the last page; and from memory.

Everything that is compared takes turns, round after round, and the medians of the rounds' ratios are told.
"""

import asyncio
import http.client
import json
import re
import socket
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import asyncpg

from atelier.lsn import Lsn
from atelier.reads.position import POSITION
from atelier.reads.queries import load_statements
from atelier.settings import parse_token_keys
from atelier.token import CausalToken, TokenKeys
from bench.load import MIX, Churn, Load, Reads, finish_load, run_load, start_load
from bench.rounds import take_turns
from bench.stand import Running, Stand
from bench.table import Row, at_least, below, spread

STYLES, PRODUCT, RELATED = "/products/ID/styles", "/products/ID", "/products/ID/related"
FIRST_PAGE = "/products?page=1"
COLD = {"ATELIER_CACHE_BYTES": "0"}
# So few products that all of them stay in memory.
_KEPT_PRODUCTS = 2_000
# What a server of another kind (Express, a query a request) made of the mix in the design's own run, on its machine:
# a constant of the design. This run's own of that kind is `bench.plain`.
_EXPRESS_MIX = 2_740
# The generator has as much to do with it as with a token.
_NO_TOKEN = "X-No-Token"  # noqa: S105  a header's name
# One for each of as many clients, all of which a process remembers to have opened; and more than it remembers.
_TOKENS = 4_000
_MANY_TOKENS = 40_000
_TOKEN_STEP_BYTES = 8


def measure(stand: Stand) -> Iterator[Row]:
    """All rows of this subject."""
    with (
        stand.serve(**COLD) as cold,
        stand.serve() as warm,
        stand.serve_app("bench.plain:create_app", PLAIN=stand.dsn_of("reader", "pg2")) as plain,
    ):
        run_load(cold.url, Reads(MIX, stand.span), stand.folder, seconds=3)
        fill_memory(stand, warm)
        base, seen = _measure_all(stand, cold, warm, plain)
        yield from _tell_cold(base, seen)
        yield from _tell_warm(seen)
        yield from _tell_tokens(seen)
        yield from _measure_waiting(stand, cold)


def _measure_all(
    stand: Stand, cold: Running, warm: Running, plain: Running
) -> tuple[dict[str, list[float]], dict[str, list[Load]]]:
    """Pgbench's transactions a second by resource, and the loads by name; all of them took turns."""
    tokens, kept = make_tokens(stand), kept_span(stand)
    whats = {
        "cold styles": (cold, Reads((STYLES,), stand.span)),
        "cold product": (cold, Reads((PRODUCT,), stand.span)),
        "cold product, token": (cold, Reads((PRODUCT,), stand.span, tokens=tokens)),
        "cold product, no token": (cold, Reads((PRODUCT,), stand.span, tokens=tokens, token_header=_NO_TOKEN)),
        "cold mix": (cold, Reads(MIX, stand.span)),
        "plain mix": (plain, Reads(MIX, stand.span)),
        "warm mix": (warm, Reads(MIX, kept)),
        "warm product, token": (warm, Reads((PRODUCT,), kept, tokens=tokens)),
        "warm product, no token": (warm, Reads((PRODUCT,), kept, tokens=tokens, token_header=_NO_TOKEN)),
        "warm product, many tokens": (warm, Reads((PRODUCT,), kept, tokens=make_tokens(stand, _MANY_TOKENS))),
    }
    base: dict[str, list[float]] = {"styles": [], "product": []}

    def run_base(name: str) -> Load:
        base[name].append(run_statement(stand, f"{name}_documented"))
        return Load(base[name][-1], 0, 0, 0)

    measures: dict[str, Callable[[], Load]] = {f"pgbench {name}": partial(run_base, name) for name in base}
    measures |= {name: partial(ask, stand, service, what) for name, (service, what) in whats.items()}
    return base, take_turns(stand.rounds, measures)


def _tell_cold(base: dict[str, list[float]], seen: dict[str, list[Load]]) -> Iterator[Row]:
    for name in ("styles", "product"):
        yield Row(f"pgbench {name}, 8 clients, one replica", f"{spread(base[name], '{:,.0f}'.format)}/s")
    for name, later in (("styles", 0.45), ("product", 0.6)):
        rates = [load.per_s for load in seen[f"cold {name}"]]
        yield at_least(f"cold {name}: the first target", rates, base[name], 0.3, of="pgbench", settles="cold-reads")
        yield at_least(f"cold {name}: the later target", rates, base[name], later, of="pgbench", settles="cold-short")
    mix = seen["cold mix"]
    errors = sum(load.errors for load in mix)
    yield Row("cold mix", f"{spread([load.per_s for load in mix], '{:,.0f}'.format)}/s, {errors} errors", "no error",
              errors == 0, settles="cold-p99")  # fmt: skip
    yield below("cold mix, 99th percentile", [load.p99_ms for load in mix], 50, "ms", settles="cold-p99")


def _tell_warm(seen: dict[str, list[Load]]) -> Iterator[Row]:
    warm, plain = ([load.per_s for load in seen[name]] for name in ("warm mix", "plain mix"))
    errors = sum(load.errors for load in seen["warm mix"])
    yield Row("the mix by a plain handler, a query a request", f"{spread(plain, '{:,.0f}'.format)}/s")
    yield at_least("warm mix, from memory", warm, plain, 8, of="that handler", settles="warm-mix")
    yield at_least("warm mix, by the design's constant of 2,740/s (another run, another machine)", warm,
                   [_EXPRESS_MIX] * len(warm), 8, of="Express", settles="warm-mix")  # fmt: skip
    p99_ms = spread([load.p99_ms for load in seen["warm mix"]], "{:.1f}".format)
    yield Row("warm mix, 99th percentile", f"{p99_ms} ms, {errors} errors", "no error", errors == 0)


def _tell_tokens(seen: dict[str, list[Load]]) -> Iterator[Row]:
    for name in ("cold product", "warm product"):
        pairs = zip(seen[f"{name}, token"], seen[f"{name}, no token"], strict=True)
        ratios = [sent.per_s / without.per_s for sent, without in pairs]
        words = f"{name} with one of {_TOKENS:,} tokens against the same bytes in another header"
        yield Row(words, f"{spread(ratios)}x", ">= 0.9x", statistics.median(ratios) >= 0.9, settles="causal")
    pairs = zip(seen["warm product, many tokens"], seen["warm product, no token"], strict=True)
    yield Row(f"warm product with one of {_MANY_TOKENS:,}, more than a process remembers",
              f"{spread([sent.per_s / without.per_s for sent, without in pairs])}x")  # fmt: skip


def _measure_waiting(stand: Stand, service: Running) -> Iterator[Row]:
    causal = measure_causal(stand, service)
    name = "causal read right after a write (by a Python client)"
    yield Row(f"{name}, median", f"{statistics.median(causal):.2f} ms")
    yield below(f"{name}, 99th percentile", [percentile(causal, 99)], 10, "ms", settles="causal")
    lone = take_turns(stand.rounds, {path: partial(measure_lone, stand, service, path) for path in (PRODUCT, STYLES)})
    yield below("lone product, one connection, median", lone[PRODUCT], 2, "ms", settles="lone")
    yield below("lone styles, one connection, median", lone[STYLES], 3, "ms", settles="lone")
    yield tell_pages("last page against first page", measure_pages(stand, service))
    churn = start_load(
        service.url, Churn(stand.key), stand.folder, seconds=3 + 2 * stand.rounds * short(stand), connections=1,
        per_s=None,
    )  # fmt: skip
    pages = measure_pages(stand, service)
    changes = finish_load(churn, seconds=3 + 2 * stand.rounds * short(stand))
    yield tell_pages(f"the same while {changes.per_s:,.0f} products a second come and go", pages, errors=changes.errors)


def tell_pages(name: str, ratios: Sequence[float], *, errors: int = 0) -> Row:
    """A row of the last page against the first."""
    words = f"{spread(ratios)}x{f', {errors} errors' if errors else ''}"
    return Row(name, words, "<= 1.5x", statistics.median(ratios) <= 1.5 and not errors, settles="pages")


def ask(stand: Stand, service: Running, what: Reads) -> Load:
    """One load of 32 connections."""
    return run_load(service.url, what, stand.folder, seconds=stand.seconds)


def run_statement(stand: Stand, name: str) -> float:
    """A statement of the service without its position, by eight clients: transactions a second."""
    sql = load_statements()[name].sql.replace(POSITION.strip(), "(select true as here) as position")
    # pgbench takes `:null` within a JSON literal for a variable of its own.
    sql = sql.rstrip(";").replace('":null', '": null').replace("$1", "array[:id]")
    low, high = stand.span
    return stand.pgbench(f"\\set id random({low}, {high})\n{sql};\n", clients=8, node="pg2")


def make_tokens(stand: Stand, count: int = _TOKENS) -> list[str]:
    """Valid tokens of as many positions, all of them behind us."""

    async def look() -> tuple[int, int, int]:
        connection = await asyncpg.connect(stand.cluster.superuser_dsn(stand.cluster.primary.name))
        try:
            [row] = await connection.fetch(
                "select system_identifier, timeline_id, pg_current_wal_flush_lsn() "
                "from pg_control_system(), pg_control_checkpoint()"
            )
            return row[0], row[1], row[2]
        finally:
            await connection.close()

    system_id, timeline, here = asyncio.run(look())
    keys = TokenKeys(parse_token_keys(stand.cluster.environment()["ATELIER_TOKEN_KEYS"]))
    positions = (here - number * _TOKEN_STEP_BYTES for number in range(count))
    return [keys.seal(CausalToken(system_id, timeline, Lsn(position))) for position in positions]


def kept_span(stand: Stand) -> tuple[int, int]:
    """The ids of so few products that all of them stay in memory."""
    low, high = stand.span
    return low, min(high, low + _KEPT_PRODUCTS)


def fill_memory(stand: Stand, service: Running) -> None:
    """Asks for all of what will be asked for from memory."""
    walk = Reads((PRODUCT, STYLES, RELATED), kept_span(stand), walked=0)
    for what in (walk, Reads(MIX, kept_span(stand))):
        run_load(service.url, what, stand.folder, seconds=3)


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


def short(stand: Stand) -> int:
    """How long a load of one connection takes, in seconds: its median is sure soon."""
    return max(1, stand.seconds // 2)


def measure_lone(stand: Stand, service: Running, path: str) -> float:
    """The median of one request after another with no other load, in milliseconds."""
    what = Reads((path,), stand.span)
    return run_load(service.url, what, stand.folder, seconds=short(stand), connections=1).p50_ms


def measure_pages(stand: Stand, service: Running) -> list[float]:
    """The median of the last page against that of the first, by round."""
    with connect(service) as send:
        link = send("GET", FIRST_PAGE)[1]["link"]
    found = re.search(r"page=(\d+)[^>]*>; rel=\"last\"", link)
    last_page = f"/products?page={found[1] if found else 1}"
    pages = {path: partial(measure_lone, stand, service, path) for path in (FIRST_PAGE, last_page)}
    seen = take_turns(stand.rounds, pages)
    return [last / first for last, first in zip(seen[last_page], seen[FIRST_PAGE], strict=True)]


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
