"""Which node is the primary, and how another one comes to follow it. Pure decisions over what was found on disk."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum


@dataclass(frozen=True, slots=True)
class Found:
    """What a look at one node's folder showed."""

    name: str
    has_data: bool
    """False: never cloned, or its making was interrupted."""
    standby: bool = False
    """Whether the folder is marked as a standby's (`standby.signal`)."""
    timeline: int = 1
    """The newest one that the folder knows."""
    shut_down: bool = True
    """Whether its server ended in good order, or still runs."""
    torn: bool = False
    """Whether a rewind was interrupted in it: it can be started no more."""


class Way(Enum):
    """How a node comes to follow the primary, from the cheapest to the dearest."""

    START = "start"
    REWIND = "rewind"
    CLONE = "clone"


def choose_primary(found: Sequence[Found], *, recorded: str) -> str | None:
    """Tells which node is the primary.

    The record alone is not trusted: a command may have been killed between a promotion and writing it down. A promoted
    server removes its standby mark itself, and its timeline is newer than that of the primary it replaced.

    Returns:
        The name; None when every folder is a standby's, so that somebody has to choose.
    """
    candidates = [node for node in found if node.has_data and not node.standby and not node.torn]
    if not candidates:
        return None
    newest = max(node.timeline for node in candidates)
    names = [node.name for node in candidates if node.timeline == newest]
    return recorded if recorded in names else names[0]


def choose_ways(node: Found, *, slot_lost: bool) -> tuple[Way, ...]:
    """Tells in which order to try to make a node, which is not the primary, follow it.

    A clone is the last resort: it reads all of the primary. A former primary is rewound before it is started, since
    it would not notice by itself that it has WAL that nobody else has; a standby finds out when it asks for more.
    """
    if not node.has_data or node.torn or slot_lost:
        return (Way.CLONE,)
    if not node.standby:
        return (Way.REWIND, Way.CLONE)
    return (Way.START, Way.REWIND, Way.CLONE)
