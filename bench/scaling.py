"""Reckons `docs/scaling.md` from the tables of `docs/performance.md`, the settings' defaults and the roles' limits.

`python -m bench.scaling` writes it anew; a test holds that it is not stale. A figure that was not measured yet is "?".
"""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from atelier.reads.cache.follow import LOOK_INTERVAL_S
from atelier.settings import PoolLimits, ReadPolicy
from atelier.topology.monitor import HURRY_INTERVAL_S, IDLE_INTERVAL_S
from atelier.writes.policy import WritePolicy
from bench.table import put

_ROOT = Path(__file__).parents[1]
DOCUMENT, MEASURED = _ROOT / "docs" / "scaling.md", _ROOT / "docs" / "performance.md"
_ROLES = _ROOT / "replication" / "roles.sql"

# What is assumed; everything else is measured, a default of the service, or follows.
BUSY = 0.7
PRODUCTS = 1_000_000
CACHE_BYTES = 2**30
# `ReadPolicy.cache_bytes` says what its default keeps.
_KEPT_BY_DEFAULT = 20_000
COMMANDS_PER_S = 500
ANSWER_BYTES = 2_500
MACHINE_CORES = 8
REPLICA_CORES = 2
LOADS = (100_000, 1_000_000)
NODES_OF_A_PROCESS = 3
# Beside the pool for reads, as role `reader`: the one that follows the changes for the memory, the tail of the feed,
# the look-up of API keys.
_READER_EXTRAS = 3
# Beside a writer's lanes: the resolver, key look-ups, the sweeper and the housekeeping.
_WRITER_EXTRAS = 4

Figure = float | None


def rewrite(document: str, measured: str) -> str:
    """The document with its reckoned tables anew.

    Args:
        document: of `docs/scaling.md`, with marks around each table.
        measured: `docs/performance.md`.
    """
    rows = read_rows(measured)
    for name, write in _TABLES.items():
        document = put(document, name, write(rows))
    return document


def read_rows(measured: str) -> dict[str, float]:
    """The rows of all tables whose value begins with a number, by table and name: `costs/cold product: service`."""
    rows = {}
    for table, content in re.findall(r"<!-- ([a-z]+) -->\n(.*?)<!-- /\1 -->", measured, re.DOTALL):
        for name, value in re.findall(r"^\| (.*?) \| ([^|]*) \|", content, re.MULTILINE):
            if number := re.match(r"[\d,]+(\.\d+)?", value):
                rows[f"{table}/{name}"] = float(number[0].replace(",", ""))
    return rows


def _cost(rows: Mapping[str, float], name: str) -> Figure:
    return rows.get(f"costs/{name}")


def hit_rate(products: int, kept: int) -> float:
    """The part of reads that memory answers when the k-th most wanted product is wanted 1/k as often.

    The `kept` most wanted are in memory: the sum of 1/k up to there, against that up to all of them.
    """
    return _harmonic(min(kept, products)) / _harmonic(products)


def _harmonic(count: int) -> float:
    return math.log(count) + 0.5772 + 1 / (2 * count)


def kept_products(cache_bytes: int) -> int:
    """How many products with all that a page shows of them so much memory keeps."""
    return _KEPT_BY_DEFAULT * cache_bytes // ReadPolicy().cache_bytes


def _write_costs(rows: Mapping[str, float]) -> str:
    """What one request costs whom."""
    kinds = {
        "an answer from memory (the mix)": ("the mix from memory", ("service",)),
        "the same, answered 304": ("304 from memory", ("service",)),
        "a cold product": ("cold product", ("service", "PostgreSQL's backends")),
        "cold styles": ("cold styles", ("service", "PostgreSQL's backends")),
        "a request through the proxy": ("the mix from memory, through the proxy", ("proxy",)),
        "a command on one hot SKU": ("hot command", ("service", "PostgreSQL's backends", "replay on a replica")),
        "a command anywhere": ("spread command", ("service", "PostgreSQL's backends", "replay on a replica")),
    }
    lines = []
    for words, (kind, whose) in kinds.items():
        parts = "; ".join(f"{part} {_show(_cost(rows, f'{kind}: {part}'))} us" for part in whose)
        lines.append((words, parts, f"`{kind}: ...` of the table *costs*"))
    return _table(("piece", "processor time", "from"), lines)


