"""The data folder: what lies where, who may read it, and what is remembered from one start to the next.

```
.atelier/             0700, or 0711 when the servers run as another user
├── lock              held by the command that is working on the cluster
├── up.lock           held by the `up` that is starting
├── cluster.json      the nodes, their ports, who is the primary
├── nodes.list        where each node listens, for the running service, which reads it again and again
├── secrets.json      passwords and the token key
├── api-key           the demo key
├── service.json      the running service, and service.log
└── nodes/            the servers' own; a link to a place that they can reach, when they cannot reach this one
    ├── etc/          configuration that all nodes share, rewritten at each start
    └── pg1/          data/, node.conf, server.log
```
"""

import contextlib
import json
import os
import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from atelier.embedded.errors import DataFolderError

_OURS = frozenset(
    {
        "lock",
        "up.lock",
        "cluster.json",
        "nodes.list",
        "secrets.json",
        "api-key",
        "service.json",
        "service.log",
        "service.log.1",
        "nodes",
    }
)
# A file of ours that is just being written, and by whom.
_PARTIAL = re.compile(r"\.(?P<name>.+)\.(?P<pid>\d{1,9})")
_FORMAT = 1
_PASSWORDS = ("superuser", "replicator", "reader", "writer", "monitor", "migrator")
_LARGEST_LOG_BYTES = 10_000_000


@dataclass(slots=True)
class ClusterState:
    """What `cluster.json` remembers."""

    major: int
    """PostgreSQL's major version; a data folder belongs to one."""
    primary: str
    """Who was the primary when this was written; the folders themselves are asked, too."""
    ports: dict[str, int]
    """Every node's port."""
    made: bool = False
    """Whether the first primary was ever complete; what lies here before that may be thrown away."""
    roles_digest: str = ""
    """Of the roles.sql that was run last."""
    extra: dict[str, str] = field(default_factory=dict)
    """PostgreSQL settings beyond the shared configuration."""


@dataclass(frozen=True, slots=True)
class Secrets:
    """What nobody else may know; generated once for each data folder."""

    passwords: Mapping[str, str] = field(repr=False)
    """By role; the superuser's is under `superuser`."""
    token_key: str = field(repr=False)
    """64 hexadecimal digits."""


class DataFolder:
    """The paths of one data folder, and its small files. Makes nothing until asked."""

    def __init__(self, path: Path) -> None:
        """Takes the folder; it need not exist."""
        self.path = path.absolute()
        self.lock = self.path / "lock"
        self.up_lock = self.path / "up.lock"
        self.api_key = self.path / "api-key"
        self.service = self.path / "service.json"
        self.service_log = self.path / "service.log"
        self.nodes_link = self.path / "nodes"
        self._state = self.path / "cluster.json"
        self.node_list = self.path / "nodes.list"
        self._secrets = self.path / "secrets.json"

    @property
    def nodes(self) -> Path:
        """Where the node folders really are."""
        return self.nodes_link.resolve()

    @property
    def etc(self) -> Path:
        """Where the shared configuration lies."""
        return self.nodes / "etc"

    @property
    def passfile(self) -> Path:
        """The password with which standbys connect."""
        return self.etc / "replicator.pgpass"

    def has_cluster(self) -> bool:
        """Whether a cluster was made here, or its making was begun.

        Raises:
            DataFolderError: we may not look.
        """
        try:
            return self._state.is_file()
        except OSError as error:
            raise DataFolderError(f"{self.path} cannot be read: {error.strerror}") from error

    def claim(self, *, mode: int) -> None:
        """Makes the folder, or takes an empty one; refuses one that is somebody else's.

        What a start that was killed has left of a file that it was just writing is no other thing, and is removed.

        Raises:
            DataFolderError: it holds other things, is no folder, or cannot be written to.
        """
        try:
            self.path.mkdir(mode=mode, parents=True, exist_ok=True)
            names = {path.name for path in self.path.iterdir()}
        except OSError as error:
            raise DataFolderError(f"{self.path} cannot be used as data folder: {error.strerror}") from error
        if not os.access(self.path, os.W_OK | os.X_OK):
            raise DataFolderError(f"{self.path} cannot be written to")
        strangers = sorted(name for name in names - _OURS if not self._is_partial(name))
        if strangers and not self.has_cluster():
            raise DataFolderError(f"{self.path} is no data folder of atelier: it holds {strangers[0]!r}")
        try:
            self.path.chmod(mode)
        except OSError as error:
            raise DataFolderError(f"{self.path} cannot be closed to others: {error.strerror}") from error

    def _is_partial(self, name: str) -> bool:
        """Whether it is a part of a file of ours; removes one that nobody is writing any more."""
        match = _PARTIAL.fullmatch(name)
        if match is None or match["name"] not in _OURS:
            return False
        if not psutil.pid_exists(int(match["pid"])):
            with contextlib.suppress(OSError):
                (self.path / name).unlink()
        return True

    def load_state(self) -> ClusterState:
        """Reads `cluster.json`.

        Raises:
            DataFolderError: there is no cluster here, or the file is damaged.
        """
        if not self.has_cluster():
            raise DataFolderError(f"there is no cluster in {self.path}; `atelier up` makes one")
        content = _read_json(self._state)
        try:
            if content.pop("format") != _FORMAT:
                raise DataFolderError(f"{self._state} was written by another version of atelier")
            return ClusterState(**content)
        except (KeyError, TypeError) as error:
            raise DataFolderError(f"{self._state} is damaged: {error}") from error

    def save_state(self, state: ClusterState) -> None:
        """Writes `cluster.json`, and `nodes.list` for the service, each whole or not at all."""
        content = {"format": _FORMAT, **{name: getattr(state, name) for name in ClusterState.__slots__}}
        write_private(self._state, json.dumps(content, indent=2) + "\n")
        write_private(self.node_list, "".join(f"{name}=127.0.0.1:{port}\n" for name, port in state.ports.items()))

    def load_api_key(self) -> str | None:
        """Reads the demo key; None when there is none.

        Raises:
            DataFolderError: it cannot be read.
        """
        try:
            return self.api_key.read_text(encoding="utf-8", errors="replace").strip() or None
        except FileNotFoundError:
            return None
        except OSError as error:
            raise DataFolderError(f"{self.api_key} cannot be read: {error.strerror}") from error

    def load_secrets(self) -> Secrets:
        """Reads the secrets, which are generated at the first call."""
        if not self._secrets.exists():
            passwords = {name: secrets.token_hex(24) for name in _PASSWORDS}
            made = {"passwords": passwords, "token_key": secrets.token_hex(32)}
            write_private(self._secrets, json.dumps(made, indent=2) + "\n")
        content = _read_json(self._secrets)
        try:
            return Secrets(content["passwords"], content["token_key"])
        except KeyError as error:
            raise DataFolderError(f"{self._secrets} is damaged: {error} is missing") from error


def write_private(path: Path, text: str) -> None:
    """Writes a file, whole or not at all, that only its owner may read.

    Raises:
        DataFolderError: it cannot be written.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError as error:
        raise DataFolderError(f"{path} cannot be written: {error.strerror}") from error


def turn_log(path: Path) -> None:
    """Puts a log that has grown large aside, over the one put aside before: two files are all there ever are."""
    if path.exists() and path.stat().st_size > _LARGEST_LOG_BYTES:
        path.replace(path.with_name(f"{path.name}.1"))


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataFolderError(f"{path} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise DataFolderError(f"{path} is damaged: {error}") from error
    if not isinstance(content, dict):
        raise DataFolderError(f"{path} is damaged: it holds no object")
    return content
