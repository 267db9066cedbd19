"""Real servers, the real service, and bounded waits; `conftest.py` makes fixtures of them."""

import asyncio
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import asyncpg
import httpx
from sqlalchemy.engine import URL

from atelier.access.keys import create_key
from atelier.embedded.cluster import EmbeddedCluster
from atelier.migrate import migrate

# Durability is not what the tests' data are for. Nothing but tests may set these.
FAST = {"fsync": "off"}


def plain_environment() -> dict[str, str]:
    """The environment without what would set a service up by accident; with the memory that the run is to have."""
    return {key: value for key, value in os.environ.items() if not key.startswith("ATELIER_")} | memory_setting()


def memory_setting() -> dict[str, str]:
    """What a service of this test run is told of its memory: nothing, unless the run says so.

    `make test CACHE=off` sets `TEST_CACHE_BYTES=0`: every service and every reading side runs without its memory, but
    for those that a test is about.
    """
    cache_bytes = os.environ.get("TEST_CACHE_BYTES")
    return {} if cache_bytes is None else {"ATELIER_CACHE_BYTES": cache_bytes}


@dataclass(frozen=True)
class Service:
    """A running service: the real command, over real servers."""

    url: str
    key: str
    """All scopes."""
    process: "subprocess.Popen[bytes]"
    log: Path


def wait_until(condition: Callable[[], bool], *, timeout_s: float = 15.0, what: str = "the condition") -> None:
    """Waits until a condition holds; fails the test when it does not in time."""
    deadline_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline_s, f"{what} did not come true within {timeout_s} s"
        time.sleep(0.01)


async def wait_until_commits_wait(dsn: str) -> None:
    """Waits until commits wait for a standby that does not exist, `synchronous_standby_names` having named it.

    A session knows that setting at once. What a commit goes by is told by the checkpointer, which may be busy.
    """
    connection, watching = await asyncpg.connect(dsn), await asyncpg.connect(dsn)
    pid, has_waited = connection.get_server_pid(), False

    async def commit_until_one_waits() -> None:
        while not has_waited:
            await connection.execute("select pg_logical_emit_message(true, 'test', '')")

    try:
        await connection.execute("set synchronous_commit = on")
        async with asyncio.timeout(30), asyncio.TaskGroup() as group:
            group.create_task(commit_until_one_waits())
            while not has_waited:
                has_waited = await watching.fetchval(
                    "select wait_event is not distinct from 'SyncRep' from pg_stat_activity where pid = $1", pid
                )
            # Not before that is known: or another commit would follow the one that is let go, and wait for ever.
            await watching.execute("select pg_cancel_backend($1)", pid)
    finally:
        for one in (connection, watching):
            one.terminate()


def find_free_port() -> int:
    """Asks the kernel for a free port."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def open_folder() -> Iterator[Path]:
    """A temporary folder that the servers' user can pass through; pytest's own are closed to it."""
    folder = Path(tempfile.mkdtemp(prefix="atelier-test-"))
    folder.chmod(0o711)
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


@contextmanager
def running_cluster(*, replicas: int = 2, extra: Mapping[str, str] | None = None) -> Iterator[EmbeddedCluster]:
    """A migrated cluster of its own, which may be broken in any way."""
    with open_folder() as folder:
        opened = EmbeddedCluster.create_or_open(folder / "data", replicas, extra_settings={**FAST, **(extra or {})})
        try:
            opened.start()
            migrate_cluster(opened)
            yield opened
        finally:
            for node in opened.nodes.values():
                node.stop()


def migrate_cluster(cluster: EmbeddedCluster) -> None:
    """Brings the cluster's schema to the newest migration."""
    url = URL.create(
        "postgresql+asyncpg",
        username="migrator",
        password=cluster.environment()["ATELIER_MIGRATOR_PASSWORD"],
        host="127.0.0.1",
        port=cluster.primary.port,
        database="atelier",
    )
    asyncio.run(migrate(url, clock=time.monotonic, within_s=30, say=lambda _: None))


def role_dsn(cluster: EmbeddedCluster, role: str, *, node: str | None = None) -> str:
    """The address of a node, the primary unless named, for one of the service's roles."""
    port = cluster.node(node).port if node else cluster.primary.port
    password = cluster.environment()[f"ATELIER_{role.upper()}_PASSWORD"]
    return f"postgresql://{role}:{password}@127.0.0.1:{port}/atelier"


async def make_key(cluster: EmbeddedCluster, *, name: str, scopes: tuple[str, ...] = ("admin",)) -> str:
    """Makes an API key on the primary."""
    connection = await asyncpg.connect(role_dsn(cluster, "writer"))
    try:
        return await create_key(connection, name=name, scopes=scopes)
    finally:
        await connection.close()


@contextmanager
def running_service(
    cluster: EmbeddedCluster, *, role: str = "all", settings: Mapping[str, str] | None = None
) -> Iterator[Service]:
    """The real `atelier serve` over a cluster; ends with it."""
    port = find_free_port()
    environ = plain_environment() | cluster.environment() | dict(settings or {})
    del environ["ATELIER_MIGRATOR_PASSWORD"]
    command = [sys.executable, "-P", "-m", "atelier.cli.main", "serve", f"--role={role}", f"--port={port}"]
    with tempfile.TemporaryDirectory(prefix="atelier-test-") as folder:
        log = Path(folder, "service.log")
        with log.open("wb") as output:
            process = subprocess.Popen(command, env=environ, stdout=output, stderr=output, start_new_session=True)
        try:
            url = f"http://127.0.0.1:{port}"
            wait_until(lambda: _is_ready(process, url, log), timeout_s=30, what="the service's readiness")
            key = asyncio.run(make_key(cluster, name=f"test-{os.urandom(6).hex()}"))
            yield Service(url, key, process, log)
        finally:
            end_service(process)


def end_service(process: "subprocess.Popen[bytes]") -> None:
    """Ends a service in good order; one that does not end in time is killed, and fails the test."""
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(timeout=30)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait(timeout=5)
        raise


def _is_ready(process: "subprocess.Popen[bytes]", url: str, log: Path) -> bool:
    assert process.poll() is None, f"the service ended:\n{log.read_text()}"
    try:
        return httpx.get(f"{url}/health/ready", timeout=2).status_code == httpx.codes.OK
    except httpx.TransportError:
        return False
