"""The router's one promise, over every small snapshot and over random ones: never a node that breaks the ask."""

import itertools
from collections.abc import Collection
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from atelier.lsn import Lsn
from atelier.reads.router import Load, Policy, PrimaryUse, Route, choose
from atelier.settings import NodeAddress
from atelier.token import CausalToken, History
from atelier.topology.state import (
    OBSERVATION_EXPIRES_S,
    ClusterSnapshot,
    NodeRole,
    NodeState,
    Observation,
    judge_nodes,
)

NOW_S = 1000.0
START = datetime(2026, 1, 1, tzinfo=UTC)
SYSTEM = 7
HISTORY = History(SYSTEM, 2, ((1, Lsn(6)),))
STRATEGIES = ("least-outstanding", "round-robin", "random-two-choices", "latency-ewma")
USES: tuple[PrimaryUse, ...] = ("fallback", "first", "refuse", "stalest")


def make_node(
    name: str,
    *,
    role: NodeRole = "replica",
    replayed: int = 10,
    lag_ms: float | None = 50,
    fresh: bool = True,
    settled: int | None = None,
    timeline: int = 2,
) -> NodeState:
    """A node, already judged."""
    seen = Observation(
        observed_at_s=NOW_S if fresh else NOW_S - OBSERVATION_EXPIRES_S - 0.1,
        in_recovery=role != "primary",
        system_id=SYSTEM,
        timeline=timeline,
        started_at=START,
        received_lsn=None,
        replayed_lsn=Lsn(replayed),
        streaming=role == "replica",
        settled_lsn=None if settled is None else Lsn(settled),
    )
    return NodeState(NodeAddress(name, "h", 1), seen, role, lag_ms=lag_ms, reason=None)


def make_snapshot(*nodes: NodeState | None) -> ClusterSnapshot:
    """Those of the nodes that there are."""
    return ClusterSnapshot(tuple(node for node in nodes if node), HISTORY, 1)


def route(
    snapshot: ClusterSnapshot,
    token: CausalToken | None = None,
    *,
    policy: Policy | None = None,
    ejected: tuple[str, ...] = (),
    loads: dict[str, Load] | None = None,
    turn: int = 0,
    primary_use: PrimaryUse = "fallback",
) -> Route:
    """The router's choice, with defaults."""
    loads = loads or {node.name: Load(ejected=node.name in ejected) for node in snapshot.nodes}
    policy = policy or Policy("causal" if token else "eventual", 1000)
    return choose(snapshot, token, policy=policy, now_s=NOW_S, loads=loads, turn=turn, primary_use=primary_use)


def good(position: int, *, by_replica: bool = False, timeline: int = 2) -> CausalToken:
    """A token of the system that the snapshots are of."""
    return CausalToken(SYSTEM, timeline, Lsn(position), minted_by_replica=by_replica)


def is_usable(node: NodeState) -> bool:
    """Whether a node was seen a short while ago, in a role in which it answers."""
    seen = node.observation
    return bool(seen and node.role in ("primary", "replica") and NOW_S - seen.observed_at_s <= OBSERVATION_EXPIRES_S)


def keeps_promise(node: NodeState, token: CausalToken | None, policy: Policy) -> bool:
    """What a node must be to answer, said again and in other words than the router's."""
    seen = node.observation
    if seen is None or not is_usable(node) or (policy.consistency == "strong" and node.role != "primary"):
        return False
    # The primary shows what is, however long ago it was observed; a replica's bound grows until it is observed again.
    if policy.consistency in ("eventual", "bounded") and node.role == "replica":
        lag_ms = node.lag_ms
        if lag_ms is None or lag_ms + (NOW_S - seen.observed_at_s) * 1000 > policy.max_lag_ms:
            return False
    return token is None or policy.consistency == "eventual" or shows(node, seen, token)


def may_answer(
    snapshot: ClusterSnapshot,
    token: CausalToken | None,
    policy: Policy,
    *,
    ejected: Collection[str],
    primary_use: PrimaryUse = "fallback",
) -> list[NodeState]:
    """The nodes of which the router must choose one: those that keep the promise, ejected ones if there are no others.

    Only an eventual read may be answered from beyond its limit: with no primary to ask, or with one that is full where
    the settings say so.
    """
    is_full = primary_use in ("refuse", "stalest")
    able = [node for node in snapshot.nodes if keeps_promise(node, token, policy)]
    if is_full:
        able = [node for node in able if node.role != "primary"]
    has_primary = any(node.role == "primary" and is_usable(node) for node in snapshot.nodes)
    if not able and policy.consistency == "eventual" and (not has_primary or primary_use == "stalest"):
        able = [node for node in snapshot.nodes if node.role == "replica" and is_usable(node)]
    return [node for node in able if node.name not in ejected] or able


