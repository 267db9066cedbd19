"""The running service of a data folder: started in a session of its own, written down, found again, and stopped."""

import http.client
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from urllib.parse import urlsplit

import psutil

from atelier.embedded.layout import DataFolder, turn_log, write_private
from atelier.embedded.process import find_process, is_alive
from atelier.embedded.waiting import wait_for
from atelier.errors import AtelierError

READY_S = 30.0
_STOP_S = 30.0
_KILL_S = 5.0
_ASK_S = 2.0
_TAIL_LINES = 12


class ServiceError(AtelierError):
    """The service did not start."""


@dataclass(frozen=True, slots=True)
class ServiceRecord:
    """What `service.json` says: which processes serve a data folder, and where."""

    url: str
    pid: int
    """The service's first process, and the session of all others."""
    created_at_s: float
    operator_pid: int | None
    """The `atelier up` in a terminal that watches it; None when it was detached."""
    operator_created_at_s: float | None

    def is_running(self) -> bool:
        """Whether the service still runs."""
        return find_process(self.pid, self.created_at_s) is not None

    def operator(self) -> psutil.Process | None:
        """The `atelier up` that watches over it, if it still does."""
        if self.operator_pid is None or self.operator_created_at_s is None:
            return None
        return find_process(self.operator_pid, self.operator_created_at_s)


def read_record(folder: DataFolder) -> ServiceRecord | None:
    """Reads who serves the folder, or did; None when nobody is written down, or what is written is damaged."""
    try:
        return ServiceRecord(**json.loads(folder.service.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def find_service(folder: DataFolder) -> ServiceRecord | None:
    """Finds the service that runs over the folder; None when none does."""
    record = read_record(folder)
    return record if record and record.is_running() else None


def start_service(
    folder: DataFolder, environ: Mapping[str, str], *, url: str, operator: tuple[int, float] | None
) -> "subprocess.Popen[bytes]":
    """Starts the service as a child in a session of its own, where no terminal's Ctrl-C reaches it.

    Args:
        folder: where it is written down, and its log.
        environ: its whole environment.
        url: where it will listen.
        operator: who watches over it, as pid and time of creation; None when nobody stays.
    """
    turn_log(folder.service_log)
    descriptor = os.open(folder.service_log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    try:
        child = subprocess.Popen(
            [sys.executable, "-P", "-m", "atelier.cli.main", "serve"],
            stdin=subprocess.DEVNULL,
            stdout=descriptor,
            stderr=descriptor,
            env=dict(environ),
            start_new_session=True,
        )
    finally:
        os.close(descriptor)
    created_at_s = psutil.Process(child.pid).create_time()
    watcher, watcher_created_at_s = operator or (None, None)
    record = ServiceRecord(url, child.pid, created_at_s, watcher, watcher_created_at_s)
    write_private(folder.service, json.dumps(asdict(record)) + "\n")
    return child


def await_ready(child: "subprocess.Popen[bytes]", url: str, *, log: Path) -> None:
    """Waits until the service says that it is able to serve.

    Raises:
        ServiceError: it ended, or does not get ready; the message has the end of its log.
    """
    if not wait_for(lambda: child.poll() is not None or ask(url, "/health/ready") is not None, timeout_s=READY_S):
        raise ServiceError(f"the service is not ready after {READY_S:.0f} s; {_tail(log)}")
    if child.poll() is not None:
        raise ServiceError(f"the service ended with code {child.returncode}; {_tail(log)}")


def ask(url: str, path: str) -> bytes | None:
    """Asks the service for a page; None when it does not answer with 200 within two seconds."""
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=_ASK_S)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        body = response.read()
    except (OSError, http.client.HTTPException):
        return None
    else:
        return body if response.status == http.client.OK else None
    finally:
        connection.close()


def stop_service(folder: DataFolder) -> bool:
    """Stops the service over the folder in good order, kills what does not end, and forgets it.

    Returns:
        Whether there was one.
    """
    record = read_record(folder)
    if record is None:
        return False
    main = find_process(record.pid, record.created_at_s)
    if main:
        main.terminate()
        wait_for(lambda: not is_alive(main), timeout_s=_STOP_S)
    # Also the workers of a first process that was killed: they would go on serving, and keep the port.
    left = _session_of(record)
    for process in left:
        process.kill()
    wait_for(lambda: not any(map(is_alive, left)), timeout_s=_KILL_S)
    folder.service.unlink(missing_ok=True)
    return main is not None or bool(left)


def _session_of(record: ServiceRecord) -> list[psutil.Process]:
    return [process for process in psutil.process_iter() if is_alive(process) and _is_in(process, record)]


def _is_in(process: psutil.Process, record: ServiceRecord) -> bool:
    try:
        return os.getsid(process.pid) == record.pid and process.create_time() > record.created_at_s - 2
    except (OSError, psutil.Error):
        return False


def _tail(log: Path) -> str:
    try:
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return f"its log {log} cannot be read"
    return f"the end of {log}: " + " | ".join(line.strip() for line in lines[-_TAIL_LINES:])
