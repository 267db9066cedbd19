"""What no command may choke on: whatever the bytes, the answer is a problem document that names the place."""

import httpx
import pytest

from tests.commands.conftest import Shop, new_key, product, style

pytestmark = pytest.mark.anyio

PATH = "/inventory/adjustments"
GOOD = '{"reason": "x", "lines": [{"sku_id": 1, "delta": 1}]}'


async def send(
    shop: Shop, raw: str | bytes, path: str = PATH, media_type: str | None = "application/json"
) -> httpx.Response:
    """Sends bytes as they are."""
    headers = {"Idempotency-Key": new_key()} | ({} if media_type is None else {"Content-Type": media_type})
    return await shop.http.post(path, content=raw, headers=headers)


@pytest.mark.parametrize(
    ("raw", "field"),
    [
        ('{"reason": "x", "lines": [{"sku_id": "1", "delta": 1}]}', "lines[0].sku_id"),
        ('{"reason": "x", "lines": [{"sku_id": 1.0, "delta": 1}]}', "lines[0].sku_id"),
        ('{"reason": "x", "lines": [{"sku_id": true, "delta": 1}]}', "lines[0].sku_id"),
        ('{"reason": "x", "lines": [{"sku_id": 1e3, "delta": 1}]}', "lines[0].sku_id"),
        ('{"reason": "x", "lines": [{"sku_id": 0, "delta": 1}]}', "lines[0].sku_id"),
        ('{"reason": "x", "lines": [{"sku_id": 9223372036854775808, "delta": 1}]}', "lines[0].sku_id"),
        ('{"reason": "x", "lines": [{"sku_id": 1, "delta": 0}]}', "lines[0].delta"),
        ('{"reason": "x", "lines": [{"sku_id": 1, "delta": 2147483648}]}', "lines[0].delta"),
        ('{"reason": "x", "lines": [{"sku_id": 1, "delta": 1}, {"sku_id": 1, "delta": 2}]}', "lines[0].sku_id"),
        ('{"reason": "x", "lines": [{"sku_id": 1, "delta": 1, "more": 1}]}', "lines[0].more"),
        ('{"reason": "x", "lines": [], "more": 1}', "lines"),
        ('{"reason": "a\\u0000b", "lines": [{"sku_id": 1, "delta": 1}]}', "reason"),
        ('{"reason": "", "lines": [{"sku_id": 1, "delta": 1}]}', "reason"),
        ('{"lines": [{"sku_id": 1, "delta": 1}]}', "reason"),
        ('{"reason": null, "lines": [{"sku_id": 1, "delta": 1}]}', "reason"),
        ('{"reason": "' + "x" * 501 + '", "lines": [{"sku_id": 1, "delta": 1}]}', "reason"),
        ("[]", ""), ("null", ""), ("", ""), ("{", ""), ("NaN", ""), ('"\\ud800"', ""), ('{"reason": "\\udc00"}', ""),
        (b'{"reason": "\xff"}', ""), (b"\xef\xbb\xbf{}", ""), ("[" * 100_000, ""),
        ('{"reason": "x", "x": ' + "[" * 100_000, "x"),
    ],
)  # fmt: skip
async def test_bad_body_names_its_field(shop: Shop, raw: str | bytes, field: str) -> None:
    """400 invalid-request with the path, never a 500."""
    refused = await send(shop, raw)
    assert (refused.status_code, refused.json()["type"]) == (400, "/problems/invalid-request"), refused.text
    assert refused.json()["field"] == field
    assert refused.headers["Content-Type"] == "application/problem+json"


@pytest.mark.parametrize("price", ["", "1.", ".5", "1.234", "-1", "1e3", "1234567890", "\u0661", "1\n", 5, None])
async def test_price_is_text_of_digits(shop: Shop, price: object) -> None:
    r"""`^\d{1,9}(\\.\\d{1,2})?$` and nothing else."""
    refused = await shop.post("/products", product(default_price=price))
    assert (refused.status_code, refused.json()["field"]) == (400, "default_price")


@pytest.mark.parametrize("url", ["", "javascript:alert(1)", "ftp://a/b", "//a/b", "http://", "/a", "data:text/html,x"])
async def test_photo_is_a_web_address(shop: Shop, url: str) -> None:
    """Http and https only."""
    photo = {"url": url, "thumbnail_url": "https://images.example.com/t.jpg"}
    refused = await shop.post("/products", product(styles=[style(photos=[photo])]))
    assert (refused.status_code, refused.json()["field"]) == (400, "styles[0].photos[0].url")


@pytest.mark.parametrize(
    "media_type",
    [None, "text/plain", "application/jsonx", "application/merge-patch+json", "application/json; charset=latin-1"],
)
async def test_other_media_types_are_refused(shop: Shop, media_type: str | None) -> None:
    """415, also where there is none at all."""
    refused = await send(shop, GOOD, media_type=media_type)
    assert (refused.status_code, refused.json()["type"]) == (415, "/problems/unsupported-media-type")


async def test_large_body_is_refused(shop: Shop) -> None:
    """413 beyond a megabyte, told before it is understood."""
    refused = await send(shop, b" " * 1_048_577)
    assert (refused.status_code, refused.json()["type"]) == (413, "/problems/payload-too-large")


@pytest.mark.parametrize("bad", ["0", "-1", "1_0", "9223372036854775808", "1.0", "x", "%31x", "%D9%A3"])
async def test_bad_id_in_the_address_is_a_bad_request(shop: Shop, bad: str) -> None:
    """Positive 64-bit integers in ASCII digits."""
    for method, path, body in (("PUT", f"/inventory/{bad}", {"on_hand": 1}), ("DELETE", f"/products/{bad}", None)):
        refused = await shop.send(method, path, body, If_Match='"1"')
        assert refused.status_code == 400, (path, refused.text)


@pytest.mark.parametrize("tag", ["1", "abc", '"1" "2"', '"1', ""])
async def test_malformed_if_match_is_a_bad_request(shop: Shop, tag: str) -> None:
    """It takes entity tags; a version without quotes is none."""
    refused = await shop.send("PUT", "/inventory/1", {"on_hand": 1}, If_Match=tag)
    assert (refused.status_code, refused.json()["field"]) == (400, "If-Match")


async def test_null_price_ends_a_sale_and_other_nulls_are_refused(shop: Shop) -> None:
    """RFC 7396: null removes, and only the sale price can be removed."""
    made = await shop.post("/products", product(styles=[style(sale_price="1")]))
    styles = (await shop.read(f"/products/{made.json()['id']}/styles", made)).json()["results"]
    path = f"/styles/{styles[0]['style_id']}"
    assert (await shop.send("PATCH", path, {"sale_price": None})).json()["sale_price"] == "0"
    assert (await shop.send("PATCH", path, {"name": None})).status_code == 400
    assert (await shop.send("PATCH", path, [])).status_code == 400
