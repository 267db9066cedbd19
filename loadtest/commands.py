"""The commands of the contract: how each is sent, what it is to change, and what its answer adds to that."""

import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from loadtest.answers import tell_line, version_of
from loadtest.history.record import Line
from loadtest.transport import Answer


@dataclass(frozen=True, slots=True)
class Command:
    """A command as it is sent, and what it is to change."""

    kind: str
    method: str
    path: str
    name: str
    body: Any
    lines: tuple[Line, ...]
    headers: Mapping[str, str] = field(default_factory=dict)
    reservation: str | None = None
    ttl_s: float | None = None


def adjust(lines: Sequence[tuple[int, int]], reason: str = "lab") -> Command:
    """Adds to what is on hand of some SKUs."""
    body = {"reason": reason, "lines": [{"sku_id": sku_id, "delta": delta} for sku_id, delta in lines]}
    planned = tuple(Line(f"sku:{sku_id}", delta=delta) for sku_id, delta in lines)
    return Command("adjust", "POST", "/inventory/adjustments", "/inventory/adjustments", body, planned)


def count(sku_id: int, on_hand: int, version: int) -> Command:
    """Sets what is on hand after somebody looked into the shelf."""
    planned = (Line(f"sku:{sku_id}", delta=None),)
    headers = {"If-Match": f'"{version}"'}
    return Command("count", "PUT", f"/inventory/{sku_id}", "/inventory/[id]", {"on_hand": on_hand}, planned, headers)


def reserve(lines: Sequence[tuple[int, int]], ttl_s: int) -> Command:
    """Promises some SKUs to a buyer."""
    body = {"ttl_seconds": ttl_s, "lines": [{"sku_id": sku_id, "quantity": quantity} for sku_id, quantity in lines]}
    planned = tuple(Line(f"sku:{sku_id}", held=quantity) for sku_id, quantity in lines)
    return Command("reserve", "POST", "/reservations", "/reservations", body, planned, ttl_s=ttl_s)


def confirm(reservation: str, lines: Sequence[tuple[int, int]]) -> Command:
    """Sells what was reserved."""
    planned = tuple(Line(f"sku:{sku_id}", delta=-quantity, held=-quantity) for sku_id, quantity in lines)
    return _settle("confirm", reservation, planned)


def release(reservation: str, lines: Sequence[tuple[int, int]]) -> Command:
    """Gives back what was reserved."""
    return _settle("release", reservation, tuple(Line(f"sku:{sku_id}", held=-quantity) for sku_id, quantity in lines))


def _settle(kind: str, reservation: str, planned: tuple[Line, ...]) -> Command:
    path, name = f"/reservations/{reservation}/{kind}", f"/reservations/[id]/{kind}"
    return Command(kind, "POST", path, name, None, planned, reservation=reservation)


def update_product(product_id: int, fields: Mapping[str, str], version: int | None = None) -> Command:
    """Changes some fields of a product, only from a version where one is given."""
    headers = {"If-Match": f'"{version}"'} if version is not None else {}
    planned = (Line(f"product:{product_id}"),)
    return Command("update", "PATCH", f"/products/{product_id}", "/products/[id]", dict(fields), planned, headers)


def create_product(body: Mapping[str, Any]) -> Command:
    """Makes a whole product."""
    return Command("create", "POST", "/products", "/products", dict(body), ())


def learn(command: Command, answer: Answer) -> tuple[tuple[Line, ...], str | None]:
    """What an acknowledged command's answer adds to what was planned."""
    document = answer.json() or {}
    planned = {line.key: line for line in command.lines}
    if command.kind == "adjust":
        return tuple(tell_line(planned[f"sku:{told['sku_id']}"], told) for told in document["lines"]), None
    if command.kind == "count":
        line = tell_line(command.lines[0], document)
        # A count that finds what was known changes nothing and makes no version: it says nothing of its own.
        unchanged = command.headers["If-Match"] == f'"{line.version}"'
        return () if unchanged else (line,), None
    if command.kind == "update":
        return (command.lines[0]._replace(version=version_of(answer)),), None
    if command.kind == "create":
        return (Line(f"product:{document['id']}", version_of(answer)),), None
    reservation = str(document["reservation_id"])
    version = 1 if command.kind == "reserve" else 2
    return (*command.lines, Line(f"reservation:{reservation}", version)), reservation


def pick_lines(rng: random.Random, sku_ids: Iterable[int], most: int) -> list[tuple[int, int]]:
    """Some SKUs in random order with a small quantity each."""
    ids = list(sku_ids)
    chosen = rng.sample(ids, min(rng.randint(1, most), len(ids)))
    return [(sku_id, rng.randint(1, 2)) for sku_id in chosen]
