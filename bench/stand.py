"""What every measurement stands on: a cluster with a catalogue, services over it, and who measures them.

One machine carries everything: three PostgreSQL servers, the service, the load generator. Figures of different days
differ; only those of one run compare.
"""

import asyncio
import http.client
import importlib.metadata
import os
import platform
import re
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from urllib.parse import unquote, urlsplit

import asyncpg
import psutil
from sqlalchemy.engine import URL

from atelier.access.keys import create_key
from atelier.embedded.cluster import EmbeddedCluster
from atelier.embedded.node import Node
from atelier.embedded.waiting import wait_for
from atelier.migrate import migrate

_VACUUM_S = 600
_CATALOGUE_UP_S = 300.0
# For a session of the superuser's: no trigger fires, no key is checked.
SILENT = "session_replication_role=replica"
ATELIER = (sys.executable, "-m", "atelier.cli.main")


class BenchError(Exception):
    """It cannot be measured; the message is one line."""


@dataclass(frozen=True)
class Running:
    """One service: where it answers, and its first process."""

    url: str
    pid: int

    def processes(self) -> list[psutil.Process]:
        """The first process and its workers."""
        parent = psutil.Process(self.pid)
        return [parent, *parent.children(recursive=True)]


@dataclass(frozen=True)
class Stand:
    """A cluster with a catalogue.

    Attributes:
        cluster: one primary and two replicas, durable, as `atelier up` makes them.
        folder: for scripts and logs.
        products: how many there are, with ids from 1.
        key: an API key for everything.
        seconds: how long one measurement takes.
        rounds: how often those that take turns are repeated.
        profiles: whether the process that reads is looked into during the headline.
    """

    cluster: EmbeddedCluster
    folder: Path
    products: int
    key: str
    seconds: int
    rounds: int
    profiles: bool = False

    @property
    def span(self) -> tuple[int, int]:
        """The ids that are asked for: the last tenth, so that the whole catalogue is not in anybody's first cache."""
        return self.products * 9 // 10 + 1, self.products

    @contextmanager
    def serve(self, role: str = "all", **changes: str) -> Iterator[Running]:
        """The real service with everything on; `changes` are settings: `ATELIER_CACHE_BYTES="0"`."""
        port = find_free_port()
        environ = {name: value for name, value in os.environ.items() if not name.startswith("ATELIER_")}
        environ |= {**self.cluster.environment(), **changes}
        del environ["ATELIER_MIGRATOR_PASSWORD"]
        command = [*ATELIER, "serve", f"--role={role}", f"--port={port}"]
        with run_server(command, environ, port, self.folder / f"{role}.log") as running:
            yield running

    @contextmanager
    def serve_app(self, factory: str, **environ: str) -> Iterator[Running]:
        """Another application on the same HTTP server, in one process."""
        port = find_free_port()
        command = [sys.executable, "-m", "granian", "--interface", "asgi", "--factory", "--loop", "uvloop",
                   "--no-ws", "--port", str(port), factory]  # fmt: skip
        with run_server(command, {**os.environ, **environ}, port, self.folder / "other.log") as running:
            yield running

    def dsn_of(self, role: str, node: str | None = None) -> str:
        """Where a role finds a node, the primary unless named."""
        password = self.cluster.environment()[f"ATELIER_{role.upper()}_PASSWORD"]
        port = (self.cluster.node(node) if node else self.cluster.primary).port
        return f"postgresql://{role}:{password}@127.0.0.1:{port}/atelier"

    def ask(self, sql: str, *, node: str | None = None) -> str:
        """The one value that a query gives on a node, the primary unless named."""

        async def fetch() -> str:
            connection = await asyncpg.connect(self.dsn_of("writer", node))
            try:
                return str(await connection.fetchval(sql))
            finally:
                await connection.close()

        return asyncio.run(fetch())

    def pgbench(self, script: str, *, clients: int, node: str, threads: int = 1, fires: bool = True) -> float:
        """Runs a script by PostgreSQL's own load generator, prepared, as the superuser: transactions per second.

        Args:
            script: its statements.
            clients: how many at the same time.
            threads: of pgbench's own.
            node: where.
            fires: whether what it changes fires the schema's triggers, which announce every change in the outbox.
        """
        options = "-c search_path=atelier" + ("" if fires else f" -c {SILENT}")
        path = self.folder / "script.pgbench"
        path.write_text(script, encoding="utf-8")
        binary = self.cluster._server.binaries.path("pgbench")  # noqa: SLF001  the cluster's own programs
        server = urlsplit(self.cluster.superuser_dsn(node))
        said = run_program(
            [str(binary), "-n", "-M", "prepared", f"-c{clients}", f"-j{threads}", f"-T{self.seconds}", "-f", str(path),
             "-h", "127.0.0.1", "-p", str(self.cluster.node(node).port), "-U", "postgres", "atelier"],
            env={**os.environ, "PGPASSWORD": unquote(server.password or ""), "PGOPTIONS": options},
        )  # fmt: skip
        found = re.search(r"tps = ([\d.]+)", said)
        if found is None:
            raise BenchError("pgbench finished no transaction: measure longer")
        return float(found[1])


