"""For `locust -f loadtest/locustfile.py,loadtest/shapes.py`: more users step by step, until the service gives way."""

import logging
from typing import ClassVar

from locust import LoadTestShape

log = logging.getLogger(__name__)


class KneeRamp(LoadTestShape):
    """Adds users until errors exceed 3 % or the 95th percentile its limit, and tells the step before that: the knee.

    Users arrive at their own times, so more users are more arrivals, whatever the service makes of them.
    """

    step_s: ClassVar[float] = 10.0
    step_users: ClassVar[int] = 10
    most_users: ClassVar[int] = 1000
    most_errors: ClassVar[float] = 0.03
    p95_limit_ms: ClassVar[float] = 200.0

    def __init__(self) -> None:
        """Begins at the first step."""
        super().__init__()
        self._step = 1
        self._requests = self._failures = 0
        self._kept = "not even the first step kept the limits"

    def tick(self) -> tuple[int, float] | None:
        """Users and spawn rate of the moment; None ends the run."""
        if self.get_run_time() > self._step * self.step_s and not self._climb():
            log.info("the knee: %s", self._kept)
            return None
        return self._step * self.step_users, float(self.step_users)

    def _climb(self) -> bool:
        """Judges the step that is over; whether there is to be another."""
        total = self.runner.stats.total
        requests, failures = total.num_requests - self._requests, total.num_failures - self._failures
        self._requests, self._failures = total.num_requests, total.num_failures
        p95_ms = total.get_current_response_time_percentile(0.95) or 0.0
        if failures > self.most_errors * max(requests, 1) or p95_ms > self.p95_limit_ms:
            return False
        rate = requests / self.step_s
        self._kept = f"{self._step * self.step_users} users, {rate:.0f} requests a second, p95 {p95_ms:.0f} ms"
        log.info("kept the limits: %s", self._kept)
        self._step += 1
        return self._step * self.step_users <= self.most_users
