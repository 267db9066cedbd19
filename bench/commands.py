"""Commands: combined ones against one unit of work per request, and against pgbench.

64 clients; one process each. The unit of work per request is the same service with its combining switched off, which
writes the same rows. Beside it stands a lean one on a plain handler, with three rows of them and no announcement.
pgbench updates one row and nothing else. All take turns.

The first change of a page after a checkpoint writes the whole page into the log. Rows all over are as many pages, so
who happens to come first after a checkpoint would pay for all others. Each round begins with a checkpoint and a change
of every row, so that nobody does; so it is in a service, too, whose checkpoints are minutes apart.
"""

import http.client
import json
import statistics
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

from bench.load import Commands, run_load
from bench.reads import pick_sku
from bench.rounds import take_turns
from bench.stand import SILENT, BenchError, Running, Stand
from bench.table import Row, at_least, spread

CLIENTS = 64
# The same service when it combines nothing: as many transactions at a time as the lean one has connections.
UNCOMBINED = {"ATELIER_COMMAND_LANES": "10", "ATELIER_COMMAND_BATCH": "1"}
_UPDATE = "update stock set on_hand = on_hand + 1, version = version + 1 where sku_id = {} and on_hand >= reserved;\n"
_SPREAD = 20_000
_PGBENCH = (2, 4, 8, 16, CLIENTS)
_LINES = 500  # the most in one adjustment
# What a command looks at, so that the disk is not measured: in a service that is in use it has been read before.
_WARM = """
select count(*) from generate_series({step}, (select max(sku_id) from stock), {step}) as wanted (sku_id)
  join stock using (sku_id) join sku on sku.id = sku_id join style on style.id = style_id
  join lateral (select from stock_movement as moved
                 where catalogue_id = (select catalogue_id from current_catalogue) and moved.sku_id = stock.sku_id
                 limit 1) as last on true
"""


# After so long without work every server process has told what it counted; while it works it does so once a second.
_COUNTED_S = 11


@dataclass(frozen=True)
class Logged:
    """What a load of commands cost the log."""

    wal_bytes: float
    """For each command."""
    fsyncs_per_s: float
    commands_per_fsync: float


def measure(stand: Stand) -> Iterator[Row]:
    """All rows of this subject."""
    hot, step = pick_sku(stand), pick_step(stand)
    everywhere = pick_spread(stand)
    for node in stand.cluster.nodes:
        stand.ask(_WARM.format(step=step), node=node)
    superuser = stand.cluster.superuser_dsn(stand.cluster.primary.name)
    settings = {"BASELINE": superuser, "BASELINE_SETTINGS": f"search_path=atelier {SILENT}"}
    with (
        stand.serve() as service,
        stand.serve(**UNCOMBINED) as uncombined,
        stand.serve_app("bench.baseline:create_app", **settings) as lean,
    ):
        measures: dict[str, Callable[[], float]] = {}
        for clients in _PGBENCH:
            measures[f"pgbench {clients}"] = partial(_run_pgbench, stand, _UPDATE.format(hot), clients, fires=False)
        measures["pgbench announced"] = partial(_run_pgbench, stand, _UPDATE.format(hot), CLIENTS, fires=True)
        script = f"\\set place random(1, {len(everywhere)})\n" + _UPDATE.format(f":place * {step}")
        measures["pgbench spread"] = partial(_run_pgbench, stand, script, CLIENTS, fires=False)
        for name, running in (("combined", service), ("uncombined", uncombined), ("lean", lean)):
            for kind, skus in (("hot", [hot]), ("spread", everywhere)):
                measures[f"{name} {kind}"] = partial(_run_commands, stand, running, skus)
        prepare = partial(_begin_evenly, stand, service, [hot, *everywhere])
        rates = take_turns(stand.rounds, measures, prepare=prepare)
        prepare()
        logged = {kind: _measure_log(stand, service, skus) for kind, skus in (("hot", [hot]), ("spread", everywhere))}
    yield from _tell(rates, logged)


def _begin_evenly(stand: Stand, running: Running, skus: list[int]) -> None:
    """A checkpoint, and then one change of every SKU that will be changed; see above."""
    stand.cluster.primary.sql("checkpoint")
    connection = http.client.HTTPConnection(running.url.removeprefix("http://"), timeout=10)
    headers = {"Authorization": f"Bearer {stand.key}", "Content-Type": "application/json"}
    try:
        for some in (skus[first : first + _LINES] for first in range(0, len(skus), _LINES)):
            order = {"reason": "bench", "lines": [{"sku_id": sku_id, "delta": 1} for sku_id in some]}
            headers["Idempotency-Key"] = str(uuid.uuid4())
            connection.request("POST", "/inventory/adjustments", json.dumps(order), headers)
            answer = connection.getresponse()
            if answer.status != http.HTTPStatus.OK:
                raise BenchError(f"an adjustment was answered {answer.status}: {answer.read().decode()[:200]}")
            answer.read()
    finally:
        connection.close()


