"""One server of the embedded cluster: its folder, its process, and SQL on it as the superuser."""

import contextlib
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import psutil

from atelier.embedded import config, process
from atelier.embedded.account import Account, give, run
from atelier.embedded.binaries import Binaries
from atelier.embedded.control import ControlData, newest_timeline, parse_control_data
from atelier.embedded.decide import Found
from atelier.embedded.errors import EmbeddedError, PortTakenError
from atelier.embedded.layout import DataFolder, Secrets, turn_log, write_private
from atelier.embedded.waiting import wait_for

_START_S = 60.0
_RETRY_START_S = 15.0
_STOP_FAST_S = 30.0
_STOP_IMMEDIATE_S = 10.0
_KILL_S = 10.0
_SQL_S = 30.0
_PAUSE_S = 60.0
_UP = frozenset({"ready", "standby"})
_LOG_TAIL_BYTES = 20_000


@dataclass(frozen=True, slots=True)
class Server:
    """What all nodes of a cluster share: the folder, who they run as, what runs them, and the secrets."""

    folder: DataFolder
    account: Account
    binaries: Binaries
    secrets: Secrets

    def run(
        self,
        program: str,
        *arguments: str | Path,
        environ: Mapping[str, str] | None = None,
        timeout_s: float = _START_S,
    ) -> str:
        """Runs one of PostgreSQL's programs and returns what it printed.

        Raises:
            EmbeddedError: it failed; the message is the last line it said.
        """
        done = run(
            [self.binaries.path(program), *arguments], account=self.account, environ=environ, timeout_s=timeout_s
        )
        if done.returncode:
            raise EmbeddedError(f"{program} failed: {last_line(done.stderr or done.stdout)}")
        return done.stdout


