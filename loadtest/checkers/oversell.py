"""No oversell: nobody is ever promised what is not there, by the service's own figures and by the clients' alone.

The second count trusts no figure of the service. At each moment, what was certainly taken of a SKU (reserved and
acknowledged, and not yet given back or run out; sold; adjusted away) is compared with all that can have been put in.
A SKU that was counted by hand is left out of it: only the service knows what the count changed.
"""

from collections.abc import Iterator

from loadtest.checkers.verdict import Finding, Verdict
from loadtest.history.record import READ, Line, Op
from loadtest.history.store import History, Row

_PUT, _TAKEN, _BACK = 0, 1, 2
_FOR_EVER_S = 1e12


def check_no_oversell(history: History) -> Verdict:
    """See the module."""
    finding = Finding("no oversell")
    for op in history.ops("command", READ, "stock"):
        for line in op.lines:
            _check_figures(op, line, finding)
    _check_ledger(history, finding)
    _check_promises(history, finding)
    return finding.verdict()


def _check_figures(op: Op, line: Line, finding: Finding) -> None:
    if not op.is_ok or line.on_hand is None or line.reserved is None:
        return
    finding.look()
    if not 0 <= line.reserved <= line.on_hand:
        finding.broke(
            f"op {op.n} ({op.op} at {op.completed_s:.3f} s) was told that {line.key} has {line.on_hand} on hand and "
            f"{line.reserved} reserved",
            op.n,
        )


def _check_ledger(history: History, finding: Finding) -> None:
    """The ledger's sum is never negative, row by row."""
    key, total = None, 0
    for row in history.sort("ledger", lambda: _movements(history)):
        if row[0] != key:
            key, total = row[0], 0
        total += row[2]
        finding.look()
        if total < 0:
            finding.broke(f"the ledger of {key} sums to {total} after movement {row[1]}", row[3])


def _movements(history: History) -> Iterator[Row]:
    for op in history.ops("movement"):
        for line in op.lines:
            yield (line.key, int(op.position or 0), line.delta or 0, op.n)


def _check_promises(history: History, finding: Finding) -> None:
    key, room, skipped = None, 0, False
    for row in history.sort("promises", lambda: _promises(history)):
        if row[0] != key:
            key, room, skipped = row[0], 0, row[3] is None
        _, at_s, what, change, n = row
        if skipped:
            continue
        room += change
        if what == _TAKEN:
            finding.look()
            if room < 0:
                finding.broke(
                    f"by {at_s:.3f} s {-room} more of {key} were promised than can have been there; op {n} was "
                    "promised "
                    f"{-change} of them",
                    n,
                )


def _promises(history: History) -> Iterator[Row]:
    """What was put in (at the earliest), and taken for certain: by key and time, what was put in first."""
    for op in history.ops("command"):
        if op.op == "count":
            # Sorts before everything else of its key, and says that nothing is known of it.
            yield from ((line.key, -_FOR_EVER_S, _PUT, None, op.n) for line in op.lines)
        elif op.op in ("create", "adjust") and not op.replayed and op.outcome in ("ok", "info"):
            yield from _supplies(op)
    for reserved, back_s in _held(history):
        for line in reserved.lines:
            yield (line.key, reserved.completed_s, _TAKEN, -line.held, reserved.n)
            if back_s < _FOR_EVER_S:
                yield (line.key, max(back_s, reserved.completed_s), _BACK, line.held, reserved.n)


def _supplies(op: Op) -> Iterator[Row]:
    for line in op.lines:
        if line.delta and line.delta > 0:
            yield (line.key, op.invoked_s, _PUT, line.delta, op.n)
        elif line.delta and op.is_ok:
            yield (line.key, op.completed_s, _TAKEN, line.delta, op.n)


def _held(history: History) -> Iterator[tuple[Op, float]]:
    """Each acknowledged reservation, and from when on its stock may be back: never, once it is sold."""
    reserved: Op | None = None
    back_s, sold = _FOR_EVER_S, False
    for row in history.sort("reservations", lambda: _reservations(history)):
        op = _unpack(row)
        if op.op == "reserve":
            if reserved is not None and reserved.reservation == op.reservation:
                continue
            if reserved is not None:
                yield reserved, _FOR_EVER_S if sold else back_s
            reserved, sold = op, False
            back_s = op.invoked_s + (op.ttl_s or 0)
        elif reserved is not None and op.reservation == reserved.reservation:
            if op.op == "confirm" and op.is_ok:
                sold = True
            elif op.op == "release" and op.outcome in ("ok", "info"):
                back_s = min(back_s, op.invoked_s)
    if reserved is not None:
        yield reserved, _FOR_EVER_S if sold else back_s


def _reservations(history: History) -> Iterator[Row]:
    """By reservation: what made it, then what settled it, in order of time."""
    for op in history.ops("command"):
        if not op.reservation or not (op.is_ok or op.op in ("confirm", "release")):
            continue
        lines = tuple([(line.key, line.held) for line in op.lines])
        yield (
            op.reservation,
            op.op != "reserve",
            op.invoked_s,
            op.n,
            op.completed_s,
            op.op,
            op.outcome,
            op.ttl_s or 0.0,
            lines,
        )


def _unpack(row: Row) -> Op:
    reservation, _, invoked_s, n, completed_s, kind, outcome, ttl_s, lines = row
    return Op(
        n,
        "",
        kind,
        invoked_s,
        completed_s,
        outcome,
        tuple([Line(key, held=held) for key, held in lines]),
        reservation=reservation,
        ttl_s=ttl_s,
    )
