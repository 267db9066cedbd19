"""The load profile: Locust's master with its workers, beside the deployment."""

import json
import urllib.parse
import urllib.request
from typing import Any

import pytest

from tests.e2e.stack import Stack, wait_for
from tests.support import find_free_port

pytestmark = [pytest.mark.timeout(900), pytest.mark.slow]


def test_the_load_profile_drives_the_proxy_from_several_workers(plain: Stack) -> None:
    """Started from Locust's own page, the lab's users shop at the deployment without one failure."""
    port = find_free_port()
    with plain.changed(ATELIER_LOAD_PORT=str(port)) as changed:
        changed.compose("--profile", "load", "build", "--quiet", "load", timeout_s=600)
        try:
            changed.compose("--profile", "load", "up", "--wait", "--no-deps", "load", "load-worker")
            wait_for(lambda: len(ask(port, "/stats/requests")["workers"]) == 2, within_s=30, what="two workers")
            ask(port, "/swarm", user_count="20", spawn_rate="20")
            wait_for(lambda: requests(port) > 500, within_s=60, what="500 requests")
            stats = ask(port, "/stats/requests")
        finally:
            changed.compose("--profile", "load", "rm", "--stop", "--force", "load", "load-worker")
    assert (stats["fail_ratio"], stats["errors"]) == (0, [])


def requests(port: int) -> int:
    """How many requests Locust has counted."""
    return next(row["num_requests"] for row in ask(port, "/stats/requests")["stats"] if row["name"] == "Aggregated")


def ask(port: int, path: str, **form: str) -> dict[str, Any]:
    """Asks Locust's page as a browser does; with a form, posts it."""
    data = urllib.parse.urlencode(form).encode() if form else None
    with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", data, timeout=10) as answer:
        return json.load(answer)
