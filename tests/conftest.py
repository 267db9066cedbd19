"""What all tests share.

A session has one cluster, one primary and two replicas, that no test may break; who wants to break one makes its own
with `make_cluster`. Tests of replicas must commit, so they keep apart by random keys and ids.
"""

import signal
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack
from inspect import iscoroutinefunction
from threading import Timer
from typing import Any

import pytest

from atelier.embedded.cluster import EmbeddedCluster
from tests.hanging import bound, print_tasks
from tests.support import Service, find_free_port, running_cluster, running_service

ClusterFactory = Callable[..., EmbeddedCluster]

# So long before a test's time is over it shows where it hangs, and a little later, if it is a coroutine, it ends.
SHOWN_BEFORE_S, ENDED_BEFORE_S = 30, 10


def pytest_addoption(parser: pytest.Parser) -> None:
    """`--rounds=20` runs every chosen test marked soak twenty times: all of them, then all of them again."""
    parser.addoption("--rounds", type=int, default=1, help="how often each test marked soak runs")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Makes the rounds; the session's cluster and service stay the same over all of them."""
    rounds = metafunc.config.getoption("rounds")
    if rounds > 1 and metafunc.definition.get_closest_marker("soak"):
        ids = [f"round{number}" for number in range(1, rounds + 1)]
        metafunc.parametrize("soak_round", range(rounds), indirect=True, scope="session", ids=ids)


# A shell has what runs in its background ignore Ctrl-C, and the commands that tests interrupt would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session", autouse=True)
def soak_round(request: pytest.FixtureRequest) -> int:
    """Which round this is, from 0. A fixture that is worn out after one round depends on it, and is made anew."""
    return int(getattr(request, "param", 0))


def time_of(test: pytest.Item) -> float:
    """How many seconds a test has."""
    marker = test.get_closest_marker("timeout")
    return float(marker.args[0] if marker else test.config.getini("timeout"))


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> Generator[None, object, object]:
    """Bounds a test that is a coroutine."""
    if iscoroutinefunction(pyfuncitem.obj):
        pyfuncitem.obj = bound(pyfuncitem.obj, time_of(pyfuncitem) - ENDED_BEFORE_S)
    return (yield)


@pytest.fixture(autouse=True)
def tell_where_it_hangs(request: pytest.FixtureRequest) -> Iterator[None]:
    """Prints what every task of a test waits for, shortly before the test's time is over."""
    timer = Timer(time_of(request.node) - SHOWN_BEFORE_S, print_tasks)
    timer.daemon = True
    timer.start()
    yield
    timer.cancel()


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