def _write_sizes(rows: Mapping[str, float]) -> str:
    """What so many reads a second need."""
    hits = hit_rate(PRODUCTS, kept_products(CACHE_BYTES))
    memory, proxy = (
        _cost(rows, "the mix from memory: service"),
        _cost(rows, "the mix from memory, through the proxy: proxy"),
    )
    cold = _mean(_cost(rows, "cold product: service"), _cost(rows, "cold styles: service"))
    statement = _mean(
        _cost(rows, "cold product: PostgreSQL's backends"), _cost(rows, "cold styles: PostgreSQL's backends")
    )
    replay = _cost(rows, "spread command: replay on a replica")
    columns = [_size_of(load, hits, (memory, proxy, cold, statement, replay)) for load in LOADS]
    names = list(columns[0])
    return _table(("", *(f"{load:,}/s" for load in LOADS)), [(name, *(one[name] for one in columns)) for name in names])


def _size_of(load: int, hits: float, costs: tuple[Figure, ...]) -> dict[str, str]:
    memory, proxy, cold, statement, replay = costs
    reader_cores = _cores(load, _plus(_times(memory, hits), _times(cold, 1 - hits)))
    # Of what commands change every reading process that has it forgets it, and may ask again: at most so many.
    processes = _whole(reader_cores)
    again = _times(processes, COMMANDS_PER_S)
    asked = _plus((1 - hits) * load, again)
    statements = _cores(asked, statement)
    replica = _minus(REPLICA_CORES, _times(replay, COMMANDS_PER_S / 1e6 / BUSY))
    replicas = _whole(_over(statements, replica))
    proxies = _cores(load, proxy)
    machines = [
        _whole(_over(cores, MACHINE_CORES)) for cores in (reader_cores, _times(replicas, REPLICA_CORES), proxies)
    ]
    spare = "?" if None in machines else " + ".join(f"{(one or 0) + 1:,.0f}" for one in machines)
    return {
        f"from memory: {100 * hits:.0f} % ({kept_products(CACHE_BYTES):,} of {PRODUCTS:,} products kept, Zipf)":
            f"{hits * load:,.0f}/s",
        "cold: the others": f"{(1 - hits) * load:,.0f}/s",
        f"asked again, at most: processes x {COMMANDS_PER_S} commands/s": f"{_show(again)}/s",
        f"readers: cores at {100 * BUSY:.0f} % (a process each)": _show(processes),
        f"replicas of {REPLICA_CORES} cores, less the replay of {COMMANDS_PER_S} commands/s on each": _show(replicas),
        "proxy: cores": _show(_whole(proxies)),
        f"machines of {MACHINE_CORES} cores, for each of these rows and one to spare in it": spare,
        f"network at {ANSWER_BYTES / 1000:g} kB an answer": f"{load * ANSWER_BYTES * 8 / 1e9:.0f} Gbit/s",
    }  # fmt: skip


def _write_watching(rows: Mapping[str, float]) -> str:
    """What processes ask of nodes whether anybody reads or not."""
    idle, hurry, looks = 1 / IDLE_INTERVAL_S, 1 / HURRY_INTERVAL_S, 1 / LOOK_INTERVAL_S
    lines = [
        ("probes of one node by one process, nobody waits", f"{idle:.0f}/s"),
        ("probes of one node by one process, somebody waits for it", f"up to {hurry:.0f}/s"),
        ("looks at one replica's changes by one process, while it reads", f"{looks:.0f}/s"),
    ]
    for load in LOADS:
        hits = hit_rate(PRODUCTS, kept_products(CACHE_BYTES))
        memory = _cost(rows, "the mix from memory: service")
        cold = _mean(_cost(rows, "cold product: service"), _cost(rows, "cold styles: service"))
        processes = _whole(_cores(load, _plus(_times(memory, hits), _times(cold, 1 - hits))))
        words = f"all on one replica, of the processes that {load:,}/s need, if each knew every node"
        lines.append((words, f"{_show(_times(processes, idle + looks))}/s"))
    return _table(("what", "how often"), lines)


