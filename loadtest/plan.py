"""What a run was asked to do, and what it showed."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from loadtest.checkers.verdict import Verdict
from loadtest.faults.timeline import Span
from loadtest.memory import Recall
from loadtest.metrics import Histogram, Meter
from loadtest.scenarios.model import Scenario


@dataclass(frozen=True, slots=True)
class Plan:
    """What the command line asked for.

    Attributes:
        scenario: what to run.
        duration_s: of the load.
        seed: of every chance in it.
        rate: by how much all rates are multiplied.
        urls: of running services; none for an embedded cluster.
        api_key: of the services at `urls`.
        data_dir: of a running embedded cluster to be used; None for one of the run's own.
        settings: of the service, where the run starts it: variables of its environment.
        sabotage: its name, or None.
        p95_limit_ms: beyond this a ramp has found its knee.
        out: folder for history and report.
    """

    scenario: Scenario
    duration_s: float
    seed: int
    rate: float
    urls: Sequence[str]
    api_key: str
    data_dir: Path | None
    settings: Mapping[str, str]
    sabotage: str | None
    p95_limit_ms: float
    out: Path


@dataclass(slots=True)
class PhaseSpan:
    """When a phase was run, and by how much its rates were multiplied."""

    label: str
    began_s: float
    ended_s: float
    rate: float


@dataclass(slots=True)
class Result:
    """What a run showed; `memory` is None where the service does not tell."""

    verdicts: list[Verdict]
    meter: Meter
    spans: list[Span] = field(default_factory=list)
    phases: list[PhaseSpan] = field(default_factory=list)
    operations: int = 0
    closed_loop_ms: dict[str, float] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    memory: Recall | None = None


def phase_figures(meter: Meter, phase: PhaseSpan) -> dict[str, float | None]:
    """The figures of one phase, over its whole seconds."""
    latency, requests, errors = Histogram(), 0, 0
    for second in range(int(phase.began_s) + 1, int(phase.ended_s)):
        found = meter.seconds.get(second)
        if found is not None:
            latency.merge(found.latency)
            requests += found.reads + found.commands
            errors += found.errors.total()
    seconds = max(1, int(phase.ended_s) - int(phase.began_s) - 1)
    return {
        "rate_per_s": round(requests / seconds, 1),
        "error_rate": errors / requests if requests else 0.0,
        **{f"p{percent}_ms": latency.percentile_ms(percent) for percent in (50, 95, 99)},
    }
