"""Where nodes come from."""

from pathlib import Path
from typing import Protocol

from atelier.errors import SettingsError
from atelier.settings import NodeAddress, Settings, parse_node_lines
from atelier.topology.patroni import PatroniNodes


class NodeSource(Protocol):
    """Tells which nodes there are. What each of them is, the monitor finds out by itself."""

    async def nodes(self) -> tuple[NodeAddress, ...]:
        """The nodes at this moment, each name once.

        Raises:
            SettingsError, OSError: the list cannot be had now; the monitor goes on with the one that it has.
        """


class StaticNodes:
    """A list that was given once."""

    def __init__(self, nodes: tuple[NodeAddress, ...]) -> None:
        """Takes the list."""
        self._nodes = nodes

    async def nodes(self) -> tuple[NodeAddress, ...]:
        """The same list, always."""
        return self._nodes


class NodesFile:
    """A list in a file, `name=host:port` by commas or lines; read again every time, so that nodes join and leave."""

    def __init__(self, path: Path) -> None:
        """Takes the path. Does no I/O."""
        self._path = path

    async def nodes(self) -> tuple[NodeAddress, ...]:
        """The nodes that the file names now.

        Raises:
            OSError: it cannot be read.
            SettingsError: it names no node, one twice, or in another form, or is no text at all.
        """
        try:
            # A line of text from a local disk: shorter than handing it to a thread.
            return parse_node_lines(self._path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise SettingsError(f"{self._path} {error}") from error


def choose_source(settings: Settings) -> NodeSource:
    """Patroni when the settings name its members, the file when they name one, else the list in them."""
    if settings.patroni:
        return PatroniNodes(settings.patroni, timeout_ms=settings.timeouts.probe_ms)
    return NodesFile(settings.nodes_file) if settings.nodes_file else StaticNodes(settings.nodes)
