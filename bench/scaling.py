"""Reckons `docs/scaling.md` from the tables of `docs/performance.md`, the settings' defaults and the roles' limits.

`python -m bench.scaling` writes it anew; a test holds that it is not stale. A figure that was not measured yet is "?".
"""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from atelier.reads.cache.follow import LOOK_INTERVAL_S
from atelier.settings import PoolLimits
from atelier.topology.monitor import HURRY_INTERVAL_S, IDLE_INTERVAL_S
from atelier.writes.policy import WritePolicy
from atelier.writes.service import OTHER_CONNECTIONS
from bench.table import put

_ROOT = Path(__file__).parents[1]
DOCUMENT, MEASURED = _ROOT / "docs" / "scaling.md", _ROOT / "docs" / "performance.md"
_ROLES = _ROOT / "replication" / "roles.sql"

# What is assumed; everything else is measured, a default of the service, or follows.
BUSY = 0.7
PRODUCTS = 1_000_000
CACHE_BYTES = 2**30
COMMANDS_PER_S = 500
ANSWER_BYTES = 2_500
MACHINE_CORES = 8
REPLICA_CORES = 2
LOADS = (100_000, 1_000_000)
REPLICAS_OF_A_PROCESS = 2
# Beside the pool for reads, as role `reader`: what follows the changes for the memory, and the tail of the feed.
_READER_EXTRAS = 2

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


def _kept_products(rows: Mapping[str, float]) -> int | None:
    """How many products with all that a page shows of them the memory of a process keeps."""
    each = _cost(rows, "memory that a product takes with its styles and its related ones")
    return None if each is None else min(PRODUCTS, int(CACHE_BYTES / each))


def _hits(rows: Mapping[str, float]) -> Figure:
    kept = _kept_products(rows)
    return None if kept is None else hit_rate(PRODUCTS, kept)


def _processes(rows: Mapping[str, float], load: int) -> Figure:
    """How many reading processes, of a core each, so many reads a second need."""
    hits = _hits(rows)
    cold = _mean(_cost(rows, "cold product: service"), _cost(rows, "cold styles: service"))
    each = _plus(_times(_cost(rows, "the mix from memory: service"), hits), _times(cold, _minus(1, hits)))
    return _whole(_cores(load, each))


def _limits() -> dict[str, int]:
    """How many connections a node takes from each role."""
    found = re.findall(r"alter role (\w+) .* connection limit (\d+);", _ROLES.read_text(encoding="utf-8"))
    return {role: int(limit) for role, limit in found}


def processes_of_a_replica() -> int:
    """How many reading processes fit one replica's limits, when each opens all that it may."""
    limits = _limits()
    return min(limits["reader"] // (PoolLimits().replica + _READER_EXTRAS), limits["monitor"])


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
    columns = [_size_of(rows, load) for load in LOADS]
    names = list(columns[0])
    return _table(("", *(f"{load:,}/s" for load in LOADS)), [(name, *(one[name] for one in columns)) for name in names])


def _size_of(rows: Mapping[str, float], load: int) -> dict[str, str]:
    hits, processes = _hits(rows), _processes(rows, load)
    # Of what commands change every process that has it forgets it, and may ask again: at most so many.
    again = _times(processes, COMMANDS_PER_S)
    cold = _times(load, _minus(1, hits))
    statement = _mean(
        _cost(rows, "cold product: PostgreSQL's backends"), _cost(rows, "cold styles: PostgreSQL's backends")
    )
    replay = _times(_cost(rows, "spread command: replay on a replica"), COMMANDS_PER_S / 1e6 / BUSY)
    by_work = _whole(_over(_cores(_plus(cold, again), statement), _minus(REPLICA_CORES, replay)))
    by_connections = _whole(_over(_times(processes, REPLICAS_OF_A_PROCESS), processes_of_a_replica()))
    replicas = None if by_work is None or by_connections is None else max(by_work, by_connections)
    proxies = _cores(load, _cost(rows, "the mix from memory, through the proxy: proxy"))
    cores = (processes, _times(replicas, REPLICA_CORES), proxies)
    machines = [_plus(_whole(_over(each, MACHINE_CORES)), 1) for each in cores]
    share, kept = _show(_times(hits, 100)), _show(_kept_products(rows))
    return {
        f"from memory: {share} % ({kept} of {PRODUCTS:,} products kept, Zipf)": f"{_show(_times(load, hits))}/s",
        "cold: the others": f"{_show(cold)}/s",
        f"asked again, at most: processes x {COMMANDS_PER_S} commands/s": f"{_show(again)}/s",
        f"readers: cores at {100 * BUSY:.0f} %, a process each": _show(processes),
        f"replicas of {REPLICA_CORES} cores by their work, less the replay of {COMMANDS_PER_S} commands/s on each":
            _show(by_work),
        f"replicas by their connections, {REPLICAS_OF_A_PROCESS} known to a process": _show(by_connections),
        "proxy: cores": _show(_whole(proxies)),
        f"machines of {MACHINE_CORES} cores for readers + replicas + proxy, one to spare in each":
            " + ".join(map(_show, machines)),
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
        words = f"all on one replica, of the processes that {load:,}/s need, if each knew every node"
        lines.append((words, f"{_show(_times(_processes(rows, load), idle + looks))}/s"))
    fit = processes_of_a_replica()
    lines.append(
        (f"all on one replica, of the {fit} processes that its limits let in", f"{fit * (idle + looks):,.0f}/s")
    )
    return _table(("what", "how often"), lines)


def _write_connections(_rows: Mapping[str, float]) -> str:
    """What one process holds on a node, and how many fit."""
    limits = _limits()
    pools, policy = PoolLimits(), WritePolicy()
    reader = pools.replica + _READER_EXTRAS
    primary = pools.primary_reads
    writer = policy.lanes + policy.catalogue_lanes + OTHER_CONNECTIONS
    by_reader, by_primary = limits["reader"] // reader, limits["reader"] // primary
    lines = [
        ("a reading process, on a replica", "reader", (f"{pools.replica} for reads, 1 for its memory, "
         f"1 for the feed: {reader}"), f"{limits['reader']}", f"{by_reader}"),
        ("a reading process, on the primary", "reader", f"{primary} for reads",
         f"{limits['reader']}", f"{by_primary}"),
        ("a writing process, on the primary", "writer", (f"{policy.lanes} + {policy.catalogue_lanes} lanes, "
         f"{OTHER_CONNECTIONS} others: {writer}"), f"{limits['writer']}", f"{limits['writer'] // writer}"),
        ("any process, on every node that it knows", "monitor", "1 to probe", f"{limits['monitor']}",
         f"{limits['monitor']}"),
    ]  # fmt: skip
    told = (
        f"\nSo a replica serves {processes_of_a_replica()} reading processes with these limits, and the primary "
        f"{limits['monitor']} processes of all kinds.\n"
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
