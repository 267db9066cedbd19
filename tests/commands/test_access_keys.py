"""API keys over real HTTP: who may do what, and for how long."""

import asyncio
import base64
import hashlib
import re
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import asyncpg
import httpx
import pytest
from msgspec.structs import replace

from atelier.access.keys import SCOPES, KeyRefusedError, create_key, digest, list_keys, revoke_key
from atelier.access.verify import KeyRecord, KeyVerifier
from atelier.documentation.openapi import list_operations
from atelier.embedded.cluster import EmbeddedCluster
from atelier.errors import PrimaryUnavailableError
from atelier.problems import ProblemError
from atelier.writes.endpoints import ENDPOINTS, Endpoint
from tests.commands.conftest import Shop, new_key, serving
from tests.commands.writing import ACTOR, open_writes, settings_of
from tests.support import Service, make_key, plain_environment, role_dsn

pytestmark = pytest.mark.anyio

OPEN_READS = ["/products", "/products/1", "/products/1/styles", "/products/1/related", "/styles/1", "/health/live"]

OPEN = {
    "/products", "/products/{product_id}", "/products/{product_id}/styles", "/products/{product_id}/related",
    "/api/fec2/{campus}/products", "/api/fec2/{campus}/products/{product_id}",
    "/api/fec2/{campus}/products/{product_id}/styles", "/api/fec2/{campus}/products/{product_id}/related",
    "/styles/{style_id}", "/changes", "/health/live", "/health/ready", "/cluster", "/metrics", "/openapi.json", "/docs",
    "/docs/assets/{asset}", "/problems/", "/problems/{problem}",
}  # fmt: skip


def fill(path: str) -> str:
    """An address with an id that nothing has."""
    return "/".join(str(2**62) if part.startswith("{") else part for part in path.split("/"))


@pytest.mark.parametrize("endpoint", ENDPOINTS, ids=lambda one: f"{one.method} {one.path}")
async def test_command_is_denied_without_the_right_key(
    service: Service, database: asyncpg.Connection, endpoint
) -> None:
    """401 without a key or with one that nobody has, 403 with a key of another scope."""
    other = next(scope for scope in ("catalogue:write", "inventory:write") if scope != endpoint.scope)
    key = await create_key(database, name=new_key(), scopes=[other])
    unknown = key[:13] + key[13:][::-1]
    async with httpx.AsyncClient(base_url=service.url) as http:
        for header, status in ((None, 401), (unknown, 401), ("atl_", 401), (key, 403)):
            headers = {} if header is None else {"Authorization": f"Bearer {header}"}
            answer = await http.request(endpoint.method, fill(endpoint.path), headers=headers)
            assert answer.status_code == status, (header, answer.text)
            assert ("WWW-Authenticate" in answer.headers) == (status == 401)


@pytest.mark.parametrize("scope", SCOPES)
async def test_protected_reads_take_a_key_of_any_scope(
    service: Service, database: asyncpg.Connection, scope: str
) -> None:
    """Every one of them, also for who may change something else only; without a key, none."""
    key = await create_key(database, name=new_key(), scopes=[scope])
    reads = {one.path for one in list_operations() if one.method == "GET"} - OPEN
    assert reads >= {"/inventory/{sku_id}", "/reservations/{reservation_id}", "/commands/{key}"}
    async with httpx.AsyncClient(base_url=service.url) as http:
        for path in sorted(reads):
            answer = await http.get(fill(path), headers={"Authorization": f"Bearer {key}"})
            assert answer.status_code in (200, 404), (path, answer.text)
            assert (await http.get(fill(path))).status_code == 401, path
            assert (await http.head(fill(path))).status_code == 401, path


async def test_open_reads_ask_for_no_key(service: Service) -> None:
    """Storefront, feed, health and documentation; what is sent as one is not even looked at."""
    async with httpx.AsyncClient(base_url=service.url) as http:
        for path in OPEN_READS:
            answer = await http.get(path, headers={"Authorization": "Basic bm9ib2R5"})
            assert answer.status_code in (200, 404), path


async def test_every_other_address_asks_for_a_key(service: Service) -> None:
    """Denied by default: whoever adds an address without a key has to say so here, by its whole template."""
    operations = list_operations()
    assert {operation.path for operation in operations} >= OPEN
    async with httpx.AsyncClient(base_url=service.url) as http:
        for operation in operations:
            if operation.method != "GET" or operation.path not in OPEN:
                answer = await http.request(operation.method, fill(operation.path))
                assert answer.status_code == 401, operation.path


