"""One line of a history: what a client asked, when, and what it was told. Pure values and their JSON.

A history holds requests (`read` and the commands), what the change feed delivered (`event`), and the state that was
read when all was over (`movement`, `stock`, `product`, `reservation`). Times are seconds since the run began, by one
monotonic clock.

Versions make histories checkable: a read tells which version of a key it saw, a command which one it made. A key that
was not found counts as version 0. A command that does not tell its version (a reservation) has None: it is known to
have raised the version, not to what.
"""

import json
from typing import Any, NamedTuple

READ = "read"
EVENT = "event"
COMMANDS = frozenset({"create", "update", "adjust", "count", "reserve", "confirm", "release"})
FINAL = frozenset({"movement", "stock", "product", "reservation"})
KINDS = frozenset({READ, EVENT}) | COMMANDS | FINAL
OUTCOMES = frozenset({"ok", "refused", "fail", "info"})


class MalformedHistoryError(Exception):
    """A history cannot be read; what it would have shown is unknown."""


class Line(NamedTuple):
    """What a request says of one key.

    Attributes:
        key: `sku:7`, `product:3` or `reservation:12`.
        version: what was seen (0: not found) or made; None when the answer does not tell.
        on_hand: of a SKU after the request; None when not told.
        reserved: of a SKU after the request; None when not told.
        delta: what the command adds to on_hand; None when only the service knows (a count of the shelf).
        held: what the command adds to reserved.
    """

    key: str
    version: int | None = None
    on_hand: int | None = None
    reserved: int | None = None
    delta: int | None = 0
    held: int = 0


class Op(NamedTuple):
    """One request, event or final fact.

    Attributes:
        n: its number in the history.
        session: the client that made it; a session does one thing at a time.
        op: one of `KINDS`.
        invoked_s: when it was sent.
        completed_s: when its answer was there, or when the client gave up.
        outcome: `ok`; `refused` (the service said no, nothing was done); `fail` (never sent); `info` (unknown).
        lines: what it says of each key.
        status: of the answer; None without one.
        command: the idempotency key, the same for every attempt; of a movement, the one in the ledger.
        replayed: the service said that this is the answer to an earlier attempt.
        mode: consistency of a read: eventual, bounded, causal, strong.
        max_lag_ms: the bound that a bounded read asked for.
        tokened: the request carried the token of its session.
        node: the node that answered.
        lag_ms: its lag as the answer says; None when it does not, or does not know.
        token_sent: fingerprint of the token that was sent.
        token_got: fingerprint of the token that came back.
        reservation: the reservation that a command made or settled.
        state: of a reservation, or the kind of a movement.
        ttl_s: how long a reservation was to hold.
        position: the id of an event.
        intended_s: when an open-loop arrival should have been sent; None where the same as invoked_s.
        problem: the name of the problem that the answer carried.
    """

    n: int
    session: str
    op: str
    invoked_s: float
    completed_s: float
    outcome: str = "ok"
    lines: tuple[Line, ...] = ()
    status: int | None = None
    command: str | None = None
    replayed: bool = False
    mode: str | None = None
    max_lag_ms: float | None = None
    tokened: bool = False
    node: str | None = None
    lag_ms: float | None = None
    token_sent: str | None = None
    token_got: str | None = None
    reservation: str | None = None
    state: str | None = None
    ttl_s: float | None = None
    position: str | None = None
    intended_s: float | None = None
    problem: str | None = None

    @property
    def is_ok(self) -> bool:
        """Whether the service said that it was done."""
        return self.outcome == "ok"


_OP_DEFAULTS = Op._field_defaults
_LINE_DEFAULTS = Line._field_defaults
_KNOWN = frozenset(Op._fields)
_KNOWN_LINE = frozenset(Line._fields)


def write_op(op: Op) -> str:
    """One line of JSON, without its end; what has its default value is left out."""
    document: dict[str, Any] = {
        name: value for name, value in zip(Op._fields, op, strict=True) if value != _OP_DEFAULTS.get(name, ...)
    }
    if op.lines:
        document["lines"] = [
            {
                name: value
                for name, value in zip(Line._fields, line, strict=True)
                if name == "key" or value != _LINE_DEFAULTS[name]
            }
            for line in op.lines
        ]
    return json.dumps(document, separators=(",", ":"))


def read_op(text: str) -> Op:
    """Reads one line.

    Raises:
        MalformedHistoryError: it is no record of a history.
    """
    try:
        document = json.loads(text)
        lines = tuple([Line(**line) for line in document.pop("lines", ())])
        op = Op(lines=lines, **document)
    except (ValueError, TypeError, AttributeError) as error:
        raise MalformedHistoryError(f"no record: {error}") from error
    _check(op)
    return op


def _check(op: Op) -> None:
    if op.op not in KINDS:
        raise MalformedHistoryError(f"no such operation: {op.op!r}")
    if op.outcome not in OUTCOMES:
        raise MalformedHistoryError(f"no such outcome: {op.outcome!r}")
    if type(op.n) is not int or type(op.session) is not str:
        raise MalformedHistoryError("n is a number and session a text")
    for at_s in (op.invoked_s, op.completed_s):
        if type(at_s) is not float and type(at_s) is not int:
            raise MalformedHistoryError(f"no time: {at_s!r}")
    if not op.invoked_s <= op.completed_s:
        raise MalformedHistoryError(f"op {op.n} was answered before it was asked")
    for line in op.lines:
        _check_line(line)


def _check_line(line: Line) -> None:
    if type(line.key) is not str:
        raise MalformedHistoryError(f"no key: {line.key!r}")
    for number in (line.version, line.on_hand, line.reserved, line.delta, line.held):
        if number is not None and type(number) is not int:
            raise MalformedHistoryError(f"no whole number: {number!r}")
