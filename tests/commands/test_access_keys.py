"""API keys over real HTTP: who may do what, and for how long."""

import asyncio
from datetime import UTC, datetime, timedelta

import asyncpg
import httpx
import pytest

from atelier.access.keys import KeyRefusedError, create_key, list_keys, revoke_key
from atelier.documentation.openapi import list_operations
from atelier.writes.endpoints import ENDPOINTS
from tests.commands.conftest import Shop, new_key
from tests.support import Service

pytestmark = pytest.mark.anyio

PROTECTED_READS = ["/inventory/1", "/inventory/1/movements", "/reservations/1", "/commands/x"]
OPEN_READS = ["/products", "/products/1", "/products/1/styles", "/products/1/related", "/styles/1", "/health/live"]

OPEN = (
    "/products", "/api/fec2/", "/styles/", "/changes", "/health/", "/cluster", "/metrics", "/openapi.json", "/docs",
    "/problems/",
)  # fmt: skip


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


async def test_protected_reads_take_any_valid_key_and_open_ones_none(
    service: Service, database: asyncpg.Connection
) -> None:
    """Deny by default: what is not storefront, feed, health or documentation needs a key."""
    key = await create_key(database, name=new_key(), scopes=["catalogue:write"])
    async with httpx.AsyncClient(base_url=service.url) as http:
        for path in PROTECTED_READS:
            assert (await http.get(path)).status_code == 401, path
            assert (await http.get(path, headers={"Authorization": f"Bearer {key}"})).status_code in (200, 404), path
        for path in OPEN_READS:
            answer = await http.get(path, headers={"Authorization": "Basic bm9ib2R5"})
            assert answer.status_code in (200, 404), path


async def test_every_other_address_asks_for_a_key(service: Service) -> None:
    """Denied by default: whoever adds an address without a key has to say so here."""
    async with httpx.AsyncClient(base_url=service.url) as http:
        for operation in list_operations():
            if operation.method != "GET" or not operation.path.startswith(OPEN):
                answer = await http.request(operation.method, fill(operation.path))
                assert answer.status_code == 401, operation.path


async def test_admin_has_every_scope(shop: Shop, database: asyncpg.Connection) -> None:
    """One key for all commands."""
    key = await create_key(database, name=new_key(), scopes=["admin"])
    answer = await shop.adjust(2**62, 1, Authorization=f"Bearer {key}")
    assert answer.status_code == 404


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


@pytest.mark.parametrize(("name", "scopes"), [("", ["admin"]), ("x" * 101, ["admin"]), ("a", []), ("a", ["root"])])
async def test_unusable_key_is_refused_with_a_reason(
    database: asyncpg.Connection, name: str, scopes: list[str]
) -> None:
    """A name that is no name, no scope, an unknown scope."""
    with pytest.raises(KeyRefusedError):
        await create_key(database, name=name, scopes=scopes)


async def test_use_of_a_key_is_noted(shop: Shop, database: asyncpg.Connection) -> None:
    """To the minute, some seconds later."""
    name = new_key()
    key = await create_key(database, name=name, scopes=["admin"])
    await shop.adjust(2**62, 1, Authorization=f"Bearer {key}")
    async with asyncio.timeout(15):
        while not await database.fetchval("select last_used_at from api_key where name = $1", name):
            await asyncio.sleep(0.1)
