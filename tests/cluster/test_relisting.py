"""The list of nodes is read again while the service runs."""

import os
import signal
import time
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from atelier.embedded.cluster import EmbeddedCluster
from tests.support import Service, running_service, wait_until

pytestmark = pytest.mark.cluster


class ByFile:
    """A cluster whose nodes a file names."""

    def __init__(self, cluster: EmbeddedCluster, path: Path) -> None:
        self._cluster = cluster
        self._path = path

    def environment(self) -> dict[str, str]:
        """Of a service over it."""
        named = {name: value for name, value in self._cluster.environment().items() if name != "ATELIER_NODES"}
        return named | {"ATELIER_NODES_FILE": str(self._path)}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._cluster, name)


def nodes_of(service: Service) -> list[str]:
    """The nodes that one of the workers knows."""
    return [node["name"] for node in httpx.get(f"{service.url}/cluster").json()["nodes"]]


def workers_of(service: Service) -> set[int]:
    """The process ids of the workers."""
    return {process.pid for process in psutil.Process(service.process.pid).children()}


def test_every_worker_reads_the_list_again_on_sighup_and_goes_on(cluster: EmbeddedCluster, tmp_path: Path) -> None:
    """Ten times sooner than each would by itself, and none of them is replaced; a list that is mended is taken."""
    listed = cluster.environment()["ATELIER_NODES"]
    path = tmp_path / "nodes"
    path.write_text(listed)
    with running_service(ByFile(cluster, path), settings={"ATELIER_WORKERS": "2"}) as service:  # type: ignore[arg-type]
        wait_until(lambda: service.log.read_text().count("primary_found") == 2, what="both workers' start")
        before = workers_of(service)

        def complaints() -> int:
            return service.log.read_text().count("node_list_unreadable")

        path.write_bytes(b"pg1=\xff\xfe:1")
        began_s = time.monotonic()
        for _ in range(10):
            heard = complaints()
            os.kill(service.process.pid, signal.SIGHUP)
            wait_until(lambda heard=heard: complaints() >= heard + 2, what="a complaint of each worker")
        assert time.monotonic() - began_s < 10
        path.write_text(listed.split(",")[0])
        wait_until(lambda: nodes_of(service) == ["pg1"], what="the short list")
        assert workers_of(service) == before


def test_a_worker_that_is_replaced_while_the_list_makes_no_sense_serves_like_the_one_before(
    cluster: EmbeddedCluster, tmp_path: Path
) -> None:
    """It begins with the list that the service began with: a slip of a pen shall not end what runs."""
    path = tmp_path / "nodes"
    path.write_text(cluster.environment()["ATELIER_NODES"])
    with running_service(ByFile(cluster, path)) as service:  # type: ignore[arg-type]
        before, names = workers_of(service), nodes_of(service)
        path.write_bytes(b"pg1=\xff\xfe:1")
        for worker in before:
            os.kill(worker, signal.SIGKILL)
        wait_until(lambda: answers(service), what="an answer of the new worker")
        assert nodes_of(service) == names
        assert not workers_of(service) & before
        path.write_text(cluster.environment()["ATELIER_NODES"].split(",")[0])
        wait_until(lambda: nodes_of(service) == names[:1], what="the short list")


def answers(service: Service) -> bool:
    """Whether somebody answers."""
    try:
        return httpx.get(f"{service.url}/products/1").status_code < 500
    except httpx.TransportError:
        return False
