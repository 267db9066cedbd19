"""Every operation of the OpenAPI document, once, through the proxy."""

import re
import uuid
from typing import Any

import pytest

from tests.e2e.stack import Stack
from tests.e2e.traffic import Answer, Client

pytestmark = pytest.mark.timeout(600)

INSIDE = {("GET", "/cluster"), ("GET", "/metrics")}
STYLE = {"name": "one", "original_price": "10", "sale_price": None, "default?": True, "photos": [], "skus": []}
PRODUCT = {"name": "walk", "slogan": "", "description": "", "category": "e2e", "default_price": "10"}
PHOTO = {"url": "https://example.org/1.jpg", "thumbnail_url": "https://example.org/1s.jpg"}


class Walk:
    """One client that remembers which operations it has seen succeed."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._token = ""
        self.seen: set[tuple[str, str]] = set()

    def do(self, method: str, template: str, wanted: int = 200, *, body: Any = None, **values: Any) -> Answer:
        """Carries one operation out; names with an underscore in front are headers, the others fill the path."""
        path = template.format(**{name: value for name, value in values.items() if not name.startswith("_")})
        headers = {name[1:]: value for name, value in values.items() if name.startswith("_")}
        if self._token:
            headers["Atelier_Token"] = self._token
        if method == "POST":
            headers["Idempotency_Key"] = uuid.uuid4().hex
        answer = self._client.ask(method, path, body=body, **headers)
        assert answer.status == wanted, (method, path, answer.status, answer.body[:300])
        self._token = answer.headers.get("atelier-token", self._token)
        self.seen.add((method, template))
        return answer


def walk_storefront(walk: Walk) -> None:
    """The reads of the demo catalogue, in both dialects."""
    for prefix in ("", "/api/fec2/{campus}"):
        for rest in ("", "/{product_id}", "/{product_id}/styles", "/{product_id}/related"):
            walk.do("GET", f"{prefix}/products{rest}", campus="hr-rfp", product_id=1)


def walk_catalogue(walk: Walk) -> tuple[int, int]:
    """Makes a product and changes all of it.

    Returns:
        A style of it and a SKU.
    """
    product_id = walk.do("POST", "/products", 201, body=PRODUCT).json["id"]
    walk.do("PUT", "/products/{product_id}", body=PRODUCT, product_id=product_id)
    walk.do("PATCH", "/products/{product_id}", body={"slogan": "on"}, product_id=product_id)
    feature = [{"feature": "Sole", "value": None}]
    walk.do("PUT", "/products/{product_id}/features", body=feature, product_id=product_id)
    walk.do("PUT", "/products/{product_id}/related", body=[1, 2], product_id=product_id)
    made = walk.do("POST", "/products/{product_id}/styles", 201, body=STYLE, product_id=product_id)
    style_id = made.json["style_id"]
    walk.do("GET", "/styles/{style_id}", style_id=style_id)
    walk.do("PATCH", "/styles/{style_id}", body={"name": "two"}, style_id=style_id)
    walk.do("PUT", "/styles/{style_id}/photos", body=[PHOTO], style_id=style_id)
    sku = walk.do("POST", "/styles/{style_id}/skus", 201, body={"size": "M", "quantity": 5}, style_id=style_id)
    return style_id, sku.json["sku_id"]


def walk_inventory(walk: Walk, sku_id: int) -> None:
    """Counts, moves, reserves, sells and releases."""
    stock = walk.do("GET", "/inventory/{sku_id}", sku_id=sku_id)
    walk.do("PUT", "/inventory/{sku_id}", body={"on_hand": 9}, sku_id=sku_id, _If_Match=stock.headers["etag"])
    lines = {"reason": "walk", "lines": [{"sku_id": sku_id, "delta": 1}]}
    walk.do("POST", "/inventory/adjustments", body=lines)
    for end in ("confirm", "release"):
        held = {"ttl_seconds": 60, "lines": [{"sku_id": sku_id, "quantity": 1}]}
        reservation = walk.do("POST", "/reservations", 201, body=held).json["reservation_id"]
        walk.do("GET", "/reservations/{reservation_id}", reservation_id=reservation)
        walk.do("POST", "/reservations/{reservation_id}/" + end, body={}, reservation_id=reservation)
    moved = walk.do("GET", "/inventory/{sku_id}/movements", sku_id=sku_id).json
    assert [row["kind"] for row in moved] == ["initial", "count", "adjustment", "sale"]
    walk.do("GET", "/commands/{key}", key=moved[-1]["command_key"])


def walk_away(walk: Walk, style_id: int, sku_id: int) -> None:
    """Takes everything apart again."""
    walk.do("DELETE", "/skus/{sku_id}", 204, sku_id=sku_id)
    walk.do("DELETE", "/styles/{style_id}", 204, style_id=style_id)
    product_id = walk.do("POST", "/products", 201, body=PRODUCT).json["id"]
    walk.do("DELETE", "/products/{product_id}", 204, product_id=product_id)
    walk.do("GET", "/products/{product_id}", 404, product_id=product_id)


def walk_pages(walk: Walk) -> None:
    """What the service says about itself to everybody."""
    for path in ("/health/live", "/health/ready", "/openapi.json", "/docs", "/problems/"):
        walk.do("GET", path)
    walk.do("GET", "/problems/{problem}", problem="not-found")
    walk.do("GET", "/docs/assets/{asset}", asset="swagger-ui-bundle.js")


def test_every_operation_works_through_the_proxy_or_is_for_those_inside(plain: Stack) -> None:
    """Each has its documented success; `/cluster` and `/metrics` answer inside alone."""
    with Client(plain.port, key=plain.key) as client:
        walk = Walk(client)
        walk_storefront(walk)
        walk_inventory(walk, (made := walk_catalogue(walk))[1])
        walk_away(walk, *made)
        walk_pages(walk)
        for method, path in INSIDE:
            walk.do(method, path, 404)
            assert plain.ask_inside("reads", path)
        client.open_stream("/changes")
        walk.seen.add(("GET", "/changes"))
    assert walk.seen == list_operations(plain)


def list_operations(plain: Stack) -> set[tuple[str, str]]:
    """What the service says that it can do."""
    with Client(plain.port) as client:
        paths = client.get("/openapi.json").json["paths"]
    return {(method.upper(), path) for path, item in paths.items() for method in item if re.fullmatch("[a-z]+", method)}