def shows(node: NodeState, seen: Observation, token: CausalToken) -> bool:
    """Whether a node has all that a token has seen, and shows it."""
    if token.system_id != SYSTEM or token.timeline > 2 or (token.timeline == 1 and token.lsn > Lsn(6)):
        return False
    if node.role == "primary" and token.minted_by_replica:
        return seen.settled_lsn is not None and seen.settled_lsn >= token.lsn
    return seen.replayed_lsn >= token.lsn


def replica_states(name: str) -> list[NodeState | None]:
    """Every replica that can be told apart."""
    made: list[NodeState | None] = [None, make_node(name, fresh=False), make_node(name, role="unknown")]
    for replayed, lag_ms in itertools.product((5, 10), (None, 50, 5000)):
        made.append(make_node(name, replayed=replayed, lag_ms=lag_ms))
    return made


def primary_states() -> list[NodeState | None]:
    """Every primary that can be told apart."""
    settled = [make_node("p", role="primary", replayed=12, settled=at, lag_ms=0) for at in (None, 4, 12)]
    behind = make_node("p", role="primary", replayed=4, settled=4, lag_ms=0)
    return [None, make_node("p", role="primary", fresh=False), make_node("p", role="deposed"), behind, *settled]


ASKS = [
    *[(Policy(kind, 100), None) for kind in ("eventual", "bounded", "strong")],
    *[
        (Policy(kind, 100), token)
        for kind in ("eventual", "bounded", "causal", "strong")
        for token in (
            good(5),
            good(10),
            good(11, by_replica=True),
            good(13),
            good(6, timeline=1),
            good(7, timeline=1),
            good(1, timeline=3),
            CausalToken(8, 2, Lsn(1)),
        )
    ],
]


def test_no_small_snapshot_breaks_the_promise() -> None:
    """Every combination of two replicas, a primary, ejections and asks: right node, and one wherever there is one."""
    tried = 0
    for a, b, p in itertools.product(replica_states("a"), replica_states("b"), primary_states()):
        snapshot = make_snapshot(a, p, b)
        for ejected, use in itertools.product(((), ("a",), ("a", "b"), ("a", "b", "p")), USES):
            for policy, token in ASKS:
                decision = route(snapshot, token, policy=policy, ejected=ejected, turn=tried, primary_use=use)
                allowed = may_answer(snapshot, token, policy, ejected=ejected, primary_use=use)
                assert decision.node in allowed if allowed else decision.node is None, (snapshot, policy, token, use)
                tried += 1
    assert tried > 300_000


observations = st.builds(
    Observation,
    observed_at_s=st.sampled_from([NOW_S, NOW_S - 1, NOW_S - 2]),
    in_recovery=st.booleans(),
    system_id=st.sampled_from([SYSTEM, SYSTEM, SYSTEM, 8]),
    timeline=st.sampled_from([None, 1, 2, 2, 3]),
    started_at=st.just(START),
    received_lsn=st.none() | st.integers(0, 12).map(Lsn),
    replayed_lsn=st.integers(0, 12).map(Lsn),
    streaming=st.booleans(),
    settled_lsn=st.none() | st.integers(0, 12).map(Lsn),
)
tokens = st.none() | st.builds(
    CausalToken,
    st.sampled_from([SYSTEM, SYSTEM, SYSTEM, 8]),
    st.integers(1, 3),
    st.integers(0, 12).map(Lsn),
    st.booleans(),
)
policies = st.builds(
    Policy,
    st.sampled_from(["eventual", "bounded", "causal", "strong"]),
    st.sampled_from([0, 100, 10_000]),
    st.sampled_from(STRATEGIES),
)
load_values = st.builds(Load, st.integers(0, 9), st.floats(0, 100), st.booleans(), st.sampled_from([1.0, 3.0]))


