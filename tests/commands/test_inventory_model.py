"""The inventory against a plain model in Python: whatever one client does, both say the same."""

from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    initialize,
    invariant,
    multiple,
    rule,
    run_state_machine_as_test,
)

from tests.commands.conftest import new_key, product, style
from tests.support import Service

QUANTITIES = [3, 0, 7]
amounts = st.integers(1, 5)
shelves = st.integers(0, len(QUANTITIES) - 1)


def make_machine(service: Service) -> type[RuleBasedStateMachine]:
    """A machine that talks to a running service."""

    class Inventory(RuleBasedStateMachine):
        reservations = Bundle("reservations")

        @initialize()
        def begin(self) -> None:
            self.http = httpx.Client(
                base_url=service.url, headers={"Authorization": f"Bearer {service.key}"}, timeout=30
            )
            made = self.send("POST", "/products", product(styles=[style(*QUANTITIES)]))
            self.token = made.headers["Atelier-Token"]
            styles = self.read(f"/products/{made.json()['id']}/styles")["results"]
            self.skus = [int(sku_id) for sku_id in styles[0]["skus"]]
            self.on_hand, self.reserved = list(QUANTITIES), [0] * len(QUANTITIES)
            self.held: dict[int, tuple[list[tuple[int, int]], str]] = {}

        def send(self, method: str, path: str, body: Any = None, **headers: str) -> httpx.Response:
            headers = {name.replace("_", "-"): value for name, value in headers.items()}
            response = self.http.request(method, path, json=body, headers={"Idempotency-Key": new_key()} | headers)
            self.token = response.headers.get("Atelier-Token", "")
            return response

        def read(self, path: str) -> Any:
            return self.http.get(path, headers={"Atelier-Token": self.token}).json()

        def available(self, shelf: int) -> int:
            return self.on_hand[shelf] - self.reserved[shelf]

        @rule(lines=st.dictionaries(shelves, st.integers(-6, 6).filter(bool), min_size=1))
        def adjust(self, lines: dict[int, int]) -> None:
            body = {"reason": "x", "lines": [{"sku_id": self.skus[s], "delta": d} for s, d in lines.items()]}
            short = [self.skus[s] for s, d in lines.items() if self.available(s) + d < 0]
            answer = self.send("POST", "/inventory/adjustments", body)
            assert answer.status_code == (409 if short else 200)
            if short:
                assert [line["sku_id"] for line in answer.json()["lines"]] == short
                return
            for shelf, delta in lines.items():
                self.on_hand[shelf] += delta

        @rule(shelf=shelves, counted=st.integers(0, 9))
        def count(self, shelf: int, counted: int) -> None:
            path = f"/inventory/{self.skus[shelf]}"
            tag = f'"{self.read(path)["version"]}"'
            answer = self.send("PUT", path, {"on_hand": counted}, If_Match=tag)
            assert answer.status_code == (409 if counted < self.reserved[shelf] else 200)
            if answer.is_success:
                self.on_hand[shelf] = counted

        @rule(target=reservations, lines=st.dictionaries(shelves, amounts, min_size=1))
        def reserve(self, lines: dict[int, int]) -> Any:
            body = {"ttl_seconds": 600, "lines": [{"sku_id": self.skus[s], "quantity": q} for s, q in lines.items()]}
            short = any(self.available(s) < q for s, q in lines.items())
            answer = self.send("POST", "/reservations", body)
            assert answer.status_code == (409 if short else 201)
            if short:
                return multiple()
            for shelf, quantity in lines.items():
                self.reserved[shelf] += quantity
            made = answer.json()["reservation_id"]
            self.held[made] = (list(lines.items()), "pending")
            return made

        @rule(made=reservations, verb=st.sampled_from(["confirm", "release"]))
        def settle(self, made: int, verb: str) -> None:
            lines, state = self.held[made]
            answer = self.send("POST", f"/reservations/{made}/{verb}")
            if state != "pending":
                assert (answer.status_code, answer.json()["type"]) == (409, f"/problems/reservation-{state}")
                return
            assert answer.status_code == 200
            for shelf, quantity in lines:
                self.reserved[shelf] -= quantity
                self.on_hand[shelf] -= quantity if verb == "confirm" else 0
            self.held[made] = (lines, f"{verb}d" if verb.endswith("e") else f"{verb}ed")
            assert self.read(f"/reservations/{made}")["state"] == self.held[made][1]

        @invariant()
        def agrees_with_the_model(self) -> None:
            for shelf, sku_id in enumerate(self.skus):
                shown = self.read(f"/inventory/{sku_id}")
                assert (shown["on_hand"], shown["reserved"]) == (self.on_hand[shelf], self.reserved[shelf])
                movements = self.read(f"/inventory/{sku_id}/movements?count=1000")
                assert sum(movement["delta"] for movement in movements) == self.on_hand[shelf]

        def teardown(self) -> None:
            self.http.close()

    return Inventory


@pytest.mark.cluster
@pytest.mark.soak
def test_inventory_agrees_with_a_model_whatever_is_done(service: Service) -> None:
    """Adjust, count, reserve, confirm, release in any order; each answer and each figure is the model's."""
    checks = [HealthCheck.too_slow, HealthCheck.data_too_large]
    bounds = settings(max_examples=8, stateful_step_count=15, deadline=None, suppress_health_check=checks)
    run_state_machine_as_test(make_machine(service), settings=bounds)
