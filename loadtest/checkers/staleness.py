"""Bounded staleness: an answer at most N ms old holds everything that was done N ms before it was asked for."""

from collections.abc import Iterator

from loadtest.checkers.verdict import Finding, Verdict
from loadtest.history.record import READ, Op
from loadtest.history.store import History, Row

_DONE, _READ = 0, 1


def check_bounded_staleness(history: History) -> Verdict:
    """A bounded read is never older than its bound, and its answer never admits a lag beyond it."""
    finding = Finding("bounded staleness")
    key, floor, floor_n, floor_s = None, 0, 0, 0.0
    for row in history.sort("bounds", lambda: _acknowledged_and_reads(history)):
        if row[0] != key:
            key, floor = row[0], 0
        _, at_s, kind, n, version, asked = row
        if kind == _DONE:
            if version > floor:
                floor, floor_n, floor_s = version, n, at_s
            continue
        finding.look()
        if version < floor:
            finding.broke(
                f"{asked} saw version {version} of {key}; version {floor} (op {floor_n}) had been done by "
                f"{floor_s:.3f} s, "
                "before the bound",
                floor_n,
                n,
            )
    for op in _bounded(history):
        _check_admission(op, finding)
    return finding.verdict()


def _check_admission(op: Op, finding: Finding) -> None:
    finding.look()
    if op.lag_ms is None:
        finding.broke(f"{_tell(op)} came from {op.node}, whose lag is unknown", op.n)
    elif op.max_lag_ms is not None and op.lag_ms > op.max_lag_ms:
        finding.broke(f"{_tell(op)} came from {op.node}, which says that it is {op.lag_ms:g} ms behind", op.n)


def _acknowledged_and_reads(history: History) -> Iterator[Row]:
    """By key and time: when a version was acknowledged, and the moment whose versions a read owes."""
    for op in history.ops("command"):
        if op.is_ok:
            yield from ((line.key, op.completed_s, _DONE, op.n, line.version, "") for line in op.lines if line.version)
    for op in _bounded(history):
        owed_s = op.invoked_s - (op.max_lag_ms or 0) / 1000
        # An acknowledgement at exactly that moment is not owed: a read sorts after it, so it asks for a little before.
        owed_s -= 1e-9
        yield from ((line.key, owed_s, _READ, op.n, line.version or 0, _tell(op)) for line in op.lines)


def _bounded(history: History) -> Iterator[Op]:
    return (op for op in history.ops(READ) if op.mode == "bounded" and op.is_ok)


def _tell(op: Op) -> str:
    return f"session {op.session}'s read at {op.invoked_s:.3f} s, bounded to {op.max_lag_ms:g} ms (op {op.n}),"
