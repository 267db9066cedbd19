"""All checkers by name, and a whole history's verdicts."""

from collections.abc import Callable, Iterable
from typing import Final

from loadtest.checkers.feed import check_feed
from loadtest.checkers.follow import check_writes_follow_reads
from loadtest.checkers.fork import report_long_forks
from loadtest.checkers.ledger import check_ledger_equals_stock
from loadtest.checkers.linear import check_linearizability
from loadtest.checkers.lost import check_no_lost_acknowledged
from loadtest.checkers.once import check_exactly_once
from loadtest.checkers.oversell import check_no_oversell
from loadtest.checkers.sessions import check_monotonic_reads, check_monotonic_writes, check_read_your_writes
from loadtest.checkers.staleness import check_bounded_staleness
from loadtest.checkers.verdict import State, Verdict
from loadtest.history.store import History

Checker = Callable[[History], Verdict]

CHECKERS: Final[dict[str, Checker]] = {
    "read your writes": check_read_your_writes,
    "monotonic reads": check_monotonic_reads,
    "monotonic writes": check_monotonic_writes,
    "writes follow reads": check_writes_follow_reads,
    "bounded staleness": check_bounded_staleness,
    "linearizability": check_linearizability,
    "no oversell": check_no_oversell,
    "ledger equals stock": check_ledger_equals_stock,
    "exactly once": check_exactly_once,
    "no lost acknowledged command": check_no_lost_acknowledged,
    "feed complete and ordered": check_feed,
    "long fork": report_long_forks,
}
"""Every checker, in the order of the report."""

EXIT_VALID, EXIT_INVALID, EXIT_UNKNOWN = 0, 1, 2


def check_history(history: History, names: Iterable[str] = tuple(CHECKERS)) -> list[Verdict]:
    """The verdicts of the named checkers, in the order of the report."""
    wanted = set(names)
    return [check(history) for name, check in CHECKERS.items() if name in wanted]


def doubt_all(reason: str, names: Iterable[str] = tuple(CHECKERS)) -> list[Verdict]:
    """The verdicts on a history that cannot be read."""
    wanted = set(names)
    return [Verdict(name, State.UNKNOWN, 0, reason) for name in CHECKERS if name in wanted]


def conclude(verdicts: Iterable[Verdict]) -> State:
    """One word for all of them: what is only reported decides nothing, and nothing to decide is unknown."""
    states = {verdict.state for verdict in verdicts if not verdict.only_reported}
    if State.INVALID in states:
        return State.INVALID
    return State.VALID if states == {State.VALID} else State.UNKNOWN


def exit_status(state: State) -> int:
    """What a process that found this ends with."""
    return {State.VALID: EXIT_VALID, State.INVALID: EXIT_INVALID, State.UNKNOWN: EXIT_UNKNOWN}[state]
