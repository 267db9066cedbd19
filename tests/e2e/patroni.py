"""What Patroni says of its cluster, asked as an operator asks."""

import json

from tests.e2e.checks import await_streaming
from tests.e2e.stack import Stack, wait_for

NODES = ("node-1", "node-2", "node-3")
TTL_S, MARGIN_S = 20, 10


def members(stack: Stack) -> dict[str, dict[str, object]]:
    """What Patroni says of each node; nothing while it says nothing."""
    for node in NODES:
        try:
            # A node that is cut off from etcd would ask for minutes.
            listed = json.loads(stack.exec(node, "timeout", "5", "patronictl", "list", "--format", "json"))
        except (AssertionError, ValueError):
            continue
        return {member["Member"]: member for member in listed}
    return {}


def find_leader(stack: Stack) -> str | None:
    """Who leads, according to Patroni."""
    return next((name for name, member in members(stack).items() if member["Role"] == "Leader"), None)


def await_leader(stack: Stack, *, but: str | None = None, within_s: float) -> str:
    """Waits until a node leads, another one than the one named; gives its name."""
    found: list[str] = []

    def leads() -> bool:
        leader = find_leader(stack)
        found[:] = [leader] if leader is not None and leader != but else []
        return bool(found)

    wait_for(leads, within_s=within_s, what="a leader" if but is None else f"another leader than {but}")
    return found[0]


def await_whole(stack: Stack) -> tuple[str, str]:
    """Waits until one node leads, both others stream from it, and a quorum has the say over commits where it shall.

    Gives the leader and one of the others. Patroni asks for the quorum only some seconds after standbys stream.
    """
    leader = await_leader(stack, within_s=90)
    others = sorted(set(NODES) - {leader})
    await_streaming(stack, *others, node=leader, within_s=120)
    if stack.environ.get("ATELIER_SYNCHRONOUS_MODE", "quorum") == "quorum":
        states = "select sync_state from pg_stat_replication"
        wait_for(
            lambda: stack.sql(leader, states) == [["quorum"]] * len(others),
            within_s=60,
            what="both standbys in the quorum",
        )
    return leader, others[0]


def await_other_leader(stack: Stack, old: str) -> str:
    """Waits until another node leads."""
    return await_leader(stack, but=old, within_s=TTL_S + MARGIN_S)


def view(stack: Stack) -> dict[str, dict[str, object]]:
    """What a reading container has observed of each node."""
    nodes = json.loads(stack.ask_inside("reads", "/cluster"))["nodes"]
    return {node["name"]: node for node in nodes}


def await_view(stack: Stack, leader: str) -> dict[str, dict[str, object]]:
    """Waits until the service sees who leads, everybody on one timeline, and each standby's lag; gives what it sees."""

    def is_whole() -> bool:
        seen = view(stack)
        roles = {name: node["role"] for name, node in seen.items()}
        lags = [isinstance(node["lag_ms"], (int, float)) for node in seen.values()]
        wanted = {name: "primary" if name == leader else "replica" for name in NODES}
        return roles == wanted and all(lags) and len({node["timeline"] for node in seen.values()}) == 1

    wait_for(is_whole, within_s=30, what=f"{leader} as the primary in the service's view")
    return view(stack)


def active_slots(stack: Stack, node: str) -> set[str]:
    """The slots of a node that somebody streams from."""
    return {name for (name,) in stack.sql(node, "select slot_name from pg_replication_slots where active")}


def is_standby(stack: Stack, node: str) -> bool:
    """Whether Patroni says that a node streams."""
    return members(stack).get(node, {}).get("State") == "streaming"
