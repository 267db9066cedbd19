"""The commands as a table: method, address, scope, body, and how the command is made of them. No framework."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from atelier.http import parse_id
from atelier.writes import commands as c
from atelier.writes.commands import Command, VersionMatch
from atelier.writes.rules import check_lines

JSON = frozenset({"application/json"})
MERGE_PATCH = frozenset({"application/json", "application/merge-patch+json"})

INVENTORY = "inventory:write"
CATALOGUE = "catalogue:write"


@dataclass(frozen=True, slots=True)
class Parts:
    """A request, taken apart and checked.

    Attributes:
        ids: the ids of the address, by name.
        body: decoded; None where the command has none.
        if_match: what `If-Match` asks.
    """

    ids: Mapping[str, int]
    body: Any
    if_match: VersionMatch


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One command's place in HTTP.

    Attributes:
        method: of the request.
        path: with `{name}` for ids.
        scope: that the key needs.
        success: the status when it worked.
        make: makes the command of a request's parts.
        summary: one line for the OpenAPI document.
        shape: what the body decodes to; None for none.
        media_types: that the body may have.
        needs_if_match: refuse with 428 without `If-Match`.
    """

    method: str
    path: str
    scope: str
    success: int
    make: Callable[[Parts], Command]
    summary: str
    shape: Any = None
    media_types: frozenset[str] = JSON
    needs_if_match: bool = False

    @property
    def needs_key(self) -> bool:
        """Whether `Idempotency-Key` must be sent."""
        return self.method == "POST"

    def read_ids(self, path_params: Mapping[str, str]) -> dict[str, int]:
        """The ids of an address; raises a ProblemError (400) for a malformed one."""
        return {name: parse_id(text, name) for name, text in path_params.items()}


def _adjust(parts: Parts) -> Command:
    command = c.AdjustStock(parts.body)
    check_lines(command)
    return command


def _reserve(parts: Parts) -> Command:
    command = c.ReserveStock(parts.body)
    check_lines(command)
    return command


def _guarded(kind: type[Command], name: str) -> Callable[[Parts], Command]:
    """Makes commands of one id, perhaps a body, and the version that the client saw."""

    def make(parts: Parts) -> Command:
        fields = {name: parts.ids[name], "if_match": parts.if_match}
        return kind(**fields, **({} if parts.body is None else {"body": parts.body}))

    return make


ENDPOINTS: tuple[Endpoint, ...] = (
    Endpoint("POST", "/inventory/adjustments", INVENTORY, 200, _adjust, "Change stock, all or nothing", c.Adjustment),
    Endpoint(
        "PUT", "/inventory/{sku_id}", INVENTORY, 200, _guarded(c.CountStock, "sku_id"),
        "Set what was counted on the shelf", c.Count, needs_if_match=True,
    ),
    Endpoint("POST", "/reservations", INVENTORY, 201, _reserve, "Keep stock for a while", c.Reservation),
    Endpoint(
        "POST", "/reservations/{reservation_id}/confirm", INVENTORY, 200,
        lambda parts: c.ConfirmReservation(parts.ids["reservation_id"]), "Sell what is reserved",
    ),
    Endpoint(
        "POST", "/reservations/{reservation_id}/release", INVENTORY, 200,
        lambda parts: c.ReleaseReservation(parts.ids["reservation_id"]), "Give back what is reserved",
    ),
)  # fmt: skip
