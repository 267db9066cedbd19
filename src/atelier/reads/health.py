"""Which nodes this process leaves alone for a while, and for how long. Pure but for the clock that comes in.

A node that fails is ejected; each further failure doubles the time. When it is over, one read tries the node: its
success brings the node back, its failure ejects it again. What was sent before the ejection was over tells nothing of
the node as it is now. Whether an ejected node is asked after all, because there is no other, is the router's business.
"""

from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime

from atelier.deadline import Clock
from atelier.settings import Ejection

# A node is slow only in comparison: when all are, none of them is at fault.
_SLOWER_THAN_SIBLING = 10
# How much one answer moves the average: a single slow one ejects nobody.
_EWMA_SHARE = 0.2
# After so long without an answer the average counts half: a node with one bad spell is asked again by and by.
_HALF_LIFE_S = 5.0
# Who has answered nothing for longer than this is no measure for others.
_RECENT_S = 5.0


@dataclass(slots=True)
class _Record:
    started_at: datetime | None = None
    failures: int = 0
    ejected_until_s: float | None = None
    trial_until_s: float = 0.0
    is_replica: bool = True
    ewma_ms: float = 0.0
    answered_at_s: float | None = None

    def ewma_ms_at(self, now_s: float) -> float:
        idle_s = 0.0 if self.answered_at_s is None else max(0.0, now_s - self.answered_at_s)
        return float(self.ewma_ms * 0.5 ** (idle_s / _HALF_LIFE_S))


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
        """The moving average of the node's answer times, less and less while none comes; 0 before the first."""
        record = self._records.get(name)
        return record.ewma_ms_at(self._clock()) if record else 0.0

    def keep(self, names: Collection[str]) -> None:
        """Forgets the nodes that are not named: they have left."""
        self._records = {name: record for name, record in self._records.items() if name in names}
        self.changes += 1

    def begin(self, name: str, started_at: datetime, *, is_replica: bool = True) -> None:
        """A read is about to ask the node; the first one after an ejection is its trial."""
        record = self._record(name)
        if record.started_at != started_at:
            # Another server start has done nothing wrong yet.
            record = self._records[name] = _Record(started_at)
            self.changes += 1
        elif record.ejected_until_s is not None:
            record.trial_until_s = self._clock() + self._trial_s
            self.changes += 1
        record.is_replica = is_replica

    def succeed(self, name: str, *, sent_at_s: float, came_at_s: float) -> bool:
        """The node answered; one that is much slower than its siblings has failed all the same.

        Args:
            name: the node's.
            sent_at_s: when it was asked. A success brings an ejected node back only if it began as a trial.
            came_at_s: when its answer was there.

        Returns:
            Whether this ejected it.
        """
        record = self._record(name)
        ended_s = record.ejected_until_s
        is_trial = ended_s is not None and sent_at_s >= ended_s
        share = 1.0 if is_trial or record.answered_at_s is None else _EWMA_SHARE
        before_ms = record.ewma_ms_at(came_at_s)
        record.ewma_ms = before_ms + share * ((came_at_s - sent_at_s) * 1000 - before_ms)
        record.answered_at_s = came_at_s
        if ended_s is not None and not is_trial:
            return False
        if record.ewma_ms > self._limits.slow_ms and self._is_slow(record, came_at_s):
            return self.fail(name)
        if is_trial:
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

    def _is_slow(self, record: _Record, now_s: float) -> bool:
        """Whether a replica takes much longer than another one that is in and has just answered, too."""
        if not record.is_replica:
            return False
        siblings = [
            other.ewma_ms
            for other in self._records.values()
            if other is not record and other.is_replica and other.ejected_until_s is None
            if other.answered_at_s is not None and now_s - other.answered_at_s <= _RECENT_S
        ]
        return bool(siblings) and record.ewma_ms > _SLOWER_THAN_SIBLING * min(siblings)
