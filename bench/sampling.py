"""How far the replicas are behind while a load runs: looked at ten times a second, by a client of its own."""

import asyncio
import threading
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

import asyncpg
import psutil

from bench.processes import GENERATOR
from bench.stand import Stand

_EVERY_S = 0.1
_PRIMARY = "select pg_current_wal_flush_lsn() as lsn, extract(epoch from clock_timestamp())::float8 as at_s"
_REPLICA = """
select pg_last_wal_replay_lsn() as lsn, extract(epoch from clock_timestamp())::float8 as at_s,
       extract(epoch from clock_timestamp() - pg_last_xact_replay_timestamp())::float8 * 1000 as since_ms
"""


@dataclass(frozen=True)
class Lag:
    """How far one replica was behind at one moment."""

    ms: float
    wal_bytes: int


@dataclass
class Sampler:
    """Samples in a thread of its own, from entering to leaving.

    Attributes:
        lags: of both replicas, in the order of the looks.
        generator_mib: the most that the load generators held.
    """

    stand: Stand
    lags: list[Lag] = field(default_factory=list)
    generator_mib: float = 0.0
    _ended: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread | None = None

    def __enter__(self) -> Self:
        """Begins to look."""
        self._thread = threading.Thread(target=lambda: asyncio.run(self._sample()), name="sampler")
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stops."""
        self._ended.set()
        if self._thread is not None:
            self._thread.join()

    async def _sample(self) -> None:
        cluster = self.stand.cluster
        names = [cluster.primary.name, *(name for name in cluster.nodes if name != cluster.primary.name)]
        primary, *replicas = [await asyncpg.connect(self.stand.dsn_of("monitor", name)) for name in names]
        seen: list[tuple[float, int]] = []
        try:
            # The thread has nothing else to do, so that waiting may stop its loop.
            while not self._ended.wait(_EVERY_S):
                there = (await primary.fetch(_PRIMARY))[0]
                seen.append((there["at_s"], there["lsn"]))
                for replica in replicas:
                    self.lags.append(judge_lag((await replica.fetch(_REPLICA))[0], seen))
                self.generator_mib = max(self.generator_mib, _weigh_generators())
        finally:
            for connection in (primary, *replicas):
                connection.terminate()


def judge_lag(row: "asyncpg.Record | dict[str, float]", seen: list[tuple[float, int]]) -> Lag:
    """How far behind a replica is.

    Args:
        row: what it has replayed, when it was asked, how long ago the last commit that it shows was made.
        seen: when the primary had written how much, the newest look last, which came before this one.
    """
    behind = int(max(0, seen[-1][1] - row["lsn"]))
    if not behind:
        return Lag(0.0, 0)
    # Its last commit tells too much where nobody commits, a look that it has caught up with too much between looks.
    caught_up_s = max((at_s for at_s, lsn in seen if lsn <= row["lsn"]), default=seen[0][0])
    bounds = [(row["at_s"] - caught_up_s) * 1000, *([row["since_ms"]] if row["since_ms"] is not None else [])]
    return Lag(max(0.0, min(bounds)), behind)


def tell_lags(lags: list[Lag]) -> str:
    """Median, 99th percentile and maximum, in milliseconds and in KiB of log."""
    if not lags:
        return "not sampled"
    ms, kib = sorted(lag.ms for lag in lags), sorted(lag.wal_bytes / 1024 for lag in lags)
    return f"{_three(ms)} ms; {_three(kib)} KiB"


def _three(values: list[float]) -> str:
    marks = (values[len(values) // 2], values[min(len(values) - 1, len(values) * 99 // 100)], values[-1])
    return " / ".join(f"{value:,.0f}" for value in marks)


def _weigh_generators() -> float:
    held = 0.0
    for child in psutil.Process().children():
        try:
            if child.name() == GENERATOR:
                held += child.memory_full_info().pss / 2**20
        except psutil.Error:
            continue
    return held
