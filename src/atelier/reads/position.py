"""Where a node stood when it answered: the columns that every read statement carries, and the token made of them."""

from functools import lru_cache
from typing import Any

from atelier.lsn import Lsn
from atelier.token import CausalToken
from atelier.topology.state import Observation

# Evaluated in the read's own statement, so after its snapshot was taken: nothing that the answer shows lies beyond it.
# The order is the proof, and OFFSET 0 and LATERAL keep it: a record that was being replayed when the snapshot was
# taken had been received then; so `received`, read after `reached`, tells whether there may be one. The timeline is
# read last: it is that of `reached` or of a descendant that shares it. `started_at` tells whether this is the server
# that the monitor observed.
POSITION = """
(select place.*, case when place.in_recovery then atelier_monitor.received_timeline() end as received_timeline
 from (select recovery.in_recovery, pg_postmaster_start_time() as started_at,
              case when recovery.in_recovery then pg_last_wal_replay_lsn()
                   else pg_current_wal_flush_lsn() end as reached_lsn,
              case when recovery.in_recovery then pg_last_wal_receive_lsn() end as received_lsn
       from (select pg_is_in_recovery() as in_recovery offset 0) as recovery
       offset 0) as place
 offset 0) as position
"""


class PositionMovedError(Exception):
    """The server that answered is not the one that was observed: it started again, or was promoted."""


def check_start(observed: Observation, row: Any) -> None:
    """Makes sure that an answer came from the server start that was observed, in the role that it had.

    Raises:
        PositionMovedError: it did not, so what was observed says nothing about it.
    """
    if row["started_at"] != observed.started_at or row["in_recovery"] != observed.in_recovery:
        raise PositionMovedError


def reached_lsn(observed: Observation, row: Any) -> Lsn:
    """The position beyond which an answer shows nothing.

    A standby shows a commit a moment before its replayed position tells, so that a record that may have been in replay
    counts as seen: the position is then one byte into it, and only a node that has replayed it has that. A record that
    was never there must not count, or a failover would seem to have lost it.
    """
    reached = Lsn(row["reached_lsn"])  # the driver gives positions as integers
    if not row["in_recovery"] or row["received_lsn"] == row["reached_lsn"]:
        return reached
    received = None if row["received_lsn"] is None else Lsn(row["received_lsn"])
    was_resting_here = observed.resting and observed.replayed_lsn == reached
    if was_resting_here and (received is None or received < reached or received == observed.received_lsn):
        return reached
    return reached.next()


def leaves_open(observed: Observation, row: Any) -> bool:
    """Whether a later look has to tell if there is a record beyond the position of an answer at all.

    A primary that dies leaves half a record at the end of what its standbys have received. Counted as seen, it would be
    lost with the first failover, and everything seen on that standby with it.
    """
    return bool(
        row["in_recovery"]
        and row["received_timeline"] is None
        and reached_lsn(observed, row).bytes > row["reached_lsn"]
    )


def known_timeline(observed: Observation, row: Any) -> int | None:
    """The timeline that the position of an answer lies on.

    Returns:
        None when a later look at the node has to tell: its receiver is away, and it went on since it was observed.
    """
    if not row["in_recovery"]:
        return observed.timeline
    if row["received_timeline"] is not None:
        return int(row["received_timeline"])
    return observed.timeline if row["reached_lsn"] == observed.replayed_lsn.bytes else None


def mint(observed: Observation, row: Any, timeline: int, reached: Lsn | None = None) -> CausalToken:
    """The token of what an answer may have seen, before it is merged with the one that was sent.

    Args:
        observed: what the node had been seen to be before it was asked.
        row: with the position's columns.
        timeline: the one that the position lies on.
        reached: the position, where a later look at the node has told it; None for the one of the row.
    """
    lsn = reached_lsn(observed, row) if reached is None else reached
    return _make_token(observed.system_id, timeline, lsn.bytes, row["in_recovery"])


@lru_cache(maxsize=256)
def _make_token(system_id: int, timeline: int, position_bytes: int, minted_by_replica: bool) -> CausalToken:  # noqa: FBT001  positional, because it is asked by all who shared a statement
    return CausalToken(system_id, timeline, Lsn(position_bytes), minted_by_replica)
