"""Who the servers run as. PostgreSQL refuses to run as root, so root lends its servers an unprivileged user."""

import os
import pwd
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from atelier.embedded.errors import EmbeddedError

_USUAL = ("postgres", "nobody")
_SHORT_TIMEOUT_S = 60.0


@dataclass(frozen=True, slots=True)
class Account:
    """The operating system's user that owns the servers and their files.

    `switch` is False when it is the present user, who then needs no rights to become it.
    """

    name: str
    uid: int
    gid: int
    switch: bool


def choose_account(environ: Mapping[str, str], *, owner_uid: int | None = None) -> Account:
    """Picks the user that the servers run as.

    As an ordinary user it is that user. As root: the owner of the cluster if there is one already, else
    `ATELIER_PG_USER`, else `postgres`, else `nobody`.

    Args:
        environ: where `ATELIER_PG_USER` is looked up.
        owner_uid: who owns the existing node folders; None when there are none.

    Raises:
        EmbeddedError: the folders are somebody else's, or no such user exists.
    """
    uid = os.geteuid()
    if uid != 0:
        if owner_uid not in {None, uid}:
            raise EmbeddedError(f"the cluster belongs to user {_name_of(owner_uid or 0)}, and you are {_name_of(uid)}")
        return Account(_name_of(uid), uid, os.getegid(), switch=False)
    if owner_uid:
        return _switched(_entry_of(owner_uid))
    return _switched(_wished(environ.get("ATELIER_PG_USER")))


def run(
    arguments: Sequence[str | Path],
    *,
    account: Account,
    environ: Mapping[str, str] | None = None,
    text: str = "",
    timeout_s: float = _SHORT_TIMEOUT_S,
) -> subprocess.CompletedProcess[str]:
    """Runs a program to its end as the account, out of reach of the terminal's Ctrl-C, and keeps what it says.

    Args:
        arguments: the program and its arguments; never a secret, every process of the machine can read them.
        account: who it runs as.
        environ: its whole environment beside PATH and the locale.
        text: its standard input.
        timeout_s: it is killed after this.

    Raises:
        EmbeddedError: it took too long, or cannot be started.
    """
    program = Path(arguments[0]).name
    other = account.switch
    try:
        return subprocess.run(  # noqa: S603 - our own programs, with arguments of our own making
            [str(argument) for argument in arguments],
            input=text,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout_s,
            check=False,
            cwd="/",
            env={"PATH": os.defpath, "LC_ALL": "C", **(environ or {})},
            umask=0o077,
            start_new_session=True,
            user=account.uid if other else None,
            group=account.gid if other else None,
            extra_groups=[account.gid] if other else None,
        )
    except subprocess.TimeoutExpired as error:
        raise EmbeddedError(f"{program} took longer than {timeout_s:.0f} s") from error
    except OSError as error:
        raise EmbeddedError(f"{program} cannot be started: {error.strerror}") from error


def can_enter(account: Account, folder: Path) -> bool:
    """Whether the account can reach what lies in the folder; a folder above it may be closed to it."""
    return run(["/bin/sh", "-c", 'cd "$1"', "sh", folder], account=account).returncode == 0


def give(path: Path, account: Account) -> None:
    """Makes the account the owner of one file or folder."""
    if account.switch:
        os.chown(path, account.uid, account.gid)


def _wished(name: str | None) -> pwd.struct_passwd:
    for candidate in (name,) if name else _USUAL:
        try:
            entry = pwd.getpwnam(candidate)
        except KeyError:
            continue
        if entry.pw_uid == 0:
            raise EmbeddedError("ATELIER_PG_USER is root: PostgreSQL refuses to run as root")
        return entry
    raise EmbeddedError(f"there is no user {name or ' or '.join(_USUAL)} to run PostgreSQL as; set ATELIER_PG_USER")


def _entry_of(uid: int) -> pwd.struct_passwd:
    try:
        return pwd.getpwuid(uid)
    except KeyError as error:
        raise EmbeddedError(f"the cluster belongs to the user id {uid}, which has no name here") from error


def _switched(entry: pwd.struct_passwd) -> Account:
    return Account(entry.pw_name, entry.pw_uid, entry.pw_gid, switch=True)


def _name_of(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)
