"""No lost acknowledged command: what the service said is done is found when all is over."""

from collections.abc import Iterator

from loadtest.checkers.effects import walk_effects
from loadtest.checkers.verdict import Finding, Verdict
from loadtest.history.store import History, Row

_SETTLES = {"confirm": frozenset({"confirmed"}), "release": frozenset({"released"})}
_FINAL, _TOLD = 0, 1
_RESERVED = frozenset({"pending", "confirmed", "released", "expired"})


def check_no_lost_acknowledged(history: History) -> Verdict:
    """Looks for every acknowledged command in the ledger, the final reservations and the final versions."""
    finding = Finding("no lost acknowledged command")
    _check_ledger(history, finding)
    _check_reservations(history, finding)
    _check_versions(history, finding)
    return finding.verdict()


def _check_ledger(history: History, finding: Finding) -> None:
    known = {line.key for op in history.ops("stock") for line in op.lines}
    for effect in walk_effects(history):
        if effect.outcome != "ok" or effect.kind == "create":
            continue
        for key, delta in effect.moves_stock.items():
            if key not in known:
                finding.doubt(f"the ledger of {key} was not read at the end")
            elif delta is not None:
                finding.look()
                if key not in effect.moved:
                    finding.broke(
                        f"{effect.kind} {effect.command} was acknowledged (op {effect.n}): {delta:+d} of {key}; "
                        "the ledger has "
                        "nothing of it",
                        effect.n,
                    )


def _check_reservations(history: History, finding: Finding) -> None:
    reservation, final = None, ""
    for row in history.sort("settled", lambda: _reservations(history)):
        if row[0] != reservation:
            reservation, final = row[0], ""
        _, what, n, kind, state = row
        if what == _FINAL:
            final = str(state)
        elif not final:
            finding.doubt(f"reservation {reservation} was not read at the end")
        else:
            finding.look()
            if final not in _SETTLES.get(str(kind), _RESERVED):
                finding.broke(
                    f"{kind} of reservation {reservation} was acknowledged (op {n}), and at the end it is {final}", n
                )


def _reservations(history: History) -> Iterator[Row]:
    for op in history.ops("reservation"):
        yield (op.reservation or "", _FINAL, op.n, "", op.state or "gone")
    for op in history.ops("command"):
        if op.is_ok and op.reservation:
            yield (op.reservation, _TOLD, op.n, op.op, "")


def _check_versions(history: History, finding: Finding) -> None:
    key, final = None, -1
    for row in history.sort("final-versions", lambda: _versions(history)):
        if row[0] != key:
            key, final = row[0], -1
        _, what, version, n, kind = row
        if what == _FINAL:
            final = version
        elif final < 0:
            finding.doubt(f"{key} was not read at the end")
        else:
            finding.look()
            if version > final:
                finding.broke(
                    f"{kind} op {n} was told that version {version} of {key} is done; at the end "
                    + (f"its version is {final}" if final else "it does not exist"),
                    n,
                )


def _versions(history: History) -> Iterator[Row]:
    for op in history.ops("product", "stock"):
        yield from ((line.key, _FINAL, line.version or 0, op.n, "") for line in op.lines)
    for op in history.ops("command"):
        if op.is_ok:
            told = (line for line in op.lines if line.version and not line.key.startswith("reservation:"))
            yield from ((line.key, _TOLD, line.version, op.n, op.op) for line in told)
