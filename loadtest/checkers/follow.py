"""Writes follow reads: whoever sees a command's effect then sees what its author had seen before sending it.

The same is asked of the author's own earlier command (monotonic writes, as others see them). Of each command all that
its author's last read showed and the last command its author made are looked at: by induction that reaches all of its
past.
"""

from collections.abc import Iterator
from itertools import chain, groupby
from typing import NamedTuple

from loadtest.checkers.sessions import walk_sessions
from loadtest.checkers.verdict import Finding, Verdict
from loadtest.history.store import History, Row

_COMMAND, _READ = 0, 1
_OWED, _SHOWN = 0, 1


class Past(NamedTuple):
    """A version that a command's author knew: who sees the command must see it too."""

    key: str
    version: int
    n: int


_NO_PAST = Past("", 0, 0)


class Turn(NamedTuple):
    """A moment of a session: it comes to owe a version of a key, or is shown one. Sorted by session and time.

    Attributes:
        session: whose.
        at_s: when it saw the command's effect, or sent the read.
        kind: owed or shown.
        n: the read that saw the effect, or the one that is shown something.
        key: what it must see, or was shown.
        version: of that key.
        why: in words, how it came to owe that.
        past_n: what the author of the command had read or done before.
        author_n: the command.
    """

    session: str
    at_s: float
    kind: int
    n: int
    key: str
    version: int
    why: str = ""
    past_n: int = 0
    author_n: int = 0


def check_writes_follow_reads(history: History) -> Verdict:
    """See the module."""
    finding = Finding("writes follow reads")
    turns = map(Turn._make, history.sort("turns", lambda: _turns(history)))
    for _, session in groupby(turns, key=lambda turn: turn.session):
        _follow(session, finding)
    return finding.verdict()


def _follow(session: Iterator[Turn], finding: Finding) -> None:
    owed: dict[str, Turn] = {}
    for turn in session:
        debt = owed.get(turn.key)
        if turn.kind == _OWED:
            if debt is None or turn.version > debt.version:
                owed[turn.key] = turn
        elif debt is not None:
            finding.look()
            if turn.version < debt.version:
                finding.broke(_tell(debt, turn), debt.past_n, debt.author_n, debt.n, turn.n)


def _tell(debt: Turn, shown: Turn) -> str:
    return (
        f"{debt.why}, and session {debt.session} saw that (op {debt.n}); but then it saw version {shown.version} of "
        f"{shown.key} (op {shown.n})"
    )


def _turns(history: History) -> Iterator[Row]:
    """What each session owes since it saw a command's effect, and what it was shown."""
    rows = history.sort("effects-and-reads", lambda: _effects_and_reads(history))
    for key, group in groupby(rows, key=lambda row: row[0]):
        pasts: list[tuple[Past, str, int]] = []
        for row in group:
            if row[2] == _COMMAND:
                pasts = _pasts(row)
                continue
            _, seen, _, n, session, invoked_s, completed_s = row
            yield (session, invoked_s, _SHOWN, n, key, seen, "", 0, 0)
            for past, why, author_n in pasts:
                yield (session, completed_s, _OWED, n, past.key, past.version, why, past.n, author_n)


def _pasts(command: Row) -> list[tuple[Past, str, int]]:
    """What the author of a command knew of other keys, with the words for it."""
    key, version, _, n, *known = command
    pasts = [Past._make(known[at : at + 3]) for at in range(0, len(known), 3)]
    made = f"version {version} of {key} (op {n}) was made by one who knew"
    return [
        (past, f"{made} version {past.version} of {past.key} (op {past.n})", n)
        for past in pasts
        if past.key not in ("", key)
    ]


def _effects_and_reads(history: History) -> Iterator[Row]:
    """Commands with what their authors knew, and reads: by key and version, commands first."""
    session = None
    wrote, read = _NO_PAST, [_NO_PAST]
    for step in walk_sessions(history):
        if step.session != session:
            session, wrote, read = step.session, _NO_PAST, [_NO_PAST]
        if not step.key:
            continue
        if step.is_read:
            if step.tokened:
                yield (step.key, step.version, _READ, step.n, step.session, step.invoked_s, step.completed_s)
            # One read may show several keys, and no induction leads from one of them to the others.
            read = read if read[-1].n == step.n else []
            read.append(Past(step.key, step.version, step.n))
        elif step.version >= 0:
            if not step.replayed:
                yield (step.key, step.version, _COMMAND, step.n, *wrote, *chain.from_iterable(read))
            wrote = Past(step.key, step.version, step.n)
