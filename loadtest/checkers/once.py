"""Exactly once: a command has its effect once, whole, or not at all, however often it was sent."""

from collections import Counter
from collections.abc import Iterator

from loadtest.checkers.effects import Effect, walk_effects
from loadtest.checkers.verdict import Finding, Verdict
from loadtest.history.store import History, Row

_FIRST_KINDS = frozenset({"initial", "import"})
_CREATED, _CHANGED, _FINAL = 0, 1, 2
_OPENED, _HELD = 0, 1


def check_exactly_once(history: History) -> Verdict:
    """Compares commands with the ledger, product versions with commands, reserved stock with reservations."""
    finding = Finding("exactly once")
    if not any(True for _ in history.ops("movement", "product", "stock")):
        finding.doubt("the final state was not read")
    for effect in walk_effects(history):
        _check_effect(effect, finding)
    _check_nameless(history, finding)
    _check_versions(history, finding)
    _check_reserved(history, finding)
    return finding.verdict()


def _check_effect(effect: Effect, finding: Finding) -> None:
    if not effect.kind:
        finding.broke(
            f"the ledger has a movement under {effect.command} ({_tell(effect)}), a command that nobody sent",
            effect.movement,
        )
        return
    finding.look()
    if effect.kind == "create":
        return
    if effect.moved and effect.outcome == "refused":
        finding.broke(
            f"{effect.kind} {effect.command} was refused (op {effect.n}), yet the ledger has {_tell(effect)}",
            effect.n,
            effect.movement,
        )
        return
    for key, deltas in effect.moved.items():
        if len(deltas) > 1:
            finding.broke(
                f"{effect.kind} {effect.command} (op {effect.n}) was applied {len(deltas)} times to {key}: the "
                f"ledger has {_tell(effect)}",
                effect.n,
                effect.movement,
            )
            return
    _check_whole(effect, finding)


def _check_whole(effect: Effect, finding: Finding) -> None:
    planned = effect.moves_stock
    moved = {key: deltas[0] for key, deltas in effect.moved.items()}
    wrong = [key for key, delta in moved.items() if key not in planned or planned[key] not in (None, delta)]
    if wrong:
        finding.broke(
            f"{effect.kind} {effect.command} (op {effect.n}) did to {wrong[0]} what nobody asked for: the ledger "
            f"has {_tell(effect)}",
            effect.n,
            effect.movement,
        )
    elif moved and len(moved) < len(planned) and None not in planned.values():
        finding.broke(
            f"{effect.kind} {effect.command} (op {effect.n}) was applied in part: {len(planned)} SKUs were to "
            "change, and the ledger "
            f"has {_tell(effect)}",
            effect.n,
            effect.movement,
        )


def _check_nameless(history: History, finding: Finding) -> None:
    """Movements without a command: only the first one of a SKU may be that."""
    first: Counter[str] = Counter()
    for op in history.ops("movement"):
        if op.command:
            continue
        for line in op.lines:
            finding.look()
            first[line.key] += 1
            if op.state not in _FIRST_KINDS or first[line.key] > 1:
                finding.broke(f"the ledger of {line.key} has {line.delta or 0:+d} ({op.state}) under no command", op.n)


def _check_versions(history: History, finding: Finding) -> None:
    """A product's version rises by one a command: the final one tells how many took effect."""
    key, first, done, open_ = None, 0, 0, 0
    for row in history.sort("product-versions", lambda: _versions(history)):
        if row[0] != key:
            key, first, done, open_ = row[0], 0, 0, 0
        _, what, version, outcome, n = row
        if what == _CREATED:
            first = version
        elif what == _CHANGED:
            done, open_ = done + (outcome == "ok"), open_ + (outcome == "info")
        elif first:
            finding.look()
            rose = version - first
            if rose > done + open_:
                finding.broke(
                    f"{key} rose {rose} versions (op {n}), and {done} commands on it were done and {open_} may "
                    "have been",
                    n,
                )


def _versions(history: History) -> Iterator[Row]:
    yield from _product_commands(history)
    for op in history.ops("product"):
        yield from ((line.key, _FINAL, line.version or 0, "", op.n) for line in op.lines)


def _product_commands(history: History) -> Iterator[Row]:
    """One row a command, of its best attempt."""
    best: tuple[str, Row] | None = None
    for row in history.sort("product-attempts", lambda: _product_attempts(history)):
        if best is not None and row[0] != best[0]:
            yield best[1]
        if best is None or row[0] != best[0]:
            best = str(row[0]), row[2:]
    if best is not None:
        yield best[1]


def _product_attempts(history: History) -> Iterator[Row]:
    rank = {"ok": 0, "info": 1}
    for op in history.ops("command"):
        if op.outcome in rank and op.command:
            what = _CREATED if op.op == "create" else _CHANGED
            for line in op.lines:
                if line.key.startswith("product:"):
                    yield (op.command, rank[op.outcome], line.key, what, line.version or 0, op.outcome, op.n)


def _check_reserved(history: History, finding: Finding) -> None:
    """What is reserved at the end is not more than the reservations that are still open, or that may be."""
    key, held = None, 0
    for row in history.sort("reserved", lambda: _reserved(history)):
        if row[0] != key:
            key, held = row[0], 0
        if row[1] == _OPENED:
            held += row[2]
            continue
        finding.look()
        if row[2] > held:
            finding.broke(
                f"{row[2]} of {key} are reserved at the end (op {row[3]}), and the open reservations hold {held}",
                row[3],
            )


def _reserved(history: History) -> Iterator[Row]:
    for op in history.ops("reservation"):
        if op.state == "pending":
            yield from ((line.key, _OPENED, line.held, op.n) for line in op.lines)
    for op in history.ops("command"):
        if op.op == "reserve" and op.outcome == "info":
            yield from ((line.key, _OPENED, line.held, op.n) for line in op.lines)
    for op in history.ops("stock"):
        yield from ((line.key, _HELD, line.reserved, op.n) for line in op.lines if line.reserved is not None)


def _tell(effect: Effect) -> str:
    return ", ".join(f"{delta:+d} of {key}" for key, deltas in sorted(effect.moved.items()) for delta in deltas)
