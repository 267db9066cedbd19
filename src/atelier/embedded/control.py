"""Reads what a data folder says of itself. Pure: text in, values out; `decide` makes sense of them."""

import re
from dataclasses import dataclass

from atelier.embedded.errors import EmbeddedError
from atelier.lsn import Lsn

_HISTORY_NAME = re.compile(r"([0-9A-F]{8})\.history")
_HISTORY_LINE = re.compile(r"\s*(\d+)\s+([0-9A-F]+/[0-9A-F]+)")


@dataclass(frozen=True, slots=True)
class ControlData:
    """The part of `pg_controldata` that decides how a node may be started."""

    system_id: str
    state: str
    timeline: int
    checkpoint: Lsn
    """Where the newest checkpoint begins; of a primary that was shut down, its last record."""

    @property
    def shut_down(self) -> bool:
        """Whether the server ended in good order."""
        return self.state in {"shut down", "shut down in recovery"}


def parse_control_data(text: str) -> ControlData:
    """Reads the output of `pg_controldata` in the C locale.

    Raises:
        EmbeddedError: a line that is needed is missing.
    """
    fields = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in text.splitlines())}
    try:
        # A standby's newest restart point may be of an older timeline than the WAL it has replayed since.
        timelines = (
            int(fields["Latest checkpoint's TimeLineID"]),
            int(fields["Min recovery ending loc's timeline"]),
        )
        return ControlData(
            system_id=fields["Database system identifier"],
            state=fields["Database cluster state"],
            timeline=max(timelines),
            checkpoint=Lsn.parse(fields["Latest checkpoint location"]),
        )
    except (KeyError, ValueError) as error:
        raise EmbeddedError(f"pg_controldata said nothing of {error}") from error


def newest_timeline(names: list[str]) -> int:
    """The newest timeline among the history files of a `pg_wal` folder; 1 when there is none."""
    return max((int(match[1], 16) for match in map(_HISTORY_NAME.fullmatch, names) if match), default=1)


def parse_history(text: str) -> dict[int, Lsn]:
    """Reads a timeline history file: each older timeline, and the position at which it was left."""
    found = (match for match in map(_HISTORY_LINE.match, text.splitlines()) if match)
    return {int(match[1]): Lsn.parse(match[2]) for match in found}


def is_diverged(timeline: int, position: Lsn, *, primary_timeline: int, history: dict[int, Lsn]) -> bool:
    """Whether a node has WAL that the primary's history does not have.

    Args:
        timeline: the one the node's newest WAL is of.
        position: the end of the node's newest WAL.
        primary_timeline: the timeline that the primary writes.
        history: the primary's, from `parse_history`.
    """
    if timeline == primary_timeline:
        return False
    fork = history.get(timeline)
    return fork is None or position > fork
