"""Commands that follow from one another, made up from the OpenAPI document: whatever comes, the service answers."""

import json
from typing import Any

import httpx
import pytest
import schemathesis
from hypothesis import given, seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import rule
from schemathesis.generation import GenerationMode
from schemathesis.specs.openapi import checks

from atelier.documentation.openapi import build_document
from atelier.writes.endpoints import ENDPOINTS
from tests.commands.conftest import new_key, product, style
from tests.fixtures.fuzzing import BOUNDS, draw_seed
from tests.support import Service

pytestmark = pytest.mark.cluster

CHECKS = [checks.status_code_conformance, checks.content_type_conformance, checks.response_schema_conformance]
# No command follows from the feed, and its answer does not end.
SCHEMA = schemathesis.openapi.from_dict(json.loads(json.dumps(build_document()))).exclude(path="/changes")
COMMANDS = {f"{endpoint.method} {endpoint.path}": SCHEMA[endpoint.path][endpoint.method] for endpoint in ENDPOINTS}
# What shows the ids of parts that no command's answer names.
STYLES = "GET /products/{product_id}/styles"
OPERATIONS = COMMANDS | {STYLES: SCHEMA["/products/{product_id}/styles"]["GET"]}
# Deleting is rare, or nothing else would find anything.
LABELS = [label for label in OPERATIONS for _ in range(1 if label.startswith("DELETE") else 3)]
STRATEGIES = {label: operation.as_strategy() for label, operation in OPERATIONS.items()}

Seen = set[tuple[str, int]]


def call(service: Service, case: schemathesis.Case, seen: Seen) -> httpx.Response:
    """Sends a case and checks its answer against the document."""
    case.headers = {**(case.headers or {}), "Authorization": f"Bearer {service.key}"}
    if case.method == "GET":
        case.headers["Atelier-Consistency"] = "strong"
    if "Idempotency-Key" in case.headers:
        # A made-up key comes again, and would be a conflict then.
        case.headers["Idempotency-Key"] = new_key()
    response = case.call(base_url=service.url)
    check(response, case, seen)
    return response


def check(response: Any, case: schemathesis.Case, seen: Seen) -> None:
    """Never a 500, never a status or a body that the document does not name."""
    seen.add((case.operation.label, response.status_code))
    assert response.status_code < 500 or response.status_code == 503, response.text
    case.validate_response(response, checks=CHECKS)


def check_service(service: Service) -> None:
    """It is in good order, and has logged no mistake of ours."""
    assert httpx.get(f"{service.url}/health/ready").status_code == 200
    assert "request_failed" not in service.log.read_text()


class Ids:
    """The ids that answers have shown, by the name of the parameter that takes them."""

    def __init__(self) -> None:
        self.known: dict[str, list[int]] = {}

    def learn(self, value: Any, *, owner: str | None = None) -> None:
        """Takes in an answer; `owner` is what a plain "id" in it is the id of."""
        match value:
            case dict():
                for name, part in value.items():
                    if name.endswith("_id") and str(part).isdigit():
                        self._add(name, int(part))
                    elif name == "id" and owner:
                        self._add(owner, int(part))
                    elif name == "skus" and isinstance(part, dict):
                        for sku_id in part:
                            self._add("sku_id", int(sku_id))
                    self.learn(part)
            case list():
                for part in value:
                    self.learn(part)

    def fill(self, data: st.DataObject, case: schemathesis.Case) -> None:
        """Puts known ids in the place of most of the made-up ones, and small numbers beside them."""
        for name in case.path_parameters or {}:
            if self.known.get(name) and data.draw(st.integers(0, 9)) < 9:
                case.path_parameters[name] = data.draw(st.sampled_from(self.known[name]))
        if "If-Match" in (case.headers or {}) and data.draw(st.integers(0, 3)) < 3:
            case.headers["If-Match"] = "*"
        if isinstance(case.body, dict) and self.known.get("sku_id"):
            for line, sku_id in zip(
                case.body.get("lines", []), dict.fromkeys(self.known["sku_id"][::-1]), strict=False
            ):
                amount = "delta" if "delta" in line else "quantity"
                line |= {"sku_id": sku_id, amount: data.draw(st.integers(1, 3))}
        if case.operation.path.endswith("/related") and self.known.get("product_id"):
            case.body = data.draw(st.lists(st.sampled_from(self.known["product_id"]), max_size=3))

    def forget(self, case: schemathesis.Case) -> None:
        """What a case was about is gone."""
        for name, value in (case.path_parameters or {}).items():
            if value in self.known.get(name, []):
                self.known[name].remove(value)

    def _add(self, name: str, value: int) -> None:
        if value not in self.known.setdefault(name, []):
            self.known[name].append(value)