@pytest.mark.parametrize("endpoint", ENDPOINTS, ids=lambda one: f"{one.method} {one.path}")
async def test_command_is_admitted_with_its_one_scope_and_with_admin(
    service: Service, database: asyncpg.Connection, endpoint: Endpoint
) -> None:
    """Neither 401 nor 403: what is wrong with it then is that it has no body, or is about nothing that exists."""
    async with httpx.AsyncClient(base_url=service.url) as http:
        for scope in (endpoint.scope, "admin"):
            key = await create_key(database, name=new_key(), scopes=[scope])
            headers = {"Authorization": f"Bearer {key}", "Idempotency-Key": new_key()}
            answer = await http.request(endpoint.method, fill(endpoint.path), headers=headers)
            assert answer.status_code in (400, 404, 415), (scope, answer.text)


@pytest.mark.soak
async def test_revoked_key_is_refused_within_a_second(shop: Shop, database: asyncpg.Connection) -> None:
    """By commands and by protected reads, although both remember keys."""
    key = await create_key(database, name=new_key(), scopes=["admin"])
    headers = {"Authorization": f"Bearer {key}"}
    assert (await shop.http.get("/inventory/1", headers=headers)).status_code in (200, 404)
    assert (await shop.adjust(2**62, 1, **headers)).status_code == 404
    await revoke_key(database, key.split("_")[1])
    revoked_at_s = asyncio.get_running_loop().time()
    codes: set[int] = set()
    while codes != {401}:
        codes = {
            (await shop.http.get("/inventory/1", headers=headers)).status_code,
            (await shop.adjust(2**62, 1, **headers)).status_code,
        }
        assert asyncio.get_running_loop().time() - revoked_at_s < 1.0


async def test_expired_key_is_refused(shop: Shop, database: asyncpg.Connection) -> None:
    """An end in the past is an end."""
    past = datetime.now(UTC) - timedelta(seconds=1)
    key = await create_key(database, name=new_key(), scopes=["admin"], expires_at=past)
    assert (await shop.adjust(1, 1, Authorization=f"Bearer {key}")).status_code == 401


async def test_key_text_is_stored_nowhere(database: asyncpg.Connection) -> None:
    """Only its hash, and the prefix that tells it from others."""
    name = new_key()
    key = await create_key(database, name=name, scopes=["inventory:write"])
    row = await database.fetchrow("select cast(api_key as text) as whole from api_key where name = $1", name)
    assert key[13:] not in row["whole"]
    assert [one.scopes for one in await list_keys(database) if one.name == name] == [("inventory:write",)]


async def test_stored_digest_is_the_sha_256_of_the_whole_text(database: asyncpg.Connection) -> None:
    """Of the prefix too, and of nothing else: one round over what nobody can guess."""
    name = new_key()
    key = await create_key(database, name=name, scopes=["admin"])
    stored = await database.fetchval("select digest from api_key where name = $1", name)
    assert stored == hashlib.sha256(key.encode()).digest()


async def test_key_carries_256_random_bits(database: asyncpg.Connection) -> None:
    """43 base64url characters behind the prefix, no two alike; over some keys every single bit is met both ways."""
    keys = [await create_key(database, name=new_key(), scopes=["admin"]) for _ in range(50)]
    forms = [re.fullmatch(r"atl_([a-z2-9]{8})_([A-Za-z0-9_-]{43})", key) for key in keys]
    assert all(forms), keys
    secrets = [base64.urlsafe_b64decode(f"{form[2]}=") for form in forms if form]
    assert {len(secret) for secret in secrets} == {32}
    assert len(set(secrets)) == len({form[1] for form in forms if form}) == len(keys)
    numbers = [int.from_bytes(secret) for secret in secrets]
    assert all(len({number >> bit & 1 for number in numbers}) == 2 for bit in range(256))


@pytest.mark.parametrize(("name", "scopes"), [("", ["admin"]), ("x" * 101, ["admin"]), ("a", []), ("a", ["root"])])
async def test_unusable_key_is_refused_with_a_reason(
    database: asyncpg.Connection, name: str, scopes: list[str]
) -> None:
    """A name that is no name, no scope, an unknown scope."""
    with pytest.raises(KeyRefusedError):
        await create_key(database, name=name, scopes=scopes)


@pytest.mark.parametrize("use", ["command", "resolver"])
async def test_use_of_a_key_is_noted(shop: Shop, database: asyncpg.Connection, use: str) -> None:
    """To the minute, some seconds later; also of one that asks for outcomes and never sends a command."""
    name = new_key()
    headers = {"Authorization": f"Bearer {await create_key(database, name=name, scopes=['admin'])}"}
    answer = await (
        shop.adjust(2**62, 1, **headers) if use == "command" else shop.http.get("/commands/any", headers=headers)
    )
    assert answer.status_code == 404
    async with asyncio.timeout(15):
        while not await database.fetchval("select last_used_at from api_key where name = $1", name):
            await asyncio.sleep(0.1)


