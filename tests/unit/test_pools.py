"""What the router is told of nodes that fail, without a clock that moves: no node is asked here."""

from dataclasses import replace
from datetime import UTC, datetime
from typing import cast

import pytest

from atelier.errors import SettingsError
from atelier.reads import pools as pools_module
from atelier.reads.pools import ReadPools
from atelier.settings import NodeAddress, Settings
from atelier.topology.monitor import TopologyMonitor
from atelier.topology.state import ClusterSnapshot, NodeState

ENVIRON = {
    "ATELIER_NODES": "a=h:1,b=h:2",
    "ATELIER_TOKEN_KEYS": "k1:" + "ab" * 32,
    "ATELIER_READER_PASSWORD": "r",
    "ATELIER_MONITOR_PASSWORD": "m",
    "ATELIER_WRITER_PASSWORD": "w",
}
START = datetime(2026, 1, 1, tzinfo=UTC)
SNAPSHOT = ClusterSnapshot(tuple(NodeState(NodeAddress(name, "h", port)) for name, port in (("a", 1), ("b", 2))))


class SilentMonitor:
    """Has no probe on its way."""

    looks = 0

    def unanswered_ms(self, _name: str) -> float:
        """Counts who asks."""
        self.looks += 1
        return 0.0


def test_a_failure_is_seen_by_the_next_read_though_the_rest_is_looked_at_now_and_then() -> None:
    """At one moment of the clock: many reads are one look, but a failure is news at once."""
    monitor = SilentMonitor()
    pools = ReadPools(Settings.from_environment(ENVIRON), clock=lambda: 100.0)

    def ejected() -> set[str]:
        loads = pools.loads(SNAPSHOT, cast("TopologyMonitor", monitor))
        return {name for name, load in loads.items() if load.ejected}

    for _ in range(10):
        assert ejected() == set()
    assert monitor.looks == len(SNAPSHOT.nodes)
    pools.health.begin("a", START)
    pools.health.fail("a")
    assert ejected() == {"a"}


def test_what_is_known_of_a_node_is_a_millisecond_old_at_most() -> None:
    """An ejection that ends by the clock is over for the router, too."""
    now_s = [100.0]
    monitor = SilentMonitor()
    pools = ReadPools(Settings.from_environment(ENVIRON), clock=lambda: now_s[0])
    pools.health.begin("a", START)
    pools.health.fail("a")
    assert pools.loads(SNAPSHOT, cast("TopologyMonitor", monitor))["a"].ejected
    until_s = pools.health.ejected_until_s("a")
    assert until_s is not None
    now_s[0] = until_s + 0.002
    assert not pools.loads(SNAPSHOT, cast("TopologyMonitor", monitor))["a"].ejected


def test_weights_are_those_of_the_settings() -> None:
    """Of the nodes that are named; all others have an equal share."""
    settings = Settings.from_environment(ENVIRON | {"ATELIER_WEIGHTS": "a=3"})
    loads = ReadPools(settings, clock=lambda: 100.0).loads(SNAPSHOT, cast("TopologyMonitor", SilentMonitor()))
    assert {name: load.weight for name, load in loads.items()} == {"a": 3, "b": 1}


def test_a_weight_of_no_node_is_refused_or_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """Refused where all nodes are known; where they come and go, the log tells it of every new list."""
    with pytest.raises(SettingsError, match=r"ATELIER_WEIGHTS .* aa$"):
        Settings.from_environment(ENVIRON | {"ATELIER_WEIGHTS": "aa=3,b=2"})
    environ = {key: value for key, value in ENVIRON.items() if key != "ATELIER_NODES"}
    environ |= {"ATELIER_PATRONI": "http://h:8008", "ATELIER_WEIGHTS": "aa=3,b=2"}
    pools = ReadPools(Settings.from_environment(environ), clock=lambda: 100.0)
    told: list[list[str]] = []
    monkeypatch.setattr(pools_module.log, "warning", lambda _event, *, nodes: told.append(nodes))
    pools.loads(ClusterSnapshot(), cast("TopologyMonitor", SilentMonitor()))
    assert not told
    for _ in range(2):
        pools.loads(replace(SNAPSHOT, generation=1), cast("TopologyMonitor", SilentMonitor()))
    assert told == [["aa"]]


def test_a_node_that_has_left_is_forgotten() -> None:
    """When it comes back, it is as if it had never been there."""
    pools = ReadPools(Settings.from_environment(ENVIRON), clock=lambda: 100.0)
    pools.health.begin("a", START)
    pools.health.fail("a")
    assert pools.loads(SNAPSHOT, cast("TopologyMonitor", SilentMonitor()))["a"].ejected
    left = ClusterSnapshot(SNAPSHOT.nodes[1:], generation=1)
    assert set(pools.loads(left, cast("TopologyMonitor", SilentMonitor()))) == {"b"}
    back = replace(SNAPSHOT, generation=2)
    assert not pools.loads(back, cast("TopologyMonitor", SilentMonitor()))["a"].ejected
