"""Up to which position everything that was committed is visible on the primary. Pure.

A commit is in the log before the primary shows it: for a moment always, and under synchronous replication until its
standbys have answered. A replica can show it earlier. So a token that a replica minted is satisfied by the primary
only when every transaction that ran when its position had been flushed has ended.
"""

from collections import deque
from collections.abc import Set as AbstractSet
from dataclasses import dataclass

from atelier.lsn import Lsn

# Beyond this new samples are left out: one long transaction holds up the oldest sample and all after it alike.
_CAPACITY = 64


@dataclass(slots=True)
class _Sample:
    flushed: Lsn
    pending: AbstractSet[int]


class Settling:
    """Follows one primary's running transactions over one start of its server; bounded."""

    def __init__(self) -> None:
        """Nothing is settled before the first note."""
        self._samples: deque[_Sample] = deque()
        self._settled: Lsn | None = None

    def note(self, flushed: Lsn, running: AbstractSet[int]) -> Lsn | None:
        """Takes in one look at the primary.

        Args:
            flushed: the position that it had flushed.
            running: the transactions that had an id and had not ended, listed **after** `flushed` was read.

        Returns:
            The position up to which every commit is visible now; None when there is none yet.
        """
        for sample in self._samples:
            sample.pending = sample.pending & running
        if len(self._samples) < _CAPACITY:
            self._samples.append(_Sample(flushed, running))
        while self._samples and not self._samples[0].pending:
            self._settled = self._samples.popleft().flushed
        return self._settled
