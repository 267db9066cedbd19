"""The commands as a table: method, address, scope, body, and how the command is made of them. No framework."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from atelier.http import parse_id
from atelier.writes import commands as c
from atelier.writes.commands import Command, VersionMatch
from atelier.writes.rules import check_lines

JSON = frozenset({"application/json"})
MERGE_PATCH = frozenset({"application/json", "application/merge-patch+json"})

INVENTORY = "inventory:write"
CATALOGUE = "catalogue:write"


class Parts(msgspec.Struct, frozen=True):
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
    Endpoint(
        "POST", "/products", CATALOGUE, 201, lambda parts: c.CreateProduct(parts.body), "Make a whole product",
        c.NewProduct,
    ),
    Endpoint(
        "PUT", "/products/{product_id}", CATALOGUE, 200, _guarded(c.ReplaceProduct, "product_id"),
        "Set all five fields of a product", c.ProductFields,
    ),
    Endpoint(
        "PATCH", "/products/{product_id}", CATALOGUE, 200, _guarded(c.PatchProduct, "product_id"),
        "Set some of the five fields of a product", c.ProductPatch, MERGE_PATCH,
    ),
    Endpoint(
        "DELETE", "/products/{product_id}", CATALOGUE, 204, _guarded(c.DeleteProduct, "product_id"), "Delete a product"
    ),
    Endpoint(
        "PUT", "/products/{product_id}/features", CATALOGUE, 200, _guarded(c.ReplaceFeatures, "product_id"),
        "Set the features of a product", c.Features,
    ),
    Endpoint(
        "PUT", "/products/{product_id}/related", CATALOGUE, 200, _guarded(c.ReplaceRelated, "product_id"),
        "Set the related products of a product", c.Related,
    ),
    Endpoint(
        "POST", "/products/{product_id}/styles", CATALOGUE, 201, _guarded(c.CreateStyle, "product_id"),
        "Add a style to a product", c.Style,
    ),
    Endpoint(
        "PATCH", "/styles/{style_id}", CATALOGUE, 200, _guarded(c.PatchStyle, "style_id"), "Set some fields of a style",
        c.StylePatch, MERGE_PATCH,
    ),
    Endpoint("DELETE", "/styles/{style_id}", CATALOGUE, 204, _guarded(c.DeleteStyle, "style_id"), "Delete a style"),
    Endpoint(
        "PUT", "/styles/{style_id}/photos", CATALOGUE, 200, _guarded(c.ReplacePhotos, "style_id"),
        "Set the photos of a style", c.Photos,
    ),
    Endpoint(
        "POST", "/styles/{style_id}/skus", CATALOGUE, 201, _guarded(c.CreateSku, "style_id"), "Add a size to a style",
        c.Sku,
    ),
    Endpoint("DELETE", "/skus/{sku_id}", CATALOGUE, 204, _guarded(c.DeleteSku, "sku_id"), "Delete a size"),
)  # fmt: skip
