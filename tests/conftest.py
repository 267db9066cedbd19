"""What all tests share.

A session has one cluster, one primary and two replicas, that no test may break; who wants to break one makes its own
with `make_cluster`. Tests of replicas must commit, so they keep apart by random keys and ids.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from atelier.embedded.cluster import EmbeddedCluster
from tests.support import Service, find_free_port, running_cluster, running_service

ClusterFactory = Callable[..., EmbeddedCluster]


@pytest.fixture(scope="session")
def anyio_backend() -> tuple[str, dict[str, Any]]:
    """The event loop that the service has, too."""
    return "asyncio", {"use_uvloop": True}


@pytest.fixture
def free_port() -> int:
    """A port that nobody listens on now."""
    return find_free_port()


@pytest.fixture(scope="session")
def cluster() -> Iterator[EmbeddedCluster]:
    """One primary and two replicas, migrated, without a catalogue. Shared: break nothing."""
    with running_cluster() as opened:
        yield opened


@pytest.fixture
def make_cluster() -> Iterator[ClusterFactory]:
    """Makes clusters of the test's own: `make_cluster(replicas=1, extra={...})`."""
    with ExitStack() as stack:
        yield lambda **options: stack.enter_context(running_cluster(**options))


@pytest.fixture(scope="session")
def service(cluster: EmbeddedCluster) -> Iterator[Service]:
    """The service over the session's cluster."""
    with running_service(cluster) as running:
        yield running
