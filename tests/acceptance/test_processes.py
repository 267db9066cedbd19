"""What a running service is made of: whose rights its connections have, and what its workers run on."""

import asyncio
import itertools
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import asyncpg
import httpx
import psutil
import pytest

from atelier.embedded.cluster import EmbeddedCluster
from tests.support import Service, end_service, plain_environment, wait_until

pytestmark = [pytest.mark.anyio, pytest.mark.cluster]

SESSIONS = "select usename, client_port from pg_stat_activity where backend_type = 'client backend'"


def processes_of(service: Service) -> list[psutil.Process]:
    """The service and its workers."""
    first = psutil.Process(service.process.pid)
    return [first, *first.children(recursive=True)]


async def roles_on(cluster: EmbeddedCluster, name: str, service: Service) -> set[str]:
    """The roles under which the service's own processes are connected to a node; others' sessions do not count."""
    ports = {one.laddr.port for process in processes_of(service) for one in process.net_connections("tcp")}
    admin = await asyncpg.connect(cluster.superuser_dsn(name))
    try:
        return {row["usename"] for row in await admin.fetch(SESSIONS) if row["client_port"] in ports}
    finally:
        await admin.close()


def read_from_every_replica(service: Service) -> None:
    """Reads what nobody remembers, until each replica has answered."""
    served: set[str] = set()
    counts = itertools.count(1)

    def read() -> bool:
        answer = httpx.get(f"{service.url}/products?page={next(counts)}&count=7")
        served.add(answer.headers["Atelier-Served-By"])
        return {"pg2", "pg3"} <= served

    wait_until(read, what="an answer of each replica")


async def test_service_is_on_replicas_as_the_reader_and_the_monitor_alone(
    cluster: EmbeddedCluster, service: Service
) -> None:
    """Whatever a read is made to run, it runs without any right to write."""
    await asyncio.to_thread(read_from_every_replica, service)
    assert {name: await roles_on(cluster, name, service) for name in ("pg2", "pg3")} == {
        "pg2": {"reader", "monitor"},
        "pg3": {"reader", "monitor"},
    }


# In the place of the service's application; the server imports uvloop always, so what it has loaded tells nothing.
APPLICATION = """
import asyncio

def make():
    async def tell_loop(scope, receive, send):
        if scope["type"] == "http":
            loop = type(asyncio.get_running_loop())
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": f"{loop.__module__}.{loop.__name__}".encode()})
    return tell_loop
"""
SERVER = """
import os
from atelier.cli.serve import make_server
from atelier.settings import Settings

if __name__ == "__main__":
    server = make_server(Settings.from_environment(os.environ))
    server.target = "application:make"
    server.serve()
"""


def test_workers_run_on_uvloop(cluster: EmbeddedCluster, free_port: int, tmp_path: Path) -> None:
    """The server as the service makes it, with an application that tells what it runs on."""
    (tmp_path / "application.py").write_text(APPLICATION)
    (tmp_path / "server.py").write_text(SERVER)
    environ = plain_environment() | cluster.environment() | {"ATELIER_PORT": str(free_port)}
    del environ["ATELIER_MIGRATOR_PASSWORD"]
    with (tmp_path / "log").open("wb") as log:
        server = subprocess.Popen(
            [sys.executable, "server.py"], cwd=tmp_path, env=environ, stdout=log, stderr=log, start_new_session=True
        )
    try:
        told: list[str] = []

        def ask() -> bool:
            assert server.poll() is None, (tmp_path / "log").read_text()
            with suppress(httpx.TransportError):
                told.append(httpx.get(f"http://127.0.0.1:{free_port}/", timeout=2).text)
            return bool(told)

        wait_until(ask, what="an answer")
        assert told == ["uvloop.Loop"]
    finally:
        end_service(server)
