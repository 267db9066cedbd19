"""One time budget per request, shared by every step of it."""

from collections.abc import Callable

import msgspec

from atelier.errors import DeadlineExceededError

Clock = Callable[[], float]


class Deadline(msgspec.Struct, frozen=True):
    """The moment at which a request has to be answered.

    Attributes:
        ends_at_s: on the clock below.
        clock: a monotonic clock in seconds.
    """

    ends_at_s: float
    clock: Clock

    @classmethod
    def after(cls, budget_s: float, clock: Clock) -> "Deadline":
        """The deadline that lies a budget of seconds from now."""
        return cls(clock() + budget_s, clock)

    def remaining_s(self) -> float:
        """The seconds that are left; never negative."""
        return max(0.0, self.ends_at_s - self.clock())

    def spend_s(self, at_most_s: float) -> float:
        """The seconds that one step may take: its own bound, or what is left of the whole.

        Raises:
            DeadlineExceededError: nothing is left.
        """
        left_s = self.ends_at_s - self.clock()
        if left_s <= 0:
            raise DeadlineExceededError
        return min(at_most_s, left_s)

    def sooner(self, budget_s: float) -> "Deadline":
        """A deadline for a part of the request: a budget from now, but never later than this one."""
        return Deadline(min(self.ends_at_s, self.clock() + budget_s), self.clock)
