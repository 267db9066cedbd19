"""Finds out whether a server runs, and makes sure that a pid still means the process it meant."""

import contextlib
import os
import signal
from dataclasses import dataclass
from pathlib import Path

import psutil

from atelier.embedded.waiting import wait_for

_DEAD = frozenset({psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD})
_PROGRAMS = frozenset({"initdb", "pg_basebackup", "pg_rewind", "postgres", "pg_ctl"})
_WORD_LINE = 7  # of postmaster.pid: "starting", "standby", "ready", "stopping"


@dataclass(frozen=True, slots=True)
class Postmaster:
    """A running server's first process, from which all others come."""

    process: psutil.Process
    word: str
    """What it says of itself: starting, standby, ready or stopping."""

    def is_alive(self) -> bool:
        """Whether this very process still runs; a zombie does not, and a stranger under its pid is not it."""
        return is_alive(self.process)

    def is_frozen(self) -> bool:
        """Whether it has been stopped by a signal."""
        return is_alive(self.process) and _stands_still(self.process)


def is_alive(process: psutil.Process) -> bool:
    """Whether the process runs: not ended, not a zombie that nobody has reaped, not another one with its pid."""
    try:
        return process.is_running() and process.status() not in _DEAD
    except psutil.NoSuchProcess:
        return False


def find_postmaster(data: Path) -> Postmaster | None:
    """Finds the server that runs in a data folder.

    Returns:
        The server; None when none runs there, whatever a stale `postmaster.pid` says.
    """
    try:
        lines = (data / "postmaster.pid").read_text(encoding="utf-8", errors="replace").splitlines()
        process = psutil.Process(int(lines[0]))
    except (OSError, ValueError, IndexError, psutil.NoSuchProcess):
        return None
    if not is_alive(process) or not _works_in(process, data):
        return None
    return Postmaster(process, lines[_WORD_LINE].strip() if len(lines) > _WORD_LINE else "starting")


def freeze(postmaster: Postmaster, *, timeout_s: float) -> bool:
    """Stops all processes of a server where they are; the first one first, so that it starts no more of them.

    Returns:
        Whether all stand still within `timeout_s` seconds.
    """
    _send(postmaster.process, signal.SIGSTOP)
    children = _children(postmaster.process)
    for child in children:
        _send(child, signal.SIGSTOP)
    return wait_for(lambda: all(map(_stands_still, [postmaster.process, *children])), timeout_s=timeout_s)


def thaw(postmaster: Postmaster) -> None:
    """Lets a frozen server go on."""
    for child in _children(postmaster.process):
        _send(child, signal.SIGCONT)
    _send(postmaster.process, signal.SIGCONT)


def kill(postmaster: Postmaster, *, timeout_s: float) -> bool:
    """Kills a server's first process as a crash would, and waits for its children, which notice and end by themselves.

    Children that are frozen, or hang, are killed too: they would keep the shared memory from the next start.

    Returns:
        Whether all are gone within about twice `timeout_s` seconds.
    """
    children = _children(postmaster.process)
    _send(postmaster.process, signal.SIGKILL)
    for child in children:
        _send(child, signal.SIGCONT)
    everybody = [postmaster.process, *children]
    if wait_for(lambda: not any(map(is_alive, everybody)), timeout_s=timeout_s):
        return True
    for process in everybody:
        _send(process, signal.SIGKILL)
    return wait_for(lambda: not any(map(is_alive, everybody)), timeout_s=timeout_s)


def stop(postmaster: Postmaster, *, fast_s: float, immediate_s: float) -> bool:
    """Stops a server in good order; at once, as after a crash, when that takes too long.

    Args:
        postmaster: the server; a frozen one goes on for it.
        fast_s: how long it may end its sessions and write its checkpoint.
        immediate_s: how long an immediate end may take before it is killed.

    Returns:
        Whether it ended in good order.
    """
    thaw(postmaster)
    _send(postmaster.process, signal.SIGINT)
    if wait_for(lambda: not postmaster.is_alive(), timeout_s=fast_s):
        return True
    _send(postmaster.process, signal.SIGQUIT)
    if not wait_for(lambda: not postmaster.is_alive(), timeout_s=immediate_s):
        kill(postmaster, timeout_s=immediate_s)
    return False


