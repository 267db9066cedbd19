"""The OpenAPI document: whole, valid, true, and no way to break the service by it."""

import json
import re
from typing import Any

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, settings
from schemathesis.specs.openapi import checks

from atelier.documentation.openapi import build_document, list_operations
from atelier.documentation.writing import NOTES
from atelier.problems import TYPES
from atelier.settings import Settings
from atelier.writes.endpoints import ENDPOINTS
from tests.reads.wire import ask
from tests.support import Service

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

    framework = create_app(Settings.from_environment(ENVIRONMENT))._app._app  # behind the edge and the short way
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
        assert all("example" in content or content["schema"] == {"type": "string"} or key[1] == "/openapi.json"
                   for content in answer.get("content", {}).values())  # fmt: skip
    refusals = [resolve(answer) for status, answer in described["responses"].items() if status[0] in "45"]
    assert refusals or key[1] in ("/health/live", "/openapi.json", "/docs", "/problems/")
    for refusal in refusals:
        examples = refusal["content"]["application/problem+json"]["examples"]
        assert set(examples) <= set(TYPES)
    if "503" in described["responses"]:
        assert "Retry-After" in resolve(described["responses"]["503"])["headers"]


def test_every_kind_of_problem_is_answered_somewhere() -> None:
    """But for the one that every address can answer."""
    named = {name for operation in OPERATIONS.values() for name in operation.problems}
    assert set(TYPES) - named <= {"method-not-allowed"}


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


CHECKS = [checks.status_code_conformance, checks.content_type_conformance, checks.response_schema_conformance]
SCHEMA = schemathesis.openapi.from_dict(json.loads(json.dumps(DOCUMENT)))
# An endless answer is for the feed's own tests.
FUZZED = SCHEMA.exclude(path="/changes")


@pytest.mark.cluster
@FUZZED.parametrize()
@settings(max_examples=8, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
def test_no_input_makes_the_service_fail(case: schemathesis.Case, service: Service) -> None:
    """Never a 500, never a status or a body that the document does not name."""
    case.headers = {**(case.headers or {}), "Authorization": f"Bearer {service.key}"}
    response = case.call(base_url=service.url)
    assert response.status_code < 500 or response.status_code == 503, response.text
    case.validate_response(response, checks=CHECKS)


@pytest.mark.cluster
def test_the_fuzzed_service_is_still_in_good_order(service: Service) -> None:
    """After all of the above: nothing was logged as a mistake of ours."""
    assert httpx.get(f"{service.url}/health/ready").status_code == 200
    assert "request_failed" not in service.log.read_text()
