"""`atelier status`: who is primary, who follows, and how far behind."""

import asyncio
import json
import time
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from atelier.cli.database import look
from atelier.cli.options import data_dir_option, find_settings, json_option
from atelier.cli.service import ask, find_service
from atelier.embedded.layout import DataFolder
from atelier.operations import describe
from atelier.settings import Settings
from atelier.topology.state import ClusterSnapshot, NodeState

_COLUMNS = {
    "node": "name",
    "role": "role",
    "state": "state",
    "timeline": "timeline",
    "replayed LSN": "replayed_lsn",
    "lag bytes": "lag_bytes",
    "lag ms": "lag_ms",
}


@click.command()
@data_dir_option
@json_option
def status(*, data_dir: Path, as_json: bool) -> None:
    """Show all nodes: asks the running service, or, with none, the nodes themselves."""
    nodes = find_nodes(data_dir)
    if as_json:
        click.echo(json.dumps({"nodes": nodes}))
    else:
        Console().print(make_table(nodes))


def find_nodes(data_dir: Path) -> list[dict[str, Any]]:
    """Every node as `/cluster` shows it, in the order of the settings.

    Raises:
        AtelierError: there is no cluster there.
    """
    service = find_service(DataFolder(data_dir))
    answer = ask(service.url, "/cluster") if service else None
    if answer is not None:
        nodes: list[dict[str, Any]] = json.loads(answer)["nodes"]
        return nodes
    return asyncio.run(_ask_nodes(find_settings(data_dir)))


def make_table(nodes: list[dict[str, Any]]) -> Table:
    """The table, in the manner of `patronictl list`."""
    table = Table(*_COLUMNS)
    for node in nodes:
        table.add_row(*("" if node[key] is None else str(node[key]) for key in _COLUMNS.values()))
    return table


async def _ask_nodes(settings: Settings) -> list[dict[str, Any]]:
    snapshot = await look(settings, _is_complete)
    now_s = time.monotonic()
    return [describe(snapshot, node, now_s=now_s, in_flight=0) for node in snapshot.nodes]


def _is_complete(snapshot: ClusterSnapshot) -> bool:
    """Whether every node has answered, or said why not; a replica's lag needs the primary's answer as well."""
    answered = [node for node in snapshot.nodes if node.observation is not None]
    lags = all(node.role != "replica" or node.lag_ms is not None for node in answered)
    return lags and all(node.observation is not None or _has_failed(node) for node in snapshot.nodes)


def _has_failed(node: NodeState) -> bool:
    """Whether the node was asked and did not answer; before, it has the reason that every new state has."""
    return node.reason != NodeState(node.address).reason


def register(group: click.Group) -> None:
    """Adds the command."""
    group.add_command(status)
