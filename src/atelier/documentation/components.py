"""The shared parts of the OpenAPI document: parameters, headers, and the schemas of what is read."""

from typing import Any

from atelier.http import LARGEST_ID
from atelier.problems import TYPES

Json = dict[str, Any]

TEXT: Json = {"type": "string"}
FLAG: Json = {"type": "boolean"}
ID: Json = {"type": "integer", "format": "int64", "minimum": 1, "maximum": LARGEST_ID}
WHOLE: Json = {"type": "integer", "format": "int64", "minimum": 0}
MAYBE_TEXT: Json = {"type": ["string", "null"]}
SHORT_PRICE: Json = {"type": "string", "pattern": r"^\d{1,9}(\.\d{2})?$", "examples": ["140", "19.50"]}
LONG_PRICE: Json = {"type": "string", "pattern": r"^\d{1,9}\.\d{2}$", "examples": ["140.00"]}
MOMENT: Json = {
    "type": "string",
    "pattern": r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z$",
    "examples": ["2021-08-13T14:38:44.509Z"],
}
CAMPUS: Json = {"type": "string", "pattern": "^[a-z0-9-]{1,32}$"}


def shape(**fields: Json) -> Json:
    """An object that has exactly these fields, all of them."""
    return {"type": "object", "properties": fields, "required": list(fields), "additionalProperties": False}


def several(item: Json) -> Json:
    """A list."""
    return {"type": "array", "items": item}


def ref(name: str) -> Json:
    """A schema by its name."""
    return {"$ref": f"#/components/schemas/{name}"}


_TEXTS: Json = {"name": TEXT, "slogan": TEXT, "description": TEXT, "category": TEXT}
_ITEM: Json = {"id": ID, **_TEXTS, "default_price": SHORT_PRICE}
_LIVE_ITEM: Json = {
    "id": ID, "campus": CAMPUS, **_TEXTS, "default_price": LONG_PRICE, "created_at": MOMENT, "updated_at": MOMENT
}  # fmt: skip
_PHOTOS: Json = {**several(shape(thumbnail_url=MAYBE_TEXT, url=MAYBE_TEXT)), "minItems": 1}
_SKUS: Json = {
    "type": "object",
    "additionalProperties": shape(quantity={"type": ["integer", "null"], "minimum": 0}, size=MAYBE_TEXT),
}

SCHEMAS: Json = {
    "Item": shape(**_ITEM),
    "Feature": shape(feature=TEXT, value=MAYBE_TEXT),
    "Product": shape(**_ITEM, features=several(ref("Feature"))),
    "LiveItem": shape(**_LIVE_ITEM),
    "LiveProduct": shape(**_LIVE_ITEM, features=several(ref("Feature"))),
    "Style": shape(
        style_id=ID,
        name=TEXT,
        original_price=SHORT_PRICE,
        sale_price=SHORT_PRICE,
        **{"default?": {"type": "integer", "enum": [0, 1]}},
        photos=_PHOTOS,
        skus=_SKUS,
    ),
    "Styles": shape(product_id=TEXT, results=several(ref("Style"))),
    "LiveStyle": shape(
        style_id=ID,
        name=TEXT,
        original_price=LONG_PRICE,
        sale_price={**LONG_PRICE, "type": ["string", "null"]},
        **{"default?": FLAG},
        photos=_PHOTOS,
        skus=_SKUS,
    ),
    "LiveStyles": shape(product_id=TEXT, results=several(ref("LiveStyle"))),
    "Related": several(ID),
    "Stock": shape(sku_id=ID, on_hand=WHOLE, reserved=WHOLE, available=WHOLE, version=ID),
    "StockLines": shape(lines=several(ref("Stock"))),
    "Movement": shape(
        movement_id=ID,
        delta={"type": "integer"},
        kind={"type": "string", "enum": ["import", "initial", "adjustment", "count", "sale", "removed"]},
        reason=MAYBE_TEXT,
        command_key=MAYBE_TEXT,
        at=TEXT,
    ),
    "ReservationState": {
        "type": "object",
        "properties": {
            "reservation_id": ID,
            "state": {"type": "string", "enum": ["pending", "confirmed", "released", "expired"]},
            "expires_at": TEXT,
            "lines": several(shape(sku_id=ID, quantity=ID)),
            "reason": MAYBE_TEXT,
        },
        "required": ["reservation_id", "state", "expires_at", "lines"],
    },
    "Recorded": shape(status={"type": "integer"}, body={}),
    "Node": shape(
        name=TEXT,
        role={"type": "string", "enum": ["primary", "replica", "deposed", "unknown"]},
        state=TEXT,
        timeline={"type": ["integer", "null"]},
        received_lsn=MAYBE_TEXT,
        replayed_lsn=MAYBE_TEXT,
        lag_bytes={"type": ["integer", "null"]},
        lag_ms={"type": ["number", "null"]},
        in_flight={"type": "integer"},
        ejected_until={"type": ["string", "null"]},
        reason=MAYBE_TEXT,
    ),
    "Cluster": shape(nodes=several(ref("Node"))),
    "Problem": {
        "type": "object",
        "properties": {
            "type": {"type": "string", "enum": [f"/problems/{name}" for name in TYPES]},
            "title": TEXT,
            "status": {"type": "integer"},
            "detail": TEXT,
            "instance": TEXT,
            "field": TEXT,
            "lines": several({"type": "object"}),
            "retry_after_s": {"type": "integer"},
        },
        "required": ["type", "title", "status", "detail", "instance"],
    },
}


