"""What operators ask: is it up, is it able, who is primary, who is behind."""

from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta

from litestar import HttpMethod, Response, Router, route
from litestar.types import Guard

from atelier.deadline import Clock
from atelier.problems import retry_later
from atelier.reads.executor import ReadExecutor
from atelier.settings import Settings
from atelier.topology.monitor import TopologyMonitor, lag_bytes
from atelier.topology.state import ClusterSnapshot, NodeState

_READ = [HttpMethod.GET, HttpMethod.HEAD]


def build_operations(
    monitor: TopologyMonitor,
    executor: ReadExecutor,
    settings: Settings,
    *,
    clock: Clock,
    guards: Sequence[Guard] = (),
    is_ending: Callable[[], bool] = lambda: False,
    wall_clock: Callable[[], datetime] = lambda: datetime.now(UTC),
) -> Router:
    """The operational routes of one process.

    Args:
        monitor: what is known of the nodes.
        executor: what runs on them.
        settings: the process's role.
        clock: monotonic, in seconds.
        guards: who may see the cluster; health is for everybody.
        is_ending: whether the process has been told that it will end soon; then it is not ready.
        wall_clock: for times that people read.
    """

    def to_time(at_s: float | None) -> str | None:
        """A moment of the monotonic clock as people write it."""
        if at_s is None:
            return None
        return (wall_clock() + timedelta(seconds=at_s - clock())).isoformat(timespec="milliseconds")

    @route("/health/live", http_method=_READ)
    async def live() -> dict[str, str]:
        """The process is up."""
        return {"status": "up"}

    @route("/health/ready", http_method=_READ)
    async def ready() -> dict[str, str]:
        """The process is able to serve its role."""
        if is_ending():
            raise retry_later("overloaded", "this process is about to end")
        snapshot, now_s = monitor.snapshot, clock()
        usable = [node for node in snapshot.nodes if node.is_fresh(now_s) and node.role in ("primary", "replica")]
        if settings.role == "writes" and snapshot.primary not in usable:
            raise retry_later("primary-unavailable", "no primary is known")
        if not usable:
            raise retry_later("no-replica", "no node is usable")
        return {"status": "ready"}

    @route("/cluster", http_method=_READ, guards=guards)
    async def cluster() -> Response[dict[str, object]]:
        """Every node as this process sees it."""
        snapshot, now_s = monitor.snapshot, clock()
        nodes = [
            describe(
                snapshot,
                node,
                now_s=now_s,
                in_flight=executor.in_flight(node.name),
                ejected_until=to_time(executor.ejected_until_s(node.name)),
            )
            for node in snapshot.nodes
        ]
        return Response({"nodes": nodes}, headers={"Cache-Control": "no-store"})

    return Router("/", route_handlers=[live, ready, cluster])


def describe(
    snapshot: ClusterSnapshot, node: NodeState, *, now_s: float, in_flight: int, ejected_until: str | None = None
) -> dict[str, object]:
    """One node as `/cluster` shows it; what is not known is null."""
    seen = node.observation
    lag_ms = node.lag_ms_at(now_s)
    return {
        "name": node.name,
        "role": node.role,
        "state": _state(node, now_s),
        "timeline": seen.timeline if seen else None,
        "received_lsn": str(seen.received_lsn) if seen and seen.received_lsn else None,
        "replayed_lsn": str(seen.replayed_lsn) if seen else None,
        "lag_bytes": lag_bytes(snapshot, node),
        "lag_ms": None if lag_ms is None else round(lag_ms, 1),
        "in_flight": in_flight,
        "ejected_until": ejected_until,
        "reason": node.reason,
    }


def _state(node: NodeState, now_s: float) -> str:
    if node.observation is None:
        return "unreachable"
    if not node.is_fresh(now_s):
        return "silent"
    if not node.observation.in_recovery:
        return "running"
    return "streaming" if node.observation.streaming else "not streaming"
