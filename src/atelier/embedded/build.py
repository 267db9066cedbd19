"""Makes data folders: the first primary's, a replica's copy of it, and the configuration that all share.

A folder is made beside its place and renamed into it when complete, so that whatever lies in its place is whole.
"""

import hashlib
import os
import tempfile
from pathlib import Path

from atelier.embedded.account import give
from atelier.embedded.layout import write_private
from atelier.embedded.node import Node, Server, remove
from atelier.resources import resource_dir

_CLONE_S = 3600.0
_SHARED = ("postgresql.conf", "pg_hba.conf")
_ROLES = ("migrator", "writer", "reader", "monitor", "replicator")


def make_folder(server: Server, folder: Path) -> None:
    """Makes a folder of the servers', closed to everybody else."""
    folder.mkdir(mode=0o700, exist_ok=True)
    give(folder, server.account)


def write_shared(server: Server) -> None:
    """Writes what all nodes share: the configuration of this installation, and the standbys' password."""
    make_folder(server, server.folder.etc)
    source = resource_dir("replication")
    files = {server.folder.etc / name: (source / name).read_text(encoding="utf-8") for name in _SHARED}
    files[server.folder.passfile] = f"*:*:*:replicator:{server.secrets.passwords['replicator']}\n"
    for path, text in files.items():
        write_private(path, text)
        give(path, server.account)


def make_first(server: Server, node: Node) -> None:
    """Makes the data folder of the first primary, removing what an interrupted attempt has left."""
    make_folder(server, node.home)
    partial = _fresh_sibling(node)
    with tempfile.NamedTemporaryFile("w", dir=node.home, prefix=".password.") as file:
        file.write(server.secrets.passwords["superuser"])
        file.flush()
        give(Path(file.name), server.account)
        server.run(
            "initdb",
            *("-D", partial, "--username=postgres", f"--pwfile={file.name}", "--auth=scram-sha-256"),
            # The same everywhere, whatever the machine's locale: without LANG initdb would choose SQL_ASCII.
            *("--encoding=UTF8", "--locale=C", "--locale-provider=builtin", "--builtin-locale=C.UTF-8"),
            *("--data-checksums", *_no_sync(node)),
        )
    partial.rename(node.data)


def clone(server: Server, node: Node, primary: Node) -> None:
    """Makes the stopped node's data folder anew, as a copy of the running primary.

    The slot exists already: from here on the primary keeps the WAL that the copy will need. The old folder, if there
    is one, is removed only when the new one is complete.
    """
    make_folder(server, node.home)
    partial = _fresh_sibling(node)
    server.run(
        "pg_basebackup",
        *("-D", partial, "-R", "--checkpoint=fast", "--wal-method=stream", f"--slot={node.name}", "--no-password"),
        *("-d", f"host=127.0.0.1 port={primary.port} user=replicator application_name={node.name}.clone"),
        *_no_sync(node),
        environ={"PGPASSFILE": str(server.folder.passfile)},
        timeout_s=_CLONE_S,
    )
    remove(node.data)
    partial.rename(node.data)
    remove(node.torn_mark)


def rewind(server: Server, node: Node, primary: Node) -> None:
    """Takes back what the stopped node has written and the primary does not know.

    It reads the primary's files as the replicator, whom roles.sql allows just that. The mark beside the folder is there
    while it is neither the old state nor the new one.
    """
    node.tidy()
    node.torn_mark.touch(mode=0o600)
    server.run(
        "pg_rewind",
        f"--target-pgdata={node.data}",
        f"--config-file={node.config}",
        *_no_sync(node),
        f"--source-server=host=127.0.0.1 port={primary.port} user=replicator dbname=postgres "
        f"application_name={node.name}.rewind",
        environ={"PGPASSFILE": str(server.folder.passfile)},
        timeout_s=_CLONE_S,
    )
    # Recorded as a standby before the mark goes: it must never start as a second primary.
    node.mark(standby=True)
    remove(node.torn_mark)


def read_roles() -> tuple[str, str]:
    """The text of roles.sql, and its digest."""
    text = (resource_dir("replication") / "roles.sql").read_text(encoding="utf-8")
    return text, hashlib.sha256(text.encode()).hexdigest()


def run_roles(server: Server, primary: Node, text: str) -> None:
    """Makes the roles, the database and its schema, or brings them up to date."""
    environ = {f"ATELIER_{role.upper()}_PASSWORD": server.secrets.passwords[role] for role in _ROLES}
    primary.sql(text, environ=environ)


def _fresh_sibling(node: Node) -> Path:
    node.tidy()
    for path in node.home.glob("data.*"):
        remove(path)
    return node.home / f"data.{os.getpid()}"


def _no_sync(node: Node) -> tuple[str, ...]:
    return () if node.flushes else ("--no-sync",)
