"""Catalogue commands over real HTTP: what they answer, and what a read shows afterwards."""

import pytest

from tests.commands.conftest import Shop, product, style

pytestmark = pytest.mark.anyio


async def test_whole_product_is_made_in_one_command(shop: Shop) -> None:
    """Features, related, styles, photos and SKUs come into being together with the product."""
    other = (await shop.post("/products", product())).json()["id"]
    photo = {"url": "https://images.example.com/1.jpg", "thumbnail_url": "https://images.example.com/1t.jpg"}
    body = product(
        features=[{"feature": "Wool", "value": "Merino"}, {"feature": "Lined", "value": None}],
        related=[other, other],
        styles=[style(3, 0, photos=[photo]), style(name="Blue", sale_price="99.9")],
    )
    made = await shop.post("/products", body)
    assert made.status_code == 201
    made_id = made.json()["id"]
    assert made.headers["Location"] == f"/products/{made_id}"
    assert made.json() == {
        "id": made_id, "name": "Hat", "slogan": "Warm", "description": "", "category": "Hats",
        "default_price": "19.50", "features": body["features"],
    }  # fmt: skip
    shown = await shop.read(f"/products/{made_id}", made)
    assert shown.json() == made.json()
    assert shown.headers["ETag"] == made.headers["ETag"]
    assert (await shop.read(f"/products/{made_id}/related", made)).json() == [other, other]
    styles = (await shop.read(f"/products/{made_id}/styles", made)).json()["results"]
    assert [(one["name"], one["sale_price"], one["default?"]) for one in styles] == [
        ("Red", "0", 0),
        ("Blue", "99.90", 1),
    ]
    assert styles[0]["photos"] == [{"thumbnail_url": photo["thumbnail_url"], "url": photo["url"]}]
    assert [sku["quantity"] for sku in styles[0]["skus"].values()] == [3, 0]


async def test_put_sets_all_fields_and_patch_only_those_it_names(shop: Shop) -> None:
    """PUT needs all five; PATCH takes some, and null for none of them."""
    made = (await shop.post("/products", product())).json()
    path = f"/products/{made['id']}"
    put = await shop.send("PUT", path, product(name="Cap", default_price="5"))
    assert (put.status_code, put.json()["name"], put.json()["default_price"]) == (200, "Cap", "5")
    patched = await shop.send("PATCH", path, {"slogan": "Cool"}, Content_Type="application/merge-patch+json")
    assert (patched.status_code, patched.json()["name"], patched.json()["slogan"]) == (200, "Cap", "Cool")
    assert (await shop.send("PUT", path, {"name": "Cap"})).status_code == 400
    refused = await shop.send("PATCH", path, {"slogan": None})
    assert (refused.status_code, refused.json()["field"]) == (400, "slogan")


async def test_version_rises_with_every_change_and_guards_it(shop: Shop) -> None:
    """A stale If-Match is refused with 412; stock changes leave the version alone."""
    made = await shop.post("/products", product(styles=[style(5)]))
    path = f"/products/{made.json()['id']}"
    styles = (await shop.read(f"{path}/styles", made)).json()["results"]
    style_path, sku_id = f"/styles/{styles[0]['style_id']}", next(iter(styles[0]["skus"]))
    tags = [made.headers["ETag"]]
    photo = {"url": "http://images.example.com/a", "thumbnail_url": "http://images.example.com/b"}
    for method, where, body in (
        ("PATCH", path, {"name": "Cap"}),
        ("PUT", f"{path}/features", [{"feature": "Wool", "value": None}]),
        ("PUT", f"{path}/related", [made.json()["id"]]),
        ("POST", f"{path}/styles", style(name="Blue")),
        ("PATCH", style_path, {"sale_price": "1"}),
        ("PUT", f"{style_path}/photos", [photo]),
        ("POST", f"{style_path}/skus", {"size": "XL", "quantity": 2}),
        ("DELETE", f"/skus/{sku_id}", None),
        ("DELETE", style_path, None),
    ):
        changed = await shop.send(method, where, body, If_Match=tags[-1])
        assert changed.is_success, changed.text
        assert int(changed.headers["ETag"].strip('"')) == int(tags[-1].strip('"')) + 1, where
        stale = await shop.send(method, where, body, If_Match=tags[-1])
        assert stale.status_code in (404, 412), (where, stale.text)
        tags.append(changed.headers["ETag"])
    shown = await shop.read(path, changed)
    assert shown.headers["ETag"] == tags[-1]
    assert (await shop.send("DELETE", path, If_Match='W/"1"')).status_code == 412
    assert (await shop.send("DELETE", path, If_Match=tags[-1])).status_code == 204