def _write_connections(_rows: Mapping[str, float]) -> str:
    """What one process holds on a node, and how many fit."""
    limits = {name: int(limit) for name, limit in re.findall(
        r"alter role (\w+) .* connection limit (\d+);", _ROLES.read_text(encoding="utf-8"))}  # fmt: skip
    pools, policy = PoolLimits(), WritePolicy()
    reader = pools.replica + _READER_EXTRAS
    primary = pools.primary_reads + 1
    writer = policy.lanes + policy.catalogue_lanes + _WRITER_EXTRAS
    by_reader, by_primary = limits["reader"] // reader, limits["reader"] // primary
    lines = [
        ("a reading process, on a replica", "reader", (f"{pools.replica} for reads, 1 for its memory, 1 for the feed, "
         f"1 for API keys: {reader}"), f"{limits['reader']}", f"{by_reader}"),
        ("a reading process, on the primary", "reader", f"{pools.primary_reads} for reads, 1 for API keys: {primary}",
         f"{limits['reader']}", f"{by_primary}"),
        ("a writing process, on the primary", "writer", (f"{policy.lanes} + {policy.catalogue_lanes} lanes, "
         f"{_WRITER_EXTRAS} others: {writer}"), f"{limits['writer']}", f"{limits['writer'] // writer}"),
        ("any process, on every node that it knows", "monitor", "1 to probe", f"{limits['monitor']}",
         f"{limits['monitor']}"),
    ]  # fmt: skip
    smallest = min(by_reader, limits["monitor"])
    told = (
        f"\nSo a replica serves {smallest} reading processes with these limits, and the primary {limits['monitor']} "
        f"processes of all kinds, {min(by_primary, limits['monitor'])} of them reading.\n"
    )
    return _table(("who, where", "role", "holds at most", "limit in `roles.sql`", "processes"), lines) + told


def _write_limits(rows: Mapping[str, float]) -> str:
    """How fast one primary takes commands."""
    lines = []
    for kind, words in (("hot", "one hot SKU"), ("spread", "SKUs all over")):
        rate = rows.get(f"commands/combined, {kind}")
        log = rows.get(f"commands/combined, {kind}: log written per command")
        fsyncs = rows.get(f"commands/combined, {kind}: times the log was forced to disk")
        service = _cost(rows, f"{kind} command: service")
        standby = _times(log, COMMANDS_PER_S / 1e6)
        lines.append((
            words, f"{_show(rate)}/s", f"{_show(_over(BUSY * 1e6, service))}/s", f"{_show(log)} bytes",
            f"{_show(fsyncs)}/s", f"{_show(standby, '{:.1f}')} MB/s",
        ))  # fmt: skip
    head = (
        "", "measured, everything on two cores", f"a writer process on a core of its own, {100 * BUSY:.0f} % busy",
        "log a command", "forced to disk", f"log to each standby at {COMMANDS_PER_S} commands/s",
    )  # fmt: skip
    return _table(head, lines)


_TABLES: dict[str, Callable[[Mapping[str, float]], str]] = {
    "costs": _write_costs,
    "sizes": _write_sizes,
    "watching": _write_watching,
    "connections": _write_connections,
    "limits": _write_limits,
}


def _table(head: tuple[str, ...], lines: Sequence[tuple[str, ...]]) -> str:
    marks = "|".join(["---"] + ["---:"] * (len(head) - 1))
    return "\n".join([f"| {' | '.join(head)} |", f"|{marks}|", *(f"| {' | '.join(line)} |" for line in lines)]) + "\n"


def _show(value: Figure, form: str = "{:,.0f}") -> str:
    return "?" if value is None else form.format(value)


def _cores(per_s: Figure, us: Figure) -> Figure:
    return _over(_times(per_s, us), 1e6 * BUSY)


def _whole(value: Figure) -> Figure:
    return None if value is None else math.ceil(value)


def _mean(one: Figure, other: Figure) -> Figure:
    return _over(_plus(one, other), 2)


def _plus(one: Figure, other: Figure) -> Figure:
    return None if one is None or other is None else one + other


def _minus(one: Figure, other: Figure) -> Figure:
    return None if one is None or other is None else one - other


def _times(one: Figure, other: Figure) -> Figure:
    return None if one is None or other is None else one * other


def _over(one: Figure, other: Figure) -> Figure:
    return None if one is None or not other else one / other


if __name__ == "__main__":
    DOCUMENT.write_text(
        rewrite(DOCUMENT.read_text(encoding="utf-8"), MEASURED.read_text(encoding="utf-8")), encoding="utf-8"
    )
