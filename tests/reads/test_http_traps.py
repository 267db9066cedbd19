"""What frameworks and servers let through: each trap once, by the bytes that would spring it."""

import json
from collections.abc import Iterator

import httpx
import pytest

from tests.reads.wire import Reply, ask
from tests.support import Service

pytestmark = [pytest.mark.cluster]

PRODUCT = {
    "name": "Hat", "slogan": "Warm", "description": "", "category": "Hats", "default_price": "19.50",
    "features": [{"feature": "Wool", "value": None}], "related": [],
    "styles": [{"name": "Red", "original_price": "20", "sale_price": None, "default?": True,
                "skus": [{"size": "M", "quantity": 3}]}],
}  # fmt: skip


@pytest.fixture(scope="module")
def hat(service: Service) -> Iterator[dict[str, int]]:
    """A product of the test's own, on the replicas: its id, its style's and its SKU's."""
    with httpx.Client(base_url=service.url, headers={"Authorization": f"Bearer {service.key}"}) as client:
        made = client.post("/products", json=PRODUCT, headers={"Idempotency-Key": "traps-" + service.key[-20:]})
        assert made.status_code == 201, made.text
        product_id = made.json()["id"]
        token = {"Atelier-Token": made.headers["Atelier-Token"], "Atelier-Wait-Ms": "2000"}
        style = client.get(f"/products/{product_id}/styles", headers=token).json()["results"][0]
        yield {"product": product_id, "style": style["style_id"], "sku": int(next(iter(style["skus"])))}


def is_refused(reply: Reply) -> bool:
    """Whether an answer is a proper 400 or 404."""
    return reply.status in (400, 404) and reply.problem in ("invalid-request", "not-found")


@pytest.mark.parametrize(
    "target",
    [
        "//products//{id}", "/products//{id}", "/products/{id}/", "//products/{id}", "/products/{id}//styles",
        "/products/", "//", "/api/fec2//hr/products", "/products%2F{id}", "/products/{id}%2fstyles",
        "/products/{id}%5Cstyles", "/./products/{id}", "/products/../products/{id}",
        "/products/{id}/styles/", "/health/live/", "/openapi.json/", "/docs/", "/problems/not-found/",
    ],
)  # fmt: skip
def test_an_address_has_one_spelling(service: Service, hat: dict[str, int], target: str) -> None:
    """Doubled, trailing and hidden slashes lead nowhere."""
    assert is_refused(ask(service.url, target.format(id=hat["product"])))


@pytest.mark.parametrize(
    "text",
    [
        "1_000", "%D9%A3", "+1", "-1", "0", "00", "1.0", "1e3", "0x1", "%201", "1%20", "1%00", "%00",
        "9223372036854775808",
        "18446744073709551617", "99999999999999999999999999", "%FF", "%C3%28", "%", "%zz", "%E2%80%8B1", "abc", "null",
        "1;2", "1,2", "{}", "%F0%9F%A7%A5", "1%0A", "1%0D%0AX:%20y", "'%20or%201=1--", "*",
    ],
)  # fmt: skip
@pytest.mark.parametrize(
    "place",
    ["/products/{}", "/products/{}/styles", "/products/{}/related", "/api/fec2/hr/products/{}", "/styles/{}"],
)
def test_an_id_is_nothing_but_digits_of_64_bits(service: Service, place: str, text: str) -> None:
    """Underscores, other scripts, signs, NUL, garbage: 400."""
    reply = ask(service.url, place.format(text))
    assert (reply.status, reply.problem) == (400, "invalid-request")


def test_raw_bytes_in_an_address_are_refused(service: Service) -> None:
    """Digits of another script, not even percent-encoded."""
    assert is_refused(ask(service.url, b"/products/\xd9\xa3"))


def test_the_largest_id_is_an_id(service: Service) -> None:
    """It belongs to nothing, which is another answer."""
    assert ask(service.url, f"/products/{2**63 - 1}").problem == "not-found"
    assert ask(service.url, f"/products/{2**63}").problem == "invalid-request"


def test_leading_zeros_do_not_overflow(service: Service) -> None:
    """A number may be written with them; a text of any length is not read as one."""
    assert ask(service.url, "/products/" + "0" * 500 + "1").status == 400


