"""The operations of the reading side, as the OpenAPI document shows them."""

from atelier.documentation import examples as x
from atelier.documentation.components import ref, several
from atelier.documentation.operation import Operation, Success

CONSISTENCY = ("Atelier-Token", "atelier_token", "Atelier-Consistency", "Atelier-Wait-Ms")
ANSWER_HEADERS = (
    "ETag", "Cache-Control", "Vary", "Atelier-Token", "Atelier-Served-By", "Atelier-Lag-Ms", "Server-Timing",
    "Set-Cookie",
)  # fmt: skip
PROBLEMS = ("invalid-request", "invalid-token", "history-lost", "no-replica", "primary-unavailable")
KEY_PROBLEMS = ("unauthorized",)
_UNCHANGED = Success(304, "It has not changed: no body.", headers=(*ANSWER_HEADERS, "Link"))

_TAGS = {"": "Storefront", "_live": "Storefront, live dialect"}
_LIVE = "/api/fec2/{campus}"


def _read(
    path: str,
    name: str,
    summary: str,
    success: Success,
    *,
    parameters: tuple[str, ...],
    tag: str = "Storefront",
    needs_key: bool = False,
    may_miss: bool = True,
) -> Operation:
    extra = (*(("not-found",) if may_miss else ()), *(KEY_PROBLEMS if needs_key else ()))
    return Operation(
        "GET",
        path,
        name,
        tag,
        summary,
        (success, _UNCHANGED),
        parameters=(*parameters, *CONSISTENCY, "If-None-Match"),
        problems=(*PROBLEMS, *extra),
        scope="" if needs_key else None,
    )


def _answer(about: str, schema: str, example: object, *more_headers: str) -> Success:
    return Success(200, about, ref(schema), example, (*ANSWER_HEADERS, *more_headers))


def _list(path: str, *, live: bool) -> Operation:
    item = ref("LiveItem" if live else "Item")
    success = Success(200, "A page.", several(item), [x.LIVE_ITEM if live else x.ITEM], (*ANSWER_HEADERS, "Link"))
    end = "_live" if live else ""
    parameters = (*(("campus",) if live else ()), "page", "count", "after")
    return _read(
        path, f"list_products{end}", "Products in id order", success,
        parameters=parameters, tag=_TAGS[end], may_miss=False,
    )  # fmt: skip


def _dialect(*, live: bool) -> tuple[Operation, ...]:
    base, end, kind = (_LIVE, "_live", "Live") if live else ("", "", "")
    parameters = (*(("campus",) if live else ()), "product_id")
    tag = _TAGS[end]
    product = _answer("The product.", f"{kind}Product", x.LIVE_PRODUCT if live else x.PRODUCT)
    styles = _answer("The styles, in id order.", f"{kind}Styles", x.LIVE_STYLES if live else x.STYLES)
    related = _answer("Ids, in stored order.", "Related", x.RELATED)
    one = f"{base}/products/{{product_id}}"
    return (
        _list(f"{base}/products", live=live),
        _read(one, f"get_product{end}", "One product with its features", product, parameters=parameters, tag=tag),
        _read(f"{one}/styles", f"get_styles{end}", "All styles of a product", styles, parameters=parameters, tag=tag),
        _read(f"{one}/related", f"get_related{end}", "Related products", related, parameters=parameters, tag=tag),
    )


def list_reading() -> tuple[Operation, ...]:
    """All operations of the reading side."""
    stock = _answer("The stock.", "Stock", x.STOCK)
    movements = Success(200, "The ledger, oldest first.", several(ref("Movement")), [x.MOVEMENT], ANSWER_HEADERS)
    reservation = _answer("The reservation.", "ReservationState", x.RESERVATION)
    style = _answer("The style, in the documented form.", "Style", x.STYLE)
    return (
        *_dialect(live=False),
        *_dialect(live=True),
        _read("/styles/{style_id}", "get_style", "One style", style, parameters=("style_id",)),
        _read(
            "/inventory/{sku_id}", "get_stock", "The stock of one SKU", stock,
            parameters=("sku_id",), tag="Inventory", needs_key=True,
        ),
        _read(
            "/inventory/{sku_id}/movements", "list_movements", "The ledger of one SKU", movements,
            parameters=("sku_id", "movements_after", "movements_count"), tag="Inventory", needs_key=True,
        ),
        _read(
            "/reservations/{reservation_id}", "get_reservation", "One reservation", reservation,
            parameters=("reservation_id",), tag="Inventory", needs_key=True,
        ),
        _changes(),
    )  # fmt: skip


def _changes() -> Operation:
    success = Success(
        200, "One event per committed change, in commit order.", {"type": "string"}, x.CHANGE,
        ("Cache-Control",), "text/event-stream",
    )  # fmt: skip
    return Operation(
        "GET",
        "/changes",
        "follow_changes",
        "Change feed",
        "Every committed change, as server-sent events",
        (success,),
        parameters=("changes_after", "Last-Event-ID"),
        problems=(
            "invalid-token",
            "history-lost",
            "cursor-expired",
            "overloaded",
            "no-replica",
            "primary-unavailable",
        ),
        about="No gap and no duplicate after a reconnect with `Last-Event-ID`. Without a cursor the stream starts now. "
        "What one commit has changed several times is told once, as it is after it: commands on one SKU that are sent "
        "at the same time are committed together, and its `version` may rise by more than one from event to event.",
    )
