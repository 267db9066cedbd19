"""The operations of the writing side: from its own table of endpoints and its own structs, and notes on each."""

from dataclasses import dataclass
from typing import Any

import msgspec

from atelier.documentation import examples as x
from atelier.documentation.components import ref, several
from atelier.documentation.operation import JSON_TYPE, Body, Json, Operation, Success
from atelier.writes.endpoints import ENDPOINTS, Endpoint

_RATE = ("RateLimit", "RateLimit-Policy")
_RECEIPT = ("Atelier-Token", "Set-Cookie", "Idempotency-Replayed", "Cache-Control", *_RATE)
_FOUND = ("Atelier-Token", "Set-Cookie", "Cache-Control", *_RATE)
_ALWAYS = (
    "invalid-request",
    "unauthorized",
    "forbidden",
    "idempotency-in-flight",
    "idempotency-conflict",
    "too-many-requests",
    "overloaded",
    "primary-unavailable",
    "outcome-unknown",
)
_BY_VERSION = ("precondition-failed",)
_SETTLED = ("reservation-expired", "reservation-confirmed", "reservation-released", "catalogue-replaced")


@dataclass(frozen=True, slots=True)
class Note:
    """What the table of endpoints does not say of a command.

    Attributes:
        name: the operationId.
        about: the answer in one line.
        schema: of the answer; None for an empty one.
        example: of the answer.
        body: an example of what it takes.
        problems: beside those of every command.
        headers: beside those of every receipt.
    """

    name: str
    about: str
    schema: Json | None = None
    example: Any = None
    body: Any = None
    problems: tuple[str, ...] = ()
    headers: tuple[str, ...] = ("ETag",)


_PRODUCT = ("The product.", ref("Product"), x.PRODUCT)
_STYLE = ("The style.", ref("Style"), x.STYLE)
_STOCK = ("The stock.", ref("Stock"), x.STOCK)
_RESERVATION = ("The reservation.", ref("ReservationState"), x.RESERVATION)
_GONE = ("It is gone.",)
_MISSING = ("not-found",)
_GUARDED = (*_MISSING, *_BY_VERSION)
_RESERVED = (*_GUARDED, "stock-reserved")
_MADE = ("ETag", "Location")

NOTES: dict[tuple[str, str], Note] = {
    ("POST", "/inventory/adjustments"): Note(
        "adjust_stock", "The stock of every line.", ref("StockLines"), {"lines": [x.STOCK]},
        x.ADJUSTMENT, (*_MISSING, "insufficient-stock"), (),
    ),
    ("PUT", "/inventory/{sku_id}"): Note("count_stock", *_STOCK, x.COUNT, (*_GUARDED, "insufficient-stock")),
    ("POST", "/reservations"): Note(
        "reserve_stock", *_RESERVATION, x.NEW_RESERVATION, (*_MISSING, "insufficient-stock"), ("Location",)
    ),
    ("POST", "/reservations/{reservation_id}/confirm"): Note(
        "confirm_reservation", *_RESERVATION, None, (*_MISSING, *_SETTLED), ()
    ),
    ("POST", "/reservations/{reservation_id}/release"): Note(
        "release_reservation", *_RESERVATION, None, (*_MISSING, *_SETTLED), ()
    ),
    ("POST", "/products"): Note("create_product", *_PRODUCT, x.NEW_PRODUCT, (), _MADE),
    ("PUT", "/products/{product_id}"): Note("replace_product", *_PRODUCT, x.PRODUCT_FIELDS, _GUARDED),
    ("PATCH", "/products/{product_id}"): Note("patch_product", *_PRODUCT, {"default_price": "129"}, _GUARDED),
    ("DELETE", "/products/{product_id}"): Note("delete_product", *_GONE, problems=_RESERVED, headers=()),
    ("PUT", "/products/{product_id}/features"): Note(
        "replace_features", "The list.", several(ref("Feature")), x.FEATURES, x.FEATURES, _GUARDED
    ),
    ("PUT", "/products/{product_id}/related"): Note(
        "replace_related", "The list.", ref("Related"), x.RELATED, x.RELATED, _GUARDED
    ),
    ("POST", "/products/{product_id}/styles"): Note("create_style", *_STYLE, x.NEW_STYLE, _GUARDED, _MADE),
    ("PATCH", "/styles/{style_id}"): Note("patch_style", *_STYLE, {"sale_price": "99.50"}, _GUARDED),
    ("DELETE", "/styles/{style_id}"): Note("delete_style", *_GONE, problems=_RESERVED),
    ("PUT", "/styles/{style_id}/photos"): Note("replace_photos", *_STYLE, x.NEW_STYLE["photos"], _GUARDED),
    ("POST", "/styles/{style_id}/skus"): Note("create_sku", *_STOCK, x.NEW_STYLE["skus"][0], _GUARDED, _MADE),
    ("DELETE", "/skus/{sku_id}"): Note("delete_sku", *_GONE, problems=_RESERVED),
}  # fmt: skip


