"""What one client is promised about its own requests: read your writes, monotonic reads, monotonic writes.

All three walk each session in the order of its requests. They count on a session doing one thing at a time; where it
does not, nothing can be said. Only reads that carried the session's token are promised anything.
"""

from collections.abc import Iterable, Iterator
from itertools import groupby
from typing import NamedTuple

from loadtest.checkers.verdict import Finding, Verdict
from loadtest.history.record import READ, Op
from loadtest.history.store import History, Row


class Step(NamedTuple):
    """One key in one request of a session, as it is sorted.

    Attributes:
        session: whose.
        invoked_s: when it was sent; the order within the session.
        n: the request.
        at: which of its lines.
        completed_s: when its answer was there.
        is_read: a read, or a command.
        key: what it is about.
        version: seen or made; -1 when not told.
        tokened: it is a read that carried the token.
        replayed: the answer to an earlier attempt.
        node: who answered; empty when not told.
    """

    session: str
    invoked_s: float
    n: int
    at: int
    completed_s: float
    is_read: bool
    key: str
    version: int
    tokened: bool
    replayed: bool
    node: str


def walk_sessions(history: History) -> Iterator[Step]:
    """All that was answered, session by session, in the order of the requests."""
    return map(Step._make, history.sort("steps", lambda: _steps(history)))


def check_read_your_writes(history: History) -> Verdict:
    """A read with the session's token shows everything that the session was told is done."""
    finding = Finding("read your writes")
    for steps in _sessions(walk_sessions(history), finding):
        _follow_own_writes(steps, finding)
    return finding.verdict()


def check_monotonic_reads(history: History) -> Verdict:
    """A session that sends its token back never sees a key go back in time."""
    finding = Finding("monotonic reads")
    for steps in _sessions(walk_sessions(history), finding):
        seen: dict[str, Step] = {}
        for step in steps:
            if not (step.is_read and step.tokened):
                continue
            before = seen.get(step.key)
            if before is not None:
                finding.look()
                if step.version < before.version:
                    finding.broke(_tell_went_back(before, step), before.n, step.n)
                    continue
            seen[step.key] = step
    return finding.verdict()


def check_monotonic_writes(history: History) -> Verdict:
    """The commands of a session take effect in the order in which they were sent and acknowledged."""
    finding = Finding("monotonic writes")
    for steps in _sessions(walk_sessions(history), finding):
        made: dict[str, Step] = {}
        for step in steps:
            if step.is_read or step.version < 0 or step.replayed:
                continue
            before = made.get(step.key)
            if before is not None:
                finding.look()
                if step.version <= before.version:
                    finding.broke(_tell_reordered(before, step), before.n, step.n)
            made[step.key] = step
    return finding.verdict()


def _steps(history: History) -> Iterator[Row]:
    for op in history.ops(READ, "command"):
        if op.outcome in ("ok", "info"):
            yield from _steps_of(op)


def _steps_of(op: Op) -> Iterable[Row]:
    if op.outcome == "info":
        # It takes part only in showing that the session did one thing at a time.
        return [(op.session, op.invoked_s, op.n, 0, op.completed_s, op.op == READ, "", -1, False, False, "")]
    return [
        (
            op.session,
            op.invoked_s,
            op.n,
            at,
            op.completed_s,
            op.op == READ,
            line.key,
            -1 if line.version is None else line.version,
            op.tokened,
            op.replayed,
            op.node or "",
        )
        for at, line in enumerate(op.lines)
    ]


def _sessions(steps: Iterator[Step], finding: Finding) -> Iterator[Iterator[Step]]:
    """The steps of one session at a time."""
    for _, session in groupby(steps, key=lambda step: step.session):
        yield _one_at_a_time(session, finding)


def _one_at_a_time(session: Iterator[Step], finding: Finding) -> Iterator[Step]:
    """The steps that name a key, up to where the session does two things at once."""
    before: Step | None = None
    for step in session:
        if before is not None and step.n != before.n and step.invoked_s < before.completed_s:
            finding.doubt(f"session {step.session} has two requests at once: ops {before.n} and {step.n}")
            return
        before = step
        if step.key:
            yield step


def _follow_own_writes(steps: Iterable[Step], finding: Finding) -> None:
    floors: dict[str, tuple[int, Step]] = {}
    known: dict[str, int] = {}
    for step in steps:
        if not step.is_read:
            version = _least_version(step, known)
            if version > floors.get(step.key, (0, step))[0]:
                floors[step.key] = version, step
        elif step.tokened and step.key in floors:
            finding.look()
            version, write = floors[step.key]
            if step.version < version:
                finding.broke(_tell_missing(write, version, step), write.n, step.n)
        known[step.key] = max(known.get(step.key, 0), step.version)


def _least_version(write: Step, known: dict[str, int]) -> int:
    """The version that a command made at least; 0 when nothing can be said."""
    if write.version >= 0:
        return write.version
    # It raised what the session knew when it was sent, unless it had been done before that, by an earlier attempt.
    return known[write.key] + 1 if write.key in known and not write.replayed else 0


def _tell_missing(write: Step, version: int, read: Step) -> str:
    made = (
        f"made version {version} of {write.key}"
        if write.version >= 0
        else f"changed {write.key} beyond version {version - 1}"
    )
    return (
        f"session {read.session} {made} (op {write.n}, done at {write.completed_s:.3f} s); its read at "
        f"{read.invoked_s:.3f} s (op {read.n}{_from(read)}), sent with its token, {_saw(read)}"
    )


def _tell_went_back(before: Step, after: Step) -> str:
    return (
        f"session {after.session} saw version {before.version} of {after.key} (op {before.n}{_from(before)}, at "
        f"{before.completed_s:.3f} s) and after that {_saw(after)} (op {after.n}{_from(after)}, sent at "
        f"{after.invoked_s:.3f} s with its token)"
    )


def _tell_reordered(before: Step, after: Step) -> str:
    return (
        f"session {after.session} was told that version {before.version} of {after.key} is done (op {before.n}); "
        "its next "
        f"command (op {after.n}) made version {after.version}, which is not later"
    )


def _from(step: Step) -> str:
    return f" from {step.node}" if step.node else ""


def _saw(step: Step) -> str:
    return "found nothing" if step.version == 0 else f"saw version {step.version}"
