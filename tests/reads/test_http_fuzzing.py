"""Requests made up from the OpenAPI document: whatever comes, each answer is one that the document names."""

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
import requests
import schemathesis
from hypothesis import given, seed, settings
from hypothesis import strategies as st
from schemathesis.generation import GenerationMode
from schemathesis.specs.openapi import checks

from atelier.documentation.openapi import build_document, list_operations
from atelier.documentation.operation import Operation
from tests.fixtures.fuzzing import BOUNDS, draw_seed
from tests.reads.test_openapi import undocumented_headers
from tests.support import Service

pytestmark = pytest.mark.cluster

CHECKS = [checks.status_code_conformance, checks.content_type_conformance, checks.response_schema_conformance]
SCHEMA = schemathesis.openapi.from_dict(json.loads(json.dumps(build_document())))
OPERATIONS = list(list_operations())
# Of a form that keys have, and nobody's.
WRONG_KEY = f"atl_{'a' * 8}_{'x' * 43}"
# What an address that was not made from the template answers: it is another one, or none.
ELSEWHERE = (404, 405)


def send(case: schemathesis.Case, service: Service, key: str | None) -> int:
    """Sends a case, and checks its answer against the document: its status, if it is all in order."""
    given = {name: value for name, value in (case.headers or {}).items() if name.lower() != "authorization"}
    case.headers = given if key is None else given | {"Authorization": f"Bearer {key}"}
    return look_into(case, service) if case.operation.path == "/changes" else call(case, service)


def call(case: schemathesis.Case, service: Service) -> int:
    """Of an answer that ends: everything."""
    response = case.call(base_url=service.url)
    check(case, response.status_code, dict(response.headers), response.text)
    if response.status_code not in ELSEWHERE:
        case.validate_response(response, checks=CHECKS)
    return int(response.status_code)


def look_into(case: schemathesis.Case, service: Service) -> int:
    """Of one that does not: its head, and how it begins."""
    asked = case.as_transport_kwargs(base_url=service.url)
    with requests.Session() as session, session.request(**asked, stream=True, timeout=10) as response:
        began = "" if response.status_code != 200 else next(response.iter_lines(decode_unicode=True))
        check(case, response.status_code, dict(response.headers), began)
        kind = response.headers["Content-Type"]
    assert kind.startswith("text/event-stream" if response.status_code == 200 else "application/problem+json")
    assert response.status_code != 200 or began == "retry: 1000"
    return int(response.status_code)


def check(case: schemathesis.Case, status: int, headers: dict[str, Any], text: str) -> None:
    """Never a 500, never a header that the document does not name; of a refusal, the form."""
    assert status < 500 or status == 503, text
    documented = SCHEMA.raw_schema["paths"][case.operation.path][case.method.lower()]["responses"]
    assert str(status) in documented or status in ELSEWHERE
    if str(status) in documented:
        assert not undocumented_headers(case.method, case.operation.path, status, headers)


@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda one: one.name)
def test_no_input_makes_the_service_fail(operation: Operation, service: Service) -> None:
    """A few requests to each address, the same in every run."""

    @seed(1)
    @settings(BOUNDS, max_examples=8)
    @given(case=SCHEMA[operation.path][operation.method].as_strategy())
    def run(case: schemathesis.Case) -> None:
        send(case, service, service.key)

    run()


@pytest.mark.slow
@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda one: one.name)
def test_no_input_of_any_kind_makes_the_service_fail(operation: Operation, service: Service) -> None:
    """Many, others in every run, also such as the document does not allow; with a key, a wrong one, and none."""
    described = SCHEMA[operation.path][operation.method]
    cases = described.as_strategy()
    if operation.tag not in ("Operation", "Documentation"):
        # Those take nothing that could be wrong.
        cases = st.one_of(cases, described.as_strategy(generation_mode=GenerationMode.NEGATIVE))

    @seed(draw_seed())
    @settings(BOUNDS, max_examples=120)
    @given(case=cases, key=st.sampled_from([service.key, service.key, WRONG_KEY, None]))
    def run(case: schemathesis.Case, key: str | None) -> None:
        status = send(case, service, key)
        if operation.scope is not None and key != service.key:
            assert status in (400, 401, *ELSEWHERE)

    run()


@pytest.fixture(autouse=True, scope="module")
def good_order(service: Service) -> Iterator[None]:
    """After all of them nothing was logged as a mistake of ours."""
    yield
    assert httpx.get(f"{service.url}/health/ready").status_code == 200
    assert "request_failed" not in service.log.read_text()
