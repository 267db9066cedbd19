"""How far a replica is behind, in time: from a history of where the primary stood when. Pure.

PostgreSQL's own `pg_last_xact_replay_timestamp()` says when the last replayed transaction was committed, so it grows
on an idle cluster and lies. Here a replica that has replayed a position has everything that was committed before the
moment at which the primary was asked and had flushed that position.
"""

from bisect import bisect_right

from atelier.lsn import Lsn

_CAPACITY = 2_048


class LagHistory:
    """Samples of (time before the primary was probed, what it had flushed), oldest first; bounded."""

    def __init__(self) -> None:
        """Starts with no sample: every lag is unknown."""
        self._positions_bytes: list[int] = []
        self._times_s: list[float] = []

    def add(self, asked_at_s: float, flushed: Lsn) -> None:
        """Notes what the primary had flushed when asked at that time."""
        if self._positions_bytes and flushed.bytes <= self._positions_bytes[-1]:
            if flushed.bytes == self._positions_bytes[-1]:
                self._times_s[-1] = max(self._times_s[-1], asked_at_s)  # idle: the same position, seen later
            return
        self._positions_bytes.append(flushed.bytes)
        self._times_s.append(asked_at_s)
        if len(self._positions_bytes) > _CAPACITY:
            self._thin_out()

    def drop_beyond(self, fork: Lsn) -> None:
        """Forgets what a primary had flushed beyond the position where history left it."""
        keep = bisect_right(self._positions_bytes, fork.bytes)
        del self._positions_bytes[keep:], self._times_s[keep:]

    def lag_ms(self, replayed: Lsn, now_s: float) -> float | None:
        """The upper bound of a replica's lag.

        Args:
            replayed: the position that the replica had replayed.
            now_s: the time for which the bound holds, on the samples' clock.

        Returns:
            Milliseconds; None when no sample is old enough to tell.
        """
        as_of_s = self.as_of_s(replayed)
        return None if as_of_s is None else max(0.0, now_s - as_of_s) * 1000

    def as_of_s(self, replayed: Lsn) -> float | None:
        """The time before which everything that was committed lies at or before a position; None when not known."""
        index = bisect_right(self._positions_bytes, replayed.bytes) - 1
        return None if index < 0 else self._times_s[index]

    def _thin_out(self) -> None:
        """Keeps every second sample of the older half: a long lag needs no fine answer, only a true bound."""
        half = len(self._positions_bytes) // 2
        self._positions_bytes[:half] = self._positions_bytes[:half:2]
        self._times_s[:half] = self._times_s[:half:2]
