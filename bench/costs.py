"""Processor time of one request, by who spends it: what `docs/scaling.md` reckons with.

Everything takes turns. What PostgreSQL does for itself while it is asked (checkpoints, statistics) is in its rest.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial

from bench.commands import CLIENTS, pick_spread
from bench.headline import Deployed, deploy
from bench.load import MIX, Commands, Reads, What, run_load
from bench.processes import GENERATOR, cpu_seconds, subtract, total
from bench.reads import COLD, PRODUCT, RELATED, STYLES, ask, connect, fill_memory, kept_span, pick_sku
from bench.rounds import take_turns
from bench.stand import Running, Stand
from bench.table import Row, spread

KEPT = "memory that a product takes with its styles and its related ones"


@dataclass(frozen=True)
class Cost:
    """What one request cost, in microseconds of processor time, by who spent it."""

    us: Mapping[str, float]


def measure(stand: Stand) -> Iterator[Row]:
    """All rows of this subject."""
    with stand.serve(role="reads", **COLD) as cold, deploy(stand) as deployed:
        ask(stand, cold, Reads((PRODUCT, STYLES), stand.span))
        yield Row(KEPT, f"{_weigh_product(stand, deployed.reads):,.0f} bytes")
        fill_memory(stand, deployed.reads)
        seen = take_turns(stand.rounds, _list_measures(stand, cold, deployed))
    for name, costs in seen.items():
        for whose in costs[0].us:
            yield Row(f"{name}: {whose}", f"{spread([cost.us[whose] for cost in costs], '{:,.0f}'.format)} us")


def _weigh_product(stand: Stand, service: Running) -> float:
    """What memory takes for all that a page shows of a product, in bytes."""
    paths = (PRODUCT, STYLES, RELATED)
    run_load(service.url, Reads(paths, kept_span(stand), walked=0), stand.folder, seconds=2 * stand.seconds)
    with connect(service) as send:
        text = send("GET", "/metrics")[2].decode()
    size, entries = (
        float(re.findall(rf"^atelier_cache_{name} (\S+)$", text, re.MULTILINE)[0]) for name in ("bytes", "entries")
    )
    return size / max(1.0, entries) * len(paths)


def _list_measures(stand: Stand, cold: Running, deployed: Deployed) -> dict[str, Callable[[], Cost]]:
    kept, hot, all_over = kept_span(stand), [pick_sku(stand)], pick_spread(stand)
    whats: dict[str, tuple[Running, What]] = {
        "cold product": (cold, Reads((PRODUCT,), stand.span)),
        "cold styles": (cold, Reads((STYLES,), stand.span)),
        "the mix from memory": (deployed.reads, Reads(MIX, kept)),
        "304 from memory": (deployed.reads, Reads(MIX, kept, {"If-None-Match": "*"})),
        "the mix from memory, through the proxy": (deployed.proxy, Reads(MIX, kept)),
        "hot command": (deployed.writes, Commands(stand.key, hot)),
        "spread command": (deployed.writes, Commands(stand.key, all_over)),
    }
    services = {"cold": cold, **deployed.services}
    return {name: partial(_measure, stand, services, name, *pair) for name, pair in whats.items()}


def _measure(stand: Stand, services: Mapping[str, Running], name: str, target: Running, what: What) -> Cost:
    before = cpu_seconds(stand, services)
    connections = CLIENTS if isinstance(what, Commands) else 32
    load = run_load(target.url, what, stand.folder, seconds=stand.seconds, connections=connections)
    used = subtract(cpu_seconds(stand, services), before)
    return Cost(
        {whose: 1e6 * used_s / (load.per_s * stand.seconds) for whose, used_s in _sort(stand, used, name).items()}
    )


def _sort(stand: Stand, used: Mapping[str, float], name: str) -> dict[str, float]:
    """What is worth telling of one kind of request."""
    side = {"cold": "cold", "hot": "writes", "spread": "writes"}.get(name.split(maxsplit=1)[0], "reads")
    told = {"service": total(used, of=side), "PostgreSQL's backends": total(used, of="PostgreSQL", doing="backends")}
    if "command" in name:
        replicas = [whose for whose in used if whose.endswith(", replay")]
        told["replay on a replica"] = sum(used[whose] for whose in replicas) / max(1, len(replicas))
        primary = f"PostgreSQL {stand.cluster.primary.name}"
        told["the primary's other processes"] = total(used, of=primary) - total(used, of=primary, doing="backends")
    if "proxy" in name:
        told["proxy"] = total(used, of="nginx")
    return {**told, "load generator": used[GENERATOR]}
