"""What breaks in the plain deployment: standing, late and cut-off replicas, and a primary that is lost."""

import uuid

import pytest

from tests.e2e.checks import assert_exactly_once, await_streaming, count_effects, identify_files
from tests.e2e.stack import Stack, wait_for
from tests.e2e.traffic import Client, CommandLoad, ReadLoad, traffic

pytestmark = pytest.mark.timeout(600)


def test_a_paused_replica_costs_no_reader_an_error_and_no_writer_its_own_writes(
    plain: Stack, product: tuple[int, list[int]]
) -> None:
    """Reads with a token go elsewhere while one replica stands still."""
    product_id, (sku_id, *_) = product
    body = {"reason": "e2e", "lines": [{"sku_id": sku_id, "delta": 1}]}
    plain.exec("replica-1", "node", "pause-replay")
    try:
        with Client(plain.port, key=plain.key) as client, ReadLoad(plain.port) as reads:
            for _ in range(50):
                done = client.ask("POST", "/inventory/adjustments", body=body, Idempotency_Key=uuid.uuid4().hex)
                seen = client.get(f"/products/{product_id}/styles", Atelier_Token=done.token)
                assert seen.json["results"][0]["skus"][str(sku_id)]["quantity"] == done.json["lines"][0]["available"]
                assert seen.headers["atelier-served-by"] != "replica-1"
    finally:
        plain.exec("replica-1", "node", "resume-replay")
    assert reads.failures == []


def test_a_delayed_replica_serves_no_bounded_read(plain: Stack, product: tuple[int, list[int]]) -> None:
    """A variable makes one replica two seconds old; reads that take half a second at most never meet it."""
    with plain.changed(REPLICA_2_APPLY_DELAY_MS="2000") as changed:
        changed.up("--no-deps", "replica-2")
        with CommandLoad(plain.port, plain.key, product[1]) as commands, Client(plain.port) as client:
            commands.wait_for_more(200)
            for _ in range(50):
                answer = client.get("/products/1", Atelier_Consistency="bounded; max-lag-ms=500")
                assert answer.status == 200
                assert answer.headers["atelier-served-by"] != "replica-2"
                assert float(answer.headers["atelier-lag-ms"]) <= 500
    plain.up("--no-deps", "replica-2")
    await_streaming(plain, "replica-1", "replica-2")


@pytest.mark.parametrize("fault", [("slow", "128kbit"), ("cut", "primary")], ids=["slow", "cut"])
def test_a_slow_or_cut_network_to_a_replica_costs_no_reader_an_error(
    plain: Stack, product: tuple[int, list[int]], fault: tuple[str, ...]
) -> None:
    """It falls behind; it catches up when the network is well again."""
    plain.break_network("replica-1", *fault)
    try:
        with traffic(plain.port, plain.key, product[1]) as (commands, reads):
            commands.wait_for_more(300)
    finally:
        plain.break_network("replica-1", "heal")
    assert reads.failures == []
    assert_exactly_once(plain, commands)
    await_streaming(plain, "replica-1", "replica-2")


@pytest.mark.parametrize(("fault", "mend"), [("pause", "unpause"), ("kill", "start")], ids=["frozen", "killed"])
def test_a_frozen_or_killed_replica_costs_no_reader_an_error(
    plain: Stack, product: tuple[int, list[int]], fault: str, mend: str
) -> None:
    """Its sibling and the primary answer; it streams again when it is mended."""
    with traffic(plain.port, plain.key, product[1]) as (commands, reads):
        commands.wait_for_more(100)
        plain.compose(fault, "replica-1")
        try:
            commands.wait_for_more(300)
        finally:
            plain.compose(mend, "replica-1")
    assert reads.failures == []
    assert_exactly_once(plain, commands)
    await_streaming(plain, "replica-1", "replica-2")


@pytest.mark.slow
def test_a_replica_that_was_away_for_too_long_is_cloned_once(plain: Stack, product: tuple[int, list[int]]) -> None:
    """The primary keeps a bounded log for it; beyond that its slot is lost, and its next start says so."""
    files = identify_files(plain, "replica-1")
    plain.sql("primary", "alter system set max_slot_wal_keep_size = '16MB'")
    plain.sql("primary", "select pg_reload_conf()")
    plain.compose("stop", "replica-1")
    try:
        for _ in range(10):  # what the primary keeps for everybody (wal_keep_size) has to be used up, too
            plain.sql("primary", "select pg_logical_emit_message(false, 'e2e', repeat('x', 20000000))")
        plain.sql("primary", "checkpoint")
        slot = "select wal_status from pg_replication_slots where slot_name = 'replica_1'"
        wait_for(lambda: plain.sql("primary", slot) == [["lost"]], within_s=30, what="the slot being lost")
    finally:
        plain.sql("primary", "alter system reset max_slot_wal_keep_size")
        plain.sql("primary", "select pg_reload_conf()")
        plain.compose("start", "replica-1")
    with traffic(plain.port, plain.key, product[1]) as (commands, reads):
        commands.wait_for_more(50)
        await_streaming(plain, "replica-1", "replica-2", within_s=90)
        commands.wait_for_more(50)
    assert reads.failures == []
    assert identify_files(plain, "replica-1") != files
    assert plain.logs("replica-1").count("the slot of replica-1 was lost") == 1


def test_a_service_that_is_killed_comes_back_and_readers_notice_nothing(
    plain: Stack, product: tuple[int, list[int]]
) -> None:
    """One of the reads and the writes are killed; commands go on when the writes are there again."""
    with traffic(plain.port, plain.key, product[1]) as (commands, reads):
        commands.wait_for_more(50)
        plain.kill(plain.containers("reads")[0])
        plain.kill(plain.containers("writes")[0])
        plain.compose("start", "reads", "writes")
        commands.wait_for_more(50)
    assert reads.failures == []
    assert_exactly_once(plain, commands)


def test_a_manual_failover_keeps_the_readers_and_takes_the_old_primary_back(
    plain: Stack, product: tuple[int, list[int]]
) -> None:
    """Killed, promoted by hand, rejoined by a rewind, at no time two primaries; then the same back again."""
    for old, new in (("primary", "replica-1"), ("replica-1", "primary")):
        files = identify_files(plain, old)
        with traffic(plain.port, plain.key, product[1]) as (commands, reads):
            commands.wait_for_more(100)
            plain.compose("kill", old)
            plain.exec(new, "node", "promote")
            commands.wait_for_more(100)
            plain.compose("start", old)
            await_streaming(plain, old, "replica-2", node=new, within_s=90)
        assert reads.failures == []
        assert set(count_effects(plain, commands, node=new).values()) == {1}
        wait_for(lambda name=old: plain.is_healthy(name), within_s=60, what="the old primary being healthy")
        assert plain.sql(old, "select pg_is_in_recovery()") == [["t"]]
        assert identify_files(plain, old) == files
