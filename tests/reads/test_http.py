"""What every answer carries over HTTP: tags, links, origins, policies, tokens; and what the service tells of itself."""

import json
import re
import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest

from atelier.embedded.cluster import EmbeddedCluster
from atelier.http import version_of_tag
from atelier.lsn import Lsn
from atelier.problems import TYPES
from atelier.settings import parse_token_keys
from atelier.token import CausalToken, TokenKeys
from tests.reads.wire import Reply, ask
from tests.support import Service, running_service, wait_until

pytestmark = [pytest.mark.cluster]

Hat = dict[str, Any]

REQUEST_HEADERS = (
    "Authorization, Content-Type, If-None-Match, Last-Event-ID, Atelier-Token, Atelier-Consistency, Atelier-Wait-Ms"
)
ANSWER_HEADERS = "ETag, Link, Retry-After, Server-Timing, Atelier-Token, Atelier-Served-By, Atelier-Lag-Ms"
STRICT_POLICY = "default-src 'none'; frame-ancestors 'none'"


@pytest.fixture(scope="module")
def send(service: Service) -> Iterator[Callable[..., httpx.Response]]:
    """Sends commands, each with a key of its own."""
    with httpx.Client(base_url=service.url, headers={"Authorization": f"Bearer {service.key}"}) as client:

        def send(method: str, path: str, body: Any = None, **headers: str) -> httpx.Response:
            key = {"Idempotency-Key": f"http-{time.monotonic_ns()}"}
            return client.request(method, path, json=body, headers=key | headers)

        yield send


@pytest.fixture(scope="module")
def hat(service: Service, send: Callable[..., httpx.Response]) -> Hat:
    """A product of the module's own with a style and a SKU, and a token that has seen it."""
    style = {"name": "Red", "original_price": "20", "sale_price": None, "default?": True,
             "skus": [{"size": "M", "quantity": 5}]}  # fmt: skip
    body = {"name": "Hat", "slogan": "", "description": "", "category": "Hats", "default_price": "19.50",
            "styles": [style]}  # fmt: skip
    made = send("POST", "/products", body)
    token = made.headers["Atelier-Token"]
    shown = ask(service.url, f"/products/{made.json()['id']}/styles", Atelier_Token=token).json()["results"][0]
    return {
        "product": made.json()["id"], "style": shown["style_id"], "sku": int(next(iter(shown["skus"]))), "token": token
    }  # fmt: skip


def read(service: Service, hat: Hat, target: str, **headers: str) -> Reply:
    """Reads what is at least as new as the hat."""
    return ask(service.url, target.format(**hat), Atelier_Token=hat["token"], **headers)


READS = (
    "/products?count=2", "/products?after=0", "/products/{product}", "/products/{product}/styles",
    "/products/{product}/related", "/styles/{style}", "/api/fec2/hr/products/{product}",
    "/api/fec2/hr/products/{product}/styles", "/openapi.json", "/docs", "/problems/", "/problems/overloaded",
)  # fmt: skip


@pytest.mark.parametrize("target", READS)
def test_an_unchanged_answer_is_304_without_a_body(service: Service, hat: Hat, target: str) -> None:
    """The tag is strong, the 304 carries what the 200 carried, and any form of the header finds it."""
    full = read(service, hat, target)
    tag = full.headers["etag"]
    assert full.status == 200
    assert re.fullmatch(r'"[!-~]+"', tag)
    for asked in (tag, f'"other", {tag}', f"W/{tag}", "*", f' "x" ,W/"y",{tag} '):
        unchanged = read(service, hat, target, If_None_Match=asked)
        assert (unchanged.status, unchanged.body) == (304, b"")
        absent = full.headers.keys() - unchanged.headers.keys()
        assert absent <= {"content-length", "content-type"}
        assert unchanged.headers["etag"] == tag
        assert unchanged.headers["cache-control"] == full.headers["cache-control"]
    assert read(service, hat, target, If_None_Match='"other"').status == 200
    assert read(service, hat, target, If_None_Match=tag.strip('"')).status == 200


