"""The inventory against a plain model in Python: whatever one client does, both say the same."""

import asyncio
import time
from typing import Any

import asyncpg
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
    precondition,
    rule,
    run_state_machine_as_test,
)

from atelier.embedded.cluster import EmbeddedCluster
from tests.commands.conftest import new_key, product, style
from tests.support import Service, role_dsn

QUANTITIES = [3, 0, 7]
amounts = st.integers(1, 5)
shelves = st.integers(0, len(QUANTITIES) - 1)


def make_due(cluster: EmbeddedCluster, reservation_id: int) -> None:
    """Lets the time of a reservation be over now."""

    async def move() -> None:
        connection = await asyncpg.connect(role_dsn(cluster, "writer"))
        await connection.execute(
            "update reservation set expires_at = clock_timestamp() where reservation_id = $1", reservation_id
        )
        await connection.close()

    asyncio.run(move())


def make_machine(service: Service, cluster: EmbeddedCluster) -> type[RuleBasedStateMachine]:
    """A machine that talks to a running service, and moves the times of its reservations."""

    class Inventory(RuleBasedStateMachine):
        reservations = Bundle("reservations")

        @initialize()
        def begin(self) -> None:
            self.http = httpx.Client(
                base_url=service.url, headers={"Authorization": f"Bearer {service.key}"}, timeout=30
            )
            self.sent: list[tuple[dict[str, Any], httpx.Response]] = []
            made = self.send("POST", "/products", product(styles=[style(*QUANTITIES)]))
            self.token = made.headers["Atelier-Token"]
            styles = self.read(f"/products/{made.json()['id']}/styles")["results"]
            self.skus = [int(sku_id) for sku_id in styles[0]["skus"]]
            self.on_hand, self.reserved = list(QUANTITIES), [0] * len(QUANTITIES)
            self.held: dict[int, tuple[list[tuple[int, int]], str]] = {}
            self.gone: set[int] = set()
            self.moved = {shelf for shelf, quantity in enumerate(QUANTITIES) if quantity}

        def send(self, method: str, path: str, body: Any = None, **headers: str) -> httpx.Response:
            headers = {name.replace("_", "-"): value for name, value in headers.items()}
            request = {"method": method, "url": path, "json": body, "headers": {"Idempotency-Key": new_key()} | headers}
            response = self.http.request(**request)
            assert "Idempotency-Replayed" not in response.headers
            self.token = response.headers.get("Atelier-Token", "")
            self.sent.append((request, response))
            return response

        def read(self, path: str) -> Any:
            return self.http.get(path, headers={"Atelier-Token": self.token}).json()

        def settled(self, made: int, state: str) -> None:
            lines, _ = self.held[made]
            for shelf, quantity in lines:
                self.reserved[shelf] -= quantity
                self.on_hand[shelf] -= quantity if state == "confirmed" else 0
            self.held[made] = (lines, state)

        def available(self, shelf: int) -> int:
            return self.on_hand[shelf] - self.reserved[shelf]

        @rule(lines=st.dictionaries(shelves, st.integers(-6, 6).filter(bool), min_size=1))
        def adjust(self, lines: dict[int, int]) -> None:
            body = {"reason": "x", "lines": [{"sku_id": self.skus[s], "delta": d} for s, d in lines.items()]}
            short = [self.skus[s] for s, d in lines.items() if self.available(s) + d < 0]
            answer = self.send("POST", "/inventory/adjustments", body)
            if self.gone & set(lines):
                assert answer.status_code == 404
                return
            assert answer.status_code == (409 if short else 200)
            if short:
                assert [line["sku_id"] for line in answer.json()["lines"]] == short
                return
            for shelf, delta in lines.items():
                self.on_hand[shelf] += delta
                self.moved.add(shelf)

        @rule(shelf=shelves, counted=st.integers(0, 9))
        def count(self, shelf: int, counted: int) -> None:
            path = f"/inventory/{self.skus[shelf]}"
            if shelf in self.gone:
                assert self.send("PUT", path, {"on_hand": counted}, If_Match="*").status_code == 404
                return
            tag = f'"{self.read(path)["version"]}"'
            answer = self.send("PUT", path, {"on_hand": counted}, If_Match=tag)
            assert answer.status_code == (409 if counted < self.reserved[shelf] else 200)
            if answer.is_success:
                self.moved |= {shelf} if counted != self.on_hand[shelf] else set()
                self.on_hand[shelf] = counted

        @rule(target=reservations, lines=st.dictionaries(shelves, amounts, min_size=1))
        def reserve(self, lines: dict[int, int]) -> Any:
            body = {"ttl_seconds": 600, "lines": [{"sku_id": self.skus[s], "quantity": q} for s, q in lines.items()]}
            short = any(self.available(s) < q for s, q in lines.items())
            answer = self.send("POST", "/reservations", body)
            if self.gone & set(lines):
                assert answer.status_code == 404
                return multiple()
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
            _, state = self.held[made]
            answer = self.send("POST", f"/reservations/{made}/{verb}")
            if state != "pending":
                assert (answer.status_code, answer.json()["type"]) == (409, f"/problems/reservation-{state}")
                return
            assert answer.status_code == 200
            self.settled(made, f"{verb}d" if verb.endswith("e") else f"{verb}ed")
            assert self.read(f"/reservations/{made}")["state"] == self.held[made][1]

        @rule(made=reservations)
        def expire(self, made: int) -> None:
            """Its time is over: nobody can confirm it any more, and its stock comes back by itself."""
            lines, state = self.held[made]
            make_due(cluster, made)
            if state != "pending":
                return
            answer = self.send("POST", f"/reservations/{made}/confirm")
            assert (answer.status_code, answer.json()["type"]) == (409, "/problems/reservation-expired")
            self.settled(made, "expired")
            shelf, deadline_s = lines[0][0], time.monotonic() + 10
            while True:
                shown = self.http.get(f"/inventory/{self.skus[shelf]}", headers={"Atelier-Consistency": "strong"})
                if shown.json()["reserved"] == self.reserved[shelf]:
                    break
                assert time.monotonic() < deadline_s, "its stock did not come back"
            self.token = shown.headers["Atelier-Token"]
            assert self.read(f"/reservations/{made}")["state"] == "expired"

        @rule(shelf=shelves)
        @precondition(lambda self: len(self.gone) < len(QUANTITIES) - 1)
        def delete(self, shelf: int) -> None:
            """A SKU goes unless some of it is reserved; its movements stay, and add up to nothing."""
            answer = self.send("DELETE", f"/skus/{self.skus[shelf]}")
            if shelf in self.gone:
                assert answer.status_code == 404
            elif self.reserved[shelf]:
                assert (answer.status_code, answer.json()["type"]) == (409, "/problems/stock-reserved")
            else:
                assert answer.status_code == 204
                self.gone.add(shelf)
                self.on_hand[shelf] = 0

        @rule(which=st.integers(0, 999))
        def replay(self, which: int) -> None:
            """A request from any time, under its key: the first answer again, and no effect."""
            request, first = self.sent[which % len(self.sent)]
            again = self.http.request(**request)
            assert (again.status_code, again.content) == (first.status_code, first.content)
            assert again.headers["Idempotency-Replayed"] == "true"
            self.token = again.headers["Atelier-Token"]

        @invariant()
        def agrees_with_the_model(self) -> None:
            for shelf, sku_id in enumerate(self.skus):
                shown = self.read(f"/inventory/{sku_id}")
                if shelf in self.gone:
                    assert shown["type"] == "/problems/not-found"
                else:
                    assert (shown["on_hand"], shown["reserved"]) == (self.on_hand[shelf], self.reserved[shelf])
                movements = self.read(f"/inventory/{sku_id}/movements?count=1000")
                if shelf in self.gone - self.moved:
                    assert movements["type"] == "/problems/not-found"
                    continue
                assert sum(movement["delta"] for movement in movements) == self.on_hand[shelf]

        def teardown(self) -> None:
            self.http.close()

    return Inventory


def run_machine(service: Service, cluster: EmbeddedCluster, *, examples: int, steps: int) -> None:
    """Runs so many histories of so many steps."""
    checks = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much]
    bounds = settings(max_examples=examples, stateful_step_count=steps, deadline=None, suppress_health_check=checks)
    run_state_machine_as_test(make_machine(service, cluster), settings=bounds)


@pytest.mark.cluster
@pytest.mark.soak
def test_inventory_agrees_with_a_model_whatever_is_done(service: Service, cluster: EmbeddedCluster) -> None:
    """Adjust, count, reserve, confirm, release, expire, delete, replay; each answer and each figure is the model's."""
    run_machine(service, cluster, examples=8, steps=15)


@pytest.mark.cluster
@pytest.mark.slow
def test_inventory_agrees_with_a_model_over_long_histories(service: Service, cluster: EmbeddedCluster) -> None:
    """The same with more and longer histories."""
    run_machine(service, cluster, examples=40, steps=40)
