"""Under Patroni with a quorum: the primary is switched, killed, cut off; no acknowledged command is ever lost."""

import time

import pytest

from tests.e2e.checks import assert_exactly_once, identify_files
from tests.e2e.patroni import (
    MARGIN_S,
    NODES,
    TTL_S,
    active_slots,
    await_other_leader,
    await_view,
    await_whole,
    is_standby,
)
from tests.e2e.stack import Stack, wait_for
from tests.e2e.traffic import Client, CommandLoad, ReadLoad, make_product, traffic

pytestmark = pytest.mark.timeout(600)


@pytest.fixture
def skus(ha: Stack) -> list[int]:
    """SKUs of the test's own."""
    _, sku_ids = make_product(ha.port, ha.key)
    return sku_ids


@pytest.fixture
def whole(ha: Stack) -> tuple[str, str]:
    """A whole cluster before the test: its leader and one of the others."""
    return await_whole(ha)


def check_outcome(
    stack: Stack, commands: CommandLoad, reads: ReadLoad, *, leader: str, with_fence: bool = False
) -> None:
    """Nothing acknowledged was lost, nothing has two effects, no reader saw an error, commands came back in time.

    While a primary that is cut off is not fenced yet, it still answers reads whose token no standby has. What such an
    answer's token names may be lost: then a read with it is refused, never served something older.
    """
    print(  # noqa: T201 - the figures of docs/operations.md
        f"\nacknowledged {len(commands.acknowledged)}, refused tries {dict(commands.refused)}, "
        f"longest gap {commands.longest_gap_s:.1f} s, reads {sum(reads.served.values())}, "
        f"reader errors {len(reads.failures)}, slowest read {reads.slowest_s:.2f} s"
    )
    assert_exactly_once(stack, commands, node=leader)
    assert all(command.acknowledged_s for command in commands.commands)
    assert [failure for failure in reads.failures if not (with_fence and is_loud_refusal(failure))] == []
    assert commands.longest_gap_s < TTL_S + MARGIN_S


def test_a_commit_waits_for_a_quorum_of_the_standbys(ha: Stack, whole: tuple[str, str]) -> None:
    """Patroni's quorum is PostgreSQL's, on the node that is primary now."""
    leader, _ = whole
    ((names,),) = ha.sql(leader, "show synchronous_standby_names")
    assert names.startswith("ANY 1 (")
    assert {state for (state,) in ha.sql(leader, "select sync_state from pg_stat_replication")} == {"quorum"}


def test_the_service_follows_patroni_and_reads_from_standbys(ha: Stack, whole: tuple[str, str]) -> None:
    """The nodes come from Patroni; what they are is proved by SQL; the demo catalogue is there."""
    leader, _ = whole
    with Client(ha.port) as client:
        served = {client.get(f"/products/{1 + number % 30}").headers["atelier-served-by"] for number in range(60)}
        strong = client.get("/products/1", Atelier_Consistency="strong")
    assert served == set(NODES) - {leader}
    assert strong.headers["atelier-served-by"] == leader


def test_a_switchover_loses_nothing_and_needs_no_change_of_ours(
    ha: Stack, whole: tuple[str, str], skus: list[int]
) -> None:
    """Under load: the service finds the new primary by itself; roles, timeline, lag and slots follow."""
    old, new = whole
    before = await_view(ha, old)
    with traffic(ha.port, ha.key, skus) as (commands, reads):
        commands.wait_for_more(100)
        ha.exec(old, "patronictl", "switchover", "--leader", old, "--candidate", new, "--force")
        await_standby(ha, old)
        commands.wait_for_more(100)
    check_outcome(ha, commands, reads, leader=new)
    assert await_whole(ha)[0] == new
    after = await_view(ha, new)
    assert after[new]["timeline"] == before[old]["timeline"] + 1
    assert active_slots(ha, new) == {node.replace("-", "_") for node in NODES if node != new}


