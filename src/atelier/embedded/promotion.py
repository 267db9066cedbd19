"""The steps of a promotion, each bounded: the old primary hands over, the new one takes over."""

from atelier.embedded.errors import EmbeddedError
from atelier.embedded.follow import drop_slots, make_slots
from atelier.embedded.node import Node
from atelier.embedded.waiting import wait_for

_PROMOTE_S = 60
_HAND_OVER_S = 10.0


def hand_over(old: Node, node: Node) -> None:
    """Stops the primary, which sends all it has to those who stream; takes it back when that was not all.

    Raises:
        EmbeddedError: the replica has not received everything, and the old primary is the primary still.
    """
    old.stop()
    last = old.control_data().checkpoint
    received = f"select pg_last_wal_receive_lsn() > '{last}'"
    if not wait_for(lambda: node.sql(received) == "t", timeout_s=_HAND_OVER_S):
        old.start()
        raise EmbeddedError(
            f"{node.name} has not received all that {old.name} acknowledged; kill {old.name} to promote it anyway"
        )


def take_over(node: Node, peers: list[str]) -> None:
    """Promotes a replica, with the slots that its peers will need.

    Raises:
        EmbeddedError: it is not the primary in time.
    """
    # Before the promotion: slots do not follow it, and the peers must find the WAL from its first byte on.
    make_slots(node, peers)
    drop_slots(node, kept=peers)
    node.sql("select pg_wal_replay_resume() where pg_is_wal_replay_paused()")
    node.sql(f"select pg_promote(true, {_PROMOTE_S // 2})")
    if not wait_for(lambda: node.sql("select pg_is_in_recovery()") == "f", timeout_s=_PROMOTE_S):
        raise EmbeddedError(f"{node.name} is not the primary after {_PROMOTE_S} s; see {node.log}")


def settle(node: Node) -> None:
    """Makes the new primary's files say what it is."""
    node.configure(None)
    node.reload()
    # pg_rewind reads the new timeline in the control file, where only a checkpoint puts it.
    node.sql("checkpoint")
