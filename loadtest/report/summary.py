"""The whole outcome of a run as one plain document: what `summary.json` holds and the page draws."""

from pathlib import Path
from typing import Any

from loadtest.checkers.registry import conclude, count_breaks
from loadtest.metrics import Meter, Second
from loadtest.plan import PhaseSpan, Plan, Result, phase_figures

_PERCENTILES = (50, 95, 99)


def summarise(plan: Plan, result: Result, *, machine: dict[str, object]) -> dict[str, Any]:
    """Everything that the report tells."""
    total = result.meter.all
    return {
        "scenario": plan.scenario.name,
        "summary": plan.scenario.summary + (f"; broken on purpose: {plan.sabotage}" if plan.sabotage else ""),
        "state": conclude(result.verdicts).value,
        "breaks": count_breaks(result.verdicts),
        "verdicts": [verdict.document() for verdict in result.verdicts],
        "operations": result.operations,
        "figures": {
            "reads": total.reads,
            "commands": total.commands,
            "refused": total.refused,
            "errors": dict(total.errors.most_common()),
            "served_by": dict(sorted(total.nodes.items())),
            "open_loop_ms": {f"p{percent}": _round(total.latency.percentile_ms(percent)) for percent in _PERCENTILES},
            "closed_loop_ms": result.closed_loop_ms,
            "greatest_ms": _round(total.latency.greatest_ms),
        },
        "memory": result.memory.document() if result.memory else None,
        "phases": [describe_phase(result.meter, phase) for phase in result.phases],
        "knee": find_knee(plan, result),
        "faults": [span.document() for span in result.spans],
        "notes": result.notes,
        "settings": {
            "seed": plan.seed,
            "duration_s": plan.duration_s,
            "rate_factor": plan.rate,
            "target": ", ".join(plan.urls) or "an embedded cluster",
            "service": [f"{name}={value}" for name, value in plan.settings.items()] or None,
            "sabotage": plan.sabotage,
            "crews": [
                f"{crew.users} x {crew.kind.__name__}, {crew.rate_per_s * plan.rate:g} arrivals a second each"
                for crew in plan.scenario.crews
            ],
        },
        "machine": machine,
        "series": draw_series(result.meter),
    }


def describe_phase(meter: Meter, phase: PhaseSpan) -> dict[str, Any]:
    """One phase with its figures."""
    figures = {name: _round(value, 4) for name, value in phase_figures(meter, phase).items()}
    return {"label": phase.label, "began_s": phase.began_s, "ended_s": phase.ended_s, **figures}


def find_knee(plan: Plan, result: Result) -> dict[str, Any] | None:
    """The last phase of a ramp that kept the limits; None for what is no ramp."""
    if not plan.scenario.stops_at_knee or not result.phases:
        return None
    figures = [phase_figures(result.meter, phase) for phase in result.phases]
    kept = [f for f in figures if (f["error_rate"] or 0.0) <= 0.03 and (f["p95_ms"] or 0.0) <= plan.p95_limit_ms]
    return {
        "requests_per_s": kept[-1]["rate_per_s"] if kept else 0,
        "p95_ms": _round(kept[-1]["p95_ms"]) if kept else None,
        "reached": len(kept) < len(figures),
    }


def draw_series(meter: Meter) -> dict[str, Any]:
    """The figures second by second, from the first to the last that had requests."""
    busy = [second for second, found in meter.seconds.items() if found.latency.count or found.reads or found.commands]
    if not busy:
        return {"at_s": []}
    at_s = list(range(min(busy), max(busy) + 1))
    seconds = [meter.seconds.get(second, Second()) for second in at_s]
    return {
        "at_s": at_s,
        **{f"p{percent}_ms": [_round(s.latency.percentile_ms(percent)) for s in seconds] for percent in _PERCENTILES},
        "closed_p99_ms": [_round(s.closed_loop.percentile_ms(99)) for s in seconds],
        "reads": [s.reads for s in seconds],
        "commands": [s.commands for s in seconds],
        "errors": [s.errors.total() for s in seconds],
        "lag_ms": {node: [_round(s.lag_ms.get(node)) for s in seconds] for node in _names(seconds, "lag_ms")},
        "nodes": {node: [s.nodes[node] for s in seconds] for node in _names(seconds, "nodes")},
    }


def tell_in_one_line(document: dict[str, Any], page: Path) -> str:
    """The line for terminals and logs."""
    figures = document["figures"]
    verdicts = document["verdicts"]
    bad = [verdict["guarantee"] for verdict in verdicts if verdict["state"] != "valid"]
    errors = sum(figures["errors"].values())
    knee = document["knee"]
    return (
        f"{document['scenario']}: {document['state'].upper()}"
        + (f" ({', '.join(bad)})" if bad else f" ({len(verdicts)} checkers)")
        + f": {tell_breaks(document['breaks'])}; {figures['reads']} reads{tell_memory(document['memory'])}, "
        + f"{figures['commands']} commands, "
        + f"{errors} errors, "
        + f"p99 {figures['open_loop_ms']['p99']} ms from the intended start"
        + (f", knee at {knee['requests_per_s']} requests a second" if knee else "")
        + f", {page}"
    )


def tell_breaks(breaks: dict[str, int | None]) -> str:
    """What people ask first."""
    return ", ".join(f"{'?' if count is None else count} {kind}" for kind, count in breaks.items())


def tell_memory(memory: dict[str, Any] | None) -> str:
    """What memory has answered; nothing where it is switched off or does not tell."""
    if memory is None or memory["state"] == "off":
        return ""
    return f" ({memory['hits']} from memory)" if memory["hits"] else " (from memory: not shown)"


def _names(seconds: list[Second], attribute: str) -> list[str]:
    return sorted({name for second in seconds for name in getattr(second, attribute)})


def _round(value: float | None, digits: int = 1) -> float | None:
    return None if value is None else round(value, digits)