def test_head_of_an_unchanged_answer_is_304_too(service: Service, hat: Hat) -> None:
    """HEAD is GET without the body, also here."""
    path = f"/products/{hat['product']}"
    tag = ask(service.url, path, Atelier_Token=hat["token"]).headers["etag"]
    assert ask(service.url, path, "HEAD", If_None_Match=tag, Atelier_Token=hat["token"]).status == 304


def test_the_tag_of_a_product_is_its_version(service: Service, hat: Hat) -> None:
    """In both dialects, so that it fits If-Match."""
    tags = {read(service, hat, f"{base}/products/{{product}}").headers["etag"] for base in ("", "/api/fec2/hr")}
    assert len(tags) == 1
    assert version_of_tag(tags.pop()) == 1


def test_the_tag_of_a_style_changes_with_its_stock_and_still_fits_if_match(
    service: Service, hat: Hat, send: Callable[..., httpx.Response]
) -> None:
    """It shows quantities, which the product's version does not cover: a bare version would be a stale 304."""
    before = read(service, hat, "/styles/{style}")
    sold = send("POST", "/inventory/adjustments", {"reason": "sold", "lines": [{"sku_id": hat["sku"], "delta": -1}]})
    seen = {"Atelier_Token": sold.headers["Atelier-Token"], "If_None_Match": before.headers["etag"]}
    after = ask(service.url, f"/styles/{hat['style']}", **seen)
    assert after.status == 200
    assert after.json()["skus"][str(hat["sku"])]["quantity"] == 4
    assert after.headers["etag"] != before.headers["etag"]
    assert version_of_tag(after.headers["etag"]) == version_of_tag(before.headers["etag"]) == 1


@pytest.mark.parametrize(
    ("tag", "version"),
    [
        ('"7"', 7),
        ('"7-0123456789abcdef01"', 7),
        ('W/"7"', None),
        ('"7-xyz"', None),
        ("7", None),
        ('""', None),
        ("*", None),
    ],
)
def test_a_version_is_read_from_its_tag_alone(tag: str, version: int | None) -> None:
    """A weak or foreign tag names none."""
    assert version_of_tag(tag) == version


def test_an_answer_is_private_once_it_depends_on_who_asks(service: Service, hat: Hat) -> None:
    """Whatever the setting says."""
    assert ask(service.url, "/products").headers["cache-control"] == "no-cache"
    assert read(service, hat, "/products").headers["cache-control"] == "private, no-cache"
    for asked in ("strong", "bounded; max-lag-ms=60000", "causal"):
        reply = ask(service.url, "/products", Atelier_Consistency=asked)
        assert reply.headers["cache-control"] == "private, no-cache", asked
    assert "Atelier-Token" in ask(service.url, "/products").headers["vary"]


def test_lists_carry_links_also_in_the_other_dialect(service: Service, hat: Hat) -> None:
    """Relative to the address that was asked for."""
    links = read(service, hat, "/api/fec2/hr/products?count=1&page=1").headers["link"]
    assert links.startswith('</api/fec2/hr/products?page=1&count=1>; rel="first"')
    assert 'rel="last"' in links


# ---------------------------------------------------------------- origins


def preflight(url: str, path: str, method: str, origin: str = "https://shop.example") -> Reply:
    """What a browser asks before it dares."""
    return ask(url, path, "OPTIONS", Origin=origin, Access_Control_Request_Method=method,
               Access_Control_Request_Headers="atelier-token")  # fmt: skip


