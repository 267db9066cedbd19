"""Where nodes come from."""

from typing import Protocol

from atelier.settings import NodeAddress


class NodeSource(Protocol):
    """Tells which nodes there are. What each of them is, the monitor finds out by itself."""

    async def nodes(self) -> tuple[NodeAddress, ...]:
        """The nodes at this moment."""


class StaticNodes:
    """A list that was given once."""

    def __init__(self, nodes: tuple[NodeAddress, ...]) -> None:
        """Takes the list."""
        self._nodes = nodes

    async def nodes(self) -> tuple[NodeAddress, ...]:
        """The same list, always."""
        return self._nodes