def _parameter(place: str, name: str, schema: Json, about: str, *, required: bool = False) -> Json:
    return {"name": name, "in": place, "required": required, "description": about, "schema": schema}


def _id(name: str, about: str) -> Json:
    return _parameter("path", name, ID, about, required=True)


PARAMETERS: Json = {
    "campus": _parameter("path", "campus", CAMPUS, "Echoed in the field `campus`.", required=True),
    "product_id": _id("product_id", "A product."),
    "style_id": _id("style_id", "A style."),
    "sku_id": _id("sku_id", "A SKU: one size of a style."),
    "reservation_id": _id("reservation_id", "A reservation."),
    "key": _parameter(
        "path", "key", {"type": "string", "pattern": "^[A-Za-z0-9_~:.-]{1,255}$"}, "An idempotency key.", required=True
    ),
    "problem": _parameter(
        "path", "problem", {"type": "string", "enum": list(TYPES)}, "A kind of problem.", required=True
    ),
    "asset": _parameter("path", "asset", TEXT, "A file of the docs page.", required=True),
    "page": _parameter(
        "query",
        "page",
        {**ID, "default": 1},
        "Which page. Exact, whatever was inserted or deleted; past the end it is `[]`.",
    ),
    "count": _parameter(
        "query", "count", {"type": "integer", "minimum": 1, "maximum": 1000, "default": 5}, "How many a page."
    ),
    "after": _parameter(
        "query",
        "after",
        {"type": "integer", "format": "int64", "minimum": 0, "maximum": LARGEST_ID},
        "What follows this id, for crawlers; excludes `page`.",
    ),
    "movements_after": _parameter(
        "query",
        "after",
        {"type": "integer", "format": "int64", "minimum": 0, "maximum": LARGEST_ID},
        "What follows this movement.",
    ),
    "changes_after": _parameter("query", "after", TEXT, "The id of the last event that was seen."),
    "Last-Event-ID": _parameter("header", "Last-Event-ID", TEXT, "The same, as browsers send it; it wins."),
    "Atelier-Token": _parameter(
        "header",
        "Atelier-Token",
        {"type": "string", "pattern": "^[A-Za-z0-9_-]{1,200}$"},
        "The last token that this client was given. The answer contains everything that the token has seen.",
    ),
    "Atelier-Consistency": _parameter(
        "header",
        "Atelier-Consistency",
        {"type": "string", "pattern": "^(eventual|causal|strong|bounded; max-lag-ms=[0-9]{1,9})$"},
        "`eventual`, `bounded; max-lag-ms=N`, `causal` or `strong`. By default `causal` with a token, else `eventual`.",
    ),
    "Atelier-Wait-Ms": _parameter(
        "header",
        "Atelier-Wait-Ms",
        {"type": "integer", "minimum": 0, "maximum": 999_999_999},
        "How long a causal or bounded read may wait for a replica before it goes to the primary.",
    ),
    "If-None-Match": _parameter("header", "If-None-Match", TEXT, 'Entity tags as they were given, such as `"7"`.'),
    "If-Match": _parameter("header", "If-Match", TEXT, 'The version that the client saw, such as `"7"`.'),
    "If-Match-required": _parameter(
        "header", "If-Match", TEXT, 'The version that the client saw, such as `"7"`; needed.', required=True
    ),
    "Idempotency-Key": _parameter(
        "header",
        "Idempotency-Key",
        {"type": "string", "pattern": "^[A-Za-z0-9_~:.-]{1,255}$"},
        "A value of the client's own, new for every command: however often it is sent, it takes effect once.",
    ),
    "Idempotency-Key-required": _parameter(
        "header",
        "Idempotency-Key",
        {"type": "string", "pattern": "^[A-Za-z0-9_~:.-]{1,255}$"},
        "A value of the client's own, new for every command: however often it is sent, it takes effect once.",
        required=True,
    ),
}


def _header(about: str, example: Any = None) -> Json:
    schema = {"type": "string"} if example is None else {"type": "string", "examples": [example]}
    return {"description": about, "schema": schema}


HEADERS: Json = {
    "ETag": _header("A strong entity tag.", '"7"'),
    "Cache-Control": _header(
        "By the settings; `private, no-cache` where a token or more than `eventual` was asked.", "no-cache"
    ),
    "Link": _header(
        "RFC 8288: `first`, `prev`, `next`, `last` as they exist.", '</products?page=2&count=5>; rel="next"'
    ),
    "Atelier-Token": _header("What this answer may have seen, merged with the token that was sent."),
    "Atelier-Served-By": _header("The node that answered.", "pg2"),
    "Atelier-Lag-Ms": _header("Upper bound of how far that node was behind the primary; or `unknown`.", "12"),
    "Server-Timing": _header("Where the time went, in milliseconds.", "route;dur=0.05, wait;dur=0.00, db;dur=0.80"),
    "Location": _header("Where the new thing is.", "/products/36"),
    "Idempotency-Replayed": _header("`true`: this is the answer of the first request with this key.", "true"),
    "Retry-After": _header("Seconds until it is worth asking again.", "1"),
    "WWW-Authenticate": _header("How to say who asks.", 'Bearer realm="atelier"'),
    "X-Request-Id": _header("The client's own, or a new one: it stands in the service's log.", "3f9c2ad16b0e4c55"),
}
