"""Figures of a run, second by second, in bounded memory: latency from the intended start, rates, errors, nodes, lag."""

import math
from collections import Counter
from dataclasses import dataclass, field

from loadtest.history.record import READ, Op

_GROWTH = 1.1
_LEAST_MS = 0.1
_MOST_SECONDS = 24 * 3600


class Histogram:
    """Latencies in buckets that grow by a tenth: percentiles are right to within five per cent."""

    __slots__ = ("buckets", "count", "greatest_ms")

    def __init__(self) -> None:
        """Empty."""
        self.buckets: Counter[int] = Counter()
        self.count = 0
        self.greatest_ms = 0.0

    def add(self, latency_ms: float) -> None:
        """Counts one latency."""
        self.buckets[max(0, math.ceil(math.log(max(latency_ms, _LEAST_MS) / _LEAST_MS, _GROWTH)))] += 1
        self.count += 1
        self.greatest_ms = max(self.greatest_ms, latency_ms)

    def merge(self, other: "Histogram") -> None:
        """Adds another one's counts."""
        self.buckets.update(other.buckets)
        self.count += other.count
        self.greatest_ms = max(self.greatest_ms, other.greatest_ms)

    def percentile_ms(self, percent: float) -> float | None:
        """The latency that so many per cent do not exceed; None when there is none."""
        left = self.count * percent / 100
        for bucket in sorted(self.buckets):
            left -= self.buckets[bucket]
            if left <= 0:
                return min(_LEAST_MS * math.pow(_GROWTH, bucket - 0.5), self.greatest_ms)
        return None


@dataclass(slots=True)
class Second:
    """What happened in one second, by when it was intended to start (latency) and when it ended (the rest)."""

    latency: Histogram = field(default_factory=Histogram)
    closed_loop: Histogram = field(default_factory=Histogram)
    reads: int = 0
    commands: int = 0
    refused: int = 0
    errors: Counter[str] = field(default_factory=Counter)
    nodes: Counter[str] = field(default_factory=Counter)
    lag_ms: dict[str, float] = field(default_factory=dict)


class Meter:
    """Takes every request and keeps its figures by second."""

    def __init__(self) -> None:
        """Nothing yet."""
        self.seconds: dict[int, Second] = {}
        self.all = Second()

    def add(self, op: Op, *, error: str | None = None) -> None:
        """Counts one request; `error` names what went wrong, None when nothing did."""
        intended_s = op.invoked_s if op.intended_s is None else op.intended_s
        latency_ms = (op.completed_s - intended_s) * 1000
        closed_ms = (op.completed_s - op.invoked_s) * 1000
        for second in (self._at(intended_s), self.all):
            second.latency.add(latency_ms)
            second.closed_loop.add(closed_ms)
        for second in (self._at(op.completed_s), self.all):
            if op.op == READ:
                second.reads += 1
            else:
                second.commands += 1
            second.refused += op.outcome == "refused" and error is None
            if error:
                second.errors[error] += 1
            if op.node:
                second.nodes[op.node] += 1

    def see_lag(self, at_s: float, node: str, lag_ms: float) -> None:
        """Keeps the greatest lag of a node in a second."""
        for second in (self._at(at_s), self.all):
            second.lag_ms[node] = max(second.lag_ms.get(node, 0.0), lag_ms)

    def _at(self, at_s: float) -> Second:
        return self.seconds.setdefault(min(max(int(at_s), 0), _MOST_SECONDS), Second())
