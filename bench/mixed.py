"""Reads while commands run: how many, how late, and how far the replicas fall behind."""

import json
from collections.abc import Iterator

from bench.commands import pick_spread
from bench.load import MIX, Commands, Reads, parse_load, run_load, start_load
from bench.reads import connect
from bench.stand import Running, Stand
from bench.table import Row

_COMMAND_RATES = (0, 100, 500, 1_000)
_CONNECTIONS = 32


def measure(stand: Stand) -> Iterator[Row]:
    """All rows of this subject, as they come: one service process for both."""
    skus = pick_spread(stand)
    with stand.serve() as service:
        run_load(service.url, Reads(MIX, stand.span), stand.folder, seconds=3)
        for per_s in _COMMAND_RATES:
            yield from _measure_beside(stand, service, skus, per_s)
        memory = " + ".join(f"{mib:,.0f}" for mib in service.memory_mib())
        yield Row("memory of the service's processes, MiB", memory)


def _measure_beside(stand: Stand, service: Running, skus: list[int], per_s: int) -> Iterator[Row]:
    commands = None
    if per_s:
        what = Commands(stand.key, skus)
        commands = start_load(
            service.url, what, stand.folder, seconds=stand.seconds, connections=_CONNECTIONS, per_s=per_s
        )
    reads = run_load(service.url, Reads(MIX, stand.span), stand.folder, seconds=stand.seconds)
    lag_ms = max(read_lags_ms(service), default=0.0)
    words = f"{reads.per_s:,.0f}/s, p99 {reads.p99_ms:.0f} ms, {reads.errors} errors"
    yield Row(f"reads beside {per_s:,} commands/s asked", words, figure=reads.per_s)
    if commands is not None:
        done = parse_load(commands.communicate(timeout=60)[0])
        words = f"{done.per_s:,.0f}/s, p99 {done.p99_ms:.0f} ms, {done.errors} errors"
        yield Row(f"the commands, of {per_s:,}/s asked", words, figure=done.per_s)
    yield Row(f"lag of the replicas at {per_s:,} commands/s", f"{lag_ms:.0f} ms", figure=lag_ms)


def read_lags_ms(service: Running) -> list[float]:
    """The bounds of how far behind the replicas are, in milliseconds."""
    with connect(service) as send:
        nodes = json.loads(send("GET", "/cluster")[2])["nodes"]
    return [node["lag_ms"] for node in nodes if node["role"] == "replica" and node["lag_ms"] is not None]
