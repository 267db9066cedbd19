"""Per-key linearizability on the primary: strong reads and commands fit into one order that agrees with the clock.

Versions give that order, so it only has to be compared with time, which takes one walk: a request that began after
another had ended is not before it, and a command is after everything that had ended when it was sent. Beside that a
version has one value, and a command makes of the value before it what it says.
(In general the question is exponential; it is the versions that make it a sort.)
"""

from collections.abc import Iterator
from typing import NamedTuple

from loadtest.checkers.verdict import Finding, Verdict
from loadtest.history.record import READ
from loadtest.history.store import History, Row

_BEGAN, _ENDED = 0, 1
_MADE, _SEEN = 0, 1
_NOT_TOLD, _LOST = -1, -2
_Floor = tuple[int, int]
"""The highest version known by a moment, and the request that showed it."""


def check_linearizability(history: History) -> Verdict:
    """See the module."""
    finding = Finding("linearizability")
    _check_order(history, finding)
    _check_values(history, finding)
    return finding.verdict()


def _check_order(history: History, finding: Finding) -> None:
    key = ""
    done: _Floor = (0, 0)
    open_ops: dict[object, _Floor] = {}
    for row in history.sort("moments", lambda: _moments(history)):
        if row[0] != key:
            key, done, open_ops = row[0], (0, 0), {}
        _, _, what, n, version, is_read, command, replayed = row
        if what == _BEGAN:
            # The effect of a repeated answer may be as old as the first attempt whose answer was lost.
            open_ops.setdefault(command if version == _LOST else n, done)
            continue
        began, first = open_ops.pop(n), open_ops.pop(command, None)
        if not replayed:
            done = max(done, _place(key, n, version, began, finding, is_read=is_read))
        elif first is not None:
            done = max(done, _place(key, n, version, first, finding, is_read=is_read))


def _place(key: str, n: int, version: int, began: _Floor, finding: Finding, *, is_read: bool) -> _Floor:
    """Compares one request with what had ended when it began; what its own end shows."""
    floor, by = began
    if version == _NOT_TOLD:
        return (0, n) if is_read else (floor + 1, n)
    finding.look()
    if is_read and version < floor:
        finding.broke(
            f"op {by} had shown version {floor} of {key} when the strong read op {n} was sent, and that saw "
            f"version {version}",
            by,
            n,
        )
    elif not is_read and version <= floor:
        finding.broke(
            f"op {by} had shown version {floor} of {key} when the command op {n} was sent, and that made version "
            f"{version}",
            by,
            n,
        )
    return version, n


def _moments(history: History) -> Iterator[Row]:
    """When each request began and ended, by key and time; at the same time a beginning comes first."""
    for op in history.ops("command", READ):
        command = op.command or ""
        if op.outcome == "info" and command:
            yield from ((line.key, op.invoked_s, _BEGAN, op.n, _LOST, False, command, False) for line in op.lines)
        elif op.is_ok and (op.op != READ or op.mode == "strong"):
            for line in op.lines:
                version = _NOT_TOLD if line.version is None else line.version
                tail = (op.n, version, op.op == READ, command, op.replayed)
                yield (line.key, op.invoked_s, _BEGAN, *tail)
                yield (line.key, op.completed_s, _ENDED, *tail)


def _check_values(history: History, finding: Finding) -> None:
    """One value a version, and each command's step from the version before."""
    last: _Value | None = None
    for value in map(_Value._make, history.sort("values", lambda: _values(history))):
        if last is None or value.key != last.key:
            last = value
        elif value.version == last.version:
            finding.look()
            if value.stock != last.stock:
                finding.broke(
                    f"version {value.version} of {value.key} was {last.tell()} (op {last.n}) and {value.tell()} "
                    f"(op {value.n})",
                    last.n,
                    value.n,
                )
        else:
            if value.made == _MADE and value.version == last.version + 1:
                finding.look()
                _check_step(last, value, finding)
            last = value


class _Value(NamedTuple):
    """What was told of one version of a SKU, as it is sorted: what made it before what saw it."""

    key: str
    version: int
    made: int
    on_hand: int
    reserved: int
    n: int
    delta: int
    held: int

    @property
    def stock(self) -> tuple[int, int]:
        return self.on_hand, self.reserved

    def tell(self) -> str:
        return f"{self.on_hand} on hand, {self.reserved} reserved"


def _check_step(before: _Value, after: _Value, finding: Finding) -> None:
    if (before.on_hand + after.delta, before.reserved + after.held) != after.stock:
        finding.broke(
            f"version {before.version} of {before.key} was {before.tell()} (op {before.n}); op {after.n} added "
            f"{after.delta:+d} on hand and {after.held:+d} reserved, and version {after.version} was {after.tell()}",
            before.n,
            after.n,
        )


def _values(history: History) -> Iterator[Row]:
    """By key and version, what was told of it."""
    for op in history.ops("command", READ, "stock"):
        if not op.is_ok:
            continue
        for line in op.lines:
            if line.version and line.on_hand is not None and line.reserved is not None:
                made = _MADE if op.op == "adjust" else _SEEN
                yield (line.key, line.version, made, line.on_hand, line.reserved, op.n, line.delta or 0, line.held)
