"""What no command may choke on: whatever the bytes, the answer is a problem document that names the place."""

from collections.abc import Callable, Iterator
from typing import Any

import httpx
import msgspec
import pytest
from msgspec import inspect

from atelier.problems import ProblemError
from atelier.writes import commands
from atelier.writes.commands import Body
from atelier.writes.decode import decode_body
from atelier.writes.endpoints import ENDPOINTS
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


Place = tuple[str, inspect.Type, Callable[[Any], Any]]
"""A part of a body: its path, its type, and what makes a whole body around a value of it."""

SHAPES = {f"{one.method} {one.path}": one.shape for one in ENDPOINTS if one.shape is not None}


def walk(kind: inspect.Type, path: str = "", around: Callable[[Any], Any] = lambda value: value) -> Iterator[Place]:
    """Every part of a body, itself included."""
    yield path, kind, around
    match kind:
        case inspect.UnionType():
            for one in kind.types:
                yield from walk(one, path, around)
        case inspect.ListType():
            yield from walk(kind.item_type, f"{path}[0]", lambda value: around([value]))
        case inspect.StructType():
            whole = sample(kind)
            for field in kind.fields:
                name = field.encode_name
                yield from walk(
                    field.type, f"{path}.{name}".lstrip("."), lambda value, name=name: around(whole | {name: value})
                )


def sample(kind: inspect.Type) -> Any:
    """A value that is taken, the shortest or smallest."""
    match kind:
        case inspect.StructType():
            return {field.encode_name: sample(field.type) for field in kind.fields}
        case inspect.UnionType():
            return sample(kind.types[0])
        case inspect.ListType():
            return of_length(kind, kind.min_length or 0)
        case inspect.StrType():
            return of_length(kind, FORMS[kind.pattern][0] or kind.min_length or 0)
        case inspect.IntType():
            return kind.ge
        case inspect.BoolType():
            return True
    raise AssertionError(f"what are the bounds of {kind}?")


def pattern_of(name: str) -> str | None:
    """The pattern of a text of the commands."""
    return inspect.type_info(getattr(commands, name)).pattern


# The shortest text that has the form, and what a longer one begins and ends with.
FORMS = {pattern_of("Price"): (1, "", ".99"), pattern_of("Url"): (9, "https://", ""), None: (0, "", "")}


def of_length(kind: inspect.StrType | inspect.ListType, length: int) -> Any:
    """A list, or a text that has the form it must have, of a length."""
    if isinstance(kind, inspect.ListType):
        return [sample(kind.item_type)] * length
    shortest, start, end = FORMS[kind.pattern]
    if length <= shortest:
        end = ""
    return start + "9" * (length - len(start) - len(end)) + end


def bounds_of(kind: inspect.Type) -> Iterator[tuple[Any, Any]]:
    """For each bound the value that lies on it, and the one beyond."""
    match kind:
        case inspect.IntType():
            yield kind.ge, kind.ge - 1
            yield kind.le, kind.le + 1
        case inspect.StrType() | inspect.ListType():
            yield of_length(kind, kind.max_length), of_length(kind, kind.max_length + 1)
            if kind.min_length:
                yield of_length(kind, kind.min_length), of_length(kind, kind.min_length - 1)


def test_every_text_number_and_list_of_a_command_has_bounds() -> None:
    """Nothing that a client sends is as long or as large as it likes; a new field says what it takes."""
    unbounded, seen = [], set()
    for name, shape in SHAPES.items():
        for path, kind, _ in walk(inspect.type_info(shape)):
            match kind:
                case inspect.IntType(ge=int(), le=int()):
                    pass
                case inspect.StrType(max_length=int()) | inspect.ListType(max_length=int()):
                    pass
                case inspect.UnionType() | inspect.BoolType() | inspect.NoneType():
                    pass
                case inspect.StructType(cls=cls, forbid_unknown_fields=True):
                    seen.add(cls)
                case _:
                    unbounded.append((name, path, kind))
    assert unbounded == []
    bodies = {one for one in vars(commands).values() if isinstance(one, type) and issubclass(one, Body)}
    assert seen == bodies - {Body}


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_every_bound_of_a_command_is_taken_and_one_beyond_it_is_refused(shape: Any) -> None:
    """By every field of every body, those of lists in lists too; the refusal names it."""
    tried = 0
    for path, kind, around in walk(inspect.type_info(shape)):
        for on_it, beyond in bounds_of(kind):
            tried += 1
            decode_body(msgspec.json.encode(around(on_it)), shape)
            with pytest.raises(ProblemError) as refused:
                decode_body(msgspec.json.encode(around(beyond)), shape)
            assert (refused.value.name, refused.value.members) == ("invalid-request", {"field": path})
    assert tried


