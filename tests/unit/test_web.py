"""The outermost layer and the refusals, around applications that misbehave on purpose."""

import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from litestar import Litestar, get, post
from litestar.response import Stream

from atelier.errors import (
    AtelierError,
    DeadlineExceededError,
    NoReplicaError,
    OutcomeUnknownError,
    OverloadedError,
    PrimaryUnavailableError,
    SettingsError,
)
from atelier.http import LARGEST_ID, matches, parse_id, read_query
from atelier.lsn import Lsn
from atelier.problems import ProblemError
from atelier.token import CausalToken, TokenKeys
from atelier.web.cors import Cors, Origins
from atelier.web.edge import Edge
from atelier.web.paths import Surface, is_exact
from atelier.web.refusals import Refusals

pytestmark = pytest.mark.anyio

KEYS = TokenKeys((bytes(32),))
PRESENT = CausalToken(7, 2, Lsn(4096))
SECRET = "select secret from postgresql://u:p@db"


@get("/fails")
async def fails() -> None:
    """A mistake of ours."""
    raise RuntimeError(SECRET)


@get("/breaks")
async def breaks() -> None:
    """An error of ours that no request should cause."""
    raise SettingsError(SECRET)


@get("/endless")
async def endless() -> Stream:
    """An answer without an end."""

    async def count() -> AsyncIterator[bytes]:
        while True:
            yield b"tick\n"

    return Stream(count(), media_type="text/plain")


@post("/orders")
async def orders() -> None:
    """A command."""


def make_edge(*more: Any) -> Edge:
    """The outermost layer around those routes."""
    app = Litestar(
        [fails, breaks, endless, orders, *more],
        exception_handlers=Refusals(KEYS, lambda: PRESENT).handlers(),
        openapi_config=None,
        logging_config=None,
    )
    surface = Surface([("GET", "/fails"), ("GET", "/orders/{order_id}"), ("POST", "/orders")])
    everybody, nobody = Origins(frozenset({"*"})), Origins(frozenset())
    return Edge(app, surface=surface, cors=Cors(everybody, nobody), clock=lambda: 0.0, make_id=lambda: "made")


async def ask(edge: Edge, method: str, path: str) -> httpx.Response:
    """Asks without a server."""
    async with httpx.AsyncClient(transport=httpx.ASGITransport(edge), base_url="http://shop") as client:
        return await client.request(method, path)


@pytest.mark.parametrize("path", ["/fails", "/breaks"])
async def test_a_mistake_of_ours_tells_nothing_but_that_it_happened(path: str) -> None:
    """The catch-all: no trace, no SQL, no connection string."""
    reply = await ask(make_edge(), "GET", path)
    assert reply.status_code == 500
    assert reply.json() == {"type": "about:blank", "title": "Internal Server Error", "status": 500}
    assert reply.headers["content-type"] == "application/problem+json"
    assert SECRET not in str(reply.headers)


async def test_head_of_an_endless_answer_ends() -> None:
    """It would otherwise hold its connection, and ours, for ever."""
    reply = await ask(make_edge(), "HEAD", "/endless")
    assert (reply.status_code, reply.content) == (200, b"")


@pytest.mark.parametrize(
    "error",
    [
        NoReplicaError(), PrimaryUnavailableError(), OverloadedError(), OutcomeUnknownError(), DeadlineExceededError(),
        ProblemError("overloaded", "x"), ProblemError("too-many-requests", "x"),
    ],
)  # fmt: skip
async def test_whoever_is_told_to_come_back_is_told_when(error: AtelierError) -> None:
    """A 503 carries Retry-After, whoever refused and however."""

    @get("/refused")
    async def refused() -> None:
        raise error

    reply = await ask(make_edge(refused), "GET", "/refused")
    assert reply.status_code in (429, 503)
    assert int(reply.headers["retry-after"]) >= 1
    assert reply.headers["cache-control"] == "no-store"