def test_any_page_may_read_without_credentials(service: Service) -> None:
    """Headers by name, never `*`, because `*` does not cover Authorization."""
    reply = preflight(service.url, "/products/1", "GET")
    assert (reply.status, reply.body) == (204, b"")
    assert reply.headers["access-control-allow-origin"] == "*"
    assert reply.headers["access-control-allow-headers"] == REQUEST_HEADERS
    assert reply.headers["access-control-allow-methods"] == "GET, HEAD"
    assert "access-control-allow-credentials" not in reply.headers
    for target in ("/products", "/products/x", "/nowhere", "/health/live"):
        answer = ask(service.url, target, Origin="https://shop.example")
        assert answer.headers["access-control-allow-origin"] == "*"
        assert answer.headers["access-control-expose-headers"] == ANSWER_HEADERS


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE"])
def test_no_page_may_command_unless_it_was_let_in(service: Service, method: str) -> None:
    """Neither the question nor the command itself."""
    assert "access-control-allow-origin" not in preflight(service.url, "/products/1", method).headers
    answer = ask(service.url, "/products/1", method, body=b"{}", Origin="https://shop.example")
    assert "access-control-allow-origin" not in answer.headers


def test_options_tells_the_methods_of_an_address(service: Service) -> None:
    """Of both sides."""
    assert ask(service.url, "/products/1", "OPTIONS").headers["allow"] == "DELETE, GET, HEAD, OPTIONS, PATCH, PUT"
    assert ask(service.url, "/nowhere", "OPTIONS").problem == "not-found"


@pytest.fixture(scope="module")
def sides(cluster: EmbeddedCluster) -> Iterator[tuple[Service, Service]]:
    """The two sides as processes of their own, with origins by name and operations closed."""
    settings = {
        "ATELIER_CORS_ORIGINS": "https://shop.example,https://other.example:8443",
        "ATELIER_COMMAND_CORS_ORIGINS": "https://admin.example",
        "ATELIER_OPERATIONS": "keyed",
        "ATELIER_CACHE_CONTROL": "public, max-age=5",
    }
    with (
        running_service(cluster, role="reads", settings=settings) as reads,
        running_service(cluster, role="writes", settings=settings) as writes,
    ):
        yield reads, writes


@pytest.mark.parametrize("origin", ["https://shop.example", "https://admin.example", "https://evil.example", "null"])
@pytest.mark.parametrize("method", ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "BREW"])
@pytest.mark.parametrize("path", ["/products", "/inventory/1", "/commands/k", "/changes", "/nowhere"])
def test_both_sides_give_the_same_answer_to_a_preflight(
    sides: tuple[Service, Service], path: str, method: str, origin: str
) -> None:
    """A browser asks the one and commands the other."""
    answers = [preflight(side.url, path, method, origin) for side in sides]
    shown = [{k: v for k, v in one.headers.items() if k not in ("date", "x-request-id")} for one in answers]
    assert (answers[0].status, shown[0]) == (answers[1].status, shown[1])


def test_an_origin_is_let_in_by_name(sides: tuple[Service, Service]) -> None:
    """And caches are told that the answer depends on it."""
    url = sides[0].url
    allowed = ask(url, "/products", Origin="https://shop.example").headers
    assert allowed["access-control-allow-origin"] == "https://shop.example"
    assert "Origin" in allowed["vary"]
    refused = ask(url, "/products", Origin="https://evil.example").headers
    assert "access-control-allow-origin" not in refused
    assert "Origin" in refused["vary"]
    commanding = preflight(url, "/products", "POST", "https://admin.example").headers
    assert commanding["access-control-allow-origin"] == "https://admin.example"
    assert commanding["access-control-allow-headers"] == f"{REQUEST_HEADERS}, If-Match, Idempotency-Key"


def test_both_sides_show_the_whole_document(sides: tuple[Service, Service], service: Service) -> None:
    """The same bytes, whatever the role."""
    documents = {ask(one.url, "/openapi.json").body for one in (*sides, service)}
    assert len(documents) == 1