@given(
    st.lists(st.tuples(st.none() | observations, st.none() | st.floats(0, 20_000)), max_size=5),
    tokens,
    policies,
    st.lists(load_values, min_size=5, max_size=5),
    st.tuples(st.integers(0, 10_000), st.sampled_from(USES)),
)
def test_no_cluster_breaks_the_promise(
    seen: list[tuple[Observation | None, float | None]],
    token: CausalToken | None,
    policy: Policy,
    loads: list[Load],
    turn_and_use: tuple[int, PrimaryUse],
) -> None:
    """Roles judged from random observations, random lags, loads and strategies."""
    turn, use = turn_and_use
    states = tuple(
        NodeState(NodeAddress(f"n{number}", "h", 1), observation, lag_ms=lag_ms)
        for number, (observation, lag_ms) in enumerate(seen)
    )
    nodes, primary = judge_nodes(states, HISTORY)
    snapshot = ClusterSnapshot(nodes, HISTORY, 1)
    by_name = {node.name: load for node, load in zip(nodes, loads, strict=False)}
    decision = choose(snapshot, token, policy=policy, now_s=NOW_S, loads=by_name, turn=turn, primary_use=use)
    ejected = {name for name, load in by_name.items() if load.ejected}
    allowed = may_answer(snapshot, token, policy, ejected=ejected, primary_use=use)
    assert decision.node in allowed if allowed else decision.node is None
    if decision.node is not None and decision.node.observation is not None:
        assert decision.node.observation.system_id == SYSTEM
        assert decision.node.observation.in_recovery or decision.node.name == (primary.name if primary else None)
        fork = Lsn(6)
        assert decision.node.observation.timeline != 1 or decision.node.observation.replayed_lsn <= fork


def test_an_eventual_read_prefers_a_replica_within_the_limit() -> None:
    """The primary is the writers'."""
    snapshot = make_snapshot(make_node("p", role="primary", lag_ms=0), make_node("a", lag_ms=5000), make_node("b"))
    assert route(snapshot).node is snapshot.node("b")
    assert route(snapshot).reason == "replica"


def test_an_eventual_read_goes_to_the_primary_when_all_replicas_lag() -> None:
    """While there is one."""
    primary = make_node("p", role="primary", lag_ms=0)
    decision = route(make_snapshot(primary, make_node("a", lag_ms=5000), make_node("b", lag_ms=None)))
    assert (decision.node, decision.reason) == (primary, "replicas-behind")


def test_an_eventual_read_takes_the_freshest_replica_with_no_primary() -> None:
    """Whatever its lag."""
    freshest = make_node("b", replayed=9, lag_ms=9_999_999)
    decision = route(make_snapshot(make_node("a", replayed=5, lag_ms=None), freshest))
    assert (decision.node, decision.reason) == (freshest, "freshest-replica")


def test_a_full_primary_lifts_no_limit() -> None:
    """It is there, though it takes no more reads: nobody, or the least stale replica where the settings say so."""
    primary, a = make_node("p", role="primary", lag_ms=0), make_node("a", replayed=5, lag_ms=5000)
    snapshot = make_snapshot(primary, a, make_node("b", replayed=9, lag_ms=5000))
    refused = route(snapshot, primary_use="refuse")
    assert (refused.node, refused.reason) == (None, "primary-full")
    stalest = route(snapshot, primary_use="stalest")
    assert (stalest.node, stalest.reason) == (snapshot.node("b"), "stale-replica")
    assert route(snapshot, primary_use="stalest", ejected=("b",)).node is a
    for policy in (Policy("bounded", 1000), Policy("strong", 1000)):
        assert route(snapshot, policy=policy, primary_use="stalest").node is None


def test_a_full_primary_leaves_ejected_replicas_within_the_limit() -> None:
    """They do not answer well, or they would not be ejected: still better than nobody."""
    snapshot = make_snapshot(make_node("p", role="primary", lag_ms=0), make_node("a"), make_node("b", lag_ms=5000))
    decision = route(snapshot, primary_use="refuse", ejected=("a", "b"))
    assert (decision.node, decision.reason) == (snapshot.node("a"), "ejected-replica")


def test_the_primary_goes_first_for_a_read_that_replicas_have_failed() -> None:
    """Unless it is ejected, or does not show what the token has seen."""
    snapshot = make_snapshot(make_node("a"), make_node("p", role="primary", replayed=12, settled=4, lag_ms=0))
    decision = route(snapshot, primary_use="first")
    assert (decision.node, decision.reason) == (snapshot.node("p"), "replicas-failed")
    assert route(snapshot, primary_use="first", ejected=("p",)).node is snapshot.node("a")
    assert route(snapshot, good(5, by_replica=True), primary_use="first").node is snapshot.node("a")


def test_a_causal_read_may_wait_for_a_replica_before_the_primary_is_asked() -> None:
    """The fallback is named already, for those who do not wait."""
    primary = make_node("p", role="primary", replayed=12, lag_ms=0)
    decision = route(make_snapshot(primary, make_node("a", replayed=5)), good(10))
    assert (decision.node, decision.wait_for) == (primary, "replica")