@contextmanager
def open_stand(
    products: int, *, keep: Path | None, seconds: int, rounds: int, profiles: bool = False
) -> Iterator[Stand]:
    """Makes a cluster with a generated catalogue, or takes the one that is kept.

    Args:
        products: how many.
        keep: where the cluster stays for another time; None for nowhere.
        seconds: of each measurement.
        rounds: of those that take turns.
        profiles: whether the process that reads is looked into during the headline.
    """
    with ExitStack() as stack:
        folder = keep or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="atelier-bench-")))
        folder.mkdir(parents=True, exist_ok=True)
        folder.chmod(0o711)  # the servers' user passes through it
        cluster = EmbeddedCluster.create_or_open(folder / "data", 2)
        if not cluster.running():
            stack.callback(cluster.stop)
        cluster.start()
        asyncio.run(_migrate(cluster))
        made = folder / f"made-{products}"
        if not made.exists():
            make_catalogue(cluster, folder, products)
            made.touch()
        key = asyncio.run(make_key(cluster))
        yield Stand(cluster, folder, products, key, seconds, rounds, profiles)


def make_catalogue(cluster: EmbeddedCluster, folder: Path, products: int) -> None:
    """Generates and imports a catalogue as its users do, and waits until the replicas have it."""
    environ = {**os.environ, **cluster.environment()}
    files = folder / "files"
    began_s = time.monotonic()
    run_program([*ATELIER, "generate", str(files), "--products", str(products)])
    run_program([*ATELIER, "import", str(files), "--rejects", str(folder / "rejects.csv")], env=environ)
    shutil.rmtree(files)
    asyncio.run(_vacuum(cluster))
    cluster.primary.sql("checkpoint")
    settle(cluster)
    print(f"{products:,} products made in {time.monotonic() - began_s:.0f} s", flush=True)


async def _vacuum(cluster: EmbeddedCluster) -> None:
    """Does at once what autovacuum would do for minutes after an import, beside all that is measured meanwhile."""
    connection = await asyncpg.connect(cluster.superuser_dsn(cluster.primary.name))
    try:
        await connection.execute("vacuum", timeout=_VACUUM_S)
    finally:
        await connection.close()


def settle(cluster: EmbeddedCluster) -> None:
    """Waits until the replicas stand where the primary stands."""
    lsn = cluster.primary.sql("select pg_current_wal_flush_lsn()")
    for name in (name for name in cluster.nodes if name != cluster.primary.name):
        sql, node = f"select pg_last_wal_replay_lsn() >= '{lsn}'", cluster.node(name)
        if not wait_for(partial(_is_true, node, sql), timeout_s=_CATALOGUE_UP_S):
            raise BenchError(f"{name} does not come up")


def _is_true(node: Node, sql: str) -> bool:
    return node.sql(sql) == "t"


@contextmanager
def run_server(command: list[str], environ: Mapping[str, str], port: int, log: Path) -> Iterator[Running]:
    """A server process until it answers, and its end."""
    with log.open("wb") as out:
        process = subprocess.Popen(command, env=dict(environ), stdout=out, stderr=out)
    try:
        _wait_until_ready(port, process, log)
        yield Running(f"http://127.0.0.1:{port}", process.pid)
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(timeout=30)


