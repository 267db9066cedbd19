"""The plain deployment as a client meets it, through the proxy."""

import uuid
from collections import Counter

import pytest

from tests.e2e.stack import Stack, run
from tests.e2e.traffic import Client

pytestmark = pytest.mark.timeout(600)


def test_every_resource_answers_through_the_proxy_in_both_dialects(plain: Stack) -> None:
    """Reads come from replicas, uncompressed, with their tokens; the whole demo catalogue is there."""
    with Client(plain.port) as client:
        for prefix in ("", "/api/fec2/hr-rfp"):
            for path in ("/products", "/products/1", "/products/1/styles", "/products/1/related"):
                answer = client.get(prefix + path, Accept_Encoding="gzip, br")
                assert answer.status == 200, (prefix + path, answer.body)
                assert answer.json
                assert answer.headers["atelier-served-by"] in ("replica-1", "replica-2")
                assert "content-encoding" not in answer.headers
                assert answer.token
        first = client.get("/products?page=1&count=3").json
        assert [item["name"] for item in first] == ["Camo Onesie", "Bright Future Sunglasses", "Morning Joggers"]
        for path in ("/health/live", "/health/ready", "/openapi.json", "/docs", "/problems/not-found"):
            assert client.get(path).status == 200, path


def test_entity_tags_and_head_pass_the_proxy_unchanged(plain: Stack) -> None:
    """Strong tags stay strong, 304 has no body, HEAD has the length."""
    with Client(plain.port) as client:
        whole = client.get("/products/1")
        assert whole.headers["etag"].startswith('"')
        assert client.get("/products/1", If_None_Match=whole.headers["etag"]).status == 304
        assert client.ask("HEAD", "/products/1").headers["content-length"] == str(len(whole.body))


@pytest.mark.parametrize(
    ("method", "path", "status", "name"),
    [
        ("GET", "/products/999999999", 404, "not-found"),
        ("GET", "/products?page=0", 400, "invalid-request"),
        ("GET", "//products//1", 404, "not-found"),
        ("GET", "/cluster", 404, "not-found"),
        ("GET", "/metrics", 404, "not-found"),
        ("GET", "/products?page=" + "1" * 70_000, 400, "invalid-request"),
        ("POST", "/inventory/adjustments", 401, "unauthorized"),
        ("GET", "/commands/unknown", 401, "unauthorized"),
        ("DELETE", "/products/1", 401, "unauthorized"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_a_refusal_is_a_problem_document_whoever_refuses(
    plain: Stack, method: str, path: str, status: int, name: str
) -> None:
    """Also where the proxy answers by itself; operations are not routed from outside."""
    with Client(plain.port) as client:
        answer = client.ask(method, path)
    assert (answer.status, answer.json["type"]) == (status, f"/problems/{name}"), answer.body
    assert answer.headers["content-type"] == "application/problem+json"


def test_a_body_that_is_too_large_is_refused_with_a_problem_document(plain: Stack) -> None:
    """The service's own bound is below the proxy's, so it is the one that speaks."""
    with Client(plain.port, key=plain.key) as client:
        answer = client.ask("POST", "/products", body="x" * 12_000_000, Idempotency_Key=uuid.uuid4().hex)
    assert (answer.status, answer.json["type"]) == (413, "/problems/payload-too-large")


def test_a_read_with_a_commands_token_shows_the_command_in_any_container(
    plain: Stack, product: tuple[int, list[int]]
) -> None:
    """The writing container mints, the reading containers wait for their replicas: 200 times, over both replicas."""
    product_id, (sku_id, *_) = product
    served: Counter[str] = Counter()
    with Client(plain.port, key=plain.key) as client:
        stock = client.get(f"/inventory/{sku_id}", Atelier_Consistency="strong").json["on_hand"]
        for round_ in range(1, 201):
            body = {"reason": "e2e", "lines": [{"sku_id": sku_id, "delta": 1}]}
            done = client.ask("POST", "/inventory/adjustments", body=body, Idempotency_Key=uuid.uuid4().hex)
            assert done.status == 200, done.body
            seen = client.get(f"/products/{product_id}/styles", Atelier_Token=done.token)
            assert seen.json["results"][0]["skus"][str(sku_id)]["quantity"] == stock + round_
            served[seen.headers["atelier-served-by"]] += 1
    assert served["replica-1"], served
    assert served["replica-2"], served


def test_a_command_sent_again_through_the_proxy_has_one_effect(plain: Stack, product: tuple[int, list[int]]) -> None:
    """The second answer is the first one, marked; the resolver, which the proxy sends to the writes, knows it too."""
    _, (sku_id, *_) = product
    key = uuid.uuid4().hex
    body = {"reason": "e2e", "lines": [{"sku_id": sku_id, "delta": 1}]}
    with Client(plain.port, key=plain.key) as client:
        first, second = (client.ask("POST", "/inventory/adjustments", body=body, Idempotency_Key=key) for _ in range(2))
        assert (first.status, second.status) == (200, 200)
        assert first.body == second.body
        assert second.headers["idempotency-replayed"] == "true"
        assert client.get(f"/commands/{key}").json["status"] == 200


def test_the_change_feed_passes_the_proxy_event_by_event(plain: Stack, product: tuple[int, list[int]]) -> None:
    """An event arrives while the stream is open: nothing holds it back."""
    _, (sku_id, *_) = product
    body = {"reason": "e2e", "lines": [{"sku_id": sku_id, "delta": 1}]}
    with Client(plain.port, timeout_s=20) as client, Client(plain.port, key=plain.key) as writer:
        stream = client.open_stream("/changes")
        assert writer.ask("POST", "/inventory/adjustments", body=body, Idempotency_Key=uuid.uuid4().hex).status == 200
        line = stream.readline()
        while not (line.startswith(b"data:") and f'"sku_id":{sku_id},'.encode() in line.replace(b" ", b"")):
            assert line, "the stream ended"
            line = stream.readline()


def test_nothing_but_the_proxy_is_published_and_no_container_may_do_more_than_it_needs(plain: Stack) -> None:
    """One port, on loopback; no root, no capability, nothing writable but data and memory."""
    form = "{{json .HostConfig.PortBindings}} {{.Config.User}} {{.HostConfig.ReadonlyRootfs}} {{.HostConfig.CapDrop}}"
    seen = [run("docker", "inspect", "-f", form, found).split(" ") for found in plain.compose("ps", "-q").split()]
    assert len(seen) == 7
    (ports,) = [bindings for bindings, *_ in seen if bindings not in ("{}", "null")]
    assert '"HostIp":"127.0.0.1"' in ports
    for _, user, is_read_only, dropped in seen:
        assert user.split(":")[0] not in ("", "0", "root")
        assert (is_read_only, dropped) == ("true", "[ALL]")


def test_each_container_knows_only_its_own_secrets(plain: Stack) -> None:
    """The readers have never seen the writer's password, and the service never the superuser's."""
    known = {"monitor", "reader", "token-keys"}
    assert set(plain.exec("reads", "ls", "/run/secrets/atelier").split()) == known
    assert set(plain.exec("writes", "ls", "/run/secrets/atelier").split()) == known | {"writer"}