def _tell(rates: dict[str, list[float]], logged: dict[str, Logged]) -> Iterator[Row]:
    best = f"pgbench {max(_PGBENCH, key=lambda clients: statistics.median(rates[f'pgbench {clients}']))}"
    hot, spread_out = rates["combined hot"], rates["combined spread"]
    yield from [
        *(_tell_rate(f"pgbench, one hot row, {clients} clients, no trigger", rates[f"pgbench {clients}"])
          for clients in _PGBENCH),
        _tell_rate(f"pgbench, one hot row, {CLIENTS} clients, announced", rates["pgbench announced"]),
        _tell_rate(f"pgbench, rows all over, {CLIENTS} clients, no trigger", rates["pgbench spread"]),
        _tell_rate("a unit of work per request, the same rows, hot", rates["uncombined hot"]),
        _tell_rate("a unit of work per request, the same rows, spread", rates["uncombined spread"]),
        _tell_rate("a lean unit of work, three rows, hot", rates["lean hot"]),
        _tell_rate("a lean unit of work, three rows, spread", rates["lean spread"]),
        at_least("combined, hot", hot, rates[best], 1.2, of="pgbench's best", settles="hot"),
        at_least("combined, hot", hot, rates[f"pgbench {CLIENTS}"], 2, of="pgbench at 64", settles="hot"),
        at_least("combined, hot", hot, rates["uncombined hot"], 10, of="single", settles="hot"),
        Row("combined, hot, against the lean one", _tell_ratio(hot, rates["lean hot"])),
        at_least("combined, spread", spread_out, rates["uncombined spread"], 5, of="single", settles="spread"),
        Row("combined, spread, against the lean one", _tell_ratio(spread_out, rates["lean spread"])),
        Row("combined, spread, against pgbench", _tell_ratio(spread_out, rates["pgbench spread"])),
    ]  # fmt: skip
    for kind, log in logged.items():
        yield Row(f"combined, {kind}: log written per command", f"{log.wal_bytes:,.0f} bytes")
        forced = f"{log.fsyncs_per_s:,.0f}/s, {log.commands_per_fsync:,.0f} commands each"
        yield Row(f"combined, {kind}: times the log was forced to disk", forced)


def pick_step(stand: Stand) -> int:
    """The distance between SKUs that are spread all over the catalogue: as many of them as go into a script."""
    return int(stand.ask(f"select max(sku_id) / {_SPREAD} + 1 from stock"))


def pick_spread(stand: Stand) -> list[int]:
    """Those SKUs: the multiples of the step."""
    step = pick_step(stand)
    found = stand.ask(f"select string_agg(sku_id::text, ',' order by sku_id) from stock where sku_id % {step} = 0")
    return [int(sku_id) for sku_id in found.split(",")]


def _tell_rate(name: str, rates: list[float]) -> Row:
    return Row(name, f"{spread(rates, '{:,.0f}'.format)}/s")


def _tell_ratio(rates: list[float], base: list[float]) -> str:
    return f"{spread([mine / theirs for mine, theirs in zip(rates, base, strict=True)])}x"


def _run_pgbench(stand: Stand, script: str, clients: int, *, fires: bool) -> float:
    return stand.pgbench(script, clients=clients, node=stand.cluster.primary.name, threads=2, fires=fires)


def _run_commands(stand: Stand, running: Running, skus: list[int]) -> float:
    load = run_load(running.url, Commands(stand.key, skus), stand.folder, seconds=stand.seconds, connections=CLIENTS)
    if load.errors:
        raise BenchError(f"{load.errors} commands failed")
    return load.per_s


def _measure_log(stand: Stand, running: Running, skus: list[int]) -> Logged:
    before_bytes, before_fsyncs = read_log(stand)
    commands = _run_commands(stand, running, skus) * stand.seconds
    after_bytes, after_fsyncs = read_log(stand)
    fsyncs = max(1.0, after_fsyncs - before_fsyncs)
    return Logged((after_bytes - before_bytes) / commands, fsyncs / stand.seconds, commands / fsyncs)


def read_log(stand: Stand) -> tuple[float, float]:
    """How many bytes the primary has written into its log, and how often it has forced it to disk."""
    version = int(stand.cluster.primary.sql("show server_version_num"))
    fsyncs = "sum(fsyncs) from pg_stat_io where object = 'wal'" if version >= 180_000 else "wal_sync from pg_stat_wal"
    written = stand.cluster.primary.sql("select pg_current_wal_lsn() - '0/0'")
    time.sleep(_COUNTED_S)
    return float(written), float(stand.cluster.primary.sql(f"select {fsyncs}"))