def test_what_a_replica_showed_is_waited_for_on_the_primary() -> None:
    """The primary has written it, but does not show it yet."""
    primary = make_node("p", role="primary", replayed=12, settled=9, lag_ms=0)
    decision = route(make_snapshot(primary), good(10, by_replica=True))
    assert (decision.node, decision.wait_for) == (None, "primary")
    assert route(make_snapshot(primary), good(9, by_replica=True)).node is primary
    assert route(make_snapshot(primary), good(12)).node is primary


def test_ejected_nodes_are_asked_only_when_there_is_no_other() -> None:
    """A sibling first, then the primary, then the ejected one: the last node is never left out."""
    a, b = make_node("a"), make_node("b")
    primary = make_node("p", role="primary", lag_ms=0)
    assert route(make_snapshot(a, b, primary), ejected=("a",)).node is b
    assert route(make_snapshot(a, b, primary), ejected=("a", "b")).node is primary
    assert route(make_snapshot(a, primary), ejected=("a", "p")).node is a
    assert route(make_snapshot(a), ejected=("a",)).node is a
    assert route(make_snapshot(primary), ejected=("p",)).node is primary


def count_choices(strategy: Any, loads: dict[str, Load], turns: int = 120) -> dict[str, int]:
    """How often each of three equal replicas is chosen."""
    snapshot = make_snapshot(make_node("a"), make_node("b"), make_node("c"))
    chosen = [route(snapshot, policy=Policy("eventual", 100, strategy), loads=loads, turn=t).node for t in range(turns)]
    return {name: sum(node is not None and node.name == name for node in chosen) for name in "abc"}


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_equal_replicas_share_the_reads_equally(strategy: str) -> None:
    """Every strategy, when nothing tells the nodes apart."""
    loads = {name: Load(ewma_ms=1) for name in "abc"}
    assert count_choices(strategy, loads) == {"a": 40, "b": 40, "c": 40}


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_idle_replicas_share_the_reads_by_weight(strategy: str) -> None:
    """Every strategy: twice the weight is twice the reads, when nothing else tells the nodes apart."""
    loads = {"a": Load(ewma_ms=1, weight=2), "b": Load(ewma_ms=1.1), "c": Load(ewma_ms=1.2)}
    assert count_choices(strategy, loads) == {"a": 60, "b": 30, "c": 30}
    snapshot = make_snapshot(make_node("a"), make_node("b"))
    policy = Policy("eventual", 100, strategy)
    chosen = [route(snapshot, policy=policy, loads=loads, turn=turn).node for turn in range(300)]
    assert [chosen.count(snapshot.node(name)) for name in "ab"] == [200, 100]


def test_least_outstanding_takes_the_idle_node() -> None:
    """Weighed by its share; whoever are equally busy take turns, also beside a busier one."""
    assert count_choices("least-outstanding", {"a": Load(3), "b": Load(0), "c": Load(3)}, 9)["b"] == 9
    assert count_choices("least-outstanding", {"a": Load(3, weight=8), "b": Load(1), "c": Load(3)}, 9)["a"] == 9
    assert count_choices("least-outstanding", {"a": Load(3), "b": Load(1), "c": Load(1)}, 8) == {"a": 0, "b": 4, "c": 4}


def test_latency_ewma_takes_the_fast_node() -> None:
    """Weighed by how much it has to do."""
    assert (
        count_choices("latency-ewma", {"a": Load(ewma_ms=9), "b": Load(ewma_ms=1), "c": Load(ewma_ms=9)}, 9)["b"] == 9
    )
    busy = {"a": Load(ewma_ms=9), "b": Load(20, ewma_ms=1), "c": Load(ewma_ms=12)}
    assert count_choices("latency-ewma", busy, 9)["a"] == 9


def test_two_choices_never_takes_the_busiest_of_three() -> None:
    """One of any two is less busy."""
    assert count_choices("random-two-choices", {"a": Load(0), "b": Load(1), "c": Load(9)})["c"] == 0


def test_round_robin_goes_by_weight() -> None:
    """Three turns of four."""
    assert count_choices("round-robin", {"a": Load(weight=1), "b": Load(weight=2), "c": Load(weight=1)}, 40) == {
        "a": 10,
        "b": 20,
        "c": 10,
    }


def test_latency_ewma_tries_a_node_that_has_not_answered_yet() -> None:
    """An unknown average is the best there is."""
    assert count_choices("latency-ewma", {"a": Load(ewma_ms=1), "b": Load(), "c": Load(ewma_ms=1)}, 9)["b"] == 9
