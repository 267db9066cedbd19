"""Reads while commands run: how many, how late, and how far the replicas fall behind.

One service process for both, warm to its steady state. The levels take turns, each round beginning with another one.
"""

import re
import statistics
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

from bench.commands import CLIENTS, pick_spread
from bench.load import MIX, Commands, Load, Reads, finish_load, run_load, start_load
from bench.processes import memory_mib
from bench.reads import connect, percentile
from bench.rounds import take_turns
from bench.sampling import Lag, Sampler, tell_lags
from bench.stand import Running, Stand
from bench.table import Row

_COMMAND_RATES = (0, 100, 500, 1_000)
_COMMAND_CONNECTIONS = 256
# Below this part of the rate that was asked for a level was not applied.
_APPLIED = 0.95
_MOST_WARM_LOADS, _NEARLY_ALL = 24, 0.95


@dataclass(frozen=True)
class Memory:
    """What a process has counted of its memory.

    Attributes:
        hits: answers from it.
        misses: answers that were not there, or would not do.
        changed: answers that were forgotten because a command changed what they show.
        evicted: answers that were forgotten to make room.
    """

    hits: float
    misses: float
    changed: float
    evicted: float

    @property
    def share(self) -> float:
        """Of the answers, how many came from memory."""
        return self.hits / max(1.0, self.hits + self.misses)

    def since(self, before: "Memory") -> "Memory":
        """What came since an earlier look."""
        return Memory(
            self.hits - before.hits,
            self.misses - before.misses,
            self.changed - before.changed,
            self.evicted - before.evicted,
        )


@dataclass(frozen=True)
class Level:
    """One load of reads, of commands, or of both."""

    reads: Load | None
    commands: Load | None
    lags: list[Lag]
    memory: Memory


def measure(stand: Stand) -> Iterator[Row]:
    """All rows of this subject."""
    skus = pick_spread(stand)
    with stand.serve() as service:
        yield Row("the mix from memory, once it was steady", f"{100 * _warm_up(stand, service, skus):.0f} %")
        measures = {str(per_s): partial(_measure_level, stand, service, skus, per_s) for per_s in _COMMAND_RATES} | {
            "alone": partial(_measure_alone, stand, service, skus)
        }
        seen = take_turns(stand.rounds, measures)
        for per_s in _COMMAND_RATES:
            yield from _tell_level(per_s, seen[str(per_s)], stand.seconds)
        yield from _tell_alone(seen["alone"])
        for name, mib in memory_mib(stand, {"the service": service}).items():
            yield Row(f"memory: {name}", f"{mib:,.0f} MiB")


def count_memory(service: Running) -> Memory:
    """What a process has counted until now."""
    with connect(service) as send:
        text = send("GET", "/metrics")[2].decode()
    names = (
        r"hits_total\S*",
        r"misses_total\S*",
        r'dropped_total\{reason="changed"\}',
        r'dropped_total\{reason="evicted"\}',
    )
    counts = (
        sum(float(value) for value in re.findall(rf"^atelier_cache_{name} (\S+)$", text, re.MULTILINE))
        for name in names
    )
    return Memory(*counts)


def _warm_up(stand: Stand, service: Running, skus: list[int]) -> float:
    """Loads until memory is full, or has nearly all; returns the share of answers from it."""
    for _ in range(_MOST_WARM_LOADS):
        memory = _measure_level(stand, service, skus, 500).memory
        if memory.evicted or memory.share >= _NEARLY_ALL:
            break
    return memory.share


def _measure_level(stand: Stand, service: Running, skus: list[int], per_s: int) -> Level:
    what, commands = Commands(stand.key, skus), None
    before = count_memory(service)
    with Sampler(stand) as sampler:
        if per_s:
            commands = start_load(
                service.url, what, stand.folder, seconds=stand.seconds, connections=_COMMAND_CONNECTIONS, per_s=per_s
            )
        reads = run_load(service.url, Reads(MIX, stand.span), stand.folder, seconds=stand.seconds)
        done = finish_load(commands, seconds=stand.seconds) if commands else None
    return Level(reads, done, sampler.lags, count_memory(service).since(before))


def _measure_alone(stand: Stand, service: Running, skus: list[int]) -> Level:
    before = count_memory(service)
    with Sampler(stand) as sampler:
        done = run_load(
            service.url, Commands(stand.key, skus), stand.folder, seconds=stand.seconds, connections=CLIENTS
        )
    return Level(None, done, sampler.lags, count_memory(service).since(before))


def _tell_level(per_s: int, levels: list[Level], seconds: int) -> Iterator[Row]:
    reads = [level.reads for level in levels if level.reads]
    rate = statistics.median(load.per_s for load in reads)
    yield Row(f"reads beside {per_s:,} commands/s asked", _tell(reads), figure=rate, at=per_s)
    done = [level.commands for level in levels if level.commands]
    if done:
        applied = statistics.median(load.per_s for load in done) >= _APPLIED * per_s
        yield Row(f"the commands, of {per_s:,}/s asked", f"{_tell(done)}{'' if applied else ': NOT APPLIED'}")
    share = statistics.median(level.memory.share for level in levels)
    changed = statistics.median(level.memory.changed / seconds for level in levels)
    evicted = statistics.median(level.memory.evicted / seconds for level in levels)
    words = f"{100 * share:.0f} %; forgotten {changed:,.0f}/s for changes, {evicted:,.0f}/s for room"
    yield Row(f"answers from memory at {per_s:,} commands/s", words)
    yield _tell_lag(f"lag at {per_s:,} commands/s, median / p99 / most", levels)


def _tell_alone(levels: list[Level]) -> Iterator[Row]:
    done = [level.commands for level in levels if level.commands]
    yield Row(f"commands alone, {CLIENTS} clients, as fast as they are answered", _tell(done))
    yield _tell_lag("lag beside them, median / p99 / most", levels)


def _tell_lag(name: str, levels: list[Level]) -> Row:
    lags = [lag for level in levels for lag in level.lags]
    late = percentile([lag.ms for lag in lags], 99) if lags else 0.0
    return Row(name, tell_lags(lags), figure=late)


def _tell(loads: list[Load]) -> str:
    per_s, p99_ms = (statistics.median(getattr(load, name) for load in loads) for name in ("per_s", "p99_ms"))
    return f"{per_s:,.0f}/s, p99 {p99_ms:.0f} ms, {sum(load.errors for load in loads)} errors"
