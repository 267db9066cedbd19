"""Sabotage of a history that was recorded: what a broken service would have left behind, and who must notice.

Each takes a whole history and a source of chance, and gives a history in which one promise is broken.
"""

import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TypeVar

from loadtest.history.record import COMMANDS, EVENT, READ, Line, Op, read_op, write_op

_T = TypeVar("_T")
Tampering = Callable[[list[Op], random.Random], list[Op]]


class NothingToBreakError(Exception):
    """The history holds nothing that this sabotage could break."""


@dataclass(frozen=True, slots=True)
class Tamper:
    """One sabotage of a history.

    Attributes:
        caught_by: the checker that must find it.
        apply: does it.
    """

    caught_by: str
    apply: Tampering


def renumber(ops: Iterable[Op]) -> list[Op]:
    """The operations with new numbers, in this order."""
    return [op._replace(n=n) for n, op in enumerate(ops, 1)]


def drop_ledger_row(ops: list[Op], rng: random.Random) -> list[Op]:
    """A movement never reached the ledger."""
    row = _pick([op for op in ops if op.op == "movement" and op.lines[0].delta], rng)
    return renumber(op for op in ops if op is not row)


def apply_twice(ops: list[Op], rng: random.Random) -> list[Op]:
    """A command was applied once more, to the ledger and the stock alike."""
    row = _pick([op for op in ops if op.op == "movement" and op.command and (op.lines[0].delta or 0) != 0], rng)
    line = row.lines[0]
    last = max(int(op.position or 0) for op in ops if op.op == "movement")
    again = row._replace(position=str(last + 1))
    return renumber(_with_stock([*ops, again], line.key, line.delta or 0))


def lose_acknowledged(ops: list[Op], rng: random.Random) -> list[Op]:
    """An acknowledged command left no trace in ledger and stock."""
    done = {op.command for op in ops if op.op in COMMANDS and op.is_ok and op.op != "create"}
    row = _pick([op for op in ops if op.op == "movement" and op.command in done and op.lines[0].delta], rng)
    line = row.lines[0]
    return renumber(_with_stock((op for op in ops if op is not row), line.key, -(line.delta or 0)))


def oversell(ops: list[Op], rng: random.Random) -> list[Op]:
    """A reservation was acknowledged that no shelf could have held."""
    counted = {line.key for op in ops if op.op == "count" for line in op.lines}
    kept = [op for op in ops if op.op == "reserve" and op.is_ok and not {line.key for line in op.lines} & counted]
    grown = _pick(kept, rng)
    lines = tuple(line._replace(held=line.held + 1_000_000_000) for line in grown.lines)
    return renumber(
        op._replace(lines=lines) if op.reservation == grown.reservation and op.op == "reserve" else op for op in ops
    )


def forget_own_write(ops: list[Op], rng: random.Random) -> list[Op]:
    """A read did not show what its session had done before."""
    write = _pick([op for op in ops if _makes_version(op)], rng)
    line = next(line for line in write.lines if line.version)
    return renumber([*ops, _late_read(ops, write.session, line.key, (line.version or 0) - 1)])


def go_back_in_time(ops: list[Op], rng: random.Random) -> list[Op]:
    """A session saw a version, and later an older one."""
    read = _pick(
        [op for op in ops if op.op == READ and op.is_ok and op.tokened and op.lines and (op.lines[0].version or 0) > 1],
        rng,
    )
    line = read.lines[0]
    return renumber([*ops, _late_read(ops, read.session, line.key, (line.version or 0) - 1)])


def reorder_writes(ops: list[Op], rng: random.Random) -> list[Op]:
    """Two commands of one session took effect the other way round."""
    by_session: dict[tuple[str, str], list[Op]] = {}
    for op in ops:
        if _makes_version(op) and not op.replayed:
            for line in op.lines:
                if line.version:
                    by_session.setdefault((op.session, line.key), []).append(op)
    (_, key), (first, second) = _pick(
        [(name, pair) for name, made in by_session.items() for pair in pairwise(made)], rng
    )
    one, other = _version_of(first, key), _version_of(second, key)
    changed = {id(first): _with_version(first, key, other), id(second): _with_version(second, key, one)}
    return renumber(changed.get(id(op), op) for op in ops)


def show_effect_before_cause(ops: list[Op], rng: random.Random) -> list[Op]:
    """Somebody saw a command's effect, and then not what its author had known."""
    candidates: list[tuple[Line, Line]] = []
    known: dict[str, Line] = {}
    for op in ops:
        if op.op == READ and op.is_ok and op.lines and op.lines[0].version:
            known[op.session] = op.lines[0]
        elif _makes_version(op) and not op.replayed:
            past = known.get(op.session)
            candidates += [(line, past) for line in op.lines if past and line.version and past.key != line.key]
            known.pop(op.session, None)
    effect, cause = _pick(candidates, rng)
    return renumber(
        [
            *ops,
            _late_read(ops, "saboteur", effect.key, effect.version or 0),
            _late_read(ops, "saboteur", cause.key, (cause.version or 0) - 1, later_s=1),
        ]
    )


