"""Opens a data folder: who owns it, which PostgreSQL it needs, whether it may be used, and where its nodes lie."""

import os
from collections.abc import Callable, Mapping
from pathlib import Path

from atelier.embedded.account import can_enter, choose_account, give
from atelier.embedded.binaries import find_binaries, make_open_folder
from atelier.embedded.errors import DataFolderError
from atelier.embedded.layout import ClusterState, DataFolder
from atelier.embedded.lock import hold_lock
from atelier.embedded.node import Server

_LOCK_S = 5.0

Say = Callable[[str], None]


def make_server(
    folder: DataFolder, *, environ: Mapping[str, str] | None, reachable_root: Path, say: Say, create: bool
) -> Server:
    """Finds out who the servers of a folder run as, and with which programs.

    Raises:
        EmbeddedError: the folder is somebody else's, or there is no user or no PostgreSQL for it.
    """
    environ = os.environ if environ is None else environ
    account = choose_account(environ, owner_uid=_owner_of(folder))
    if create:
        folder.claim(mode=0o711 if account.switch else 0o700)
        # Of two first starts at the same time, one would make the cluster with passwords that the other replaces.
        with hold_lock(folder.lock, timeout_s=_LOCK_S):
            folder.load_secrets()
    binaries = find_binaries(environ, account, reachable_root=reachable_root, say=say)
    return Server(folder, account, binaries, folder.load_secrets())


def _owner_of(folder: DataFolder) -> int | None:
    try:
        return folder.nodes_link.stat().st_uid
    except OSError:
        return None


def check_major(folder: DataFolder, state: ClusterState, server: Server) -> None:
    """Refuses a folder that another major version of PostgreSQL has made; it could not be read."""
    versions = [folder.nodes / name / "data" / "PG_VERSION" for name in state.ports]
    majors = {state.major, *(_read_major(path) for path in versions if path.is_file())}
    if majors != {server.binaries.major}:
        found = ", ".join(map(str, sorted(majors - {server.binaries.major})))
        raise DataFolderError(
            f"{folder.path} was made by PostgreSQL {found}, and this is {server.binaries.major}: "
            "use another data folder, or set ATELIER_PG_BIN to the old programs"
        )


def _read_major(path: Path) -> int:
    try:
        return int(path.read_text(encoding="ascii"))
    except OSError as error:
        raise DataFolderError(f"{path} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise DataFolderError(f"{path} is damaged: it holds no version of PostgreSQL") from error


def check_complete(folder: DataFolder, state: ClusterState) -> None:
    """Refuses to make a cluster over the folders of one whose cluster.json is gone."""
    if not state.made and not folder.has_cluster() and list(folder.nodes.glob("*/data/PG_VERSION")):
        raise DataFolderError(f"{folder.path} holds the data of a cluster, and no cluster.json: move one of them away")


def add_nodes(state: ClusterState, wanted: int) -> None:
    """Adds nodes until there are as many as wanted; takes none away."""
    for number in range(len(state.ports) + 1, wanted + 1):
        # 0: a free port is looked for when it starts, as late as can be.
        state.ports[f"pg{number}"] = 0


def make_nodes_folder(server: Server, *, reachable_root: Path, say: Say) -> None:
    """Makes the folder of the node folders, or a link to one elsewhere when the servers' user cannot reach this one."""
    folder, account = server.folder, server.account
    if folder.nodes_link.exists():
        if folder.nodes_link.stat().st_uid == 0:  # a start was killed before it gave the folder away
            give(folder.nodes_link, account)
        return
    folder.nodes_link.unlink(missing_ok=True)
    if account.switch and not can_enter(account, folder.path):
        target = reachable_root / f"{folder.path.name.strip('.')}-{os.urandom(6).hex()}"
        make_open_folder(target.parent)
        say(f"user {account.name} cannot enter {folder.path}: the servers' data go to {target}")
        target.mkdir(mode=0o700)
        give(target, account)
        folder.nodes_link.symlink_to(target)
    else:
        folder.nodes_link.mkdir(mode=0o700)
        give(folder.nodes_link, account)
