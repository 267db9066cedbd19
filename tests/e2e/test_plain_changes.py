"""What an operator changes while clients go on: how many serve, what runs, the schema, the strategy."""

import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.e2e.checks import assert_exactly_once, await_known_reads, await_streaming, identify_files
from tests.e2e.stack import Stack, wait_for
from tests.e2e.traffic import Client, CommandLoad, Follower, traffic

pytestmark = pytest.mark.timeout(600)

NODES = ("primary", "replica-1", "replica-2")
MIGRATIONS = "/opt/atelier/lib/python3.13/site-packages/atelier/bundled/migrations/versions"

# Expand, then contract. What can't run in a transaction is a migration of its own, and may be tried again: a build that
# was interrupted leaves an invalid index behind.
MIGRATION = '''"""{name}"""

from alembic import op

revision, down_revision, branch_labels, depends_on = "{name}", "{after}", None, None


def upgrade() -> None:
    {statements}
'''
CONCURRENTLY = """with op.get_context().autocommit_block():
        op.execute("drop index concurrently if exists e2e_note_idx")
        op.execute("create index concurrently e2e_note_idx on stock (e2e_note)")"""
STEPS = {
    "e2e1": """op.execute("alter table stock add column e2e_note text")
    op.execute("alter table product add column e2e_note text default ''")""",
    "e2e2": CONCURRENTLY,
    "e2e3": """with op.get_context().autocommit_block():
        op.execute("drop index concurrently if exists e2e_note_idx")""",
    "e2e4": """op.execute("alter table stock drop column e2e_note")
    op.execute("alter table product drop column e2e_note")""",
}


def test_scaling_the_reads_up_and_down_fails_no_request(plain: Stack, product: tuple[int, list[int]]) -> None:
    """2, 4, 2: the proxy follows by itself, and whoever leaves finishes what it has begun."""
    with traffic(plain.port, plain.key, product[1]) as (commands, reads):
        for count in (4, 2):
            plain.up("--no-recreate", "--scale", f"reads={count}", "reads")
            await_known_reads(plain, count)
            commands.wait_for_more(100)
    assert reads.failures == []
    assert commands.refused == Counter()
    assert_exactly_once(plain, commands)


@pytest.mark.parametrize("service", ["reads", "writes"])
def test_a_rolling_restart_under_load_fails_no_request(
    plain: Stack, product: tuple[int, list[int]], service: str
) -> None:
    """Each container is replaced while others serve: started first, then drained and stopped."""
    before = set(plain.containers(service))
    with traffic(plain.port, plain.key, product[1]) as (commands, reads):
        commands.wait_for_more(50)
        plain.roll(service)
        commands.wait_for_more(50)
    after = set(plain.containers(service))
    assert after.isdisjoint(before)
    assert len(after) == len(before)
    assert reads.failures == []
    assert commands.refused == Counter()
    assert_exactly_once(plain, commands)


def test_who_follows_the_changes_is_handed_over_while_the_reads_are_rolled(
    plain: Stack, product: tuple[int, list[int]]
) -> None:
    """Each stream says that it ends; behind its last event, elsewhere, nothing is missing and nothing comes twice.

    One writer alone, because commands that come together may be one commit, and so one event.
    """
    sku_id = product[1][0]
    with Follower(plain.port, sku_id) as follower:
        with CommandLoad(plain.port, plain.key, [sku_id], threads=1) as commands, ThreadPoolExecutor(1) as pool:
            rolling = pool.submit(plain.roll, "reads")
            follower.listen_while(lambda: not rolling.done())
            rolling.result()
        follower.listen_while(lambda: len(follower.versions) < len(commands.acknowledged))
    assert follower.ends
    assert set(follower.ends) == {"stopping"}
    first = follower.versions[0]
    assert follower.versions == list(range(first, first + len(commands.acknowledged)))


@pytest.mark.parametrize(("service", "within_s"), [("reads", 10), ("proxy", 20)])
def test_open_streams_hold_up_no_stop(plain: Stack, service: str, within_s: float) -> None:
    """The notice and a moment, or the time that the proxy gives to what it has begun; not the time to be killed."""
    with Client(plain.port) as first, Client(plain.port) as second:
        for client in (first, second):
            client.open_stream("/changes")
        begun_s = time.monotonic()
        plain.compose("stop", service)
        stopped_s = time.monotonic() - begun_s
    plain.up("--no-deps", service)
    assert stopped_s < within_s


def test_restarting_each_container_ends_in_the_same_state(plain: Stack, product: tuple[int, list[int]]) -> None:
    """One after the other, also those that have done what they are for: they find it done."""
    _, (sku_id, *_) = product
    key, files = plain.key, {node: identify_files(plain, node) for node in NODES}
    with Client(plain.port, key=key) as client:
        stock = client.get(f"/inventory/{sku_id}", Atelier_Consistency="strong").json
        count = len(client.get("/products?count=1000", Atelier_Consistency="strong").json)
    for service in plain.services():
        plain.compose("restart", service)
        wait_for(lambda name=service: plain.is_well(name), within_s=60, what=f"{service} being well")
    await_streaming(plain, "replica-1", "replica-2")
    await_known_reads(plain, 2)
    with Client(plain.port, key=key) as client:
        assert client.get(f"/inventory/{sku_id}", Atelier_Consistency="strong").json == stock
        assert len(client.get("/products?count=1000", Atelier_Consistency="strong").json) == count
    assert plain.key == key
    assert {node: identify_files(plain, node) for node in NODES} == files


