"""Promotions, and what becomes of the nodes that they leave behind."""

import re
import secrets

import pytest

from atelier.embedded.cluster import EmbeddedCluster
from atelier.embedded.errors import EmbeddedError
from atelier.embedded.follow import Following
from atelier.embedded.node import Node
from tests.conftest import ClusterFactory
from tests.support import wait_until

pytestmark = [pytest.mark.cluster, pytest.mark.soak]


def write_row(node: Node) -> str:
    """Commits something random."""
    word = secrets.token_hex(8)
    node.sql(f"create table if not exists public.word (word text); insert into public.word values ('{word}')")
    return word


def has_row(node: Node, word: str) -> bool:
    """Whether the node shows it."""
    try:
        return node.sql(f"select 1 from public.word where word = '{word}'") == "1"
    except EmbeddedError:
        return False


def assert_whole(cluster: EmbeddedCluster, *, primary: str) -> None:
    """One primary; all others stream its timeline, each over its slot; no slot is left anywhere else."""
    assert cluster.primary.name == primary
    others = set(cluster.nodes) - {primary}
    in_recovery = {name: node.sql("select pg_is_in_recovery()") for name, node in cluster.nodes.items()}
    assert in_recovery == {name: "f" if name == primary else "t" for name in cluster.nodes}
    slots = "select slot_name from pg_replication_slots where active and wal_status = 'reserved'"
    wait_until(lambda: set(cluster.primary.sql(slots).split()) == others, what="a used slot for every replica")
    for name in others:
        assert cluster.node(name).sql("select count(*) from pg_replication_slots") == "0"
        assert cluster.node(name).sql("show cluster_name") == name
    word = write_row(cluster.primary)
    for name in others:
        wait_until(lambda name=name: has_row(cluster.node(name), word), what=f"{name} shows a new row")


def said_by(cluster: EmbeddedCluster) -> list[str]:
    """Keeps what the cluster says from now on."""
    lines: list[str] = []
    cluster._say = lines.append
    return lines


def test_primary_that_answers_hands_over_and_loses_nothing(make_cluster: ClusterFactory) -> None:
    """It is stopped first, sends all it has, and comes back as a replica without a copy."""
    cluster = make_cluster(replicas=2)
    lines = said_by(cluster)
    words = [write_row(cluster.primary) for _ in range(20)]
    cluster.promote("pg2")
    assert_whole(cluster, primary="pg2")
    assert all(has_row(node, word) for node in cluster.nodes.values() for word in words)
    assert not any("copying" in line for line in lines)


def test_dead_primary_is_rewound_when_it_is_started(make_cluster: ClusterFactory) -> None:
    """What it had committed and sent to nobody is gone afterwards, and it never was a second primary."""
    cluster = make_cluster(replicas=2, extra={"log_connections": "on"})
    lines = said_by(cluster)
    kept = write_row(cluster.primary)
    for name in ("pg2", "pg3"):
        wait_until(lambda name=name: has_row(cluster.node(name), kept))
        cluster.stop_node(name)
    lost = write_row(cluster.node("pg1"))
    cluster.kill("pg1")
    cluster.start_node("pg2")
    cluster.start_node("pg3")
    cluster.promote("pg2")
    cluster.start_node("pg1")
    assert_whole(cluster, primary="pg2")
    for node in cluster.nodes.values():
        assert has_row(node, kept)
        assert not has_row(node, lost)
    assert "pg1: rewinding it to where pg2 left its history" in lines
    assert not any("copying" in line for line in lines)
    rewinds = re.findall(r"user=(\w+) .*application_name=pg1\.rewind", cluster.node("pg2").log.read_text())
    assert set(rewinds) == {"replicator"}, "a rewind needs no superuser"


def test_start_of_all_brings_the_deposed_primary_back_as_replica(make_cluster: ClusterFactory) -> None:
    """`cluster start` without a name, too."""
    cluster = make_cluster(replicas=1)
    cluster.kill("pg1")
    cluster.promote("pg2")
    cluster.stop()
    cluster.start()
    assert_whole(cluster, primary="pg2")


def test_frozen_primary_goes_on_deposed_and_rejoins(make_cluster: ClusterFactory) -> None:
    """For a while there are two that take writes; the old one's are thrown away."""
    cluster = make_cluster(replicas=2)
    cluster.freeze("pg1")
    cluster.promote("pg2")
    cluster.thaw("pg1")
    wait_until(lambda: cluster.node("pg1").sql("select pg_is_in_recovery()") == "f")
    lost = write_row(cluster.node("pg1"))
    cluster.rejoin("pg1")
    assert_whole(cluster, primary="pg2")
    assert not has_row(cluster.node("pg1"), lost)


