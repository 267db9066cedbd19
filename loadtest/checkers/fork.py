"""Long fork: two observers saw two unrelated changes in opposite orders. Reported, never failed.

On PostgreSQL streaming replicas the order in which commits become visible on the primary and on a replica can differ;
the service says so. A session that saw x at 3 and then still saw y at 7 shows that x's version 3 came before y's
version 8; another may show the opposite.
"""

from collections.abc import Iterator
from dataclasses import replace
from itertools import groupby, pairwise

from loadtest.checkers.sessions import walk_sessions
from loadtest.checkers.verdict import Finding, State, Verdict
from loadtest.history.store import History, Row

_AFTER, _BEFORE = 0, 1


def report_long_forks(history: History) -> Verdict:
    """How often two observers disagreed; always valid."""
    finding = Finding("long fork")
    pair = None
    highest, by = 0, 0
    for row in history.sort("precedences", lambda: _precedences(history)):
        if row[:2] != pair:
            pair, highest, by = row[:2], 0, 0
        one, other, version, kind, bound, n = row
        if kind == _AFTER:
            highest, by = max((highest, by), (bound, n))
            continue
        finding.look()
        if highest >= bound:
            finding.broke(
                f"op {n} saw version {version} of {one} without version {bound} of {other}, and op {by} saw that "
                "without "
                f"version {version} of {one}",
                by,
                n,
            )
    return _as_report(finding)


def _as_report(finding: Finding) -> Verdict:
    found = finding.verdict()
    return replace(found, state=State.VALID, only_reported=True, also=max(finding.breaks - 1, 0))


def _precedences(history: History) -> Iterator[Row]:
    """What two reads in a row show of two keys, in the order of their names: by pair and by the first key's version."""
    for _, steps in groupby(walk_sessions(history), key=lambda step: step.session):
        for seen, lacked in pairwise(step for step in steps if step.is_read and step.tokened):
            if seen.key < lacked.key:
                yield (seen.key, lacked.key, seen.version, _BEFORE, lacked.version + 1, lacked.n)
            elif seen.key > lacked.key:
                yield (lacked.key, seen.key, lacked.version + 1, _AFTER, seen.version, lacked.n)
