"""Ledger equals stock: what is on hand of a SKU is the sum of its movements."""

from collections.abc import Iterator

from loadtest.checkers.verdict import Finding, Verdict
from loadtest.history.store import History, Row

_STOCK, _MOVEMENT, _CHANGED = 0, 1, 2


def check_ledger_equals_stock(history: History) -> Verdict:
    """Compares the final stock of every SKU that a command touched with its ledger, read through the API."""
    finding = Finding("ledger equals stock")
    key: str | None = None
    stock: Row | None = None
    total = movements = 0
    for row in history.sort("books", lambda: _books(history)):
        if row[0] != key:
            _compare(key, stock, total, movements, finding)
            key, stock, total, movements = row[0], None, 0, 0
        if row[1] == _STOCK:
            stock = row
        elif row[1] == _MOVEMENT:
            total, movements = total + row[2], movements + 1
    _compare(key, stock, total, movements, finding)
    return finding.verdict()


def _compare(key: str | None, stock: Row | None, total: int, movements: int, finding: Finding) -> None:
    if key is None:
        return
    if stock is None:
        finding.doubt(f"the final stock of {key} was not read")
        return
    finding.look()
    if stock[2] != total:
        finding.broke(
            f"{key} has {stock[2]} on hand (op {stock[3]}), and its {movements} movements sum to {total}",
            stock[3],
        )


def _books(history: History) -> Iterator[Row]:
    for op in history.ops("stock"):
        yield from ((line.key, _STOCK, line.on_hand, op.n) for line in op.lines if line.on_hand is not None)
    for op in history.ops("movement"):
        yield from ((line.key, _MOVEMENT, line.delta or 0, op.n) for line in op.lines)
    for op in history.ops("command"):
        if op.is_ok:
            yield from ((line.key, _CHANGED, 0, op.n) for line in op.lines if line.key.startswith("sku:"))
