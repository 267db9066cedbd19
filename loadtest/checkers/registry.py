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

MEANINGS: Final[dict[str, str]] = {
    "read your writes": "A read with a session's token shows what the session was told is done.",
    "monotonic reads": "A session that sends its token back never sees a key go back.",
    "monotonic writes": "A session's commands take effect in the order in which they were acknowledged.",
    "writes follow reads": "Who sees a command's effect sees what its author had known.",
    "bounded staleness": "A bounded read shows all that was done before its bound, and admits no more lag.",
    "linearizability": "Strong reads and commands of a key fit into one order that agrees with the clock.",
    "no oversell": "No figure, no running sum and no count of promises exceeds what can be there.",
    "ledger equals stock": "What is on hand is the sum of the movements.",
    "exactly once": "Every command has one whole effect or none, and none that nobody sent.",
    "no lost acknowledged command": "What was acknowledged is found at the end.",
    "feed complete and ordered": "Every watcher is told of every change once, in the order of the commits.",
    "long fork": "It decides nothing: commits may become visible in another order on a replica.",
}
"""What each of them holds a service to, in one line."""

COUNTED: Final[dict[str, tuple[str, ...]]] = {
    "stale": ("read your writes", "monotonic reads", "writes follow reads", "bounded staleness", "linearizability"),
    "oversold": ("no oversell",),
    "lost": ("no lost acknowledged command",),
    "applied twice": ("exactly once",),
}
"""What people ask first, and the checkers whose breaks are counted for it."""

EXIT_VALID, EXIT_INVALID, EXIT_UNKNOWN = 0, 1, 2


def check_history(history: History, names: Iterable[str] = tuple(CHECKERS)) -> list[Verdict]:
    """The verdicts of the named checkers, in the order of the report."""
    wanted = set(names)
    return [check(history) for name, check in CHECKERS.items() if name in wanted]


def doubt_all(reason: str, names: Iterable[str] = tuple(CHECKERS)) -> list[Verdict]:
    """The verdicts on a history that cannot be read."""
    wanted = set(names)
    return [Verdict(name, State.UNKNOWN, 0, reason) for name in CHECKERS if name in wanted]


def count_breaks(verdicts: Iterable[Verdict]) -> dict[str, int | None]:
    """The breaks of each kind that was looked for; None where a checker of it could not tell."""
    by_name = {verdict.guarantee: verdict for verdict in verdicts}
    counts: dict[str, int | None] = {}
    for kind, names in COUNTED.items():
        found = [by_name[name] for name in names if name in by_name]
        if found:
            unknown = any(verdict.state is State.UNKNOWN for verdict in found)
            breaks = sum(verdict.breaks for verdict in found)
            counts[kind] = None if unknown and not breaks else breaks
    return counts


def conclude(verdicts: Iterable[Verdict]) -> State:
    """One word for all of them: what is only reported decides nothing, and nothing to decide is unknown."""
    states = {verdict.state for verdict in verdicts if not verdict.only_reported}
    if State.INVALID in states:
        return State.INVALID
    return State.VALID if states == {State.VALID} else State.UNKNOWN


def exit_status(state: State) -> int:
    """What a process that found this ends with."""
    return {State.VALID: EXIT_VALID, State.INVALID: EXIT_INVALID, State.UNKNOWN: EXIT_UNKNOWN}[state]