def test_closed_operations_ask_for_a_key(sides: tuple[Service, Service]) -> None:
    """Health stays open: probes have no key."""
    for side in sides:
        for target in ("/cluster", "/metrics"):
            assert ask(side.url, target).problem == "unauthorized"
            assert ask(side.url, target, Authorization=f"Bearer {side.key}").status == 200
        assert ask(side.url, "/health/live").status == 200


def test_the_default_cache_control_is_a_setting_that_no_token_is_cached_by(
    sides: tuple[Service, Service], hat: Hat
) -> None:
    """Public for everybody, private for whom a promise was made."""
    assert ask(sides[0].url, "/products").headers["cache-control"] == "public, max-age=5"
    assert read(sides[0], hat, "/products").headers["cache-control"] == "private, no-cache"


def test_no_cache_keeps_what_needs_a_key(sides: tuple[Service, Service], hat: Hat) -> None:
    """Whatever the setting says: the next one to ask may have none."""
    reply = ask(sides[0].url, f"/inventory/{hat['sku']}", Authorization=f"Bearer {sides[0].key}")
    assert reply.headers["cache-control"] == "private, no-cache"


# ---------------------------------------------------------------- pages and policies


@pytest.mark.parametrize("target", ["/products", "/nowhere", "/health/live", "/openapi.json", "/metrics"])
def test_no_document_is_taken_for_a_page(service: Service, target: str) -> None:
    """Whatever somebody makes a browser do with it."""
    headers = ask(service.url, target).headers
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["referrer-policy"] == "no-referrer"
    assert headers["content-security-policy"] == STRICT_POLICY


def test_the_docs_page_loads_nothing_from_elsewhere(service: Service) -> None:
    """And nothing inline that its policy would have to allow; everything it names is there."""
    page = ask(service.url, "/docs")
    text = page.body.decode()
    named = re.findall(r'(?:src|href)="([^"]+)"', text)
    assert named
    assert all(name.startswith("/docs/assets/") for name in named)
    assert not re.search(r"<script(?![^>]*src)|<style|style=|\son\w+=|javascript:", text)
    for name in named:
        asset = ask(service.url, name)
        assert (asset.status, bool(asset.body)) == (200, True), name
    policy = page.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "script-src 'self';" in policy
    assert "http" not in policy


@pytest.mark.parametrize("name", ["../pages.py", "..%2fpages.py", "swagger-ui.js.map", "nothing.css", "%00"])
def test_the_docs_page_has_no_other_files(service: Service, name: str) -> None:
    """Its assets are a list, not a folder."""
    assert ask(service.url, f"/docs/assets/{name}").problem == "not-found"


@pytest.mark.parametrize("name", sorted(TYPES))
def test_every_problem_has_a_page_for_people_and_one_for_programs(service: Service, name: str) -> None:
    """`type` leads there."""
    page = ask(service.url, f"/problems/{name}", Accept="text/html,application/xhtml+xml,*/*;q=0.8")
    assert page.headers["content-type"].startswith("text/html")
    assert TYPES[name].title in page.body.decode().replace("&#x27;", "'")
    assert "style-src 'self'" in page.headers["content-security-policy"]
    document = ask(service.url, f"/problems/{name}", Accept="application/json")
    assert document.json()["status"] == TYPES[name].status
    assert page.headers["vary"] == document.headers["vary"] == "Accept"


def test_the_problems_are_listed(service: Service) -> None:
    """For both kinds of readers."""
    assert [kind["type"] for kind in ask(service.url, "/problems/").json()] == [f"/problems/{name}" for name in TYPES]
    listed = ask(service.url, "/problems/", Accept="text/html").body.decode()
    assert all(f"/problems/{name}" in listed for name in TYPES)


def test_nothing_is_found_under_an_unknown_problem(service: Service) -> None:
    """Not even for a browser."""
    assert ask(service.url, "/problems/no-such-thing", Accept="text/html").problem == "not-found"


# ---------------------------------------------------------------- tokens