class Sequence:
    """One sequence of made-up commands, about what the ones before have made."""

    def __init__(self, service: Service, data: st.DataObject, seen: Seen) -> None:
        self.service, self.data, self.seen = service, data, seen
        self.ids = Ids()
        self.replays = 0

    def send(self, label: str) -> None:
        """One of them."""
        if not self.ids.known.get("sku_id"):
            self.stock()
        case = self.data.draw(STRATEGIES[label])
        self.ids.fill(self.data, case)
        response = call(self.service, case, self.seen)
        if "Idempotency-Key" in (case.headers or {}) and self.data.draw(st.integers(0, 3)) == 0:
            self.send_again(case, response)
        if response.status_code in (204, 404):
            self.ids.forget(case)
        elif response.status_code in (200, 201):
            self.ids.learn(response.json(), owner="product_id")

    def send_again(self, case: schemathesis.Case, first: httpx.Response) -> None:
        """The same once more, under the same key: the answer is the first one where that was an outcome."""
        again = case.call(base_url=self.service.url)
        check(again, case, set())
        replayed = again.headers.get("idempotency-replayed", [None])[0] == "true"
        self.replays += replayed
        assert replayed == (first.status_code in (200, 201, 204, 404, 409, 412)), again.text
        if replayed:
            assert (again.status_code, again.content) == (first.status_code, first.content)

    def stock(self) -> None:
        """Something to begin with, and to go on with when all of it was deleted."""
        with httpx.Client(base_url=self.service.url, headers={"Authorization": f"Bearer {self.service.key}"}) as http:
            body = product(styles=[style(50, 50)])
            made = http.post("/products", json=body, headers={"Idempotency-Key": new_key()}).json()
            styles = http.get(f"/products/{made['id']}/styles", headers={"Atelier-Consistency": "strong"})
        self.ids.learn(made, owner="product_id")
        self.ids.learn(styles.json())


def test_every_command_works_amid_any_others(service: Service) -> None:
    """Each after any other, about what those before have made: never a 500, and every one succeeds somewhere."""
    seen: Seen = set()
    replays: list[int] = []

    @settings(BOUNDS, max_examples=3)
    @given(data=st.data(), labels=st.permutations(LABELS))
    def run(data: st.DataObject, labels: list[str]) -> None:
        sequence = Sequence(service, data, seen)
        for label in labels:
            sequence.send(label)
        replays.append(sequence.replays)

    for number in range(10):
        seed(number)(run)()
        if {label for label, status in seen if status < 300} >= set(COMMANDS):
            break
    assert {label for label, status in seen if status < 300} >= set(COMMANDS), sorted(seen)
    assert sum(replays) > 10
    check_service(service)


@pytest.mark.slow
def test_no_sequence_that_the_document_suggests_makes_the_service_fail(service: Service) -> None:
    """By the links that schemathesis itself sees between the operations; commands that no link leads to come, too.

    Others in every run.
    """
    seen: Seen = set()

    @seed(draw_seed())
    class Sequences(SCHEMA.as_state_machine()):
        def call(self, case: schemathesis.Case, **_: object) -> Any:
            return call(service, case, seen)

        def validate_response(self, response: Any, case: schemathesis.Case, **_: object) -> None:
            """Done by `call`."""

        @rule(data=st.data())
        def send_what_has_not_come_yet(self, data: st.DataObject) -> None:
            """Any, when all have."""
            missing = sorted(set(COMMANDS) - {label for label, _ in seen}) or sorted(COMMANDS)
            call(service, data.draw(STRATEGIES[data.draw(st.sampled_from(missing))]), seen)

    Sequences.run(settings=settings(BOUNDS, max_examples=25, stateful_step_count=20))
    assert {label for label, _ in seen} >= set(COMMANDS)
    check_service(service)


@pytest.mark.parametrize("label", COMMANDS)
def test_no_command_that_the_document_does_not_allow_makes_the_service_fail(service: Service, label: str) -> None:
    """Wrong types, missing fields, ids that are none: refused, with a problem document; the same in every run."""
    seen: Seen = set()

    @seed(1)
    @settings(BOUNDS, max_examples=25)
    @given(case=COMMANDS[label].as_strategy(generation_mode=GenerationMode.NEGATIVE))
    def run(case: schemathesis.Case) -> None:
        case.headers = {**(case.headers or {}), "Authorization": f"Bearer {service.key}"}
        response = case.call(base_url=service.url)
        seen.add((label, response.status_code))
        assert response.status_code < 500, response.text
        assert response.status_code < 300 or response.headers["content-type"] == ["application/problem+json"]

    run()
    assert any(400 <= status < 500 for _, status in seen)
    check_service(service)