NOBODY = 2**62
PHOTO = {"url": "https://images.example.com/1.jpg", "thumbnail_url": "https://images.example.com/1t.jpg"}


def reservation(ttl_seconds: int = 60, lines: int = 1, quantity: int = 1) -> dict[str, Any]:
    """The body of a reservation of SKUs that nobody has."""
    wanted = [{"sku_id": NOBODY + index, "quantity": quantity} for index in range(lines)]
    return {"ttl_seconds": ttl_seconds, "lines": wanted}


def skus(count: int) -> list[dict[str, Any]]:
    """So many sizes."""
    return [{"size": f"S{index}", "quantity": 0} for index in range(count)]


def features(count: int) -> list[dict[str, Any]]:
    """So many features."""
    return [{"feature": f"F{index}", "value": None} for index in range(count)]


CREATE, RESERVE, COUNT = "POST /products", "POST /reservations", f"PUT /inventory/{NOBODY}"
STYLES, SIZES, PHOTOS = f"POST /products/{NOBODY}/styles", f"POST /styles/{NOBODY}/skus", f"PUT /styles/{NOBODY}/photos"
FEATURES, RELATED = f"PUT /products/{NOBODY}/features", f"PUT /products/{NOBODY}/related"


@pytest.mark.parametrize(
    ("request_line", "field", "taken", "refused"),
    [
        (RESERVE, "ttl_seconds", reservation(30), reservation(29)),
        (RESERVE, "ttl_seconds", reservation(86_400), reservation(86_401)),
        (RESERVE, "lines", reservation(lines=500), reservation(lines=501)),
        (RESERVE, "lines", reservation(lines=1), reservation(lines=0)),
        (RESERVE, "lines[0].quantity", reservation(quantity=1), reservation(quantity=0)),
        (RESERVE, "lines[0].quantity", reservation(quantity=2**31 - 1), reservation(quantity=2**31)),
        (COUNT, "on_hand", {"on_hand": 0}, {"on_hand": -1}),
        (COUNT, "on_hand", {"on_hand": 2**31 - 1}, {"on_hand": 2**31}),
        (CREATE, "name", product(name="x"), product(name="")),
        (CREATE, "name", product(name="x" * 200), product(name="x" * 201)),
        (CREATE, "slogan", product(slogan="x" * 10_000), product(slogan="x" * 10_001)),
        (CREATE, "category", product(category="x" * 500), product(category="x" * 501)),
        (CREATE, "styles", product(styles=[style()] * 200), product(styles=[style()] * 201)),
        (STYLES, "photos", style(photos=[PHOTO] * 500), style(photos=[PHOTO] * 501)),
        (STYLES, "skus", style(skus=skus(500)), style(skus=skus(501))),
        (SIZES, "size", {"size": "x" * 100, "quantity": 0}, {"size": "x" * 101, "quantity": 0}),
        (PHOTOS, "", [PHOTO] * 500, [PHOTO] * 501),
        (FEATURES, "", features(500), features(501)),
        (RELATED, "", [NOBODY] * 1_000, [NOBODY] * 1_001),
    ],
)  # fmt: skip
async def test_bounds_are_those_that_were_promised(
    shop: Shop, request_line: str, field: str, taken: Any, refused: Any
) -> None:
    """The figures themselves. What lies on one makes a product, or is about an id that nothing has."""
    method, path = request_line.split(" ")
    answer = await shop.send(method, path, taken, If_Match="*")
    assert answer.status_code in (201, 404), answer.text
    answer = await shop.send(method, path, refused, If_Match="*")
    assert (answer.status_code, answer.json()["field"]) == (400, field), answer.text
