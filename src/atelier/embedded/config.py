"""The text of the files that tell a server who it is. Pure; `node` writes them, outside the server's data folder."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

# What postgresql.auto.conf may not say: it is read last, and a clone or a rewind brings the other node's along. A delay
# is one node's and, as a pause, one life's.
_IDENTITY = frozenset(
    {
        "cluster_name",
        "hba_file",
        "listen_addresses",
        "port",
        "primary_conninfo",
        "primary_slot_name",
        "recovery_min_apply_delay",
        "unix_socket_directories",
    }
)


@dataclass(frozen=True, slots=True)
class Upstream:
    """Whom a standby follows."""

    port: int
    passfile: Path


def render_node_config(
    name: str,
    *,
    port: int,
    shared: Path,
    hba: Path,
    upstream: Upstream | None,
    memory_bytes: int,
    extra: Mapping[str, str],
) -> str:
    """Forms a node's own configuration file.

    Args:
        name: the node's name, also that of its slot.
        port: where it listens, on loopback alone.
        shared: the configuration that all nodes have in common.
        hba: who may connect.
        upstream: the primary to follow; None for the primary itself.
        memory_bytes: what the machine has, for all nodes and everything else on it.
        extra: more settings, which win over the shared ones.
    """
    lines = {
        "cluster_name": name,
        "listen_addresses": "127.0.0.1",
        "port": str(port),
        "unix_socket_directories": "",
        "hba_file": str(hba),
        "primary_conninfo": _conninfo(name, upstream) if upstream else "",
        "primary_slot_name": name if upstream else "",
        "shared_buffers": f"{size_buffers(memory_bytes)}MB",
        **extra,
    }
    settings = "".join(f"{key} = {quote_setting(value)}\n" for key, value in lines.items())
    return f"# Written by atelier at each start.\ninclude {quote_setting(str(shared))}\n{settings}"


def size_buffers(memory_bytes: int) -> int:
    """The `shared_buffers` of one node, in MiB: three nodes get an eighth of the memory together, and none over 1 GiB.

    The textbook's quarter is for a server that has its machine to itself. Below 128, the server's own default, it never
    goes: that much a laptop has.
    """
    return min(1024, max(128, memory_bytes // 24 // 2**20))


def strip_identity(auto_config: str) -> str:
    """Removes from the text of a `postgresql.auto.conf` what says who the server is."""
    kept = (line for line in auto_config.splitlines(keepends=True) if line.partition("=")[0].strip() not in _IDENTITY)
    return "".join(kept)


def quote_setting(value: str) -> str:
    """Quotes a value for a configuration file."""
    return "'" + value.replace("\\", "\\\\").replace("'", "''") + "'"


def _conninfo(name: str, upstream: Upstream) -> str:
    return (
        f"host=127.0.0.1 port={upstream.port} user=replicator application_name={name} "
        f"passfile={_quote_conninfo(str(upstream.passfile))} connect_timeout=5"
    )


def _quote_conninfo(value: str) -> str:
    return "'" + value.replace("\\", "\\\\").replace("'", "\\'") + "'"
