"""The rate limit of a key: off unless set, told in headers, shared among processes."""

import pytest

from atelier.access.rate import RateLimit, RateLimiter
from atelier.problems import ProblemError


def test_no_limit_says_nothing() -> None:
    """Off unless set."""
    limiter = RateLimiter(None, clock=lambda: 0.0)
    assert [limiter.take(1) for _ in range(1_000)] == [{}] * 1_000


def test_burst_passes_and_then_the_rate_holds() -> None:
    """Ten at once, then five a second, and `Retry-After` is long enough."""
    now = [0.0]
    limiter = RateLimiter(RateLimit(per_s=5, burst=10), clock=lambda: now[0])
    assert [limiter.take(1)["RateLimit"].split(";")[1] for _ in range(10)] == [f"r={left}" for left in range(9, -1, -1)]
    with pytest.raises(ProblemError) as caught:
        limiter.take(1)
    assert (caught.value.name, caught.value.headers["Retry-After"]) == ("too-many-requests", "1")
    now[0] = 1.0
    assert len([limiter.take(1) for _ in range(5)]) == 5
    with pytest.raises(ProblemError):
        limiter.take(1)


def test_keys_do_not_share_a_bucket() -> None:
    """One key's haste is no other's delay."""
    limiter = RateLimiter(RateLimit(per_s=1, burst=1), clock=lambda: 0.0)
    limiter.take(1)
    limiter.take(2)
    with pytest.raises(ProblemError):
        limiter.take(1)


def test_processes_share_the_limit_in_equal_parts() -> None:
    """Each of four processes lets a quarter pass."""
    limiter = RateLimiter(RateLimit(per_s=40, burst=40, processes=4), clock=lambda: 0.0)
    for _ in range(10):
        limiter.take(1)
    with pytest.raises(ProblemError):
        limiter.take(1)