async def test_use_that_could_not_be_noted_is_noted_in_the_next_round(
    cluster: EmbeddedCluster, database: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The primary is away for a moment; nobody would know later that the key is in use."""
    name = new_key()
    await create_key(database, name=name, scopes=["admin"])
    key_id = await database.fetchval("select key_id from api_key where name = $1", name)

    async def fail(*_: object, **__: object) -> None:
        raise PrimaryUnavailableError

    async with open_writes(settings_of(cluster), has_chores=False) as writes:
        writes.note_use(replace(ACTOR, key_id=key_id))
        with monkeypatch.context() as away:
            away.setattr("atelier.writes.service.touch_keys", fail)
            with pytest.raises(PrimaryUnavailableError):
                await writes._note_key_use()
        await writes._note_key_use()
    assert await database.fetchval("select last_used_at from api_key where key_id = $1", key_id)


async def test_key_ends_at_its_time_also_while_it_is_remembered() -> None:
    """The database is asked once; the clock on the wall decides."""
    ends_at = datetime(2030, 1, 1, tzinfo=UTC)
    text = f"atl_{'a' * 8}_{'x' * 43}"
    asked: list[str] = []
    now = [ends_at - timedelta(milliseconds=1)]

    async def look_up(prefix: str) -> KeyRecord:
        asked.append(prefix)
        return KeyRecord(1, "till", prefix, digest(text), frozenset({"admin"}), ends_at, revoked=False)

    verifier = KeyVerifier(look_up, clock=lambda: 0.0, now=lambda: now[0])
    assert (await verifier.verify(f"Bearer {text}")).name == "till"
    now[0] = ends_at
    with pytest.raises(ProblemError, match="valid key"):
        await verifier.verify(f"Bearer {text}")
    assert asked == ["a" * 8]


def run_key(cluster: EmbeddedCluster, *words: str) -> str:
    """`atelier key`, as an operator runs it."""
    command = [sys.executable, "-P", "-m", "atelier.cli.main", "key", *words]
    environ = plain_environment() | cluster.environment() | {"COLUMNS": "200"}
    told = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=60, check=False)
    assert told.returncode == 0, told.stderr
    return told.stdout


async def test_operator_makes_a_key_that_ends_by_itself(
    shop: Shop, cluster: EmbeddedCluster, database: asyncpg.Connection
) -> None:
    """After half a day; the list tells when it ends, and that it has."""
    name = new_key()
    words = ("create", "--name", name, "--scope", "admin", "--expires-in", "0.5")
    key = (await asyncio.to_thread(run_key, cluster, *words)).strip()
    ends_at = await database.fetchval("select expires_at from api_key where name = $1", name)
    assert timedelta(hours=11.9) < ends_at - datetime.now(UTC) <= timedelta(hours=12)
    headers = {"Authorization": f"Bearer {key}"}
    assert (await shop.adjust(2**62, 1, **headers)).status_code == 404

    async def listed() -> str:
        lines = (await asyncio.to_thread(run_key, cluster, "list")).splitlines()
        return next(line for line in lines if name in line)

    line = await listed()
    assert f"{ends_at:%Y-%m-%d %H:%M}" in line
    assert "valid" in line
    await database.execute("update api_key set expires_at = clock_timestamp() where name = $1", name)
    assert "expired" in await listed()
    async with asyncio.timeout(5):
        while (await shop.adjust(2**62, 1, **headers)).status_code != 401:
            pass


async def revoke(cluster: EmbeddedCluster, key: str) -> None:
    """Revokes a key on the primary."""
    connection = await asyncpg.connect(role_dsn(cluster, "writer"))
    try:
        await revoke_key(connection, key.split("_")[1])
    finally:
        await connection.close()


@pytest.mark.soak
async def test_revoked_key_is_refused_by_reads_within_a_second_while_no_replica_replays(
    make_cluster: Callable[..., EmbeddedCluster],
) -> None:
    """No replica will ever learn of it, so once they are behind the primary is asked."""
    cluster = await asyncio.to_thread(make_cluster)
    async with serving(cluster) as service:
        key = await make_key(cluster, name=new_key())
        headers = {"Authorization": f"Bearer {key}"}
        async with httpx.AsyncClient(base_url=service.url, headers=headers, timeout=30) as http:
            replicas = {name for name in cluster.nodes if name != cluster.primary.name}
            asked: set[str] = set()
            async with asyncio.timeout(15):
                while asked != replicas:
                    asked.add((await http.get("/inventory/1")).headers["Atelier-Served-By"])
            for name in sorted(replicas):
                await asyncio.to_thread(cluster.pause_replay, name)
            await revoke(cluster, key)
            revoked_at_s = asyncio.get_running_loop().time()
            while (await http.get("/inventory/1")).status_code != 401:
                assert asyncio.get_running_loop().time() - revoked_at_s < 1.0