async def test_an_unlisted_method_names_those_that_are_listed() -> None:
    """HEAD goes with GET, OPTIONS with all."""
    assert (await ask(make_edge(), "DELETE", "/fails")).headers["allow"] == "GET, HEAD, OPTIONS"
    assert (await ask(make_edge(), "GET", "/orders")).headers["allow"] == "OPTIONS, POST"


async def test_every_refusal_has_the_request_id_and_the_policy() -> None:
    """Also what no route was needed for."""
    for path in ("/fails", "/nowhere", "//fails", "/fails/"):
        headers = (await ask(make_edge(), "GET", path)).headers
        assert headers["x-request-id"] == "made"
        assert headers["content-security-policy"].startswith("default-src 'none'")
        assert headers["access-control-allow-origin"] == "*"


@pytest.mark.parametrize("path", [b"/", b"/a", b"/a/b", b"/a%20b", b"/problems/", b"/" + b"a" * 2047])
def test_an_exact_path_is_one(path: bytes) -> None:
    """With one address in a list of those that end with a slash."""
    assert is_exact(path, with_slash=frozenset({b"/problems/"}))


@pytest.mark.parametrize(
    "path", [b"", b"*", b"a", b"/a/", b"//", b"/a//b", b"/a%2fb", b"/a%2Fb", b"/a\\b", b"/a%5cb", b"/" + b"a" * 2048]
)
def test_any_other_spelling_is_none(path: bytes) -> None:
    """Slashes in any disguise."""
    assert not is_exact(path)


def test_an_address_knows_its_methods_over_all_templates() -> None:
    """`/inventory/adjustments` is also an `/inventory/{sku_id}`."""
    surface = Surface([("GET", "/stock/{id}"), ("PUT", "/stock/{id}"), ("POST", "/stock/moves")])
    assert surface.methods_of("/stock/moves") == ["GET", "HEAD", "OPTIONS", "POST", "PUT"]
    assert surface.methods_of("/stock/7") == ["GET", "HEAD", "OPTIONS", "PUT"]
    assert surface.methods_of("/stock/7/8") == surface.methods_of("/stockx7") == []


@pytest.mark.parametrize("text", ["", "0", "-1", "1_0", "٣", "1.0", " 1", "+1", "1\n", str(LARGEST_ID + 1), "0" * 20])
def test_an_id_is_refused_by_name(text: str) -> None:
    """The document says which field it was."""
    with pytest.raises(ProblemError) as refused:
        parse_id(text, "product_id")
    assert refused.value.members == {"field": "product_id"}


def test_a_query_gives_what_is_known_and_decodes_it() -> None:
    """Names are decoded too; what is no UTF-8 becomes no number."""
    assert read_query(b"p%61ge=%31&x=1&x=2&count=1+2", {"page", "count"}) == {"page": "1", "count": "1 2"}
    assert read_query(b"page=%FF", {"page"}) == {"page": "\ufffd"}
    assert read_query(b"page", {"page"}) == {"page": ""}
    assert read_query(b"", {"page"}) == {}


def test_a_tag_is_found_in_any_form_of_the_header() -> None:
    """Weak comparison, as If-None-Match has it; nothing matches half a tag."""
    assert all(matches(text, '"7"') for text in ('"7"', 'W/"7"', '"6", "7"', "*", ' W/"7" '))
    assert not any(matches(text, '"7"') for text in (None, "", "7", '"77"', '"7', 'w/"7"'))


def test_a_preflight_names_headers_and_never_stars_them() -> None:
    """`*` would not cover Authorization."""
    cors = Cors(Origins(frozenset({"*"})), Origins(frozenset({"https://a.example"})))
    listed = json.dumps([value.decode() for _, value in cors.of_preflight("PUT", "https://a.example")])
    assert "Authorization" in listed
    assert '"*"' not in listed
    assert cors.of_preflight("PUT", "https://b.example")[0] == (b"vary", b"Origin")
