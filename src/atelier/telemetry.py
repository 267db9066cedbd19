"""What the service tells of itself: the names of its metrics, and what a request notes for its log line.

Every label is bounded: route templates, names of nodes, and words from this code; never a path, an id or a key.
Counting costs well below a microsecond.
"""

from bisect import bisect_left
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any

import msgspec
from prometheus_client import CollectorRegistry, Gauge, disable_created_metrics, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric

# When a counter began is of no use to anybody here, and doubles the answer.
disable_created_metrics()  # type: ignore[no-untyped-call]

REGISTRY = CollectorRegistry(auto_describe=False)
METRICS_MEDIA_TYPE = "text/plain; version=0.0.4; charset=utf-8"

# From a fifth of a millisecond (a lone read) to the longest deadline.
_SECONDS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)


class LabelledCounter:
    """A counter: `RETRIES.count("lost-connection")`.

    A plain number for each set of label values, which the registry asks for when metrics are read. All counting is done
    on one event loop, so the library's own counters, with a lock each, would cost four times as much for nothing.
    """

    def __init__(self, name: str, about: str, *labels: str) -> None:
        """Registers the metric."""
        self._name, self._about, self._labels = name, about, labels
        self._values: dict[tuple[str, ...], float] = {}
        REGISTRY.register(self)

    def count(self, *values: str, by: float = 1) -> None:
        """Adds to the counter with these label values, in the order of the labels."""
        self._values[values] = self._values.get(values, 0) + by

    def value(self, *values: str) -> float:
        """What was counted under these label values."""
        return self._values.get(values, 0)

    def collect(self) -> Iterable[Metric]:
        """What the registry calls."""
        family = CounterMetricFamily(self._name, self._about, labels=self._labels)
        for values, value in self._values.items():
            family.add_metric(values, value)
        return (family,)


@dataclass(slots=True)
class _Spread:
    """How many durations there were, by bucket, and their sum."""

    counts: list[int] = field(default_factory=lambda: [0] * (len(_SECONDS) + 1))
    total_s: float = 0.0


class LabelledDurations:
    """A histogram of seconds: `WAITS.observe(0.003, "replica")`. Plain numbers, as in `LabelledCounter`."""

    def __init__(self, name: str, about: str, *labels: str) -> None:
        """Registers the metric."""
        self._name, self._about, self._labels = name, about, labels
        self._spreads: dict[tuple[str, ...], _Spread] = {}
        REGISTRY.register(self)

    def observe(self, duration_s: float, *values: str) -> None:
        """Adds one duration, in seconds, under these label values."""
        spread = self._spreads.get(values)
        if spread is None:
            spread = self._spreads[values] = _Spread()
        spread.counts[bisect_left(_SECONDS, duration_s)] += 1
        spread.total_s += duration_s

    def collect(self) -> Iterable[Metric]:
        """What the registry calls."""
        family = HistogramMetricFamily(self._name, self._about, labels=self._labels)
        bounds = [*map(str, _SECONDS), "+Inf"]
        for values, spread in self._spreads.items():
            family.add_metric(values, list(zip(bounds, accumulate(spread.counts), strict=True)), spread.total_s)
        return (family,)


@dataclass(slots=True)
class RequestLevel:
    """How many requests are being answered now: a plain number, changed twice a request, looked at now and then."""

    in_progress: int = 0


requests = RequestLevel()
REQUESTS = LabelledCounter("atelier_http_requests", "Requests answered.", "method", "route", "status")
DURATIONS = LabelledDurations("atelier_http_request_duration_seconds", "From the request to its answer.", "route")
IN_PROGRESS = Gauge("atelier_http_requests_in_progress", "Requests being answered now.", registry=REGISTRY)
IN_PROGRESS.set_function(lambda: requests.in_progress)
DECISIONS = LabelledCounter(
    "atelier_read_decisions", "Reads answered, by node and why it was chosen.", "node", "reason"
)
WAITS = LabelledDurations("atelier_read_wait_seconds", "Reads that waited for a replica to replay a token.", "outcome")
RETRIES = LabelledCounter("atelier_read_retries", "Reads tried again on another node, by the node that failed.", "node")
EJECTIONS = LabelledCounter("atelier_node_ejections", "Nodes taken out of routing for a while.", "node", "reason")
MERGED = LabelledCounter("atelier_reads_merged", "Reads that shared a statement with others.", "statement")
CACHE_HITS = LabelledCounter("atelier_cache_hits", "Reads answered from memory.", "statement")
CACHE_MISSES = LabelledCounter(
    "atelier_cache_misses",
    "Reads not answered from memory: nothing was there (absent), it was not good enough for the token (behind, "
    "history) or for the bound on its age (bound), or its node's changes were not heard of (unheard).",
    "reason",
)
CACHE_SHARED = LabelledCounter(
    "atelier_cache_shared", "Reads that found nothing in memory and waited for one that was under way.", "statement"
)
CACHE_DROPPED = LabelledCounter("atelier_cache_dropped", "Answers that were forgotten, by reason.", "reason")

Sample = tuple[str, dict[str, str], float]


class Observed:
    """Values that are looked at when the metrics are read, not counted: lag, connections, queues."""

    def __init__(self, abouts: dict[str, str], look: Callable[[], Iterable[Sample]]) -> None:
        """Takes each gauge's name with what it is about, and a function that gives samples of them."""
        self._abouts = abouts
        self._look = look

    def collect(self) -> Iterable[Metric]:
        """What the registry calls."""
        families: dict[tuple[str, tuple[str, ...]], GaugeMetricFamily] = {}
        for name, labels, value in self._look():
            key = (name, tuple(labels))
            if key not in families:
                families[key] = GaugeMetricFamily(name, self._abouts[name], labels=tuple(labels))
            families[key].add_metric(tuple(labels.values()), value)
        return families.values()


def write_metrics(observed: Iterable[Observed]) -> bytes:
    """All metrics in the text format of Prometheus: the process's counters, then what is looked at now."""
    looked = CollectorRegistry(auto_describe=False)
    for one in observed:
        looked.register(one)
    return generate_latest(REGISTRY) + generate_latest(looked)


class Exchange(msgspec.Struct):
    """One request and its answer, as the log line tells it. Handlers reach it as `scope["atelier"]`.

    Attributes:
        request_id: the client's `X-Request-Id`, or a new one.
        notes: what the handlers add: node, reason and timings of a read; command and outcome. No secrets, no tokens.
        policy: the `Content-Security-Policy` of the answer; None for the strict one of documents without a page.
    """

    request_id: str
    notes: dict[str, Any] = msgspec.field(default_factory=dict)
    policy: bytes | None = None
