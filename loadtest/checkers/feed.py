"""Feed complete and ordered: a watcher is told of every change once, in commit order, over all its reconnects.

Several commands may share one commit, and then one event tells of the last of them. So an event may skip versions, but
only such as were made by commands that ran side by side: two commands of which one had ended when the other began
cannot share a commit, and each has its event.
"""

from collections.abc import Iterator
from itertools import dropwhile, groupby
from typing import NamedTuple

from loadtest.checkers.verdict import Finding, Verdict
from loadtest.history.record import EVENT, Op
from loadtest.history.store import History, Row

_COMMAND, _EVENT = 0, 1
_BEGAN, _ENDED = 0, 1


class Window(NamedTuple):
    """When a watcher was listening: from its first open stream to its close, or -1 where it never closed."""

    watcher: str
    opened_s: float
    closed_s: float


class Event(NamedTuple):
    """One event as a watcher got it."""

    watcher: str
    n: int
    key: str
    version: int


class Change(NamedTuple):
    """A command or an event on one key, as a watcher's account of that key is sorted."""

    watcher: str
    key: str
    version: int
    kind: int
    n: int
    invoked_s: float
    completed_s: float


def check_feed(history: History) -> Verdict:
    """See the module."""
    finding = Finding("feed complete and ordered")
    windows = _windows(history)
    for window in windows.values():
        if window.closed_s < 0:
            finding.doubt(f"watcher {window.watcher} was never closed")
    _check_repeats(history, finding)
    _check_complete(history, windows, finding)
    _check_order(history, windows, finding)
    _check_agreement(history, windows, finding)
    return finding.verdict()


def _windows(history: History) -> dict[str, Window]:
    windows: dict[str, Window] = {}
    for op in history.ops(EVENT):
        if op.state == "open" and op.session not in windows:
            windows[op.session] = Window(op.session, op.completed_s, -1.0)
        elif op.state == "closed" and op.session in windows:
            windows[op.session] = windows[op.session]._replace(closed_s=op.invoked_s)
    return windows


def _events(history: History) -> Iterator[Event]:
    """By watcher, in the order in which they came."""
    return map(Event._make, history.sort("events", lambda: _event_rows(history)))


def _event_rows(history: History) -> Iterator[Row]:
    for op in history.ops(EVENT):
        yield from ((op.session, op.n, line.key, line.version or 0) for line in op.lines)


def _check_repeats(history: History, finding: Finding) -> None:
    watcher: str | None = None
    last: dict[str, tuple[int, int]] = {}
    for event in _events(history):
        if event.watcher != watcher:
            watcher, last = event.watcher, {}
        finding.look()
        version, n = last.get(event.key, (-1, 0))
        if event.version == version:
            finding.broke(
                f"watcher {watcher} was told of version {version} of {event.key} twice (ops {n} and {event.n})",
                n,
                event.n,
            )
        elif event.version < version:
            finding.broke(
                f"watcher {watcher} was told of version {event.version} of {event.key} (op {event.n}) after "
                f"version {version} (op {n})",
                n,
                event.n,
            )
        last[event.key] = max(last.get(event.key, (-1, 0)), (event.version, event.n))


def _check_complete(history: History, windows: dict[str, Window], finding: Finding) -> None:
    changes = _changes(history, windows)
    for (watcher, key), group in groupby(changes, key=lambda change: change[:2]):
        waiting: list[Change] = []
        for change in group:
            if change.kind == _EVENT:
                waiting = []
                continue
            finding.look()
            # Of the commands since the last event, the one that ended first is enough to tell who cannot share with it.
            ended = min(waiting, key=lambda other: other.completed_s, default=None)
            if ended is not None and ended.completed_s < change.invoked_s:
                finding.broke(
                    f"watcher {watcher} was never told of version {ended.version} of {key}, made by op {ended.n}: "
                    "that had ended at "
                    f"{ended.completed_s:.3f} s, before op {change.n} began, which made version {change.version}",
                    ended.n,
                )
                waiting = []
            waiting = [min((*waiting, change), key=lambda other: other.completed_s)]
        for change in waiting:
            finding.broke(
                f"watcher {watcher} was never told of version {change.version} of {key}, made by op {change.n}",
                change.n,
            )