async def test_new_default_style_clears_the_old_one(shop: Shop) -> None:
    """Of a product's styles at most one is the default."""
    made = await shop.post("/products", product(styles=[style()]))
    path = f"/products/{made.json()['id']}/styles"
    added = await shop.post(path, style(name="Blue"))
    first, second = (await shop.read(path, added)).json()["results"]
    assert (first["default?"], second["default?"]) == (0, 1)
    patched = await shop.send("PATCH", f"/styles/{first['style_id']}", {"default?": True})
    assert patched.json()["default?"] == 1
    assert [one["default?"] for one in (await shop.read(path, patched)).json()["results"]] == [1, 0]


async def test_product_with_reserved_stock_is_not_deleted(shop: Shop) -> None:
    """409 stock-reserved for the product, the style and the SKU, until the reservation is released."""
    made = await shop.post("/products", product(styles=[style(5)]))
    product_path = f"/products/{made.json()['id']}"
    one = (await shop.read(f"{product_path}/styles", made)).json()["results"][0]
    sku_id = int(next(iter(one["skus"])))
    held = (await shop.reserve((sku_id, 2))).json()["reservation_id"]
    for path in (product_path, f"/styles/{one['style_id']}", f"/skus/{sku_id}"):
        refused = await shop.send("DELETE", path)
        assert (refused.status_code, refused.json()["type"]) == (409, "/problems/stock-reserved")
    assert (await shop.post(f"/reservations/{held}/release")).status_code == 200
    gone = await shop.send("DELETE", product_path)
    assert (gone.status_code, gone.content) == (204, b"")
    assert (await shop.read(product_path, gone)).status_code == 404
    assert (await shop.read(f"/inventory/{sku_id}", gone)).status_code == 404


async def test_deleting_a_product_takes_it_out_of_related_lists(shop: Shop) -> None:
    """A product that named it changes too, so its version rises."""
    gone = (await shop.post("/products", product())).json()["id"]
    referring = await shop.post("/products", product(related=[gone, gone]))
    path = f"/products/{referring.json()['id']}"
    deleted = await shop.send("DELETE", f"/products/{gone}")
    assert deleted.status_code == 204
    assert (await shop.read(f"{path}/related", deleted)).json() == []
    shown = await shop.read(path, deleted)
    assert int(shown.headers["ETag"].strip('"')) == int(referring.headers["ETag"].strip('"')) + 1


async def test_unknown_related_product_is_a_bad_request(shop: Shop) -> None:
    """400 with the place in the list, and nothing is made; the key stays free."""
    key = "unknown-related-" + (await shop.post("/products", product())).headers["ETag"].strip('"')
    refused = await shop.post("/products", product(related=[2**62]), Idempotency_Key=key + "x" * 8)
    assert (refused.status_code, refused.json()["field"]) == (400, "related[0]")
    made = (await shop.post("/products", product())).json()["id"]
    # The list is the body, so its places have no name before them, as for a place that holds no number.
    for listed in ([made, 2**62], [made, "x"]):
        refused = await shop.send("PUT", f"/products/{made}/related", listed)
        assert (refused.status_code, refused.json()["field"]) == (400, "[1]")


async def test_unknown_ids_are_not_found(shop: Shop) -> None:
    """404 for every command on something that is not there."""
    far = 2**62
    for method, path, body in (
        ("PUT", f"/products/{far}", product()), ("PATCH", f"/products/{far}", {}), ("DELETE", f"/products/{far}", None),
        ("PUT", f"/products/{far}/features", []), ("PUT", f"/products/{far}/related", []),
        ("POST", f"/products/{far}/styles", style()), ("PATCH", f"/styles/{far}", {}),
        ("DELETE", f"/styles/{far}", None), ("PUT", f"/styles/{far}/photos", []),
        ("POST", f"/styles/{far}/skus", {"size": "M", "quantity": 1}), ("DELETE", f"/skus/{far}", None),
    ):  # fmt: skip
        refused = await shop.send(method, path, body)
        assert (refused.status_code, refused.json()["type"]) == (404, "/problems/not-found"), path