def test_a_token_of_a_lost_history_is_409_with_a_fresh_one(cluster: EmbeddedCluster, service: Service) -> None:
    """The fresh one works at once; as a cookie it is dropped, and the page is served."""
    keys = TokenKeys(parse_token_keys(cluster.environment()["ATELIER_TOKEN_KEYS"]))
    lost = keys.seal(CausalToken(4711, 1, Lsn(1)))
    refused = ask(service.url, "/products", Atelier_Token=lost)
    assert (refused.status, refused.problem) == (409, "history-lost")
    assert ask(service.url, "/products", Atelier_Token=refused.headers["atelier-token"]).status == 200
    page = ask(service.url, "/products", Cookie=f"atelier_token={lost}")
    assert page.status == 200
    assert page.headers["set-cookie"].startswith("atelier_token=; Path=/;")


def test_a_header_wins_over_a_cookie(service: Service, hat: Hat) -> None:
    """A broken cookie beside a good header is nobody's business, and is not dropped."""
    reply = read(service, hat, "/products", Cookie="atelier_token=broken")
    assert reply.status == 200
    assert "set-cookie" not in reply.headers


# ---------------------------------------------------------------- what it tells of itself


def metrics_of(service: Service) -> dict[str, float]:
    """Every sample of `/metrics`."""
    lines = ask(service.url, "/metrics").body.decode().splitlines()
    return {line.rsplit(" ", 1)[0]: float(line.rsplit(" ", 1)[1]) for line in lines if not line.startswith("#")}


def test_requests_are_counted_by_route_template(service: Service, hat: Hat) -> None:
    """Ids, unknown paths and invented methods make no new labels."""
    name = 'atelier_http_requests_total{method="GET",route="/products/{product_id}",status="404"}'
    before = metrics_of(service).get(name, 0)
    for number in range(5):
        ask(service.url, f"/products/{10**15 + number}")
        ask(service.url, f"/nowhere/{number}", f"BREW{number}")
    after = metrics_of(service)
    assert after[name] == before + 5
    labels = {label for sample in after for label in re.findall(r'(?:route|method)="([^"]*)"', sample)}
    assert not any("nowhere" in label or "BREW" in label or "1000000" in label for label in labels)
    assert {"(none)", "(other)"} <= labels


def test_every_node_shows_its_lag_reads_and_connections(service: Service, hat: Hat) -> None:
    """And every read shows why it went where."""
    read(service, hat, "/products")
    samples = metrics_of(service)
    for node in ("pg1", "pg2", "pg3"):
        assert f'atelier_node_lag_seconds{{node="{node}"}}' in samples
        assert f'atelier_node_reads_in_flight{{node="{node}"}}' in samples
        assert f'atelier_node_connections{{node="{node}",state="open"}}' in samples
    assert any(sample.startswith("atelier_read_decisions_total{") for sample in samples)


def test_each_request_is_one_line_of_json_without_secrets(service: Service, hat: Hat) -> None:
    """With its decision and timings; no token, no key, no query."""
    ask(service.url, f"/products/{hat['product']}?secret=1", X_Request_Id="find-me-1", Atelier_Token=hat["token"],
        Authorization=f"Bearer {service.key}", Cookie="atelier_token=cookie-secret")  # fmt: skip
    lines: list[dict[str, Any]] = []

    def is_written() -> bool:
        lines[:] = [json.loads(line) for line in service.log.read_text().splitlines() if '"find-me-1"' in line]
        return bool(lines)

    wait_until(is_written, what="the line of the request")
    (line,) = lines
    assert {"method": "GET", "path": f"/products/{hat['product']}", "status": 200}.items() <= line.items()
    assert {"node", "reason", "route_ms", "wait_ms", "db_ms", "duration_ms", "timestamp"} <= line.keys()
    text = service.log.read_text()
    assert not any(secret in text for secret in (hat["token"], service.key, "cookie-secret", "secret=1"))
