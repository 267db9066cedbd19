"""Brings a node to follow the primary: by starting it, else by rewinding it, else by cloning it anew."""

from collections.abc import Callable
from dataclasses import dataclass

from atelier.embedded import build
from atelier.embedded.config import Upstream
from atelier.embedded.control import is_diverged, parse_history
from atelier.embedded.decide import Way, choose_ways
from atelier.embedded.errors import EmbeddedError, PortTakenError
from atelier.embedded.node import Node, Server
from atelier.embedded.waiting import wait_for
from atelier.lsn import Lsn

_STREAM_S = 20.0

_SLOT_STATE = "select coalesce((select wal_status from pg_replication_slots where slot_name = '{name}'), 'none')"
# A slot that nobody uses ends a session at once; one in use by a clone that was interrupted is let go a moment later.
_DROP_SLOT = """
select pg_terminate_backend(active_pid, 5000) from pg_replication_slots where slot_name = '{name}' and active;
select pg_drop_replication_slot(slot_name) from pg_replication_slots where slot_name = '{name}';
"""
_MAKE_SLOT = """
select pg_create_physical_replication_slot('{name}', true)
 where not exists (select from pg_replication_slots where slot_name = '{name}');
"""
_DROP_OTHER_SLOTS = """
select pg_drop_replication_slot(slot_name) from pg_replication_slots
 where slot_type = 'physical' and not active and slot_name <> all ('{{{kept}}}');
"""
_STREAMING = "select coalesce((select received_tli from pg_stat_wal_receiver where status = 'streaming'), 0)"
_END = """
select greatest(pg_last_wal_receive_lsn(), pg_last_wal_replay_lsn(), '0/0'), coalesce(max(received_tli), 0)
  from pg_stat_wal_receiver
"""
_HISTORY = "select coalesce((select content from atelier_monitor.newest_history()), '')"
_TIMELINE = "select ('x' || left(pg_walfile_name(pg_current_wal_flush_lsn()), 8))::bit(32)::int"


@dataclass(frozen=True, slots=True)
class Following:
    """Makes nodes follow one primary, which runs."""

    server: Server
    primary: Node
    say: Callable[[str], None]

    @property
    def upstream(self) -> Upstream:
        """Where standbys connect to."""
        return Upstream(self.primary.port, self.server.folder.passfile)

    def bring(self, node: Node, *, forced: Way | None = None) -> None:
        """Makes the node a replica that streams from the primary, by the cheapest way that works.

        Args:
            node: any node but the primary; it is stopped first if it does not stream already.
            forced: begin with this way, though a cheaper one might do.

        Raises:
            EmbeddedError: not even a clone streams.
        """
        if forced is None and self._streams_already(node):
            return
        node.stop()
        lost = self.primary.sql(_SLOT_STATE.format(name=node.name)) == "lost"
        if lost:
            self.say(f"{node.name}: the primary has dropped WAL that it still needed (its slot is lost)")
        ways = choose_ways(node.look(), slot_lost=lost)
        if forced in ways:
            ways = ways[ways.index(forced) :]
        for way in ways:
            if self._try(way, node):
                return
        raise EmbeddedError(f"{node.name} does not stream from {self.primary.name}; see {node.log}")

    def make_slots(self, names: list[str]) -> None:
        """Makes the peers' slots on the primary, and drops those of nobody, which would hold WAL for ever."""
        drop_slots(self.primary, kept=names)
        make_slots(self.primary, names)

    def streams(self, node: Node) -> bool:
        """Whether the node receives the primary's present timeline."""
        return node.sql(_STREAMING) == self.primary.sql(_TIMELINE)

    def diverged(self, node: Node) -> bool:
        """Whether the running node has WAL that the primary's history does not have."""
        position, receiving = node.sql(_END).split("|")
        history = parse_history(self.primary.sql(_HISTORY, database="atelier"))
        return is_diverged(
            int(receiving) or node.control_data().timeline,
            Lsn.parse(position),
            primary_timeline=int(self.primary.sql(_TIMELINE)),
            history=history,
        )

    def _streams_already(self, node: Node) -> bool:
        if not node.answering() or node.sql("select pg_is_in_recovery()") != "t":
            return False
        node.configure(self.upstream)
        node.reload()
        return self._settles(node)

    def _try(self, way: Way, node: Node) -> bool:
        if way is Way.REWIND:
            self.say(f"{node.name}: rewinding it to where {self.primary.name} left its history")
        if way is Way.CLONE:
            self.say(f"{node.name}: copying all of {self.primary.name}")
        try:
            node.stop()
            self._prepare(way, node)
            node.start()
            # A standby whose history has left the primary's may answer for a moment, and then end by itself.
            drop_slots(node, kept=[])
            return self._settles(node)
        except PortTakenError:
            raise
        except EmbeddedError as error:
            if way is Way.CLONE:
                raise
            self.say(f"{node.name}: {node.why_it_ended() or error}")
            return False

    def _prepare(self, way: Way, node: Node) -> None:
        if way is Way.CLONE:
            self.primary.sql(_DROP_SLOT.format(name=node.name))
            make_slots(self.primary, [node.name])
            build.clone(self.server, node, self.primary)
        if way is Way.REWIND:
            node.configure(self.upstream)
            build.rewind(self.server, node, self.primary)
        node.configure(self.upstream)
        node.mark(standby=True)

    def _settles(self, node: Node) -> bool:
        """Waits until the node streams; gives up at once when it has WAL of its own, or has ended."""
        streams = False

        def is_settled() -> bool:
            nonlocal streams
            try:
                streams = self.streams(node)
                return streams or self.diverged(node)
            except EmbeddedError:
                # A server in trouble cuts connections before it ends, or goes on: it is asked again until then.
                if not self.primary.answering():
                    raise
                return not node.running()

        wait_for(is_settled, timeout_s=_STREAM_S)
        if not streams and (reason := node.why_it_ended()):
            self.say(f"{node.name}: {reason}")
        return streams


def make_slots(node: Node, names: list[str]) -> None:
    """Makes physical slots that are missing; on a standby too, for the time after its promotion."""
    if names:
        node.sql("".join(_MAKE_SLOT.format(name=name) for name in names))


def drop_slots(node: Node, *, kept: list[str]) -> None:
    """Drops the unused physical slots that are not among those kept."""
    node.sql(_DROP_OTHER_SLOTS.format(kept=",".join(kept)))
