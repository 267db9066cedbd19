"""`/metrics`: what was counted, and what the nodes and pools look like now."""

from collections.abc import Callable, Iterable, Mapping, Sequence

from litestar import Response, get
from litestar.handlers import HTTPRouteHandler
from litestar.types import Guard

from atelier.deadline import Clock
from atelier.telemetry import METRICS_MEDIA_TYPE, Observed, Sample, write_metrics
from atelier.topology.state import ClusterSnapshot

_NODES = {
    "atelier_node_lag_seconds": "Upper bound of how far a node is behind the primary; absent while unknown.",
    "atelier_node_role": "1 for the role that a node has.",
    "atelier_node_reads_in_flight": "Reads that this process runs on a node now.",
    "atelier_node_connections": "Connections for reads to a node: `open` in all, `busy` with a statement.",
    "atelier_node_observed_seconds_ago": "How old the newest observation of a node is; absent without one.",
}


def build_metrics(observed: Iterable[Observed], *, guards: Sequence[Guard] = ()) -> HTTPRouteHandler:
    """The route; the guards say who may see it."""
    sources = tuple(observed)

    @get("/metrics", guards=guards)
    async def get_metrics() -> Response[bytes]:
        body = write_metrics(sources)
        return Response(body, headers={"Cache-Control": "no-store"}, media_type=METRICS_MEDIA_TYPE)

    return get_metrics


def observe_nodes(
    look: Callable[[], ClusterSnapshot],
    in_flight: Callable[[str], int],
    connections: Callable[[str], Mapping[str, int]],
    *,
    clock: Clock,
) -> Observed:
    """Gauges of every node.

    Args:
        look: gives the newest snapshot.
        in_flight: how many reads a node runs for this process.
        connections: how many connections this process has to a node, by state.
        clock: monotonic, in seconds.
    """

    def sample() -> Iterable[Sample]:
        now_s = clock()
        for node in look().nodes:
            labels = {"node": node.name}
            lag_ms = node.lag_ms_at(now_s)
            if lag_ms is not None:
                yield "atelier_node_lag_seconds", labels, lag_ms / 1000
            if node.observation is not None:
                yield "atelier_node_observed_seconds_ago", labels, now_s - node.observation.observed_at_s
            yield "atelier_node_role", {**labels, "role": node.role}, 1
            yield "atelier_node_reads_in_flight", labels, in_flight(node.name)
            for state, count in connections(node.name).items():
                yield "atelier_node_connections", {**labels, "state": state}, count

    return Observed(_NODES, sample)
