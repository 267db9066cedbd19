"""Every sabotage by name, and the checker that must catch it."""

from collections.abc import Iterable
from dataclasses import dataclass

from loadtest.checkers.verdict import State, Verdict
from loadtest.sabotage.tamper import TAMPERS


@dataclass(frozen=True, slots=True)
class Sabotage:
    """One way of breaking a promise.

    Attributes:
        caught_by: the checkers of which at least one must find it.
        by_proxy: it is done between clients and service; else to the history, unless it is done in the service.
        shown_by: the scenario that shows it best.
        in_service: it is done in a process of the service that runs for it alone.
    """

    caught_by: tuple[str, ...]
    by_proxy: bool
    shown_by: str
    in_service: bool = False

    @property
    def is_live(self) -> bool:
        """Whether it needs a run of its own, and a service that is run for it."""
        return self.by_proxy or self.in_service


SABOTAGES: dict[str, Sabotage] = {
    "strip-tokens": Sabotage(("read your writes", "monotonic reads"), by_proxy=True, shown_by="replica-lag"),
    "change-keys": Sabotage(("exactly once",), by_proxy=True, shown_by="mixed"),
    "send-twice": Sabotage(("exactly once",), by_proxy=True, shown_by="mixed"),
    "lagging-node": Sabotage(("read your writes", "monotonic reads"), by_proxy=True, shown_by="heavy-writes"),
    "deposed-node": Sabotage(("linearizability",), by_proxy=True, shown_by="heavy-writes"),
    "stale-cache": Sabotage(("read your writes", "bounded staleness"), by_proxy=True, shown_by="hot-pages"),
    "deaf-memory": Sabotage(
        ("read your writes", "bounded staleness"), by_proxy=False, shown_by="hot-pages", in_service=True
    ),
    "drop-events": Sabotage(("feed complete and ordered",), by_proxy=True, shown_by="mixed"),
    "reorder-events": Sabotage(("feed complete and ordered",), by_proxy=True, shown_by="mixed"),
    **{name: Sabotage((tamper.caught_by,), by_proxy=False, shown_by="mixed") for name, tamper in TAMPERS.items()},
}
"""Every sabotage."""


def tell_whether_caught(name: str, verdicts: Iterable[Verdict]) -> str:
    """One line: the sabotage was caught by the right checker, or not."""
    wanted = SABOTAGES[name].caught_by
    right = [v.guarantee for v in verdicts if v.state is State.INVALID and v.guarantee in wanted]
    return f"  sabotage {name}: " + (
        f"caught by {', '.join(right)}" if right else f"NOT caught by {' or '.join(wanted)}"
    )
