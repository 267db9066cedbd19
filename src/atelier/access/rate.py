"""A token bucket per API key: how many commands a second, and how many at once. Off unless set.

Each worker process counts by itself against its share of the rate, so the whole holds approximately: a client whose
connections all end in one process of four gets a quarter of its rate.
"""

from collections import OrderedDict
from dataclasses import dataclass

from atelier.deadline import Clock
from atelier.problems import ProblemError

_LARGEST_TABLE = 10_000


@dataclass(frozen=True, slots=True)
class RateLimit:
    """The bound on one API key, over all processes.

    Attributes:
        per_s: commands a second that it may send for ever.
        burst: commands that it may send at once after a pause.
        processes: how many processes share the limit.
    """

    per_s: float
    burst: int
    processes: int = 1


@dataclass(slots=True)
class _Bucket:
    tokens: float
    at_s: float


class RateLimiter:
    """Counts the commands of each key."""

    def __init__(self, limit: RateLimit | None, *, clock: Clock) -> None:
        """Takes the limit (None: there is none) and a monotonic clock in seconds."""
        self._limit = limit
        self._clock = clock
        self._buckets: OrderedDict[int, _Bucket] = OrderedDict()

    def take(self, key_id: int) -> dict[str, str]:
        """Counts one command of a key.

        Returns:
            Headers that tell the client what is left; empty when there is no limit.

        Raises:
            ProblemError: `too-many-requests`, with `Retry-After`.
        """
        limit = self._limit
        if limit is None:
            return {}
        per_s, burst = limit.per_s / limit.processes, max(1.0, limit.burst / limit.processes)
        bucket = self._refill(key_id, per_s=per_s, burst=burst)
        headers = {"RateLimit-Policy": f'"key";q={int(burst)};w={max(1, round(burst / per_s))}'}
        if bucket.tokens < 1:
            after_s = max(1, int((1 - bucket.tokens) / per_s + 0.999))
            headers |= {"RateLimit": f'"key";r=0;t={after_s}', "Retry-After": str(after_s)}
            raise ProblemError(
                "too-many-requests", "This key sends too many commands.", headers=headers, retry_after_s=after_s
            )
        bucket.tokens -= 1
        full_in_s = int((burst - bucket.tokens) / per_s + 0.999)
        return headers | {"RateLimit": f'"key";r={int(bucket.tokens)};t={full_in_s}'}

    def _refill(self, key_id: int, *, per_s: float, burst: float) -> _Bucket:
        now_s = self._clock()
        bucket = self._buckets.get(key_id)
        if bucket is None:
            bucket = self._buckets[key_id] = _Bucket(burst, now_s)
        bucket.tokens = min(burst, bucket.tokens + (now_s - bucket.at_s) * per_s)
        bucket.at_s = now_s
        self._buckets.move_to_end(key_id)
        if len(self._buckets) > _LARGEST_TABLE:
            self._buckets.popitem(last=False)
        return bucket
