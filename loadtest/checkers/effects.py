"""What became of each command: its attempts beside the movements that carry its key. Shared by two checkers."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import groupby

from loadtest.history.store import History, Row

_ATTEMPT, _MOVEMENT = 0, 1


@dataclass(slots=True)
class Effect:
    """One command.

    Attributes:
        command: its key.
        kind: what it is; empty when no client of this history sent it.
        outcome: the best that any attempt was told: ok, info (unknown), refused, or fail (never sent).
        n: the attempt that says so, or a movement where nobody sent it.
        reservation: that it made or settled.
        planned: what it was to add to on_hand by key; None where only the service knows.
        moved: what the ledger has under its key: every delta of each SKU.
        movement: the last of these movements.
    """

    command: str
    kind: str = ""
    outcome: str = "fail"
    n: int = 0
    reservation: str | None = None
    planned: dict[str, int | None] = field(default_factory=dict)
    moved: dict[str, list[int]] = field(default_factory=dict)
    movement: int = 0

    @property
    def moves_stock(self) -> dict[str, int | None]:
        """What the ledger must show of it, once it is done."""
        return {key: delta for key, delta in self.planned.items() if delta != 0}


_RANK = {"ok": 0, "info": 1, "refused": 2, "fail": 3}


def walk_effects(history: History) -> Iterator[Effect]:
    """Every command that was sent or that the ledger names, by key."""
    rows = history.sort("effects-by-command", lambda: _rows(history))
    for command, group in groupby(rows, key=lambda row: row[0]):
        yield _collect(str(command), group)


def _collect(command: str, rows: Iterator[Row]) -> Effect:
    effect = Effect(command)
    for row in rows:
        if row[1] == _MOVEMENT:
            effect.moved.setdefault(row[3], []).append(row[4])
            effect.movement = row[2]
            effect.n = effect.n or effect.movement
            continue
        _, _, n, kind, outcome, reservation, planned = row
        if not effect.kind or _RANK[outcome] < _RANK[effect.outcome]:
            effect.kind, effect.outcome, effect.n = kind, outcome, n
            effect.reservation = reservation or None
        effect.planned.update(planned)
    return effect


def _rows(history: History) -> Iterator[Row]:
    for op in history.ops("command"):
        if op.command:
            planned = tuple([(line.key, line.delta) for line in op.lines if line.key.startswith("sku:")])
            yield (op.command, _ATTEMPT, op.n, op.op, op.outcome, op.reservation or "", planned)
    for op in history.ops("movement"):
        if op.command:
            yield from ((op.command, _MOVEMENT, op.n, line.key, line.delta or 0) for line in op.lines)
