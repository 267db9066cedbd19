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


_TOKEN = "AdkDrkGcBwAAAAAAAQAAAAAAAABQAG1hZGUtdXAtZm9yLXRoaXMtcGFnZQ"  # noqa: S105  opens nothing
_TOKEN_SCHEMA: Json = {"type": "string", "pattern": "^[A-Za-z0-9_-]{1,200}$"}
_AFTER: Json = {"type": "integer", "format": "int64", "minimum": 0, "maximum": LARGEST_ID}
_KEY: Json = {"type": "string", "pattern": "^[A-Za-z0-9_~:.-]{1,255}$"}
_EVENT_ID = f"17.{_TOKEN}"
_TAG = '"7"'


def _parameter(place: str, name: str, schema: Json, about: str, example: object, *, required: bool = False) -> Json:
    schema = {**schema, "examples": [example]}
    return {"name": name, "in": place, "required": required, "description": about, "schema": schema}


def _id(name: str, about: str, example: int) -> Json:
    return _parameter("path", name, ID, about, example, required=True)


_IDEMPOTENCY = "A value of the client's own, new for every command: however often it is sent, it takes effect once."

PARAMETERS: Json = {
    "campus": _parameter("path", "campus", CAMPUS, "Echoed in the field `campus`.", "hr-rfp", required=True),
    "product_id": _id("product_id", "A product.", 1),
    "style_id": _id("style_id", "A style.", 1),
    "sku_id": _id("sku_id", "A SKU: one size of a style.", 37),
    "reservation_id": _id("reservation_id", "A reservation.", 12),
    "key": _parameter("path", "key", _KEY, "An idempotency key.", "5e0f6b52", required=True),
    "problem": _parameter(
        "path", "problem", {"type": "string", "enum": list(TYPES)}, "A kind of problem.", "not-found", required=True
    ),
    "asset": _parameter("path", "asset", TEXT, "A file of the docs page.", "page.css", required=True),
    "page": _parameter(
        "query",
        "page",
        {**ID, "default": 1},
        "Which page. Exact, whatever was inserted or deleted; past the end it is `[]`.",
        2,
    ),
    "count": _parameter(
        "query", "count", {"type": "integer", "minimum": 1, "maximum": 1000, "default": 5}, "How many a page.", 20
    ),
    "movements_count": _parameter(
        "query", "count", {"type": "integer", "minimum": 1, "maximum": 1000, "default": 100}, "How many at most.", 20
    ),
    "after": _parameter("query", "after", _AFTER, "What follows this id, for crawlers; excludes `page`.", 1000),
    "movements_after": _parameter("query", "after", _AFTER, "What follows this movement.", 90),
    "changes_after": _parameter("query", "after", TEXT, "The id of the last event that was seen.", _EVENT_ID),
    "Last-Event-ID": _parameter("header", "Last-Event-ID", TEXT, "The same, as browsers send it; it wins.", _EVENT_ID),
    "Atelier-Token": _parameter(
        "header",
        "Atelier-Token",
        _TOKEN_SCHEMA,
        "The last token that this client was given. The answer contains everything that the token has seen.",
        _TOKEN,
    ),
    "atelier_token": _parameter(
        "cookie",
        "atelier_token",
        _TOKEN_SCHEMA,
        "The same, as browsers of the same origin send it; the header wins. One that is invalid or of a lost history "
        "is ignored, and deleted in the same answer.",
        _TOKEN,
    ),
    "Atelier-Consistency": _parameter(
        "header",
        "Atelier-Consistency",
        {"type": "string", "pattern": "^(eventual|causal|strong|bounded; max-lag-ms=[0-9]{1,9})$"},
        "`eventual`, `bounded; max-lag-ms=N`, `causal` or `strong`. By default `causal` with a token, else `eventual`.",
        "bounded; max-lag-ms=500",
    ),
    "Atelier-Wait-Ms": _parameter(
        "header",
        "Atelier-Wait-Ms",
        {"type": "integer", "minimum": 0, "maximum": 999_999_999},
        "How long a causal or bounded read may wait for a replica before it goes to the primary.",
        200,
    ),
    "If-None-Match": _parameter(
        "header", "If-None-Match", TEXT, 'Entity tags as they were given, such as `"7"`.', _TAG
    ),
    "If-Match": _parameter("header", "If-Match", TEXT, 'The version that the client saw, such as `"7"`.', _TAG),
    "If-Match-required": _parameter(
        "header", "If-Match", TEXT, 'The version that the client saw, such as `"7"`; needed.', _TAG, required=True
    ),
    "Idempotency-Key": _parameter("header", "Idempotency-Key", _KEY, _IDEMPOTENCY, "5e0f6b52"),
    "Idempotency-Key-required": _parameter("header", "Idempotency-Key", _KEY, _IDEMPOTENCY, "5e0f6b52", required=True),
}


def _header(about: str, example: str) -> Json:
    return {"description": about, "schema": {"type": "string", "examples": [example]}}


HEADERS: Json = {
    "ETag": _header("A strong entity tag.", _TAG),
    "Cache-Control": _header(
        "Of a read, by the settings, and `private, no-cache` where a token or more than `eventual` was asked; of a "
        "command, a refusal and what operators read, `no-store`.",
        "no-cache",
    ),
    "Vary": _header("What else the answer depends on.", "Atelier-Token, Atelier-Consistency, Cookie"),
    "Link": _header(
        "RFC 8288: `first`, `prev`, `next`, `last` as they exist.", '</products?page=2&count=5>; rel="next"'
    ),
    "Atelier-Token": _header("What this answer may have seen, merged with the token that was sent.", _TOKEN),
    "Set-Cookie": _header(
        "Of a command: the token, for pages of the same origin. Of a read: only to delete one that was invalid or of "
        "a lost history.",
        f"atelier_token={_TOKEN}; Path=/; SameSite=Lax; HttpOnly; Max-Age=60",
    ),
    "Atelier-Served-By": _header("The node that answered.", "pg2"),
    "Atelier-Lag-Ms": _header("Upper bound of how far that node was behind the primary; or `unknown`.", "12"),
    "Server-Timing": _header("Where the time went, in milliseconds.", "route;dur=0.05, wait;dur=0.00, db;dur=0.80"),
    "Location": _header("Where the new thing is.", "/products/36"),
    "Idempotency-Replayed": _header("`true`: this is the answer of the first request with this key.", "true"),
    "RateLimit": _header(
        "Where a rate is set: what is left of it (`r`), and in how many seconds it is whole (`t`).", '"key";r=99;t=1'
    ),
    "RateLimit-Policy": _header("Where a rate is set: how many (`q`) in how many seconds (`w`).", '"key";q=100;w=10'),
    "Retry-After": _header("Seconds until it is worth asking again.", "1"),
    "WWW-Authenticate": _header("How to say who asks.", 'Bearer realm="atelier"'),
    "Allow": _header("The methods that the address takes here.", "GET, HEAD, OPTIONS"),
    "X-Request-Id": _header("The client's own, or a new one: it stands in the service's log.", "3f9c2ad16b0e4c55"),
}