def _wait_until_ready(port: int, process: "subprocess.Popen[bytes]", log: Path) -> None:
    def answers() -> bool:
        if process.poll() is not None:
            raise BenchError(f"a server does not start: {(log.read_text().splitlines() or ['no word'])[-1]}")
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=1)
        try:
            connection.request("GET", "/health/ready")
            return connection.getresponse().status in (200, 404)
        except OSError:
            return False
        finally:
            connection.close()

    if not wait_for(answers, timeout_s=30):
        raise BenchError("a server does not become ready")


def run_program(command: list[str], *, env: Mapping[str, str] | None = None, timeout_s: float = 900) -> str:
    """What a program writes.

    Raises:
        BenchError: it is not there, or fails; with its last words.
    """
    try:
        said = subprocess.run(
            command, capture_output=True, text=True, check=False, timeout=timeout_s, env=dict(env) if env else None
        )
    except FileNotFoundError as error:
        raise BenchError(f"{command[0]} is not there") from error
    if said.returncode:
        raise BenchError(f"{command[0]}: {(said.stderr.strip() or 'failed').splitlines()[-1]}")
    return said.stdout


def find_tool(name: str, package: str) -> str:
    """Where a program is; names Debian's package when it is not there."""
    found = shutil.which(name) or shutil.which(name, path="/usr/sbin")
    if found is None:
        raise BenchError(f"{name} is not there; install Debian's package {package}")
    return found


def find_free_port() -> int:
    """Asks the kernel for a port that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


# What moves the figures most; all others are those of `replication/postgresql.conf` and of the service itself.
_SETTINGS = ("shared_buffers", "max_wal_size", "checkpoint_timeout", "synchronous_commit", "wal_compression", "jit")


_PACKAGES = ("granian", "litestar", "asyncpg", "uvloop", "msgspec", "SQLAlchemy")


def describe_machine(stand: Stand) -> str:
    """The machine, the versions and the settings, without which no figure means anything."""
    cluster = stand.cluster
    settings = ", ".join(f"{name} {cluster.primary.sql(f'show {name}')}" for name in _SETTINGS)
    model = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text(encoding="utf-8"))
    memory = psutil.virtual_memory().total / 2**30
    version = cluster.primary.sql("show server_version")
    packages = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in _PACKAGES)
    return (
        f"{os.cpu_count()} x {model[1] if model else platform.processor()}, {memory:.0f} GiB, "
        f"Linux {platform.release()}, {describe_python()}, PostgreSQL {version}, {packages}, "
        f"{tell_version('wrk', '-v')}, {tell_version('nginx', '-v')}, load before it {os.getloadavg()[0]:.1f}; "
        f"{stand.products:,} products, two replicas, {stand.rounds} rounds, {stand.seconds} s a measurement; "
        f"{settings}; one process of the service with its own settings, unless a row says otherwise"
    )


def describe_python() -> str:
    """The interpreter and how it was configured: one that is not optimized by a profile is a fifth slower or more."""
    asked = str(sysconfig.get_config_var("CONFIG_ARGS") or "")
    profiled = "--enable-optimizations" in asked
    return (
        f"Python {platform.python_version()} ({platform.python_compiler()}, "
        f"configured {'with' if profiled else 'without'} --enable-optimizations"
        f"{', link-time optimization' if '--with-lto' in asked else ''})"
    )


def tell_version(name: str, option: str) -> str:
    """What a program says of its version, in two words."""
    try:
        path = find_tool(name, name)
    except BenchError:
        return f"no {name}"
    said = subprocess.run([path, option], capture_output=True, text=True, check=False)
    found = re.search(r"\d+(\.\d+)+", said.stdout + said.stderr)
    return f"{name} {found[0] if found else 'of unknown version'}"


async def _migrate(cluster: EmbeddedCluster) -> None:
    environ = cluster.environment()
    url = URL.create(
        "postgresql+asyncpg", "migrator", environ["ATELIER_MIGRATOR_PASSWORD"], "127.0.0.1", cluster.primary.port,
        "atelier",
    )  # fmt: skip
    await migrate(url, clock=time.monotonic, within_s=60, say=lambda _: None)


async def make_key(cluster: EmbeddedCluster) -> str:
    """An API key for everything."""
    connection = await asyncpg.connect(
        host="127.0.0.1", port=cluster.primary.port, user="writer", database="atelier",
        password=cluster.environment()["ATELIER_WRITER_PASSWORD"],
    )  # fmt: skip
    try:
        return await create_key(connection, name=f"bench-{time.time_ns()}", scopes=("admin",))
    finally:
        await connection.close()