def tidy_pid_file(data: Path, *, timeout_s: float) -> bool:
    """Makes a data folder whose server crashed ready for the next start.

    PostgreSQL tidies up after a pid that is gone, but takes a zombie, or a stranger who was given the pid, for a server
    that still runs. The file is removed only for those, and only when no orphan of the old server is left.

    Returns:
        Whether the folder was tidied because it had to be.
    """
    path = data / "postmaster.pid"
    if not path.exists() or find_postmaster(data):
        return False
    wait_for(lambda: not _orphans(data), timeout_s=timeout_s)
    for orphan in _orphans(data):
        _send(orphan, signal.SIGKILL)
    if wait_for(lambda: not _orphans(data), timeout_s=timeout_s) and _pid_is_taken(path):
        path.unlink(missing_ok=True)
    return True


def end_leftovers(home: Path, *, timeout_s: float) -> None:
    """Ends programs that an interrupted command has left at work in a stopped node's folder, a clone for instance."""
    wait_for(lambda: not _kill_leftovers(home), timeout_s=timeout_s)


def _kill_leftovers(home: Path) -> bool:
    """Kills those that are there; whether there were any, which may have started more in the meantime."""
    leftovers = [found for found in psutil.process_iter() if is_alive(found) and _is_leftover_of(found, home)]
    for leftover in leftovers:
        _send(leftover, signal.SIGKILL)
    return bool(leftovers)


def _is_leftover_of(process: psutil.Process, home: Path) -> bool:
    try:
        if process.name() not in _PROGRAMS:
            return False
        # The servers that initdb starts inside are told their folder by the environment, and work in it.
        places = [*process.cmdline(), process.cwd()]
        return any(Path(place).is_relative_to(home) for place in places)
    except psutil.Error:
        return False


def _pid_is_taken(path: Path) -> bool:
    try:
        return psutil.pid_exists(int(path.read_text(encoding="utf-8").split("\n", 1)[0]))
    except (OSError, ValueError):
        return True  # unreadable or cut off by a full disk: PostgreSQL would refuse it for ever


def _works_in(process: psutil.Process, data: Path) -> bool:
    """A server's working folder is its data folder; where we may not see that, its command line names it."""
    try:
        return Path(process.cwd()) == data
    except psutil.AccessDenied:
        with contextlib.suppress(psutil.Error):
            return str(data) in process.cmdline()
    except psutil.NoSuchProcess:
        pass
    return False


def _orphans(data: Path) -> list[psutil.Process]:
    return [process for process in psutil.process_iter() if is_alive(process) and _is_orphan_in(process, data)]


def _is_orphan_in(process: psutil.Process, data: Path) -> bool:
    try:
        return process.name().startswith("postgres") and Path(process.cwd()) == data
    except psutil.Error:
        return False


def _children(process: psutil.Process) -> list[psutil.Process]:
    try:
        return process.children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def _stands_still(process: psutil.Process) -> bool:
    """Whether it is stopped, or has ended."""
    try:
        return process.status() == psutil.STATUS_STOPPED or not is_alive(process)
    except psutil.NoSuchProcess:
        return True


def _send(process: psutil.Process, number: signal.Signals) -> None:
    # psutil looks again whether the pid still is that process before it sends.
    with contextlib.suppress(psutil.NoSuchProcess, ProcessLookupError):
        process.send_signal(number)


def own_identity() -> tuple[int, float]:
    """This process as (pid, time of creation in seconds), to be recognised by `is_same_process` later."""
    return os.getpid(), psutil.Process().create_time()


def find_process(pid: int, created_at_s: float) -> psutil.Process | None:
    """Finds a process that was written down as its pid and its time of creation; None when it has ended."""
    try:
        process = psutil.Process(pid)
        # The time is derived from the machine's boot time, which moves a little when its clock is set.
        same = abs(process.create_time() - created_at_s) < 2
    except psutil.NoSuchProcess:
        return None
    return process if same and is_alive(process) else None
