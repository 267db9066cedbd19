"""How a service ends: it says so first, answers while others notice, and finishes what it has begun."""

import signal

import httpx
import pytest

from atelier.embedded.cluster import EmbeddedCluster
from tests.support import running_service, wait_until

pytestmark = pytest.mark.cluster


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
