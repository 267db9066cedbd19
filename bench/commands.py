"""Commands: combined ones against one unit of work per request, and against pgbench.

64 clients; one process each. pgbench updates one row and nothing else: no HTTP, no key, no ledger, no audit. The
subjects take turns, and the medians of the rounds are compared.
"""

import statistics
from collections.abc import Iterator

from bench.load import Commands, run_load
from bench.reads import pick_sku
from bench.stand import Running, Stand
from bench.table import Row, at_least

CLIENTS = 64
_HOT = "update stock set on_hand = on_hand + 1, version = version + 1 where sku_id = {} and on_hand >= reserved;\n"
_SPREAD = 20_000


def measure(stand: Stand) -> Iterator[Row]:
    """All rows of this subject."""
    hot = [pick_sku(stand)]
    spread = pick_spread(stand)
    with stand.serve() as service, stand.serve_app("bench.baseline:create_app", BASELINE=stand.dsn_of("writer")) as one:
        rounds = [_measure_once(stand, service, one, hot, spread) for _ in range(stand.rounds)]
    rate = {name: statistics.median(one[name] for one in rounds) for name in rounds[0]}
    best = max(rate[f"pgbench {clients}"] for clients in (4, 16, CLIENTS))
    yield from [
        *(Row(f"pgbench, one hot row, {clients} clients", f"{rate[f'pgbench {clients}']:,.0f}/s")
          for clients in (4, 16, CLIENTS)),
        Row("unit of work per request, hot", f"{rate['single hot']:,.0f}/s"),
        Row("unit of work per request, spread", f"{rate['single spread']:,.0f}/s"),
        at_least("combined, hot", rate["combined hot"], best, 1.2, of="pgbench's best"),
        at_least("combined, hot", rate["combined hot"], rate[f"pgbench {CLIENTS}"], 2, of="pgbench at 64"),
        at_least("combined, hot", rate["combined hot"], rate["single hot"], 10, of="single"),
        at_least("combined, spread", rate["combined spread"], rate["single spread"], 5, of="single"),
    ]  # fmt: skip


def pick_spread(stand: Stand) -> list[int]:
    """SKUs from all over the catalogue: as many as go into a script."""
    found = stand.ask(
        f"select string_agg(sku_id::text, ',') from stock where sku_id % (select max(sku_id) / {_SPREAD} + 1 "
        "from stock) = 0"
    )
    return [int(sku_id) for sku_id in found.split(",")]


def _measure_once(
    stand: Stand, service: Running, single: Running, hot: list[int], spread: list[int]
) -> dict[str, float]:
    script = _HOT.format(hot[0])
    rates = {
        f"pgbench {clients}": stand.pgbench(script, clients=clients, node=stand.cluster.primary.name, threads=2)
        for clients in (4, 16, CLIENTS)
    }
    for name, running in (("combined", service), ("single", single)):
        for kind, skus in (("hot", hot), ("spread", spread)):
            load = run_load(
                running.url, Commands(stand.key, skus), stand.folder, seconds=stand.seconds, connections=CLIENTS
            )
            if load.errors:
                raise SystemExit(f"bench: {load.errors} commands of {name} failed")
            rates[f"{name} {kind}"] = load.per_s
    return rates
