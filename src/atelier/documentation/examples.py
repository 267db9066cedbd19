"""The examples of the OpenAPI document: what the demo catalogue would answer."""

from typing import Any

Json = dict[str, Any]

ITEM: Json = {
    "id": 1,
    "name": "Camo Onesie",
    "slogan": "Blend in to your crowd",
    "description": "A onesie for every kind of thicket.",
    "category": "Jackets",
    "default_price": "140",
}
FEATURES = [{"feature": "Shell", "value": "Ripstop cotton"}, {"feature": "Scratch guard", "value": None}]
PRODUCT: Json = {**ITEM, "features": FEATURES}
_TIMES = {"created_at": "2021-08-13T14:38:44.509Z", "updated_at": "2021-08-13T14:38:44.509Z"}
_TEXTS = {key: ITEM[key] for key in ("name", "slogan", "description", "category")}
LIVE_ITEM: Json = {"id": 1, "campus": "hr-rfp", **_TEXTS, "default_price": "140.00", **_TIMES}
LIVE_PRODUCT: Json = {**LIVE_ITEM, "features": FEATURES}
_PHOTOS = [{"thumbnail_url": "https://images.example.com/1-300.jpg", "url": "https://images.example.com/1-1200.jpg"}]
STYLE: Json = {
    "style_id": 1,
    "name": "Forest Green & Black",
    "original_price": "140",
    "sale_price": "0",
    "default?": 1,
    "photos": _PHOTOS,
    "skus": {"37": {"quantity": 8, "size": "XS"}},
}
STYLES: Json = {"product_id": "1", "results": [STYLE]}
LIVE_STYLES: Json = {
    "product_id": "1",
    "results": [{**STYLE, "original_price": "140.00", "sale_price": None, "default?": True}],
}
RELATED = [2, 3, 8, 7]
STOCK: Json = {"sku_id": 37, "on_hand": 9, "reserved": 1, "available": 8, "version": 4}
MOVEMENT: Json = {
    "movement_id": 90,
    "delta": -1,
    "kind": "adjustment",
    "reason": "damaged",
    "command_key": "5e0f6b52",
    "at": "2026-01-05T09:30:00.000Z",
}
RESERVATION: Json = {
    "reservation_id": 12,
    "state": "pending",
    "expires_at": "2026-01-05T09:40:00.000Z",
    "lines": [{"sku_id": 37, "quantity": 1}],
}
NODE: Json = {
    "name": "pg2",
    "role": "replica",
    "state": "streaming",
    "timeline": 1,
    "received_lsn": "0/3000060",
    "replayed_lsn": "0/3000060",
    "lag_bytes": 0,
    "lag_ms": 12.5,
    "in_flight": 0,
    "ejected_until": None,
    "reason": None,
}
DOCUMENT: Json = {"openapi": "3.1.0", "info": {"title": "atelier", "version": "1.0.0"}, "paths": {}}
PAGE = '<!doctype html>\n<html lang="en">\n<head><title>atelier</title></head>\n<body></body>\n</html>\n'
ASSET = "a { color: #0b5394; }\n"
OTHER_ASSETS = {"text/javascript": 'SwaggerUIBundle({url: "/openapi.json"});', "image/png": "the bytes of the picture"}
METRICS = """# TYPE atelier_node_lag_seconds gauge
atelier_node_lag_seconds{node="pg2"} 0.012
"""
CHANGE = """id: b3V0Ym94OjE3
event: product
data: {"product_id":1,"kind":"updated","version":8,"token":"AQAAAA"}

"""

ADJUSTMENT: Json = {"reason": "damaged", "lines": [{"sku_id": 37, "delta": -1}]}
COUNT: Json = {"on_hand": 9}
NEW_RESERVATION: Json = {"lines": [{"sku_id": 37, "quantity": 1}], "ttl_seconds": 600}
PRODUCT_FIELDS: Json = {key: value for key, value in ITEM.items() if key != "id"}
NEW_STYLE: Json = {
    "name": "Forest Green & Black",
    "original_price": "140",
    "sale_price": None,
    "default?": True,
    "photos": [
        {"url": "https://images.example.com/1-1200.jpg", "thumbnail_url": "https://images.example.com/1-300.jpg"}
    ],
    "skus": [{"size": "XS", "quantity": 8}],
}
NEW_PRODUCT: Json = {**PRODUCT_FIELDS, "features": FEATURES, "related": [2, 3], "styles": [NEW_STYLE]}
