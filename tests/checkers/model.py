"""A correct shop in a few lines: a log of commits, replicas that follow it, clients with tokens. It makes histories.

Every effect happens at one moment; a request begins before it and ends after it, so requests of different sessions
overlap. A replica shows the log up to some position; a causal read is served at or behind its token.
"""

import random
from bisect import bisect_right
from dataclasses import dataclass, field

from loadtest.history.record import Line, Op

SKUS = ("sku:1", "sku:2", "sku:3")
SESSIONS = ("ann", "bob", "cyd", "dan")
STOCK = 20


@dataclass
class Shelf:
    on_hand: int = STOCK
    reserved: int = 0
    version: int = 1


@dataclass
class Client:
    free_s: float = 0.0
    token: int = 0
    lost: list = field(default_factory=list)
    pending: list = field(default_factory=list)


class Shop:
    """Makes one history of `count` requests from a source of chance."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.now_s = 1.0
        self.ops: list[Op] = []
        self.shelves = {key: Shelf() for key in SKUS}
        self.log = [(-1e9, dict.fromkeys(SKUS, (1, STOCK, 0)))]
        self.ledger = [(None, key, STOCK) for key in SKUS]
        self.reservations: dict[str, tuple[str, list]] = {}
        self.done: dict[str, tuple] = {}
        self.events: list[tuple[str, int]] = []
        self.clients = {name: Client() for name in SESSIONS}
        self.made = 0

    def run(self, count: int) -> list[Op]:
        for key in SKUS:
            self.add(f"maker of {key}", "create", 0.0, 0.1, (Line(key, 1, STOCK, 0, STOCK),), command=f"make-{key}")
        for watcher in ("w1", "w2"):
            self.add(watcher, "event", 0.2, 0.3, (), state="open")
        for _ in range(count):
            name = self.rng.choice(SESSIONS)
            client = self.clients[name]
            began_s = max(client.free_s, self.now_s - self.rng.random() * 0.4)
            at_s = self.now_s = max(self.now_s, began_s) + self.rng.random() * 0.2
            ended_s = at_s + self.rng.random() * 0.4
            client.free_s = ended_s
            actions = (self.read, self.read, self.browse, self.adjust, self.reserve, self.settle, self.retry)
            self.rng.choice(actions)(name, client, began_s, at_s, ended_s)
        return self.finish()

    def add(self, session: str, op: str, began_s: float, ended_s: float, lines: tuple, **more) -> None:
        self.ops.append(Op(len(self.ops) + 1, session, op, began_s, ended_s, lines=lines, **more))

    def read(self, name, client, began_s, at_s, ended_s):
        mode = self.rng.choice(("causal", "causal", "eventual", "bounded", "strong"))
        bound_ms = self.rng.choice((0, 100, 1000)) if mode == "bounded" else None
        head = len(self.log) - 1
        floor = 0
        if mode == "bounded":
            floor = bisect_right(self.log, began_s - bound_ms / 1000, key=lambda entry: entry[0]) - 1
        floor = head if mode == "strong" else max(floor, client.token if mode == "causal" else 0)
        position = self.rng.randint(floor, head)
        key = self.rng.choice(SKUS)
        version, on_hand, reserved = self.log[position][1][key]
        tokened = mode == "causal"
        client.token = max(client.token, position)
        self.add(name, "read", began_s, ended_s, (Line(key, version, on_hand, reserved),), mode=mode,
                 max_lag_ms=bound_ms, lag_ms=0 if mode == "bounded" else None, tokened=tokened, node="pg2")  # fmt: skip

    def browse(self, name, client, began_s, at_s, ended_s):
        """A page that shows versions of several keys at one moment, or none at all."""
        position = self.rng.randint(client.token, len(self.log) - 1)
        shown = self.rng.sample(SKUS, self.rng.choice((0, 2)))
        client.token = position
        lines = tuple(Line(key, self.log[position][1][key][0]) for key in shown)
        self.add(name, "read", began_s, ended_s, lines, mode="causal", tokened=True, node="pg3")

    def adjust(self, name, client, began_s, at_s, ended_s):
        keys = self.rng.sample(SKUS, self.rng.randint(1, 2))
        lines = [(key, self.rng.choice((-3, -1, 1, 4))) for key in sorted(keys)]
        self.command(name, client, (began_s, at_s, ended_s), "adjust", lines)

    def reserve(self, name, client, began_s, at_s, ended_s):
        self.command(
            name, client, (began_s, at_s, ended_s), "reserve", [(self.rng.choice(SKUS), self.rng.randint(1, 3))]
        )

    def settle(self, name, client, began_s, at_s, ended_s):
        if client.pending:
            reservation = client.pending.pop()
            kind = self.rng.choice(("confirm", "release"))
            self.command(name, client, (began_s, at_s, ended_s), kind, self.reservations[reservation][1], reservation)

    def retry(self, name, client, began_s, at_s, ended_s):
        if client.lost:
            kind, lines, reservation, key = client.lost.pop()
            self.command(name, client, (began_s, at_s, ended_s), kind, lines, reservation, key)

    def command(self, name, client, times, kind, lines, reservation=None, key=None):  # noqa: PLR0917
        began_s, at_s, ended_s = times
        self.made += key is None
        key = key or f"k{self.made}"
        arrives, answered = self.rng.random() < 0.95, self.rng.random() < 0.85
        replayed = key in self.done
        if arrives and not replayed:
            self.done[key] = self.apply(kind, lines, reservation, key, at_s)
        more = {"command": key, "ttl_s": 1000.0 if kind == "reserve" else None}
        if not (arrives and answered):
            client.lost.append((kind, lines, reservation, key))
            self.add(
                name, kind, began_s, ended_s, self.planned(kind, lines), outcome="info", reservation=reservation, **more
            )
            return
        outcome, shown, reservation, position = self.done[key]
        if kind == "reserve" and outcome == "ok":
            client.pending.append(reservation)
        client.token = max(client.token, position)
        shown = shown or self.planned(kind, lines)
        self.add(
            name, kind, began_s, ended_s, shown, outcome=outcome, replayed=replayed, reservation=reservation, **more
        )

    def planned(self, kind, lines):
        return tuple(Line(key, None, None, None, *self.change(kind, quantity)) for key, quantity in lines)

    def change(self, kind, quantity):
        return {
            "adjust": (quantity, 0),
            "reserve": (0, quantity),
            "confirm": (-quantity, -quantity),
            "release": (0, -quantity),
        }[kind]

    def apply(self, kind, lines, reservation, key, at_s):
        if kind in ("confirm", "release") and self.reservations[reservation][0] != "pending":
            return "refused", (), reservation, len(self.log) - 1
        changes = [(sku, *self.change(kind, quantity)) for sku, quantity in lines]
        for sku, delta, held in changes:
            shelf = self.shelves[sku]
            if shelf.on_hand + delta < shelf.reserved + held or shelf.reserved + held < 0:
                return "refused", (), reservation, len(self.log) - 1
        shown = []
        for sku, delta, held in changes:
            shelf = self.shelves[sku]
            shelf.on_hand, shelf.reserved, shelf.version = (
                shelf.on_hand + delta,
                shelf.reserved + held,
                shelf.version + 1,
            )
            if delta:
                self.ledger.append((key, sku, delta))
            self.events.append((sku, shelf.version))
            shown.append(Line(sku, shelf.version, shelf.on_hand, shelf.reserved, delta, held))
        self.log.append((at_s, {sku: (s.version, s.on_hand, s.reserved) for sku, s in self.shelves.items()}))
        if kind == "reserve":
            reservation = f"r{len(self.reservations)}"
            self.reservations[reservation] = "pending", lines
            shown = [line._replace(version=None, on_hand=None, reserved=None) for line in shown]
            shown.append(Line(f"reservation:{reservation}", 1))
        elif kind != "adjust":
            self.reservations[reservation] = {"confirm": "confirmed", "release": "released"}[kind], lines
            shown = [line._replace(version=None, on_hand=None, reserved=None) for line in shown]
            shown.append(Line(f"reservation:{reservation}", 2))
        return "ok", tuple(shown), reservation, len(self.log) - 1

    def finish(self):
        end_s = self.now_s + 10
        for watcher in ("w1", "w2"):
            for position, (key, version) in enumerate(self.events):
                self.add(watcher, "event", end_s, end_s, (Line(key, version),), position=str(position))
            self.add(watcher, "event", end_s + 1, end_s + 1, (), state="closed")
        for reservation, (state, lines) in self.reservations.items():
            held = tuple(Line(sku, held=quantity) for sku, quantity in lines)
            self.add("-", "reservation", end_s, end_s, held, reservation=reservation, state=state)
        for key, shelf in self.shelves.items():
            self.add("-", "stock", end_s, end_s, (Line(key, shelf.version, shelf.on_hand, shelf.reserved),))
        for position, (command, key, delta) in enumerate(self.ledger, 1):
            kind = "initial" if command is None else "adjustment"
            self.add(
                "-",
                "movement",
                end_s,
                end_s,
                (Line(key, delta=delta),),
                command=command,
                position=str(position),
                state=kind,
            )
        return self.ops


def make_history(rng: random.Random, count: int) -> list[Op]:
    """A history of a correct shop."""
    return Shop(rng).run(count)
