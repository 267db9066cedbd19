"""How a service ends: it says so first, answers while others notice, and finishes what it has begun."""

import json
import signal
import time

import httpx
import pytest

from atelier.embedded.cluster import EmbeddedCluster
from tests.support import running_service, wait_until

pytestmark = [pytest.mark.cluster, pytest.mark.soak]


def test_a_stopping_service_is_not_ready_but_answers_until_its_notice_is_over(cluster: EmbeddedCluster) -> None:
    """Every answer closes its connection; then the process ends by itself, in good order."""
    with running_service(cluster, settings={"ATELIER_NOTICE_MS": "2000"}) as service, httpx.Client() as client:
        assert "connection" not in client.get(f"{service.url}/products").headers
        service.process.send_signal(signal.SIGTERM)
        wait_until(lambda: client.get(f"{service.url}/health/ready").status_code == 503, what="it being not ready")
        ready = client.get(f"{service.url}/health/ready")
        assert ready.json()["type"] == "/problems/overloaded"
        assert ready.headers["retry-after"]
        for path in ("/products", "/health/live"):
            answer = client.get(service.url + path)
            assert (answer.status_code, answer.headers["connection"]) == (200, "close")
        assert service.process.wait(timeout=20) == 0


def test_a_second_signal_ends_the_notice_at_once(cluster: EmbeddedCluster) -> None:
    """Who is in a hurry says so twice."""
    with running_service(cluster, settings={"ATELIER_NOTICE_MS": "60000"}) as service, httpx.Client() as client:
        service.process.send_signal(signal.SIGTERM)
        wait_until(lambda: client.get(f"{service.url}/health/ready").status_code == 503, what="it being not ready")
        service.process.send_signal(signal.SIGTERM)
        assert service.process.wait(timeout=20) == 0


@pytest.mark.parametrize("notice_ms", [0, 1000], ids=["at-once", "after-a-notice"])
def test_a_stopping_service_ends_its_streams_and_says_where_to_go_on(cluster: EmbeddedCluster, notice_ms: int) -> None:
    """The last event names the id to come back with; nobody who only listens holds up the end."""
    with running_service(cluster, settings={"ATELIER_NOTICE_MS": str(notice_ms)}) as service, httpx.Client() as client:
        with client.stream("GET", f"{service.url}/changes", timeout=20) as stream:
            lines = stream.iter_lines()
            assert next(lines) == "retry: 1000"
            told_s = time.monotonic()
            service.process.send_signal(signal.SIGTERM)
            rest = list(lines)
        ended_s = time.monotonic() - told_s
        assert "event: end" in rest
        data = json.loads(rest[rest.index("event: end") + 1].removeprefix("data: "))
        assert data["reason"] == "stopping"
        assert f": follows {data['last_event_id']}" in rest
        assert notice_ms / 1000 <= ended_s < notice_ms / 1000 + 3
        assert service.process.wait(timeout=3) == 0