def _changes(history: History, windows: dict[str, Window]) -> Iterator[Change]:
    return map(Change._make, history.sort("changes", lambda: _change_rows(history, windows)))


def _change_rows(history: History, windows: dict[str, Window]) -> Iterator[Row]:
    """By watcher, key and version: commands that fall into its window, each before the event of its version."""
    for op in history.ops("command"):
        if not op.is_ok or op.replayed or op.op == "create":
            continue
        for window in windows.values():
            if window.opened_s < op.invoked_s and op.completed_s < window.closed_s:
                yield from _command_rows(op, window.watcher)
    for event in _events(history):
        yield (event.watcher, event.key, event.version, _EVENT, event.n, 0.0, 0.0)


def _command_rows(op: Op, watcher: str) -> Iterator[Row]:
    for line in op.lines:
        if line.version and not line.key.startswith("reservation:"):
            yield (watcher, line.key, line.version, _COMMAND, op.n, op.invoked_s, op.completed_s)


def _check_order(history: History, windows: dict[str, Window], finding: Finding) -> None:
    """Over all keys: a command that had ended when another began is announced before it."""
    watcher: object = None
    latest: tuple[int, int] = (0, 0)
    begun: dict[object, tuple[int, int]] = {}
    for row in history.sort("announced", lambda: _announced(history, windows)):
        if row[0] != watcher:
            watcher, latest, begun = row[0], (0, 0), {}
        _, _, what, n, key, event = row
        if what == _BEGAN:
            begun[n, key] = latest
            continue
        floor, earlier = begun.pop((n, key))
        finding.look()
        if event < floor:
            finding.broke(
                f"watcher {watcher} was told of op {n} (event op {event}) before op {earlier} (event op {floor}), "
                "which had ended "
                "before the other began",
                earlier,
                n,
            )
        latest = max(latest, (event, n))


def _announced(history: History, windows: dict[str, Window]) -> Iterator[Row]:
    """When each command began and ended, with the event that told of it: by watcher and time."""
    for _, group in groupby(_changes(history, windows), key=lambda change: change[:2]):
        waiting: list[Change] = []
        for change in group:
            if change.kind == _COMMAND:
                waiting.append(change)
                continue
            for command in waiting:
                tail = (command.n, command.key, change.n)
                yield (command.watcher, command.invoked_s, _BEGAN, *tail)
                yield (command.watcher, command.completed_s, _ENDED, *tail)
            waiting = []


def _check_agreement(history: History, windows: dict[str, Window], finding: Finding) -> None:
    """All watchers are told the same in the same order, from where the later one began."""
    by_opening = sorted(windows.values(), key=lambda window: window.opened_s)
    for other in by_opening[1:]:
        _compare(history, by_opening[0].watcher, other.watcher, finding)


def _compare(history: History, first: str, second: str, finding: Finding) -> None:
    told = (event for event in _events(history) if event.watcher == second)
    start = next(told, None)
    if start is None:
        return
    whole = (event for event in _events(history) if event.watcher == first)
    rest = dropwhile(lambda event: event[2:] != start[2:], whole)
    if next(rest, None) is None:
        finding.broke(
            f"watcher {first} was never told of version {start.version} of {start.key}, watcher {second} was", start.n
        )
        return
    for one, other in zip(rest, told, strict=False):
        finding.look()
        if one[2:] != other[2:]:
            finding.broke(
                f"watcher {first} was told of version {one.version} of {one.key} (op {one.n}) where watcher "
                f"{second} was told of "
                f"version {other.version} of {other.key} (op {other.n})",
                one.n,
                other.n,
            )
            return