@pytest.mark.parametrize("length", [3_000, 20_000])
def test_an_address_that_is_too_long_leads_nowhere(service: Service, length: int) -> None:
    """And costs nothing."""
    assert is_refused(ask(service.url, "/" + "a" * length))
    assert is_refused(ask(service.url, "/products/" + "1" * length))


def test_an_address_beyond_what_the_server_reads_is_cut_off(service: Service) -> None:
    """The server answers by itself, before any of our code: 414 or 431."""
    assert ask(service.url, "/" + "a" * 200_000).status in (414, 431)


@pytest.mark.parametrize(
    "query",
    [
        "page=", "page=0", "page=-1", "page=1_0", "page=%D9%A3", "page=1.0", "page=x", "page=%00", "page=%FF",
        "page=+1",
        "page=9223372036854775808", "count=", "count=0", "count=1001", "count=1e2", "count=5%0A", "after=", "after=-1",
        "after=x", "page=1&page=1", "page=1&page=2", "count=5&count=5", "after=1&after=2", "page=1&after=1", "%70age=0",
        "page=1&p%61ge=2", "page", "page=1&count",
    ],
)  # fmt: skip
@pytest.mark.parametrize("path", ["/products", "/api/fec2/hr/products"])
def test_a_page_count_or_cursor_is_one_number_in_its_bounds(service: Service, path: str, query: str) -> None:
    """Empty, doubled, or out of bounds: 400."""
    reply = ask(service.url, f"{path}?{query}")
    assert (reply.status, reply.problem) == (400, "invalid-request")
    assert reply.json()["field"] in ("page", "count", "after")


@pytest.mark.parametrize("query", ["", "utm=1", "utm=1&utm=2", "%FF=%FF", "=", "&&", "a%00b=1", "Page=0", "pages=x"])
def test_an_unknown_parameter_is_ignored(service: Service, query: str) -> None:
    """Whatever it holds, however often it is sent."""
    assert ask(service.url, f"/products?{query}").status == 200


def test_the_largest_page_of_the_largest_count_is_empty(service: Service) -> None:
    """Their product has 73 bits."""
    assert ask(service.url, f"/products?page={2**63 - 1}&count=1000").json() == []


@pytest.mark.parametrize("campus", ["HR", "a_b", "a" * 33, "%20", "h%00r", "%C3%BC", "a.b"])
def test_a_campus_is_a_short_lower_case_word(service: Service, campus: str) -> None:
    """It is echoed, so it is not just anything."""
    assert ask(service.url, f"/api/fec2/{campus}/products").problem == "invalid-request"


@pytest.mark.parametrize("method", ["POST", "DELETE", "PATCH", "BREW", "TRACE", "PROPFIND", "get"])
def test_an_unknown_method_is_405_with_what_is_allowed(service: Service, hat: dict[str, int], method: str) -> None:
    """On an address that only reads."""
    reply = ask(service.url, f"/products/{hat['product']}/related", method, body=b"")
    assert reply.problem == "method-not-allowed"
    assert reply.headers["allow"] == "GET, HEAD, OPTIONS, PUT"


@pytest.mark.parametrize(
    "target",
    ["/products", "/products/{product}", "/products/{product}/styles", "/products/{product}/related", "/styles/{style}",
     "/api/fec2/hr/products", "/api/fec2/hr/products/{product}", "/health/live", "/health/ready", "/cluster",
     "/metrics", "/openapi.json", "/docs", "/docs/assets/start.js", "/problems/", "/problems/not-found",
     "/products/x", "/nowhere"],
)  # fmt: skip
def test_head_is_get_without_a_body(service: Service, hat: dict[str, int], target: str) -> None:
    """Same status and headers, Content-Length included, wherever GET works and wherever it does not."""
    varying = {"date", "x-request-id", "server-timing", "atelier-lag-ms", "atelier-token", "atelier-served-by"}
    if target in ("/metrics", "/cluster"):
        varying.add("content-length")
    path = target.format(**hat)
    got, head = ask(service.url, path), ask(service.url, path, "HEAD")
    assert head.body == b""
    assert int(got.headers["content-length"]) == len(got.body)
    assert head.status == got.status
    assert {k: v for k, v in head.headers.items() if k not in varying} == {
        k: v for k, v in got.headers.items() if k not in varying
    }
    assert head.headers.keys() == got.headers.keys()


