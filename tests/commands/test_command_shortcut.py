"""The short way carries out commands as the ordinary handlers do: the same status, headers, body and log line."""

import json
import re
from typing import Any

import httpx
import pytest

from tests.commands.conftest import Shop, new_key

pytestmark = pytest.mark.anyio

# The framework looks closer at such a host, so the short way leaves it to that.
ORDINARY = {"Host": "under_score.example"}
LINES = {"lines": [{"sku_id": "SKU", "delta": 1}]}
CASES: tuple[tuple[str, str, Any, dict[str, str], int], ...] = (
    ("POST", "/inventory/adjustments", {"reason": "x", **LINES}, {}, 200),
    ("POST", "/inventory/adjustments", {"reason": "x", "lines": [{"sku_id": "SKU", "delta": -999}]}, {}, 409),
    ("POST", "/inventory/adjustments", {"reason": "x", "lines": [{"sku_id": 999999999, "delta": 1}]}, {}, 404),
    ("POST", "/inventory/adjustments", {"reason": ""}, {}, 400),
    ("POST", "/inventory/adjustments", {"reason": "x" * 1_100_000, **LINES}, {}, 413),
    ("POST", "/inventory/adjustments", {"reason": "x", **LINES}, {"Content-Type": "text/plain"}, 415),
    ("POST", "/inventory/adjustments", {"reason": "x", **LINES}, {"Idempotency-Key": ""}, 400),
    ("POST", "/inventory/adjustments", {"reason": "x", **LINES}, {"Authorization": "Bearer none"}, 401),
    ("POST", "/inventory/adjustments?x=1", {"reason": "x", **LINES}, {}, 200),
    ("GET", "/inventory/adjustments", None, {}, 405),
    ("POST", "/reservations", {"lines": [{"sku_id": "SKU", "quantity": 1}], "ttl_seconds": 60}, {}, 201),
    ("POST", "/reservations", {"lines": [{"sku_id": "SKU", "quantity": 99}], "ttl_seconds": 60}, {}, 409),
    ("POST", "/reservations/RESERVATION/confirm", None, {}, 200),
    ("POST", "/reservations/RESERVATION/release", {}, {}, 200),
    ("POST", "/reservations/RESERVATION/release", {"surprise": 1}, {}, 400),
    ("POST", "/reservations/999999999/confirm", None, {}, 404),
    ("POST", "/reservations/0/confirm", None, {}, 400),
    ("POST", "/reservations/9223372036854775808/confirm", None, {}, 400),
    ("POST", "/reservations/1_0/confirm", None, {}, 400),
    ("POST", "/reservations/1/surprise", None, {}, 404),
)
# What differs between two commands, whichever way they went; the server closes the connection of a body that nobody
# has read, unless it had arrived already.
VARYING = {"x-request-id", "atelier-token", "set-cookie", "date", "location", "connection"}


async def answer(shop: Shop, case: tuple[str, str, Any, dict[str, str], int], *, way: dict[str, str]) -> httpx.Response:
    """Carries out one case on a SKU, and where it needs one a reservation, of its own."""
    method, path, body, headers, _ = case
    (sku_id,) = await shop.stocked(5)
    if "RESERVATION" in path:
        kept = await shop.post("/reservations", {"lines": [{"sku_id": sku_id, "quantity": 1}], "ttl_seconds": 60})
        path = path.replace("RESERVATION", str(kept.json()["reservation_id"]))
    content = None if body is None else json.dumps(body).replace('"SKU"', str(sku_id))
    named = {"Idempotency-Key": new_key(), "Content-Type": "application/json"} | headers | way
    return await shop.http.request(method, path, content=content, headers=named)


def describe(answered: httpx.Response) -> dict[str, Any]:
    """What two answers to one command have in common: ids and times are not."""
    headers = {name: value for name, value in answered.headers.items() if name not in VARYING | {"content-length"}}
    return {
        "status": answered.status_code,
        "names": sorted(set(answered.headers) - {"connection"}),
        "headers": headers,
        "body": re.sub(r"\d+", "0", answered.text),
    }


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case[0]} {case[1]} {case[4]}")
async def test_short_way_answers_what_the_ordinary_handlers_answer(
    shop: Shop, case: tuple[str, str, Any, dict[str, str], int]
) -> None:
    """Done, refused, malformed and not allowed."""
    short = await answer(shop, case, way={})
    ordinary = await answer(shop, case, way=ORDINARY)
    assert short.status_code == case[4], short.text
    assert describe(short) == describe(ordinary)


async def test_key_of_one_way_is_known_to_the_other(shop: Shop) -> None:
    """A replay is a replay, whichever way it comes."""
    (sku_id,) = await shop.stocked(5)
    key = new_key()
    first = await shop.adjust(sku_id, 1, Idempotency_Key=key)
    again = await shop.adjust(sku_id, 1, Idempotency_Key=key, **ORDINARY)
    assert (first.status_code, again.status_code, again.json()) == (200, 200, first.json())
    assert again.headers["Idempotency-Replayed"] == "true"


async def test_header_that_names_one_thing_is_sent_once(shop: Shop) -> None:
    """Of two idempotency keys nobody knows which was meant; two lines of If-Match are one list."""
    (sku_id,) = await shop.stocked(5)
    body = {"reason": "x", "lines": [{"sku_id": sku_id, "delta": 1}]}
    twice = [("Idempotency-Key", new_key()), ("Idempotency-Key", new_key()), ("Content-Type", "application/json")]
    refused = await shop.http.post("/inventory/adjustments", content=json.dumps(body), headers=twice)
    assert (refused.status_code, refused.json()["field"]) == (400, "Idempotency-Key")
    guards = [("If-Match", '"77"'), ("If-Match", '"78"'), ("Content-Type", "application/json")]
    counted = await shop.http.put(f"/inventory/{sku_id}", content='{"on_hand": 3}', headers=guards)
    assert counted.status_code == 412, counted.text
    counted = await shop.http.put(
        f"/inventory/{sku_id}", content='{"on_hand": 3}', headers=[("If-Match", '"1"'), *guards]
    )
    assert counted.status_code == 200, counted.text


@pytest.mark.parametrize("way", [{}, ORDINARY], ids=["short", "ordinary"])
async def test_refused_command_carries_a_token(shop: Shop, way: dict[str, str]) -> None:
    """Whatever the refusal, a read that sends its token sees what the refusal was based on."""
    for path, body, status in (
        ("/inventory/adjustments", b"{", 400),
        ("/inventory/adjustments", b'{"reason":"x","lines":[{"sku_id":999999999,"delta":1}]}', 404),
        ("/products", b"{", 400),
    ):
        headers = {"Idempotency-Key": new_key(), "Content-Type": "application/json"} | way
        refused = await shop.http.post(path, content=body, headers=headers)
        assert refused.status_code == status
        assert refused.headers["Atelier-Token"]
