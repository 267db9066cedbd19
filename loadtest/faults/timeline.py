"""When which fault begins and ends. Pure but for the greenlet that carries it out."""

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from loadtest.clock import Clock


@dataclass(frozen=True, slots=True)
class Fault:
    """One fault of a scenario.

    Attributes:
        name: as the report draws it.
        begins: when, as a part of the run (0..1).
        ends: when it is mended, as a part of the run; it always is, at the latest when the run is over.
        inflict: does it.
        mend: undoes it; does nothing where there is nothing to undo.
    """

    name: str
    begins: float
    ends: float
    inflict: Callable[[], None]
    mend: Callable[[], None] = lambda: None


@dataclass(slots=True)
class Span:
    """When a fault was there: from the moment it was begun until it was mended."""

    name: str
    began_s: float
    ended_s: float | None = None
    error: str = ""

    def document(self) -> dict[str, object]:
        """For `summary.json`."""
        return {"name": self.name, "began_s": self.began_s, "ended_s": self.ended_s, "error": self.error}


@dataclass(frozen=True, slots=True)
class _Step:
    at_s: float
    fault: Fault
    begins: bool


@dataclass(slots=True)
class Timeline:
    """Carries out the faults of a run, one step after the other.

    Attributes:
        faults: in any order.
        duration_s: of the run.
        clock: of the run.
        spans: what was done, and when.
    """

    faults: Sequence[Fault]
    duration_s: float
    clock: Clock
    spans: list[Span] = field(default_factory=list)
    _stop: threading.Event = field(default_factory=threading.Event)
    _open: dict[int, Span] = field(default_factory=dict)

    def run(self) -> None:
        """Carries out everything in its time; mends what is open when it is stopped."""
        begun_s = self.clock()
        for step in self._steps():
            if self._stop.wait(max(0.0, begun_s + step.at_s - self.clock())):
                break
            self._carry_out(step)
        for fault in self.faults:
            if id(fault) in self._open:
                self._carry_out(_Step(0, fault, begins=False))

    def stop(self) -> None:
        """Lets `run` mend what is open and end."""
        self._stop.set()

    @property
    def current(self) -> str:
        """The faults that are there now."""
        return ", ".join(span.name for span in self._open.values())

    def _steps(self) -> list[_Step]:
        steps = [_Step(fault.begins * self.duration_s, fault, begins=True) for fault in self.faults]
        steps += [_Step(fault.ends * self.duration_s, fault, begins=False) for fault in self.faults]
        return sorted(steps, key=lambda step: (step.at_s, step.begins))

    def _carry_out(self, step: _Step) -> None:
        if step.begins:
            span = Span(step.fault.name, self.clock())
            self.spans.append(span)
            self._open[id(step.fault)] = span
            work = step.fault.inflict
        else:
            span = self._open[id(step.fault)]
            work = step.fault.mend
        try:
            work()
        except Exception as error:  # noqa: BLE001 - whatever an injector meets is told in the report, and the run goes on
            span.error = span.error or f"{type(error).__name__}: {error}"
        if not step.begins:
            span.ended_s = self.clock()
            del self._open[id(step.fault)]
