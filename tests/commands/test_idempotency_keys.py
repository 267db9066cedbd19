"""Command keys over real HTTP: what is compared, what is kept, what is not, and what became of a command."""

import asyncio

import asyncpg
import pytest

from atelier.embedded.cluster import EmbeddedCluster
from atelier.writes.idempotency import lock_number
from tests.commands.conftest import Shop, new_key, product, wait_until_blocked
from tests.support import make_key, role_dsn

pytestmark = pytest.mark.anyio


async def test_same_key_gets_the_first_answer_again(shop: Shop, database: asyncpg.Connection) -> None:
    """Status, Location, ETag and body are the same, and the effect is there once."""
    key = new_key()
    first = await shop.post("/products", product(), Idempotency_Key=key)
    again = await shop.post("/products", product(), Idempotency_Key=key)
    assert (again.status_code, again.content) == (first.status_code, first.content)
    assert [again.headers[name] for name in ("Location", "ETag")] == [
        first.headers[name] for name in ("Location", "ETag")
    ]
    assert "Idempotency-Replayed" not in first.headers
    assert again.headers["Idempotency-Replayed"] == "true"
    assert "Atelier-Token" in again.headers
    assert await database.fetchval("select count(*) from audit_entry where command_key = $1", key) == 1


async def test_replay_carries_a_token_of_its_own_time(shop: Shop) -> None:
    """A read with it contains what happened since the first answer."""
    [sku_id] = await shop.stocked(0)
    key = new_key()
    first = await shop.adjust(sku_id, 1, Idempotency_Key=key)
    await shop.adjust(sku_id, 5)
    again = await shop.adjust(sku_id, 1, Idempotency_Key=key)
    assert again.json()["lines"][0]["on_hand"] == 1
    assert again.headers["Atelier-Token"] != first.headers["Atelier-Token"]
    assert (await shop.read(f"/inventory/{sku_id}", again)).json()["on_hand"] == 6


async def test_conflict_leaves_the_first_answer_where_it_is(shop: Shop) -> None:
    """422 is stored nowhere: the first request gets its answer again afterwards."""
    [sku_id] = await shop.stocked(0)
    key = new_key()
    await shop.adjust(sku_id, 1, Idempotency_Key=key)
    assert (await shop.adjust(sku_id, 2, Idempotency_Key=key)).status_code == 422
    again = await shop.adjust(sku_id, 1, Idempotency_Key=key)
    assert (again.status_code, again.headers["Idempotency-Replayed"]) == (200, "true")


async def test_refusals_that_are_outcomes_are_kept_too(shop: Shop) -> None:
    """404, 409 and 412 come again with the same key, also when the reason is gone."""
    [sku_id] = await shop.stocked(1)
    key = new_key()
    assert (await shop.adjust(sku_id, -2, Idempotency_Key=key)).status_code == 409
    assert (await shop.adjust(sku_id, 5)).status_code == 200
    again = await shop.adjust(sku_id, -2, Idempotency_Key=key)
    assert (again.status_code, again.headers["Idempotency-Replayed"]) == (409, "true")
    stale = new_key()
    path = f"/inventory/{sku_id}"
    assert (await shop.send("PUT", path, {"on_hand": 1}, If_Match='"1"', Idempotency_Key=stale)).status_code == 412
    again = await shop.send("PUT", path, {"on_hand": 1}, If_Match='"1"', Idempotency_Key=stale)
    assert (again.status_code, again.headers["Idempotency-Replayed"]) == (412, "true")
    unknown = new_key()
    for _ in range(2):
        missing = await shop.adjust(2**62, 1, Idempotency_Key=unknown)
        assert missing.status_code == 404
    assert missing.headers["Idempotency-Replayed"] == "true"