@pytest.mark.slow
def test_replica_that_was_ahead_of_the_promoted_one_is_rewound(make_cluster: ClusterFactory) -> None:
    """It had received more than the new primary; by its number alone it would look perfect."""
    cluster = make_cluster(replicas=2)
    lines = said_by(cluster)
    write_row(cluster.primary)
    cluster.stop_node("pg2")
    ahead = write_row(cluster.primary)
    wait_until(lambda: has_row(cluster.node("pg3"), ahead))
    cluster.kill("pg1")
    cluster.start_node("pg2")
    assert not has_row(cluster.node("pg2"), ahead)
    cluster.promote("pg2")
    cluster.start_node("pg1")
    assert_whole(cluster, primary="pg2")
    assert not has_row(cluster.node("pg3"), ahead)
    assert "pg3: rewinding it to where pg2 left its history" in lines


@pytest.mark.parametrize("fault", ["cut", "ended"])
def test_replica_in_trouble_while_it_is_turned_to_the_new_primary_follows_all_the_same(
    make_cluster: ClusterFactory, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    """A question to it that fails is asked again; one that has ended is started."""
    cluster = make_cluster(replicas=2)
    write_row(cluster.primary)
    cluster.kill("pg1")
    asked: list[str] = []

    def streams(self: Following, node: Node) -> bool:
        asked.append(node.name)
        if asked == ["pg3"]:
            if fault == "cut":
                raise EmbeddedError("pg3: psql: error: server closed the connection unexpectedly")
            cluster.kill("pg3")
        return truly_streams(self, node)

    truly_streams = Following.streams
    monkeypatch.setattr(Following, "streams", streams)
    cluster.promote("pg2")
    assert asked[:2] == ["pg3", "pg3"]
    cluster.start_node("pg1")
    assert_whole(cluster, primary="pg2")


@pytest.mark.slow
def test_replica_that_slept_through_two_promotions_follows(make_cluster: ClusterFactory) -> None:
    """It was stopped the whole time, and everybody's port and role may have changed."""
    cluster = make_cluster(replicas=2)
    cluster.stop_node("pg3")
    cluster.promote("pg2")
    cluster.promote("pg1")
    cluster.start_node("pg3")
    assert_whole(cluster, primary="pg1")


@pytest.mark.slow
def test_frozen_replica_follows_when_it_goes_on(make_cluster: ClusterFactory) -> None:
    """It was told while it could not listen."""
    cluster = make_cluster(replicas=2)
    cluster.freeze("pg3")
    cluster.kill("pg1")
    cluster.promote("pg2")
    cluster.thaw("pg3")
    cluster.start_node("pg1")
    assert_whole(cluster, primary="pg2")


def test_promotion_that_was_not_written_down_is_found(make_cluster: ClusterFactory) -> None:
    """The command was killed right after it; cluster.json still names the old primary."""
    cluster = make_cluster(replicas=1)
    cluster.kill("pg1")
    cluster.node("pg2").sql("select pg_promote()")
    wait_until(lambda: cluster.node("pg2").sql("select pg_is_in_recovery()") == "f")
    cluster.kill("pg2")
    lines = said_by(cluster)
    cluster.start()
    assert "pg2 is the primary now, not pg1" in lines
    assert_whole(cluster, primary="pg2")


def test_replica_that_has_not_received_everything_is_not_promoted(make_cluster: ClusterFactory) -> None:
    """The primary answers and has acknowledged what the replica does not have: it stays the primary."""
    cluster = make_cluster(replicas=1)
    cluster.node("pg2").configure(None)
    cluster.node("pg2").reload()
    wait_until(lambda: cluster.primary.sql("select count(*) from pg_stat_replication") == "0")
    word = write_row(cluster.primary)
    with pytest.raises(EmbeddedError, match="pg2 has not received all that pg1 acknowledged"):
        cluster.promote("pg2")
    assert has_row(cluster.primary, word)
    assert cluster.primary.name == "pg1"


@pytest.mark.parametrize(
    ("action", "name", "reason"),
    [
        ("promote", "pg1", "pg1 is the primary"),
        ("rejoin", "pg1", "pg1 is the primary"),
        ("pause_replay", "pg1", "is the"),
        ("delay_apply", "pg1", "is the"),
    ],
)
def test_primary_is_no_replica(cluster: EmbeddedCluster, action: str, name: str, reason: str) -> None:
    """Refused in one line, and nothing has happened."""
    more = (100,) if action == "delay_apply" else ()
    with pytest.raises(EmbeddedError, match=reason):
        getattr(cluster, action)(name, *more)


def test_delay_is_one_replica_s_and_ends_with_its_promotion(make_cluster: ClusterFactory) -> None:
    """The delayed one shows a commit later than its sibling, and everything at once when the delay is taken away."""
    cluster = make_cluster(replicas=2)
    first = write_row(cluster.primary)
    for name in ("pg2", "pg3"):
        wait_until(lambda name=name: has_row(cluster.node(name), first))
    cluster.delay_apply("pg2", 3_600_000)
    word = write_row(cluster.primary)
    wait_until(lambda: has_row(cluster.node("pg3"), word))
    assert not has_row(cluster.node("pg2"), word)
    cluster.delay_apply("pg2", 0)
    wait_until(lambda: has_row(cluster.node("pg2"), word))
    cluster.delay_apply("pg2", 3_600_000)
    kept = write_row(cluster.primary)
    cluster.promote("pg2")
    assert has_row(cluster.node("pg2"), kept)
    assert_whole(cluster, primary="pg2")
    assert {node.sql("show recovery_min_apply_delay") for node in cluster.nodes.values()} == {"0"}


def test_replica_of_a_dead_primary_is_started_alone(make_cluster: ClusterFactory) -> None:
    """It can serve what it has."""
    cluster = make_cluster(replicas=1)
    word = write_row(cluster.primary)
    wait_until(lambda: has_row(cluster.node("pg2"), word))
    cluster.stop_node("pg2")
    cluster.kill("pg1")
    cluster.start_node("pg2")
    assert has_row(cluster.node("pg2"), word)


def test_lost_slot_means_a_new_copy_said_aloud(make_cluster: ClusterFactory) -> None:
    """Only then: the replica would otherwise ask for ever for WAL that is gone, and serve old reads meanwhile."""
    cluster = make_cluster(
        replicas=1,
        extra={"max_slot_wal_keep_size": "16MB", "wal_keep_size": "0", "min_wal_size": "32MB", "max_wal_size": "32MB"},
    )
    cluster.stop_node("pg2")
    for _ in range(4):
        cluster.primary.sql("select pg_logical_emit_message(false, 'fill', 'x', true); select pg_switch_wal()")
    cluster.primary.sql("checkpoint")
    assert cluster.primary.sql("select wal_status from pg_replication_slots") == "lost"
    word = write_row(cluster.primary)
    lines = said_by(cluster)
    cluster.start()
    assert "pg2: the primary has dropped WAL that it still needed (its slot is lost)" in lines
    assert "pg2: copying all of pg1" in lines
    assert has_row(cluster.node("pg2"), word)
    assert_whole(cluster, primary="pg1")


def test_rejoin_of_a_streaming_replica_changes_nothing(make_cluster: ClusterFactory) -> None:
    """It keeps its server and its data."""
    cluster = make_cluster(replicas=1)
    before = cluster.node("pg2").running()
    lines = said_by(cluster)
    cluster.rejoin("pg2")
    assert cluster.node("pg2").running() == before
    assert lines == []


def test_rejoin_clones_on_request(make_cluster: ClusterFactory) -> None:
    """For a replica that is damaged in a way that nothing here can see."""
    cluster = make_cluster(replicas=1)
    lines = said_by(cluster)
    cluster.rejoin("pg2", clone=True)
    assert lines == ["pg2: copying all of pg1"]
    assert_whole(cluster, primary="pg1")


def test_impossible_rewind_becomes_a_copy(make_cluster: ClusterFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Said aloud, with the reason."""
    cluster = make_cluster(replicas=1)
    cluster.kill("pg1")
    cluster.promote("pg2")
    lines = said_by(cluster)
    monkeypatch.setattr("atelier.embedded.follow.build.rewind", _refuse)
    cluster.start_node("pg1")
    assert "pg1: pg_rewind failed: could not find common ancestor" in lines
    assert "pg1: copying all of pg2" in lines
    assert_whole(cluster, primary="pg2")


def _refuse(*_: object) -> None:
    raise EmbeddedError("pg_rewind failed: could not find common ancestor")
