"""The deployments under test. They need a container engine, so nothing here runs unless `make e2e` asks for it."""

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

from tests.e2e.stack import BUILT_FOR, HA, PLAIN, PREFIX, Stack, remove_images, run, running
from tests.e2e.traffic import make_product
from tests.support import memory_setting

Stage = Callable[..., Stack]

if not os.environ.get("ATELIER_E2E"):
    collect_ignore_glob = ["test_*.py"]


@pytest.fixture(scope="session")
def images() -> Iterator[dict[str, str]]:
    """All images, built once, and the environment to use them with; removed at the end."""
    environ = dict(os.environ) | memory_setting()
    ours = {**environ, "ATELIER_IMAGES": PREFIX}
    for file in (PLAIN, HA):
        named = ("-f", file, "-p", BUILT_FOR)
        run("docker", "compose", *named, "--profile", "faults", "build", "--quiet", timeout_s=900, env=ours)
    try:
        yield environ
    finally:
        remove_images()


@pytest.fixture(scope="session")
def stage(images: dict[str, str]) -> Iterator[Stage]:
    """Gives a deployment by its file and its variables. One stands at a time: another one would be measured, too."""
    with ExitStack() as opened:
        standing: dict[tuple[object, ...], Stack] = {}

        def give(file: str, **variables: str) -> Stack:
            wanted = (file, *sorted(variables.items()))
            if wanted not in standing:
                opened.close()
                standing.clear()
                standing[wanted] = opened.enter_context(running(file, {**images, **variables}))
            return standing[wanted]

        yield give


@pytest.fixture
def plain(stage: Stage) -> Stack:
    """The plain deployment: a primary and two streaming replicas."""
    return stage(PLAIN)


@pytest.fixture
def ha(stage: Stage) -> Stack:
    """The deployment under Patroni, with a quorum."""
    return stage(HA)


@pytest.fixture
def product(plain: Stack) -> tuple[int, list[int]]:
    """A product of the test's own, and its SKUs."""
    return make_product(plain.port, plain.key)
