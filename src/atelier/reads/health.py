"""Which nodes this process leaves alone for a while, and for how long. Pure but for the clock that comes in.

A node that fails is ejected; each further failure doubles the time. When it is over, one read tries the node: its
success brings the node back, its failure ejects it again. Whether an ejected node is asked after all, because there
is no other, is the router's business.
"""

from dataclasses import dataclass
from datetime import datetime

from atelier.deadline import Clock
from atelier.settings import Ejection

# A node is slow only in comparison: when all are, none of them is at fault.
_SLOWER_THAN_SIBLING = 10
# How much one answer moves the average: a single slow one ejects nobody.
_EWMA_SHARE = 0.2


@dataclass(slots=True)
class _Record:
    started_at: datetime | None = None
    failures: int = 0
    ejected_until_s: float | None = None
    trial_until_s: float = 0.0
    ewma_ms: float = 0.0
    answers: int = 0


class NodeHealth:
    """What one process has lived through with each node.

    Attributes:
        changes: rises whenever `is_out` may have changed by anything but time.
    """

    def __init__(self, limits: Ejection, *, trial_s: float, clock: Clock) -> None:
        """Takes the limits, how long a trial may take before another may begin, and a monotonic clock."""
        self._limits = limits
        self._trial_s = trial_s
        self._clock = clock
        self._records: dict[str, _Record] = {}
        self.changes = 0

    def is_out(self, name: str) -> bool:
        """Whether the node is to be left alone now: ejected, or on trial by another read."""
        record = self._records.get(name)
        if record is None or record.ejected_until_s is None:
            return False
        now_s = self._clock()
        return now_s < record.ejected_until_s or now_s < record.trial_until_s

    def ejected_until_s(self, name: str) -> float | None:
        """The end of the node's ejection, which may have passed while nobody has tried it; None when it is in."""
        record = self._records.get(name)
        return record.ejected_until_s if record else None

    def ewma_ms(self, name: str) -> float:
        """The moving average of the node's answer times; 0 when it has not answered yet."""
        record = self._records.get(name)
        return record.ewma_ms if record else 0.0

    def begin(self, name: str, started_at: datetime) -> None:
        """A read is about to ask the node; the first one after an ejection is its trial."""
        record = self._record(name)
        if record.started_at != started_at:
            # Another server start has done nothing wrong yet.
            self._records[name] = _Record(started_at)
            self.changes += 1
        elif record.ejected_until_s is not None:
            record.trial_until_s = self._clock() + self._trial_s
            self.changes += 1

    def succeed(self, name: str, took_ms: float) -> bool:
        """The node answered; one that is much slower than its siblings has failed all the same.

        Returns:
            Whether this ejected it.
        """
        record = self._record(name)
        record.answers += 1
        share = 1.0 if record.ejected_until_s is not None or record.answers == 1 else _EWMA_SHARE
        record.ewma_ms += share * (took_ms - record.ewma_ms)
        if self._is_slow(name, record):
            return self.fail(name)
        if record.ejected_until_s is not None:
            record.ejected_until_s, record.trial_until_s = None, 0.0
            self.changes += 1
        record.failures = 0
        return False

    def fail(self, name: str) -> bool:
        """The node did not answer, or not well.

        Failures of reads that were on their way already when it was ejected do not count again.

        Returns:
            Whether this ejected it.
        """
        record = self._record(name)
        now_s = self._clock()
        if record.ejected_until_s is not None and now_s < record.ejected_until_s:
            return False
        back_off_ms = min(self._limits.longest_ms, self._limits.first_ms * 2 ** min(record.failures, 20))
        record.failures += 1
        record.ejected_until_s = now_s + back_off_ms / 1000
        record.trial_until_s = 0.0
        self.changes += 1
        return True

    def _record(self, name: str) -> _Record:
        return self._records.get(name) or self._records.setdefault(name, _Record())

    def _is_slow(self, name: str, record: _Record) -> bool:
        if record.ewma_ms <= self._limits.slow_ms:
            return False
        others = [other.ewma_ms for other_name, other in self._records.items() if other_name != name and other.answers]
        return bool(others) and record.ewma_ms > _SLOWER_THAN_SIBLING * min(others)