def exceed_bound(ops: list[Op], rng: random.Random) -> list[Op]:
    """A bounded read was older than its bound."""
    write = _pick([op for op in ops if _makes_version(op)], rng)
    line = next(line for line in write.lines if line.version)
    read = _late_read(ops, "saboteur", line.key, (line.version or 0) - 1)
    return renumber([*ops, read._replace(mode="bounded", max_lag_ms=100.0, lag_ms=50.0, tokened=False)])


def answer_from_deposed(ops: list[Op], rng: random.Random) -> list[Op]:
    """A strong read was answered by one who is no primary any more."""
    write = _pick([op for op in ops if _makes_version(op) and not op.replayed], rng)
    line = next(line for line in write.lines if line.version)
    read = _late_read(ops, "saboteur", line.key, (line.version or 0) - 1)
    return renumber([*ops, read._replace(mode="strong", tokened=False)])


def drop_event(ops: list[Op], rng: random.Random) -> list[Op]:
    """The last event of a key never came to one watcher."""
    last = {(op.session, op.lines[0].key): op for op in ops if op.op == EVENT and op.lines}
    # Of a command that only a repeated answer tells of, nobody knows when it was done: its event may be owed or not.
    told = (op for op in ops if _makes_version(op) and not op.replayed)
    announced = {(line.key, line.version) for op in told for line in op.lines}
    dropped = _pick([op for op in last.values() if (op.lines[0].key, op.lines[0].version) in announced], rng)
    return renumber(op for op in ops if op is not dropped)


def swap_events(ops: list[Op], rng: random.Random) -> list[Op]:
    """Two events of one key came the other way round."""
    by_key: dict[tuple[str, str], list[Op]] = {}
    for op in ops:
        if op.op == EVENT and op.lines:
            by_key.setdefault((op.session, op.lines[0].key), []).append(op)
    one, other = _pick([pair for events in by_key.values() for pair in pairwise(events)], rng)
    changed = {id(one): one._replace(lines=other.lines), id(other): other._replace(lines=one.lines)}
    return renumber(changed.get(id(op), op) for op in ops)


TAMPERS: dict[str, Tamper] = {
    "drop-ledger-row": Tamper("ledger equals stock", drop_ledger_row),
    "apply-twice": Tamper("exactly once", apply_twice),
    "lose-acknowledged": Tamper("no lost acknowledged command", lose_acknowledged),
    "oversell": Tamper("no oversell", oversell),
    "forget-own-write": Tamper("read your writes", forget_own_write),
    "go-back-in-time": Tamper("monotonic reads", go_back_in_time),
    "reorder-writes": Tamper("monotonic writes", reorder_writes),
    "effect-before-cause": Tamper("writes follow reads", show_effect_before_cause),
    "exceed-bound": Tamper("bounded staleness", exceed_bound),
    "answer-from-deposed": Tamper("linearizability", answer_from_deposed),
    "drop-event": Tamper("feed complete and ordered", drop_event),
    "swap-events": Tamper("feed complete and ordered", swap_events),
}
"""Every sabotage of a history."""


def tamper_with(lines: Iterable[str], name: str, rng: random.Random) -> Iterator[str]:
    """The lines of a history as the named sabotage would have left them. Holds it in memory, unlike the checkers.

    Raises:
        NothingToBreakError: it holds nothing that could be broken so.
    """
    return map(write_op, TAMPERS[name].apply([read_op(line) for line in lines], rng))


def _pick(candidates: Sequence[_T], rng: random.Random) -> _T:
    if not candidates:
        raise NothingToBreakError
    return rng.choice(candidates)


def _makes_version(op: Op) -> bool:
    return op.op in COMMANDS and op.is_ok and any(line.version for line in op.lines)


def _version_of(op: Op, key: str) -> int | None:
    return next(line.version for line in op.lines if line.key == key)


def _with_version(op: Op, key: str, version: int | None) -> Op:
    return op._replace(lines=tuple(line._replace(version=version) if line.key == key else line for line in op.lines))


def _with_stock(ops: Iterable[Op], key: str, delta: int) -> Iterable[Op]:
    """The final stock of a SKU as it would be with that much more."""
    for op in ops:
        line = op.lines[0] if op.op == "stock" else None
        if line is not None and line.key == key and line.on_hand is not None:
            yield op._replace(lines=(line._replace(on_hand=line.on_hand + delta),))
        else:
            yield op


def _late_read(ops: list[Op], session: str, key: str, version: int, *, later_s: float = 0) -> Op:
    """A read after everything else."""
    at_s = max(op.completed_s for op in ops) + 1 + later_s
    line = Line(key, version=max(version, 0))
    return Op(0, session, READ, at_s, at_s + 0.5, lines=(line,), mode="causal", tokened=True, node="nowhere")