async def test_mistakes_leave_the_key_free(shop: Shop, cluster: EmbeddedCluster, database: asyncpg.Connection) -> None:
    """After 400, 401, 403, 413, 415 and 428 the same key may still carry a command."""
    [sku_id] = await shop.stocked(1)
    key = new_key()
    bad = {"reason": "x", "lines": [{"sku_id": sku_id, "delta": 0}]}
    assert (await shop.post("/inventory/adjustments", bad, Idempotency_Key=key)).status_code == 400
    huge = await shop.adjust(sku_id, 2**31 - 1, Idempotency_Key=key)
    assert (huge.status_code, huge.json()["field"]) == (400, "lines[0].delta")
    missing = await shop.send("PUT", f"/inventory/{sku_id}", {"on_hand": 4}, Idempotency_Key=key)
    assert missing.status_code == 428
    # Of the same owner, so that the key is the same: a text that is none of his keys, and a key without the scope.
    owner = await database.fetchval("select name from api_key where prefix = $1", _prefix(shop))
    wrong = shop.http.headers["Authorization"][:-43] + 43 * "x"
    assert (await shop.adjust(sku_id, 1, Idempotency_Key=key, Authorization=wrong)).status_code == 401
    other = f"Bearer {await make_key(cluster, name=owner, scopes=('catalogue:write',))}"
    assert (await shop.adjust(sku_id, 1, Idempotency_Key=key, Authorization=other)).status_code == 403
    for content, media_type, status in ((b" " * 1_048_577, "application/json", 413), (b"{}", "text/plain", 415)):
        headers = {"Idempotency-Key": key, "Content-Type": media_type}
        refused = await shop.http.post("/inventory/adjustments", content=content, headers=headers)
        assert refused.status_code == status
    assert (await shop.http.get(f"/commands/{key}")).status_code == 404
    done = await shop.adjust(sku_id, 1, Idempotency_Key=key)
    assert (done.status_code, "Idempotency-Replayed" in done.headers) == (200, False)


@pytest.mark.parametrize("change", ["method", "path", "query", "if-match", "body"])
async def test_another_request_under_the_same_key_is_a_conflict(shop: Shop, change: str) -> None:
    """What is compared: method, path, query, If-Match and the parsed body."""
    made = await shop.post("/products", product())
    path, key, tag = f"/products/{made.json()['id']}", new_key(), made.headers["ETag"]
    first = await shop.send("PUT", path, product(name="Cap"), If_Match=tag, Idempotency_Key=key)
    assert first.status_code == 200
    request = {"method": "PUT", "path": path, "body": product(name="Cap"), "If_Match": tag, "Idempotency_Key": key}
    request |= {
        "method": {"method": "PATCH"},
        "path": {"path": "/products/1"},
        "query": {"path": f"{path}?x=1"},
        "if-match": {"If_Match": "*"},
        "body": {"body": product(name="Hood")},
    }[change]
    refused = await shop.send(**request)
    assert (refused.status_code, refused.json()["type"]) == (422, "/problems/idempotency-conflict")


async def test_key_order_and_spaces_in_a_body_do_not_matter(shop: Shop) -> None:
    """The body is compared as it was understood, not byte by byte."""
    [sku_id] = await shop.stocked(1)
    key = new_key()
    assert (await shop.adjust(sku_id, 1, Idempotency_Key=key)).status_code == 200
    raw = f'{{"lines":[ {{"delta": 1, "sku_id": {sku_id}}} ],   "reason":"\\u0074est"}}'
    headers = {"Idempotency-Key": key, "Content-Type": "application/json; charset=utf-8"}
    again = await shop.http.post("/inventory/adjustments", content=raw, headers=headers)
    assert (again.status_code, again.headers["Idempotency-Replayed"]) == (200, "true")


async def test_keys_of_two_owners_never_meet(shop: Shop, cluster) -> None:
    """The same key under another API key's owner is another command."""
    [sku_id] = await shop.stocked(1)
    key = new_key()
    other = f"Bearer {await make_key(cluster, name=new_key())}"
    assert (await shop.adjust(sku_id, 1, Idempotency_Key=key)).status_code == 200
    mine = await shop.adjust(sku_id, 7, Idempotency_Key=key, Authorization=other)
    assert (mine.status_code, mine.json()["lines"][0]["on_hand"]) == (200, 9)
    elsewhere = await shop.http.get(f"/commands/{key}", headers={"Authorization": other})
    assert elsewhere.json()["body"]["lines"][0]["on_hand"] == 9


@pytest.mark.soak
async def test_key_that_is_held_is_in_flight(shop: Shop, database: asyncpg.Connection) -> None:
    """While another transaction holds the key, a duplicate and the resolver get 409 with Retry-After."""
    [sku_id] = await shop.stocked(1)
    key = new_key()
    owner = await database.fetchval("select name from api_key where prefix = $1", _prefix(shop))
    async with database.transaction():
        await database.execute("select pg_advisory_xact_lock($1)", lock_number(owner, key))
        refused = await shop.adjust(sku_id, 1, Idempotency_Key=key)
        asked = await shop.http.get(f"/commands/{key}")
        for answer in (refused, asked):
            assert (answer.status_code, answer.json()["type"]) == (409, "/problems/idempotency-in-flight")
            assert int(answer.headers["Retry-After"]) >= 1
    assert (await shop.http.get(f"/commands/{key}")).status_code == 404
    assert (await shop.adjust(sku_id, 1, Idempotency_Key=key)).status_code == 200


