"""Commands: combined ones against one unit of work per request, and against pgbench.

64 clients; one process each. pgbench updates one row and nothing else: no HTTP, no key, no ledger, no audit, and in a
session without triggers no announcement in the outbox. The unit of work per request writes its key and its ledger row,
and no more either. Both are told with the announcement, too, which holds a lock up to its commit. All take turns.
"""

import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

from bench.load import Commands, run_load
from bench.reads import pick_sku
from bench.rounds import take_turns
from bench.stand import SILENT, BenchError, Running, Stand
from bench.table import Row, at_least, spread

CLIENTS = 64
_HOT = "update stock set on_hand = on_hand + 1, version = version + 1 where sku_id = {} and on_hand >= reserved;\n"
_SPREAD = 20_000
_PGBENCH = (4, 16, CLIENTS)


@dataclass(frozen=True)
class Carried:
    """What one load of commands did: how many a second, and what each of them and each second cost the log."""

    per_s: float
    wal_bytes: float = 0.0
    fsyncs_per_s: float = 0.0


def measure(stand: Stand) -> Iterator[Row]:
    """All rows of this subject."""
    hot, all_over = [pick_sku(stand)], pick_spread(stand)
    superuser = stand.cluster.superuser_dsn(stand.cluster.primary.name)
    single = partial(stand.serve_app, "bench.baseline:create_app")
    with (
        stand.serve() as service,
        single(BASELINE=superuser, BASELINE_SETTINGS=f"search_path=atelier {SILENT}") as quiet,
        single(BASELINE=stand.dsn_of("writer")) as announced,
    ):
        measures: dict[str, Callable[[], Carried]] = {}
        for clients in _PGBENCH:
            measures[f"pgbench {clients}"] = partial(_run_pgbench, stand, hot[0], clients, fires=False)
        measures["pgbench announced"] = partial(_run_pgbench, stand, hot[0], CLIENTS, fires=True)
        for name, running in (("combined", service), ("single", quiet), ("announced", announced)):
            for kind, skus in (("hot", hot), ("spread", all_over)):
                measures[f"{name} {kind}"] = partial(_run_commands, stand, running, skus)
        seen = take_turns(stand.rounds, measures)
    yield from _tell(seen)


def _tell(seen: dict[str, list[Carried]]) -> Iterator[Row]:
    rates = {name: [one.per_s for one in carried] for name, carried in seen.items()}
    best = f"pgbench {max(_PGBENCH, key=lambda clients: statistics.median(rates[f'pgbench {clients}']))}"
    yield from [
        *(_tell_rate(f"pgbench, one hot row, {clients} clients, no trigger", rates[f"pgbench {clients}"])
          for clients in _PGBENCH),
        _tell_rate(f"pgbench, one hot row, {CLIENTS} clients, announced", rates["pgbench announced"]),
        _tell_rate("unit of work per request, hot, no trigger", rates["single hot"]),
        _tell_rate("unit of work per request, hot, announced", rates["announced hot"]),
        _tell_rate("unit of work per request, spread, no trigger", rates["single spread"]),
        _tell_rate("unit of work per request, spread, announced", rates["announced spread"]),
        at_least("combined, hot", rates["combined hot"], rates[best], 1.2, of="pgbench's best", settles="hot"),
        at_least("combined, hot", rates["combined hot"], rates[f"pgbench {CLIENTS}"], 2, of="pgbench at 64",
                 settles="hot"),
        at_least("combined, hot", rates["combined hot"], rates["single hot"], 10, of="single", settles="hot"),
        Row("combined, hot, against the announced one", _tell_ratio(rates["combined hot"], rates["announced hot"])),
        at_least("combined, spread", rates["combined spread"], rates["single spread"], 5, of="single",
                 settles="spread"),
        Row("combined, spread, against the announced one",
            _tell_ratio(rates["combined spread"], rates["announced spread"])),
    ]  # fmt: skip
    for kind in ("hot", "spread"):
        carried = seen[f"combined {kind}"]
        wal = spread([one.wal_bytes for one in carried], "{:,.0f}".format)
        yield Row(f"combined, {kind}: log written per command", f"{wal} bytes")
        fsyncs = spread([one.fsyncs_per_s for one in carried], "{:,.0f}".format)
        each = statistics.median(one.per_s / max(1.0, one.fsyncs_per_s) for one in carried)
        yield Row(f"combined, {kind}: times the log was forced to disk", f"{fsyncs}/s, {each:,.0f} commands each")


def pick_spread(stand: Stand) -> list[int]:
    """SKUs from all over the catalogue: as many as go into a script."""
    found = stand.ask(
        f"select string_agg(sku_id::text, ',') from stock where sku_id % (select max(sku_id) / {_SPREAD} + 1 "
        "from stock) = 0"
    )
    return [int(sku_id) for sku_id in found.split(",")]


def _tell_rate(name: str, rates: list[float]) -> Row:
    return Row(name, f"{spread(rates, '{:,.0f}'.format)}/s")


def _tell_ratio(rates: list[float], base: list[float]) -> str:
    return f"{spread([mine / theirs for mine, theirs in zip(rates, base, strict=True)])}x single"


def _run_pgbench(stand: Stand, sku_id: int, clients: int, *, fires: bool) -> Carried:
    node = stand.cluster.primary.name
    return Carried(stand.pgbench(_HOT.format(sku_id), clients=clients, node=node, threads=2, fires=fires))


def _run_commands(stand: Stand, running: Running, skus: list[int]) -> Carried:
    wal_bytes, fsyncs = read_log(stand)
    load = run_load(running.url, Commands(stand.key, skus), stand.folder, seconds=stand.seconds, connections=CLIENTS)
    if load.errors:
        raise BenchError(f"{load.errors} commands failed")
    after_bytes, after_fsyncs = read_log(stand)
    commands = load.per_s * stand.seconds
    return Carried(load.per_s, (after_bytes - wal_bytes) / commands, (after_fsyncs - fsyncs) / stand.seconds)


def read_log(stand: Stand) -> tuple[float, float]:
    """How many bytes the primary has written into its log, and how often it has forced it to disk."""
    version = int(stand.cluster.primary.sql("show server_version_num"))
    fsyncs = "sum(fsyncs) from pg_stat_io where object = 'wal'" if version >= 180_000 else "wal_sync from pg_stat_wal"
    said = stand.cluster.primary.sql(f"select (pg_current_wal_lsn() - '0/0') || ' ' || (select {fsyncs})")
    wal_bytes, times = said.split()
    return float(wal_bytes), float(times)