@pytest.mark.parametrize("service", ["replica-1", "primary"])
def test_restarting_a_database_loses_nothing_and_clones_nothing(
    plain: Stack, product: tuple[int, list[int]], service: str
) -> None:
    """The data are those of before, by the very files; readers notice nothing; the slots are kept."""
    files = identify_files(plain, service)
    with traffic(plain.port, plain.key, product[1]) as (commands, reads):
        commands.wait_for_more(50)
        plain.compose("restart", service)
        wait_for(lambda: plain.is_healthy(service), within_s=60, what="it being healthy")
        commands.wait_for_more(50)
    assert reads.failures == []
    assert_exactly_once(plain, commands)
    assert identify_files(plain, service) == files
    await_streaming(plain, "replica-1", "replica-2")


def test_recreating_every_container_ends_in_the_same_state(plain: Stack, product: tuple[int, list[int]]) -> None:
    """Down and up: data, secrets and the API key are those of before, and no replica was cloned."""
    _, (sku_id, *_) = product
    key, files = plain.key, {node: identify_files(plain, node) for node in NODES}
    with Client(plain.port, key=key) as client:
        stock = client.get(f"/inventory/{sku_id}", Atelier_Consistency="strong").json
    plain.compose("down")
    plain.up()
    assert plain.key == key
    with Client(plain.port, key=key) as client:
        assert client.get(f"/inventory/{sku_id}", Atelier_Consistency="strong").json == stock
    await_streaming(plain, "replica-1", "replica-2")
    assert {node: identify_files(plain, node) for node in NODES} == files
    assert not any("cloning" in plain.logs(node) for node in NODES)


def test_migrations_under_load_fail_no_request(plain: Stack, product: tuple[int, list[int]], tmp_path: Path) -> None:
    """Expand: columns, and an index built concurrently. Contract: they go again. The old code works on all of it."""
    ((newest,),) = plain.sql("primary", "select version_num from atelier.alembic_version")
    with traffic(plain.port, plain.key, product[1]) as (commands, reads):
        commands.wait_for_more(50)
        mounts, after = [], newest
        for name, statements in STEPS.items():
            script = tmp_path / f"{name}.py"
            script.write_text(MIGRATION.format(name=name, after=after, statements=statements))
            mounts.append(f"--volume={script}:{MIGRATIONS}/{name}.py:ro")
            plain.compose("run", "--rm", "--no-deps", *mounts, "migrate")
            commands.wait_for_more(50)
            after = name
    plain.sql("primary", f"update atelier.alembic_version set version_num = '{newest}'")
    assert reads.failures == []
    assert commands.refused == Counter()
    assert_exactly_once(plain, commands)


@pytest.mark.parametrize("balance", ["round_robin", "random two", "ip_hash"])
def test_the_balancing_strategy_is_one_variable(plain: Stack, balance: str) -> None:
    """Each one of them serves."""
    with plain.changed(ATELIER_BALANCE=balance) as changed:
        changed.up("--no-deps", "proxy")
        with Client(plain.port) as client:
            assert {client.get("/products/1").status for _ in range(20)} == {200}
        upstream = plain.exec("proxy", "cat", "/run/nginx/balance.conf").partition("upstream reads")[2]
        strategy = upstream.partition("server")[0].split(";")[1].strip()
        assert strategy == ("" if balance == "round_robin" else balance)
    plain.up("--no-deps", "proxy")


@pytest.mark.slow
def test_rotating_the_token_keys_under_load_fails_no_request(plain: Stack, product: tuple[int, list[int]]) -> None:
    """A token of the old key is good while the new one seals, and refused when the old one was dropped."""
    with Client(plain.port) as client:
        token = client.get("/products/1").token
    with traffic(plain.port, plain.key, product[1]) as (commands, reads):
        for step in ("add", "use"):
            change_token_keys(plain, step)
            commands.wait_for_more(50)
    with Client(plain.port) as client:
        assert client.get("/products/1", Atelier_Token=token).status == 200
    assert reads.failures == []
    assert commands.refused == Counter()
    change_token_keys(plain, "drop")
    with Client(plain.port) as client:
        refused = client.get("/products/1", Atelier_Token=token)
    assert (refused.status, refused.json["type"]) == (400, "/problems/invalid-token")


def change_token_keys(plain: Stack, step: str) -> None:
    """One step of a rotation, as the runbook has it."""
    plain.compose("run", "--rm", "secrets", "make-secrets", "token-key", step)
    plain.roll("reads")
    plain.roll("writes")


@pytest.mark.slow
def test_a_roles_new_password_is_taken_by_who_is_rolled(plain: Stack, product: tuple[int, list[int]]) -> None:
    """As the runbook says: renewed, told to the primary, rolled; the old password opens nothing any more."""
    for role in ("reader", "writer", "monitor", "migrator"):
        old = plain.exec("primary", "cat", f"/run/secrets/atelier/{role}")
        with traffic(plain.port, plain.key, product[1]) as (commands, reads):
            plain.compose("run", "--rm", "secrets", "make-secrets", "renew", role)
            plain.exec("primary", "node", "roles")
            plain.roll("reads")
            plain.roll("writes")
            commands.wait_for_more(50)
        assert reads.failures == []
        assert_exactly_once(plain, commands)
        new = plain.exec("primary", "cat", f"/run/secrets/atelier/{role}")
        assert (try_password(plain, role, old), try_password(plain, role, new)) == ("refused", "let in")
    plain.compose("run", "--rm", "--no-deps", "migrate")


def try_password(plain: Stack, role: str, password: str) -> str:
    """What the primary does with a role that comes from another node with a password."""
    entry = f"host=primary dbname=atelier user={role} password={password}"
    script = 'psql --no-psqlrc -qAtX --dbname="$0" --command "select 1" 2>&1 || true'
    said = plain.exec("replica-1", "bash", "-c", script, entry)
    return {"1": "let in"}.get(said, "refused" if "password authentication failed" in said else said)