@pytest.mark.soak
async def test_key_that_has_an_outcome_is_answered_whoever_holds_it(shop: Shop, database: asyncpg.Connection) -> None:
    """Somebody else asks for it again at the same moment: that is no first request that still runs."""
    [sku_id] = await shop.stocked(1)
    key = new_key()
    first = await shop.adjust(sku_id, 1, Idempotency_Key=key)
    owner = await database.fetchval("select name from api_key where prefix = $1", _prefix(shop))
    async with database.transaction():
        await database.execute("select pg_advisory_xact_lock($1)", lock_number(owner, key))
        again = await shop.adjust(sku_id, 1, Idempotency_Key=key)
        assert (again.status_code, again.headers.get("Idempotency-Replayed"), again.json()) == (
            200,
            "true",
            first.json(),
        )
        assert (await shop.adjust(sku_id, 2, Idempotency_Key=key)).status_code == 422
        assert (await shop.http.get(f"/commands/{key}")).json() == {"status": 200, "body": first.json()}


@pytest.mark.soak
async def test_key_that_commits_while_it_is_being_claimed_is_found(
    shop: Shop, cluster: EmbeddedCluster, database: asyncpg.Connection
) -> None:
    """The claim began before that commit and gets the lock after it: it must not look with eyes from before it."""
    [sku_id] = await shop.stocked(5)
    key, gate = new_key(), 77
    owner = await database.fetchval("select name from api_key where prefix = $1", _prefix(shop))
    await database.execute("select pg_advisory_lock($1)", gate)
    claiming = await asyncpg.connect(role_dsn(cluster, "writer"))
    try:
        # The snapshot of the whole statement is taken, then its arguments wait.
        claim = asyncio.create_task(
            claiming.fetchrow(
                "select held, status from claim_command_keys($1, $2, "
                "(select array[$3::bigint] from (select pg_advisory_xact_lock($4)) as gate))",
                [owner], [key], lock_number(owner, key), gate,
            )
        )  # fmt: skip
        await wait_until_blocked(database)
        assert (await shop.adjust(sku_id, 1, Idempotency_Key=key)).status_code == 200
        await database.execute("select pg_advisory_unlock($1)", gate)
        assert tuple(await claim) == (True, 200)
    finally:
        claiming.terminate()


async def test_resolver_tells_what_became_of_a_command(shop: Shop) -> None:
    """Nothing recorded is 404; a recorded command gives its status and body, an empty body as null."""
    key = new_key()
    assert (await shop.http.get(f"/commands/{key}")).status_code == 404
    made = await shop.post("/products", product(), Idempotency_Key=key)
    found = await shop.http.get(f"/commands/{key}")
    assert (found.status_code, found.json()) == (200, {"status": 201, "body": made.json()})
    assert "Atelier-Token" in found.headers
    gone = new_key()
    assert (await shop.send("DELETE", made.headers["Location"], Idempotency_Key=gone)).status_code == 204
    assert (await shop.http.get(f"/commands/{gone}")).json() == {"status": 204, "body": None}


@pytest.mark.soak
async def test_one_of_many_duplicates_at_once_has_an_effect(shop: Shop) -> None:
    """Fifty at the same time: all are answered as done or as in flight, and one was applied."""
    [sku_id] = await shop.stocked(0)
    key = new_key()
    answers = await asyncio.gather(*(shop.adjust(sku_id, 1, Idempotency_Key=key) for _ in range(50)))
    assert {answer.status_code for answer in answers} <= {200, 409}
    assert sum("Idempotency-Replayed" not in answer.headers for answer in answers if answer.is_success) == 1
    assert (await shop.adjust(sku_id, 1)).json()["lines"][0]["on_hand"] == 2


@pytest.mark.parametrize("key", ["", "a b", "ä", "x" * 256, "a/b"])
async def test_malformed_key_is_a_bad_request(shop: Shop, key: str) -> None:
    """1..255 of A-Z a-z 0-9 - _ ~ : and ."""
    [sku_id] = await shop.stocked(0)
    headers = {"Idempotency-Key": key.encode("latin-1")}
    body = {"reason": "x", "lines": [{"sku_id": sku_id, "delta": 1}]}
    refused = await shop.http.post("/inventory/adjustments", json=body, headers=headers)
    assert refused.status_code == 400


async def test_post_without_a_key_is_refused(shop: Shop) -> None:
    """400 idempotency-key-missing; PUT, PATCH and DELETE do without."""
    refused = await shop.http.post("/products", json=product())
    assert (refused.status_code, refused.json()["type"]) == (400, "/problems/idempotency-key-missing")


def _prefix(shop: Shop) -> str:
    return shop.http.headers["Authorization"].split("_")[1]
