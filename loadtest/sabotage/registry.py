"""Every sabotage by name, and the checker that must catch it."""

from dataclasses import dataclass

from loadtest.sabotage.tamper import TAMPERS


@dataclass(frozen=True, slots=True)
class Sabotage:
    """One way of breaking a promise.

    Attributes:
        caught_by: the checkers of which at least one must find it.
        by_proxy: it is done between clients and service; else to the history.
        shown_by: the scenario that shows it best.
    """

    caught_by: tuple[str, ...]
    by_proxy: bool
    shown_by: str


SABOTAGES: dict[str, Sabotage] = {
    "strip-tokens": Sabotage(("read your writes", "monotonic reads"), by_proxy=True, shown_by="replica-lag"),
    "change-keys": Sabotage(("exactly once",), by_proxy=True, shown_by="mixed"),
    "send-twice": Sabotage(("exactly once",), by_proxy=True, shown_by="mixed"),
    "lagging-node": Sabotage(("read your writes", "monotonic reads"), by_proxy=True, shown_by="heavy-writes"),
    "deposed-node": Sabotage(("linearizability",), by_proxy=True, shown_by="heavy-writes"),
    "drop-events": Sabotage(("feed complete and ordered",), by_proxy=True, shown_by="mixed"),
    "reorder-events": Sabotage(("feed complete and ordered",), by_proxy=True, shown_by="mixed"),
    **{name: Sabotage((tamper.caught_by,), by_proxy=False, shown_by="mixed") for name, tamper in TAMPERS.items()},
}
"""Every sabotage."""
