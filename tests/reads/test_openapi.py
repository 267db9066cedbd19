"""The OpenAPI document: whole, valid, true, and no way to break the service by it."""

import json
import re
from collections.abc import Iterable
from typing import Any

import httpx
import pytest

from atelier.documentation.openapi import build_document, list_operations
from atelier.documentation.operation import Operation
from atelier.documentation.writing import NOTES
from atelier.embedded.cluster import EmbeddedCluster
from atelier.problems import TYPES
from atelier.settings import Settings
from atelier.writes.endpoints import ENDPOINTS
from tests.reads.wire import ask
from tests.support import Service, running_service

DOCUMENT = build_document()
OPERATIONS = {(operation.method, operation.path): operation for operation in list_operations()}

ENVIRONMENT = {
    "ATELIER_NODES": "pg1=127.0.0.1:5433",
    "ATELIER_TOKEN_KEYS": "k1:" + "ab" * 32,
    **{f"ATELIER_{role}_PASSWORD": "x" for role in ("READER", "WRITER", "MONITOR")},
}


def test_every_route_of_both_sides_is_in_the_document_and_no_other() -> None:
    """What is served is what is written, HEAD and OPTIONS aside."""
    from atelier.app import create_app

    framework = create_app(Settings.from_environment(ENVIRONMENT))._app._app._app  # behind the edge and the short ways
    routes = framework.routes
    served = {
        (method, re.sub(r":\w+}", "}", route.path))
        for route in routes
        for method in getattr(route, "methods", ())
        if method not in ("HEAD", "OPTIONS")
    }
    documented = {(method, path.rstrip("/") or "/") for method, path in OPERATIONS}
    assert served == documented


def test_every_command_has_a_note_and_every_note_a_command() -> None:
    """Neither is left over."""
    assert {(endpoint.method, endpoint.path) for endpoint in ENDPOINTS} == set(NOTES)


@pytest.mark.parametrize("key", sorted(OPERATIONS), ids=" ".join)
def test_an_operation_has_examples_parameters_headers_and_errors(key: tuple[str, str]) -> None:
    """Each one, so that nobody has to guess."""
    described = DOCUMENT["paths"][key[1]][key[0].lower()]
    assert described["summary"]
    places = set(re.findall(r"{(\w+)}", key[1]))
    parameters = [resolve(parameter) for parameter in described.get("parameters", [])]
    assert places == {parameter["name"] for parameter in parameters if parameter["in"] == "path"}
    success = {status: answer for status, answer in described["responses"].items() if status.startswith("2")}
    assert success
    for answer in success.values():
        assert answer["headers"]
        assert all("example" in content for content in answer.get("content", {}).values())
    refusals = [resolve(answer) for status, answer in described["responses"].items() if status[0] in "45"]
    assert refusals
    for refusal in refusals:
        examples = refusal["content"]["application/problem+json"]["examples"]
        assert set(examples) <= set(TYPES)
    if "503" in described["responses"]:
        assert "Retry-After" in resolve(described["responses"]["503"])["headers"]


def test_every_kind_of_problem_is_answered_somewhere() -> None:
    """None is left over."""
    named = {name for operation in OPERATIONS.values() for name in operation.problems}
    assert set(TYPES) == named


@pytest.mark.parametrize("kind", ["parameters", "headers"])
def test_every_parameter_and_header_has_an_example_that_fits(kind: str) -> None:
    """Checked by the validator that clients use."""
    import jsonschema_rs

    for name, part in DOCUMENT["components"][kind].items():
        examples = part["schema"]["examples"]
        assert examples, name
        assert all(jsonschema_rs.is_valid(part["schema"], example) for example in examples), name


def test_what_can_be_304_takes_if_none_match_and_has_a_tag() -> None:
    """And the other way round."""
    for key, operation in OPERATIONS.items():
        statuses = {success.status: success.headers for success in operation.success}
        asks = "If-None-Match" in operation.parameters
        assert (304 in statuses) == asks, key
        assert not asks or all("ETag" in headers for headers in statuses.values()), key


def test_every_reference_leads_somewhere_and_every_component_is_used() -> None:
    """No dead ends and no dead text."""
    used = set(re.findall(r'"\$ref": ?"#/components/(\w+/[^"]+)"', json.dumps(DOCUMENT)))
    kept = {f"{kind}/{name}" for kind, parts in DOCUMENT["components"].items() for name in parts}
    assert used <= kept
    assert kept - used <= {"securitySchemes/apiKey"}


def test_examples_are_what_their_schemas_say() -> None:
    """Checked by the validator that clients use."""
    import jsonschema_rs

    for path, methods in DOCUMENT["paths"].items():
        for method, described in methods.items():
            contents = [described.get("requestBody", {}), *described["responses"].values()]
            for answer in contents:
                for media_type, content in answer.get("content", {}).items():
                    if "example" in content:
                        schema = {**content["schema"], "components": DOCUMENT["components"]}
                        assert jsonschema_rs.is_valid(schema, content["example"]), (method, path, media_type)