class Node:
    """One server, by its name. Keeps nothing in memory: what it is, is looked up each time."""

    def __init__(self, server: Server, name: str, *, port: int, extra: Mapping[str, str]) -> None:
        """Takes what all nodes share, the node's name, its port, and settings beyond the shared configuration."""
        self._server = server
        self._extra = extra
        self.name = name
        self.port = port
        self.home = server.folder.nodes / name
        self.data = self.home / "data"
        self.config = self.home / "node.conf"
        self.log = self.home / "server.log"
        self.torn_mark = self.home / "rewinding"

    # ------------------------------------------------------------ what it is

    def look(self) -> Found:
        """Looks at the folder: whether there is one, whether it is a standby's, and how far its history goes."""
        if not (self.data / "PG_VERSION").is_file():
            return Found(self.name, has_data=False)
        control = self.control_data()
        names = [path.name for path in (self.data / "pg_wal").iterdir()]
        return Found(
            self.name,
            has_data=True,
            standby=(self.data / "standby.signal").exists(),
            timeline=max(control.timeline, newest_timeline(names)),
            shut_down=control.shut_down or self.running() is not None,
            torn=self.torn_mark.exists(),
        )

    def control_data(self) -> ControlData:
        """Reads the folder's control file."""
        return parse_control_data(self._server.run("pg_controldata", "-D", self.data))

    def running(self) -> process.Postmaster | None:
        """Its server, when it runs; frozen counts as running."""
        return process.find_postmaster(self.data)

    def answering(self) -> bool:
        """Whether it runs and is not frozen."""
        found = self.running()
        return found is not None and not found.is_frozen()

    # ------------------------------------------------------------ start and stop

    def configure(self, upstream: config.Upstream | None) -> None:
        """Writes who the node is and whom it follows; a running server learns of it by `reload`."""
        etc = self._server.folder.etc
        text = config.render_node_config(
            self.name,
            port=self.port,
            shared=etc / "postgresql.conf",
            hba=etc / "pg_hba.conf",
            upstream=upstream,
            memory_bytes=psutil.virtual_memory().total,
            extra=self._extra,
        )
        write_private(self.config, text)
        give(self.config, self._server.account)
        self._strip_auto_config()

    def mark(self, *, standby: bool) -> None:
        """Marks the stopped node's folder as a standby's, or removes the mark."""
        signal_file = self.data / "standby.signal"
        if standby:
            signal_file.touch(mode=0o600)
            give(signal_file, self._server.account)
        else:
            signal_file.unlink(missing_ok=True)

    def start(self) -> None:
        """Starts the server, tidying up after a crash, and waits until it answers.

        Raises:
            PortTakenError: somebody else listens on its port.
            EmbeddedError: it does not start; the message is the reason from its log.
        """
        # A command that was interrupted may have left a server that is just starting.
        if self.running() and not wait_for(self._is_settled, timeout_s=_START_S):
            raise EmbeddedError(f"{self.name} is still starting after {_START_S:.0f} s; see {self.log}")
        if self.running():
            return
        self.tidy()
        turn_log(self.log)
        reasons: list[str] = []
        # A server that was killed can leave its memory behind for a moment, until the last of its children is gone.
        if not wait_for(lambda: self._try_start(reasons), timeout_s=_RETRY_START_S):
            raise EmbeddedError(f"{self.name} does not start: {reasons[-1]}")

    def tidy(self) -> None:
        """Makes the stopped node's folder ready after a crash, for its server or for pg_rewind's recovery."""
        process.end_leftovers(self.home, timeout_s=_KILL_S)
        process.tidy_pid_file(self.data, timeout_s=_KILL_S)

    def stop(self) -> None:
        """Stops the server in good order, or as after a crash when that takes too long."""
        found = self.running()
        if found:
            process.stop(found, fast_s=_STOP_FAST_S, immediate_s=_STOP_IMMEDIATE_S)

    def reload(self) -> None:
        """Makes the running server read its configuration again; a frozen one does when it goes on."""
        found = self.running()
        if found:
            self._server.run("pg_ctl", "-D", self.data, "reload")

    def kill(self) -> None:
        """Ends the server as a crash would."""
        if not process.kill(self._must_run(), timeout_s=_KILL_S):
            raise EmbeddedError(f"{self.name} cannot be killed")

    def pause_replay(self) -> None:
        """Lets the standby receive, but not show, what the primary writes from now on.

        Raises:
            EmbeddedError: it does not pause in time.
        """
        self.sql("select pg_wal_replay_pause()")
        paused = "select pg_get_wal_replay_pause_state() = 'paused'"
        if not wait_for(lambda: self.sql(paused) == "t", timeout_s=_PAUSE_S):
            raise EmbeddedError(f"{self.name} does not pause")

    def resume_replay(self) -> None:
        """Lets the standby show what it has received."""
        self.sql("select pg_wal_replay_resume()")

    def delay_apply(self, delay_ms: int) -> None:
        """Lets the standby show each commit so many milliseconds late; 0 for no delay."""
        self.sql(f"alter system set recovery_min_apply_delay = '{int(delay_ms)}ms'")
        self.reload()

    def freeze(self) -> None:
        """Stops all its processes where they are."""
        if not process.freeze(self._must_run(), timeout_s=_KILL_S):
            raise EmbeddedError(f"{self.name} cannot be frozen")

    def thaw(self) -> None:
        """Lets its processes go on."""
        process.thaw(self._must_run())

    def why_it_ended(self) -> str:
        """What the log says of a server that has ended by itself; empty while it runs, or when it says nothing."""
        return "" if self.running() else self._failure_since(0)

    # ------------------------------------------------------------ SQL

    def sql(self, statement: str, *, database: str = "postgres", environ: Mapping[str, str] | None = None) -> str:
        r"""Runs SQL, or a psql script, as the superuser.

        Args:
            statement: one or more statements.
            database: where.
            environ: variables that a script reads with `\getenv`.

        Returns:
            The rows as text: fields separated by `|`, without headers.

        Raises:
            EmbeddedError: it failed, or the node does not answer in time.
        """
        done = run(
            [self._server.binaries.path("psql"), "-XqAt", "-v", "ON_ERROR_STOP=1", "-d", self._conninfo(database)],
            account=self._server.account,
            environ={
                "PGPASSWORD": self._server.secrets.passwords["superuser"],
                "PGCONNECT_TIMEOUT": "5",
                "PGOPTIONS": "-c search_path=pg_catalog",
                **(environ or {}),
            },
            text=statement,
            timeout_s=_SQL_S,
        )
        if done.returncode:
            raise EmbeddedError(f"{self.name}: {last_line(done.stderr)}")
        return done.stdout.strip()

    @property
    def flushes(self) -> bool:
        """Whether it makes its data durable; False only where a test asked for it."""
        return self._extra.get("fsync") != "off"

    def superuser_dsn(self, *, database: str = "atelier") -> str:
        """The address for a superuser's connection; for tests and for making a cluster, never for the service."""
        return f"postgresql://postgres:{self._server.secrets.passwords['superuser']}@127.0.0.1:{self.port}/{database}"

    # ------------------------------------------------------------ inner steps

    def _must_run(self) -> process.Postmaster:
        found = self.running()
        if found is None:
            raise EmbeddedError(f"{self.name} is not running")
        return found

    def _is_settled(self) -> bool:
        """Whether it is up, or has ended."""
        found = self.running()
        return found is None or found.word in _UP

    def _conninfo(self, database: str) -> str:
        return f"host=127.0.0.1 port={self.port} user=postgres dbname={database} application_name=atelier"

    def _try_start(self, reasons: list[str]) -> bool:
        before_bytes = self.log.stat().st_size if self.log.exists() else 0
        said = run(
            [
                *(self._server.binaries.path("pg_ctl"), "-D", self.data, "-l", self.log),
                *("-w", "-t", str(int(_START_S)), "-o", f"-c config_file={_quote_shell(self.config)}", "start"),
            ],
            account=self._server.account,
            timeout_s=_START_S + 10,
        )
        if said.returncode == 0:
            return True
        reason = self._failure_since(before_bytes) or last_line(said.stderr or said.stdout)
        reasons.append(reason)
        if "could not bind" in reason or "could not create any TCP/IP sockets" in reason:
            raise PortTakenError(f"port {self.port} of {self.name} is in use")
        if "shared memory block" in reason or "lock file" in reason:
            return False
        raise EmbeddedError(f"{self.name} does not start: {reason}")

    def _failure_since(self, offset_bytes: int) -> str:
        with contextlib.suppress(OSError), self.log.open("rb") as file:
            size = file.seek(0, 2)
            file.seek(max(offset_bytes, size - _LOG_TAIL_BYTES))
            lines = file.read().decode(errors="replace").splitlines()
            return find_reason(lines)
        return ""

    def _strip_auto_config(self) -> None:
        path = self.data / "postgresql.auto.conf"
        with contextlib.suppress(FileNotFoundError):
            before = path.read_text(encoding="utf-8")
            after = config.strip_identity(before)
            if after != before:
                write_private(path, after)
                give(path, self._server.account)


def remove(path: Path) -> None:
    """Removes a file or a whole folder, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def find_reason(lines: list[str]) -> str:
    """Finds why a server did not start in the lines of its log; empty when they do not say."""
    fatal = [number for number, line in enumerate(lines) if "FATAL:" in line or "PANIC:" in line]
    if not fatal:
        return ""
    # Which setting is wrong, it says in the line before.
    number = fatal[-1] - 1 if fatal[-1] and "contains errors" in lines[fatal[-1]] else fatal[-1]
    return lines[number].split(":  ", 1)[-1].strip()


def last_line(text: str) -> str:
    """The last line that says something, which is the reason in most programs' output."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    errors = [line for line in lines if "error:" in line.lower() or "fatal" in line.lower()]
    return (errors or lines or ["it gave no reason"])[-1]


def _quote_shell(path: Path) -> str:
    # pg_ctl hands its -o text to a shell.
    return "'" + str(path).replace("'", "'\\''") + "'"