def list_writing() -> tuple[tuple[Operation, ...], Json]:
    """All operations of the writing side, and the schemas of what they take, by name."""
    shapes = [endpoint.shape for endpoint in ENDPOINTS if endpoint.shape is not None]
    schemas, components = msgspec.json.schema_components(shapes, ref_template="#/components/schemas/New.{name}")
    taken = {id(shape): schema for shape, schema in zip(shapes, schemas, strict=True)}
    operations = (*(_describe(endpoint, taken) for endpoint in ENDPOINTS), _resolver())
    return operations, {f"New.{name}": schema for name, schema in components.items()}


def _describe(endpoint: Endpoint, taken: dict[int, Json]) -> Operation:
    note = NOTES[endpoint.method, endpoint.path]
    body = None
    if endpoint.shape is not None:
        body = Body(tuple(sorted(endpoint.media_types)), taken[id(endpoint.shape)], note.body)
    has_version = endpoint.needs_if_match or "precondition-failed" in note.problems
    return Operation(
        endpoint.method,
        endpoint.path,
        note.name,
        "Inventory" if endpoint.scope.startswith("inventory") else "Catalogue",
        endpoint.summary,
        (Success(endpoint.success, note.about, note.schema, note.example, (*_RECEIPT, *note.headers)),),
        parameters=_parameters(endpoint, has_version=has_version),
        problems=(*_ALWAYS, *note.problems, *_problems(endpoint)),
        scope=endpoint.scope,
        body=body,
    )


def _parameters(endpoint: Endpoint, *, has_version: bool) -> tuple[str, ...]:
    places = tuple(part[1:-1] for part in endpoint.path.split("/") if part.startswith("{"))
    key = "Idempotency-Key-required" if endpoint.needs_key else "Idempotency-Key"
    if endpoint.needs_if_match:
        return (*places, key, "If-Match-required")
    return (*places, key, *(("If-Match",) if has_version else ()))


def _problems(endpoint: Endpoint) -> tuple[str, ...]:
    with_body = ("payload-too-large", "unsupported-media-type") if endpoint.shape is not None else ()
    with_key = ("idempotency-key-missing",) if endpoint.needs_key else ()
    return (*with_body, *with_key, *(("precondition-required",) if endpoint.needs_if_match else ()))


def _resolver() -> Operation:
    example = {"status": 200, "body": {"lines": [x.STOCK]}}
    return Operation(
        "GET",
        "/commands/{key}",
        "resolve_command",
        "Commands",
        "What became of a command",
        (Success(200, "It was recorded.", ref("Recorded"), example, _FOUND, JSON_TYPE),),
        parameters=("key",),
        problems=(
            "invalid-request", "unauthorized", "not-found", "idempotency-in-flight", "too-many-requests",
            "overloaded", "primary-unavailable", "outcome-unknown",
        ),
        about="For a client whose connection broke. A 404 is no promise about a request still on its way: "
        "send it again with the same key.",
        scope="",
    )  # fmt: skip