def resolve(part: dict[str, Any]) -> dict[str, Any]:
    """Follows a reference."""
    if "$ref" not in part:
        return part
    _, _, kind, name = part["$ref"].split("/")
    found: dict[str, Any] = DOCUMENT["components"][kind][name]
    return found


@pytest.mark.cluster
def test_the_document_is_served_as_it_is_built(service: Service) -> None:
    """JSON, the same every time."""
    reply = ask(service.url, "/openapi.json")
    assert reply.headers["content-type"] == "application/json"
    assert reply.json() == json.loads(json.dumps(DOCUMENT))


# What every answer carries, whatever the operation: the server's own, what HTTP and browsers ask for.
GENERAL_HEADERS = {
    "date", "server", "content-type", "content-length", "connection", "transfer-encoding", "x-content-type-options",
    "referrer-policy", "content-security-policy", "access-control-allow-origin", "access-control-expose-headers",
    "x-accel-buffering",
}  # fmt: skip


def undocumented_headers(method: str, template: str, status: int, sent: Iterable[str]) -> set[str]:
    """The headers of an answer that the document does not name for it."""
    described = resolve(DOCUMENT["paths"][template][method.lower()]["responses"][str(status)])
    return {name.lower() for name in sent} - {name.lower() for name in described["headers"]} - GENERAL_HEADERS


@pytest.mark.cluster
@pytest.mark.parametrize("operation", [one for one in OPERATIONS.values() if one.method == "GET"], ids=lambda o: o.path)
def test_every_header_of_an_answer_is_documented(operation: Operation, service: Service) -> None:
    """Of a good one, an unchanged one, one to a broken cookie, one with a malformed head, and one of nothing."""
    values = {"campus": "hr", "problem": "not-found", "asset": "page.css"}
    names = re.findall(r"{(\w+)}", operation.path)
    found = "/".join(str(values.get(part[1:-1], 1)) if part[:1] == "{" else part for part in operation.path.split("/"))
    cookie, key = {"Cookie": "atelier_token=broken"}, {"Authorization": f"Bearer {service.key}"}
    asked: list[dict[str, str]] = [key, key | {"If_None_Match": "*"}, key | cookie, {}, key | {"Host": "a b"}]
    seen = set()
    for headers in asked:
        # A stream is asked by HEAD: it has the same headers, and an end.
        reply = ask(service.url, found, "HEAD" if operation.path == "/changes" else "GET", **headers)
        seen.add(reply.status)
        assert not undocumented_headers("GET", operation.path, reply.status, reply.headers), reply.status
        document = operation.document()["responses"][str(reply.status)]
        if reply.status == 200:
            assert {name.lower() for name in document["headers"]} - reply.headers.keys() <= {"set-cookie", "link"}
    assert 400 in seen
    assert (304 in seen) == (304 in {success.status for success in operation.success} and (not names or 200 in seen))


@pytest.mark.cluster
def test_a_process_of_the_other_side_refuses_as_documented(cluster: EmbeddedCluster) -> None:
    """By 405 where the address is of both sides, by 404 where it is not: each is written down."""
    with running_service(cluster, role="reads") as reads, running_service(cluster, role="writes") as writes:
        for operation in list_operations():
            if operation.tag in ("Operation", "Documentation"):
                continue
            is_read = operation.method == "GET" and operation.path != "/commands/{key}"
            other = writes if is_read else reads
            reply = ask(other.url, re.sub(r"{campus}", "hr", operation.path).replace("{", "").replace("}", ""),
                        operation.method, body=b"")  # fmt: skip
            assert (reply.status == 405) == ("method-not-allowed" in operation.problems), operation
            assert reply.problem in ("method-not-allowed", "not-found"), operation
            assert ("allow" in reply.headers) == (reply.status == 405)


@pytest.mark.anyio
async def test_closed_operations_with_no_node_to_know_keys_answer_as_documented() -> None:
    """503: who asks cannot be told now."""
    from atelier.app import create_app

    app = create_app(Settings.from_environment({**ENVIRONMENT, "ATELIER_OPERATIONS": "keyed"}))
    key = {"Authorization": f"Bearer atl_{'a' * 8}_{'x' * 43}"}
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://shop.example") as client:
        for path in ("/cluster", "/metrics"):
            answer = await client.get(path, headers=key)
            assert answer.json()["type"] == "/problems/no-replica"
            assert "no-replica" in OPERATIONS["GET", path].problems


def test_only_what_is_counted_against_a_rate_is_refused_by_it() -> None:
    """Commands and their resolver; reads are not counted."""
    limited = {key for key, operation in OPERATIONS.items() if "too-many-requests" in operation.problems}
    assert limited == {*NOTES, ("GET", "/commands/{key}")}