def test_killing_the_primarys_container_loses_no_acknowledged_command(
    ha: Stack, whole: tuple[str, str], skus: list[int]
) -> None:
    """Killed under load; commands come back within Patroni's ttl and 10 s; the old primary rejoins."""
    old, _ = whole
    with traffic(ha.port, ha.key, skus) as (commands, reads):
        commands.wait_for_more(100)
        ha.compose("kill", old)
        commands.wait_for_more(200)
        ha.compose("start", old)
        await_standby(ha, old)
        commands.wait_for_more(100)
    leader, _ = await_whole(ha)
    assert leader != old
    check_outcome(ha, commands, reads, leader=leader)


@pytest.mark.parametrize("others", ["all", "cluster"])
def test_cutting_the_primary_off_lets_no_second_writer_be_acknowledged(
    ha: Stack, whole: tuple[str, str], skus: list[int], others: str
) -> None:
    """Cut off from everybody, or only from etcd and its peers, so that our writes still reach it: it is fenced."""
    old, _ = whole
    cluster = [*(f"etcd-{number}" for number in (1, 2, 3)), *(node for node in NODES if node != old)]
    peers = cluster if others == "cluster" else [*cluster, "reads", "writes"]
    with traffic(ha.port, ha.key, skus) as (commands, reads):
        commands.wait_for_more(100)
        ha.break_network(old, "cut", *peers)
        cut_s = time.monotonic()
        try:
            commands.wait_for_more(200)
            new = await_other_leader(ha, old)
            wait_for(lambda: not accepts_writes(ha, old), within_s=TTL_S + MARGIN_S, what="the old primary fenced")
            fenced_s = time.monotonic() - cut_s
        finally:
            ha.break_network(old, "heal")
        await_standby(ha, old)
        commands.wait_for_more(100)
    print(f"\nthe old primary took no more writes {fenced_s:.1f} s after the cut, at the latest")  # noqa: T201
    check_outcome(ha, commands, reads, leader=new, with_fence=True)
    await_whole(ha)


def await_standby(stack: Stack, node: str) -> None:
    """Waits until Patroni says that a node streams, and prints for how long: a figure of docs/operations.md."""
    rejoined_s = wait_for(lambda: is_standby(stack, node), within_s=120, what=f"{node} as a standby")
    print(f"\nthe old primary streamed after {rejoined_s:.1f} s")  # noqa: T201


def is_loud_refusal(failure: str) -> bool:
    """Whether a failed read had a token that could not be honoured, and was told so."""
    return "with a token" in failure and ("primary-unavailable" in failure or "history-lost" in failure)


def accepts_writes(stack: Stack, node: str) -> bool:
    """Whether a server is out of recovery; one that does not answer takes no writes either."""
    try:
        return stack.sql(node, "select not pg_is_in_recovery()") == [["t"]]
    except AssertionError:
        return False


def test_the_loss_of_one_standby_and_of_one_etcd_stops_nothing(
    ha: Stack, whole: tuple[str, str], skus: list[int]
) -> None:
    """One of two standbys is a quorum, two of three etcd are one."""
    leader, other = whole
    with traffic(ha.port, ha.key, skus) as (commands, reads):
        commands.wait_for_more(50)
        ha.compose("kill", other, "etcd-1")
        commands.wait_for_more(200)
        ha.compose("start", other, "etcd-1")
        wait_for(lambda: is_standby(ha, other), within_s=120, what="the standby streaming again")
    assert await_whole(ha)[0] == leader
    check_outcome(ha, commands, reads, leader=leader)


@pytest.mark.slow
def test_restarting_each_container_in_turn_loses_nothing(ha: Stack, whole: tuple[str, str], skus: list[int]) -> None:
    """All nodes and all etcd, the leader among them, under load; nothing is cloned."""
    files = {node: identify_files(ha, node) for node in NODES}
    with traffic(ha.port, ha.key, skus) as (commands, reads):
        commands.wait_for_more(50)
        for service in (*NODES, *(f"etcd-{number}" for number in (1, 2, 3))):
            ha.compose("restart", service)
            wait_for(lambda name=service: ha.is_well(name), within_s=90, what=f"{service} being well")
            leader, _ = await_whole(ha)
            commands.wait_for_more(20)
    check_outcome(ha, commands, reads, leader=leader)
    assert {node: identify_files(ha, node) for node in NODES} == files