def test_head_of_the_endless_feed_ends(service: Service) -> None:
    """Its headers are all there is to see."""
    reply = ask(service.url, "/changes", "HEAD")
    assert (reply.status, reply.body) == (200, b"")
    assert reply.headers["content-type"].startswith("text/event-stream")


def test_a_body_on_a_read_is_ignored(service: Service) -> None:
    """Also one that no decoder would survive."""
    assert ask(service.url, "/products", body=b"[" * 100_000, Content_Type="application/json").status == 200


@pytest.mark.parametrize("authorization", ["Bearer nonsense", "Basic dTpw", "", "\xff", "a" * 5_000])
def test_open_addresses_ignore_an_authorization(service: Service, authorization: str) -> None:
    """Existing front ends send one everywhere."""
    for target in ("/products", "/health/live", "/cluster", "/openapi.json"):
        assert ask(service.url, target, Authorization=authorization).status == 200


@pytest.mark.parametrize(
    "headers",
    [
        {"Atelier-Consistency": "sometimes"}, {"Atelier-Consistency": ""}, {"Atelier-Consistency": "bounded"},
        {"Atelier-Consistency": "bounded; max-lag-ms=-1"}, {"Atelier-Consistency": "bounded; max-lag-ms=\u00b2"},
        {"Atelier-Wait-Ms": "soon"}, {"Atelier-Wait-Ms": ""}, {"Atelier-Wait-Ms": "1_0"}, {"Atelier-Wait-Ms": "-1"},
    ],
)  # fmt: skip
def test_a_malformed_consistency_header_is_400(service: Service, headers: dict[str, str]) -> None:
    """Silence would be a promise broken without a word."""
    assert ask(service.url, "/products", **headers).problem == "invalid-request"


@pytest.mark.parametrize("token", ["", "x", "A" * 51, "\xff" * 51, "A" * 5_000, "AQ=="])
def test_a_malformed_token_is_400_and_as_a_cookie_dropped(service: Service, token: str) -> None:
    """A client with a broken header has to know; a page with a broken cookie has to load."""
    assert ask(service.url, "/products", Atelier_Token=token).problem == "invalid-token"
    reply = ask(service.url, "/products", Cookie=f"theme=dark; atelier_token={token}")
    assert reply.status == 200
    assert reply.headers["set-cookie"].startswith("atelier_token=;")


@pytest.mark.parametrize("cookie", ["\xff\xfe", "=", ";;;", "a" * 4_000, "atelier_token", 'atelier_token="'])
def test_a_garbled_cookie_header_breaks_nothing(service: Service, cookie: str) -> None:
    """Whatever other sites on the same host have set."""
    assert ask(service.url, "/products", Cookie=cookie).status == 200


@pytest.mark.parametrize("given", ["\xff", "a b", "a" * 65, "", "<script>", "a;b"])
def test_a_request_id_of_any_other_form_is_replaced(service: Service, given: str) -> None:
    """It goes into a log and a header."""
    made = ask(service.url, "/products", X_Request_Id=given).headers["x-request-id"]
    assert len(made) == 16
    assert int(made, 16) >= 0


def test_a_proper_request_id_is_kept(service: Service) -> None:
    """So that a trace goes through."""
    assert ask(service.url, "/nowhere", X_Request_Id="abc-1.2_Z").headers["x-request-id"] == "abc-1.2_Z"


def test_no_refusal_tells_what_is_inside(service: Service) -> None:
    """No SQL, no driver, no addresses of servers, no framework's words."""
    for target in ("/products/%00", "/products?page=x", "/nowhere", "/products/99999999999", "/commands/%00"):
        text = ask(service.url, target).body.decode().lower()
        assert not any(word in text for word in ("select", "asyncpg", "postgres", "traceback", "litestar", "127.0.0.1"))


def test_every_read_that_finds_nothing_says_from_where(service: Service) -> None:
    """A 404 is an answer of a node at a position, too."""
    reply = ask(service.url, "/products/99999999999/styles")
    assert reply.problem == "not-found"
    assert {
        "atelier-token",
        "atelier-served-by",
        "atelier-lag-ms",
        "server-timing",
        "cache-control",
    } <= reply.headers.keys()
    assert "etag" not in reply.headers


def test_problem_documents_name_their_instance(service: Service) -> None:
    """The decoded path, as JSON text."""
    document = json.loads(ask(service.url, "/products/%C3%BC").body)
    assert document["instance"] == "/products/ü"
