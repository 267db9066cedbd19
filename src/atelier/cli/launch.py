"""The steps of `atelier up`, each said aloud: cluster, schema, demo catalogue, key, service."""

import json
import secrets
import shlex
import socket
import subprocess
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from atelier.access.keys import PREFIX_LENGTH, SCOPES, create_key, list_keys
from atelier.cli.database import Connection, on_primary
from atelier.cli.demo import load_demo_catalogue
from atelier.cli.migration import migrate_primary
from atelier.cli.options import over_environment
from atelier.cli.serve import ensure_port_free
from atelier.cli.service import ask, await_ready, find_service, read_record, start_service, stop_service
from atelier.embedded.cluster import EmbeddedCluster
from atelier.embedded.layout import DataFolder, write_private
from atelier.embedded.lock import hold_lock
from atelier.embedded.process import own_identity
from atelier.embedded.waiting import wait_for
from atelier.errors import AtelierError

HOST = "127.0.0.1"
_KEY_NAME = "demo"
_ROLES_S = 5.0
_LOCK_S = 1.0
_PORT_S = 5.0
_REAP_S = 5.0

Say = Callable[[str], None]


class AlreadyRunningError(AtelierError):
    """The service runs already."""


@dataclass(frozen=True, slots=True)
class Launch:
    """What was asked for."""

    data_dir: Path
    port: int
    """0: any free one."""
    replicas: int | None
    """None: those that the cluster has, or two."""
    demo: bool
    """Whether an empty database gets the demo catalogue."""
    watched: bool
    """Whether this process stays and watches over the service."""
    say: Say


@dataclass(frozen=True, slots=True)
class Running:
    """What was started."""

    url: str
    api_key: str
    nodes: list[dict[str, Any]]
    child: "subprocess.Popen[bytes]"


def start_everything(launch: Launch, cluster: EmbeddedCluster) -> Running:
    """Starts what is not running yet, in order, and waits until the service is ready.

    Raises:
        AlreadyRunningError: a service runs over this cluster.
        AtelierError: a step failed.
    """
    folder, say = cluster.folder, launch.say
    with hold_lock(folder.up_lock, timeout_s=_LOCK_S):
        refuse_second(folder)
        left_behind = read_record(folder)
        stop_service(folder)  # forgets one that has died, and ends workers that it left behind
        port = launch.port or find_any_port()
        # A killed process counts as ended while its last threads still let go of what it had open.
        ensure_port_free(HOST, port, patience_s=_PORT_S if left_behind else 0)
        cluster.start()
        environ = over_environment(cluster.environment())
        say("bringing the schema up to date")
        migrate_primary(environ, say=say)
        if launch.demo:
            load_demo_catalogue(environ, say=say)
        api_key = ensure_key(folder, environ, say=say)
        child = _start_service(launch, cluster, port)
    url = f"http://{HOST}:{port}"
    return Running(url, api_key, describe_nodes(url, cluster), child)


def refuse_second(folder: DataFolder) -> None:
    """Raises AlreadyRunningError, naming the address, when a service runs over the folder."""
    service = find_service(folder)
    if service:
        raise AlreadyRunningError(f"already running at {service.url}")


def find_any_port() -> int:
    """Asks the kernel for a port that is free now."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


def ensure_key(folder: DataFolder, environ: dict[str, str], *, say: Say) -> str:
    """The demo key with all scopes: the one in the data folder, or a new one when that is not valid (any more)."""
    text = folder.load_api_key()
    if text and on_primary(environ, "writer", lambda connection: _is_valid(connection, text)):
        return text
    say(f"making an API key, kept in {folder.api_key}")
    made = on_primary(environ, "writer", lambda connection: create_key(connection, name=_KEY_NAME, scopes=SCOPES))
    write_private(folder.api_key, made + "\n")
    return made


def describe_nodes(url: str, cluster: EmbeddedCluster) -> list[dict[str, Any]]:
    """The nodes as the running service sees them, once it has seen all, and where each one listens."""
    seen: list[dict[str, Any]] = []

    def has_seen_all() -> bool:
        seen[:] = json.loads(ask(url, "/cluster") or b'{"nodes": []}')["nodes"]
        return bool(seen) and all(node["role"] != "unknown" for node in seen)

    wait_for(has_seen_all, timeout_s=_ROLES_S)
    return [{**node, "host": HOST, "port": cluster.node(node["name"]).port} for node in seen]


def describe_commands(url: str, api_key_path: Path) -> list[str]:
    """Three commands to try: a read, a write, and a read that has seen the write."""
    key = f'-H "Authorization: Bearer $(cat {shlex.quote(str(api_key_path))})"'
    body = """-d '{"reason": "found behind the shelf", "lines": [{"sku_id": 1, "delta": 3}]}'"""
    write = f"-H 'Content-Type: application/json' -H 'Idempotency-Key: try-{secrets.token_hex(4)}' {body}"
    keep = """awk 'tolower($1) == "atelier-token:" {print $2}' | tr -d '\\r'"""
    return [
        f"curl {url}/products",
        f"TOKEN=$(curl -s -D - -o /dev/null {key} {write} {url}/inventory/adjustments | {keep})",
        f'curl -i {key} -H "Atelier-Token: $TOKEN" {url}/inventory/1',
    ]


def _start_service(launch: Launch, cluster: EmbeddedCluster, port: int) -> "subprocess.Popen[bytes]":
    folder, url = cluster.folder, f"http://{HOST}:{port}"
    launch.say(f"starting the service at {url}")
    names = {"ATELIER_ROLE": "all", "ATELIER_HOST": HOST, "ATELIER_PORT": str(port)}
    environ = over_environment({**cluster.environment(), **names})
    # A node that starts again may have to take another port; the service follows the list.
    environ["ATELIER_NODES_FILE"] = str(folder.node_list)
    for name in ("ATELIER_NODES", "ATELIER_DATA_DIR", "ATELIER_MIGRATOR_PASSWORD"):
        environ.pop(name, None)
    child = start_service(folder, environ, url=url, operator=own_identity() if launch.watched else None)
    try:
        await_ready(child, url, log=folder.service_log)
    except BaseException:
        stop_service(folder)
        reap(child)
        raise
    return child


def reap(child: "subprocess.Popen[bytes]") -> None:
    """Waits for the end of a service that was stopped; one that even a kill does not end is left to the kernel."""
    with suppress(subprocess.TimeoutExpired):
        child.wait(timeout=_REAP_S)


async def _is_valid(connection: Connection, text: str) -> bool:
    prefix = text.removeprefix("atl_")[:PREFIX_LENGTH]
    return any(key.prefix == prefix and key.revoked_at is None for key in await list_keys(connection))
