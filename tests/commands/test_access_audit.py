"""The audit: written with every command, sealed within seconds, and a change of it shows."""

import asyncio
import hashlib
import json
import os
import subprocess
import sys
import time
from collections import Counter
from typing import Any

import asyncpg
import httpx
import pytest
from structlog.testing import capture_logs

from atelier.access.sealer import AuditReport, seal_entries, verify_audit
from atelier.deadline import Deadline
from atelier.embedded.cluster import EmbeddedCluster
from atelier.lsn import Lsn
from atelier.token import CausalToken, TokenKeys
from atelier.writes.endpoints import ENDPOINTS, Endpoint
from atelier.writes.policy import WritePolicy
from atelier.writes.unit_of_work import UnitOfWork
from tests.commands.conftest import Shop, new_key, product, style
from tests.commands.writing import adjustment, make_order, open_gateway, open_writes, settings_of
from tests.support import Service, role_dsn

pytestmark = pytest.mark.anyio


async def wait_until_sealed(database: asyncpg.Connection, entry_id: int) -> None:
    """Waits until an entry has a seal."""
    sealed = "select count(*) from audit_seal where last_entry_id >= $1"
    async with asyncio.timeout(10):
        while not await database.fetchval(sealed, entry_id):
            await asyncio.sleep(0.05)


async def seal_of(database: asyncpg.Connection, entry_id: int) -> asyncpg.Record:
    """The seal over an entry."""
    return await database.fetchrow(
        "select * from audit_seal where last_entry_id >= $1 order by seal_id limit 1", entry_id
    )


def read(text: str | None) -> Any:
    """A document of an entry."""
    return None if text is None else json.loads(text)


async def entry_of(database: asyncpg.Connection, key: str) -> asyncpg.Record:
    """The audit entry of a command."""
    return await database.fetchrow("select * from audit_entry where command_key = $1", key)


PHOTO = {"url": "https://images.example.com/1.jpg", "thumbnail_url": "https://images.example.com/1t.jpg"}


class Stage:
    """A product with all that a product can have, and what commands are sent about it."""

    def __init__(self, shop: Shop) -> None:
        self.shop = shop
        self.ids: dict[str, int] = {}

    async def set_up(self) -> None:
        """Makes it, another one that it is related to, one that names it, and a reservation of its stock."""
        friend = (await self.shop.post("/products", product())).json()["id"]
        body = product(
            features=[{"feature": "Wool", "value": None}], related=[friend], styles=[style(5, 3, photos=[PHOTO])]
        )
        made = await self.shop.post("/products", body)
        self.ids |= {"friend": friend, "product_id": made.json()["id"]}
        referring = await self.shop.post("/products", product(related=[self.ids["product_id"]]))
        self.ids["referring"] = referring.json()["id"]
        shown = (await self.shop.read(f"/products/{self.ids['product_id']}/styles", made)).json()["results"][0]
        self.ids |= {"style_id": shown["style_id"], "sku_id": int(next(iter(shown["skus"])))}

    async def hold(self) -> None:
        """Reserves one of its SKUs."""
        held = await self.shop.reserve((self.ids["sku_id"], 2))
        self.ids["reservation_id"] = held.json()["reservation_id"]

    async def look(self, path: str) -> Any:
        """What a read shows now; nothing where there is nothing."""
        shown = await self.shop.http.get(path, headers={"Atelier-Consistency": "strong"})
        return shown.json() if shown.status_code == 200 else None

    async def whole(self, product_id: int, *, related_of: list[int]) -> Any:
        """A product as the audit keeps it whole, put together from all that reads show of it."""
        path = f"/products/{product_id}"
        shown = await self.shop.http.get(path, headers={"Atelier-Consistency": "strong"})
        if shown.status_code == 404:
            return None
        styles = (await self.look(f"{path}/styles"))["results"]
        for one in styles:
            one["default?"] = bool(one["default?"])
            one["sale_price"] = None if one["sale_price"] == "0" else one["sale_price"]
            one["photos"] = [photo for photo in one["photos"] if photo["url"]]
            one["skus"] = [
                {"sku_id": int(sku_id), "size": sku["size"], "on_hand": sku["quantity"], "reserved": 0}
                for sku_id, sku in one["skus"].items()
            ]
        return shown.json() | {
            "version": int(shown.headers["ETag"].strip('"')),
            "related": await self.look(f"{path}/related"),
            "related_of": related_of,
            "styles": styles,
        }

    async def sku(self, sku_id: int) -> Any:
        """A SKU as the audit keeps it."""
        stock = await self.look(f"/inventory/{sku_id}")
        sizes = (await self.look(f"/styles/{self.ids['style_id']}"))["skus"]
        if stock is None:
            return None
        kept = {name: stock[name] for name in ("sku_id", "on_hand", "reserved", "version")}
        return kept | {"style_id": self.ids["style_id"], "size": sizes[str(sku_id)]["size"]}


def request_of(name: str, ids: dict[str, int]) -> tuple[Any, str | None]:
    """A body for a command, and the address that shows what it is about; None where no single one does."""
    product_path, style_path = f"/products/{ids['product_id']}", f"/styles/{ids['style_id']}"
    lines = [{"sku_id": ids["sku_id"], "delta": -2}]
    held = f"/reservations/{ids['reservation_id']}" if "reservation_id" in ids else None
    return {
        "AdjustStock": ({"reason": "test", "lines": lines}, None),
        "CountStock": ({"on_hand": 9}, f"/inventory/{ids['sku_id']}"),
        "ReserveStock": ({"ttl_seconds": 60, "lines": [{"sku_id": ids["sku_id"], "quantity": 1}]}, None),
        "ConfirmReservation": (None, held),
        "ReleaseReservation": (None, held),
        "CreateProduct": (product(related=[ids["friend"]], styles=[style(5, photos=[PHOTO]), style(1)]), None),
        "ReplaceProduct": (product(name="Cap"), product_path),
        "PatchProduct": ({"name": "Cap"}, product_path),
        "DeleteProduct": (None, None),
        "ReplaceFeatures": ([{"feature": "Silk", "value": "Yes"}], None),
        "ReplaceRelated": ([ids["product_id"]], f"{product_path}/related"),
        "CreateStyle": (style(4, name="Blue", photos=[PHOTO], **{"default?": False}), None),
        "PatchStyle": ({"name": "Green"}, style_path),
        "DeleteStyle": (None, style_path),
        "ReplacePhotos": ([], style_path),
        "CreateSku": ({"size": "XL", "quantity": 2}, None),
        "DeleteSku": (None, None),
    }[name]


COMMANDS = {
    "/inventory/adjustments": "AdjustStock", "/inventory/{sku_id}": "CountStock", "/reservations": "ReserveStock",
    "/reservations/{reservation_id}/confirm": "ConfirmReservation",
    "/reservations/{reservation_id}/release": "ReleaseReservation",
    "/products": "CreateProduct", "PUT /products/{product_id}": "ReplaceProduct",
    "PATCH /products/{product_id}": "PatchProduct", "DELETE /products/{product_id}": "DeleteProduct",
    "/products/{product_id}/features": "ReplaceFeatures", "/products/{product_id}/related": "ReplaceRelated",
    "/products/{product_id}/styles": "CreateStyle", "PATCH /styles/{style_id}": "PatchStyle",
    "DELETE /styles/{style_id}": "DeleteStyle", "/styles/{style_id}/photos": "ReplacePhotos",
    "/styles/{style_id}/skus": "CreateSku", "/skus/{sku_id}": "DeleteSku",
}  # fmt: skip


async def look_at(stage: Stage, command: str, shown_at: str | None, answer: httpx.Response | None = None) -> Any:
    """What a command is about, as reads show it: before it, or with its answer, afterwards."""
    ids = stage.ids
    shown: Any = None
    match command:
        case "AdjustStock":
            shown = [await stage.look(f"/inventory/{ids['sku_id']}")]
        case "CreateProduct" if answer:
            shown = await stage.whole(answer.json()["id"], related_of=[])
        case "CreateSku" if answer:
            shown = await stage.sku(answer.json()["sku_id"])
        case "ReserveStock" | "CreateStyle" if answer:
            shown = await stage.look(answer.headers["Location"])
        case "DeleteProduct":
            shown = await stage.whole(ids["product_id"], related_of=[ids["referring"]])
        case "DeleteSku":
            shown = await stage.sku(ids["sku_id"])
        case "ReplaceFeatures":
            shown = (await stage.look(f"/products/{ids['product_id']}"))["features"]
        case _ if shown_at:
            shown = await stage.look(shown_at)
    return shown


@pytest.mark.parametrize("endpoint", ENDPOINTS, ids=lambda one: f"{one.method} {one.path}")
async def test_every_command_leaves_actor_target_before_and_after(
    service: Service, shop: Shop, database: asyncpg.Connection, endpoint: Endpoint
) -> None:
    """Committed with the command: whose key it was, and what it was about as reads show it before and afterwards."""
    command = COMMANDS.get(endpoint.path) or COMMANDS[f"{endpoint.method} {endpoint.path}"]
    stage = Stage(shop)
    await stage.set_up()
    if "reservation_id" in endpoint.path:
        await stage.hold()
    body, shown_at = request_of(command, stage.ids)
    before = await look_at(stage, command, shown_at)
    stood_at = await database.fetchval("select pg_current_wal_insert_lsn()")
    key, path = new_key(), endpoint.path.format(**stage.ids)
    headers = {"If_Match": "*"} if endpoint.needs_if_match else {}
    answer = await shop.send(endpoint.method, path, body, Idempotency_Key=key, **headers)
    assert answer.status_code == endpoint.success, answer.text
    after = await look_at(stage, command, shown_at, answer)
    entry = await entry_of(database, key)
    owner = await database.fetchrow("select key_id, name from api_key where prefix = $1", service.key.split("_")[1])
    assert (entry["command"], entry["target"], entry["status"]) == (command, path, endpoint.success)
    assert (entry["key_id"], entry["actor"]) == (owner["key_id"], owner["name"])
    assert (read(entry["before"]), read(entry["after"])) == (before, after)
    assert Lsn(stood_at) <= Lsn(entry["position"])


async def test_refused_command_leaves_its_status_and_nothing_else(shop: Shop, database: asyncpg.Connection) -> None:
    """It changed nothing, and who tried it is known."""
    [sku_id] = await shop.stocked(5)
    key = new_key()
    await shop.adjust(sku_id, -9, Idempotency_Key=key)
    entry = await entry_of(database, key)
    assert entry["actor"].startswith("test-")
    assert (entry["status"], entry["before"], entry["after"]) == (409, None, None)


@pytest.mark.parametrize("how", ["patched", "added"])
async def test_style_that_becomes_the_default_leaves_the_one_before_it_in_the_audit(
    shop: Shop, database: asyncpg.Connection, how: str
) -> None:
    """That one was changed as well, by the same command."""
    made = (await shop.post("/products", product(styles=[style(1), style(2, **{"default?": False})]))).json()["id"]
    first, second = (entry["style_id"] for entry in (await shop.http.get(f"/products/{made}/styles")).json()["results"])
    key = new_key()
    if how == "patched":
        await shop.send("PATCH", f"/styles/{second}", {"default?": True}, Idempotency_Key=key)
        became = second
    else:
        added = await shop.post(f"/products/{made}/styles", style(), Idempotency_Key=key)
        became = int(added.headers["Location"].rpartition("/")[2])
    entry = await entry_of(database, key)
    before, after = (
        {shown["style_id"]: shown["default?"] for shown in read(entry[column])} for column in ("before", "after")
    )
    assert (before[first], after) == (1, {became: 1, first: 0})


async def test_seal_is_over_the_entries_as_json_whatever_they_hold(
    shop: Shop, database: asyncpg.Connection, cluster: EmbeddedCluster
) -> None:
    """Reckoned anew here from the columns: every character up to U+07FF, quotes and all, in every text of an entry."""
    odd = "".join(map(chr, range(1, 0x800))) + "\u2028\U0001f9e2"
    key = new_key()
    await database.execute(
        "insert into audit_entry (actor, key_id, command, command_key, target, status, before, after) "
        "values ($1, 1, $1, $2, $1, 200, $1, null), ($1, -1, '', '', '', 0, null, $1)",
        odd, key,
    )  # fmt: skip
    entry = await entry_of(database, key)
    await wait_until_sealed(database, entry["entry_id"])
    seal = await seal_of(database, entry["entry_id"])
    earlier = await database.fetchrow("select * from audit_seal where seal_id = $1", seal["seal_id"] - 1)
    entries = await database.fetch(
        "select entry_id, xid::text, (extract(epoch from at) * 1000000)::bigint, position::text, actor, key_id, "
        "command, command_key, target, status, before, after from audit_entry "
        "where (xid, entry_id) > ($1, $2) and (xid, entry_id) <= ($3, $4) order by audit_entry.xid, entry_id",
        *((earlier["last_xid"], earlier["last_entry_id"]) if earlier else (0, 0)),
        seal["last_xid"], seal["last_entry_id"],
    )  # fmt: skip
    assert len(entries) == seal["entries"] >= 2
    hasher = hashlib.sha256(earlier["hash"] if earlier else bytes(32))
    for sealed in (*map(tuple, entries), (seal["system_id"], seal["timeline"], str(Lsn(seal["position"])))):
        text = json.dumps(sealed, ensure_ascii=False, separators=(",", ":")).encode()
        hasher.update(len(text).to_bytes(4, "big") + text)
    assert seal["hash"] == hasher.digest()


async def test_position_of_a_seal_makes_a_token_that_contains_its_entries(
    shop: Shop, database: asyncpg.Connection, cluster: EmbeddedCluster
) -> None:
    """The command's own token lies between what its entry and its seal say, and a read with theirs shows it."""
    [sku_id] = await shop.stocked(5)
    key = new_key()
    done = await shop.adjust(sku_id, -2, Idempotency_Key=key)
    entry = await entry_of(database, key)
    await wait_until_sealed(database, entry["entry_id"])
    seal = await seal_of(database, entry["entry_id"])
    keys = TokenKeys(settings_of(cluster).token_keys)
    given = keys.open(done.headers["Atelier-Token"])
    assert (seal["system_id"], seal["timeline"]) == (given.system_id, given.timeline)
    assert Lsn(entry["position"]) < given.lsn
    assert Lsn(entry["position"]) < Lsn(seal["position"])
    made = keys.seal(CausalToken(seal["system_id"], seal["timeline"], Lsn(seal["position"])))
    shown = await shop.http.get(f"/inventory/{sku_id}", headers={"Atelier-Token": made})
    assert (shown.status_code, shown.json()["on_hand"]) == (200, 3)


_DOES_NOT_FIT = "does not fit its entries"
# What somebody might do who may change the tables: to the entry, and to the seal that is over it and has one behind it.
TAMPERING = {
    "an entry is changed": ("update audit_entry set actor = 'nobody' where entry_id = {entry}", _DOES_NOT_FIT),
    "an entry has another id": (
        "update audit_entry set entry_id = -entry_id where entry_id = {entry}", _DOES_NOT_FIT
    ),
    "an entry is taken out": (
        "delete from audit_entry where entry_id = {entry}", "made over {all} entries, now there are {fewer}"
    ),
    "an entry is slipped in": (
        """
        insert into audit_entry (entry_id, xid, at, position, actor, key_id, command, command_key, target, status)
        select -entry_id, xid, at, position, actor, key_id, command, command_key, target, status
          from audit_entry where entry_id = {entry}
        """,
        "made over {all} entries, now there are {more}",
    ),
    "a position is changed": ("update audit_seal set position = '0/8' where seal_id = {seal}", _DOES_NOT_FIT),
    "a position is taken away": (
        "update audit_seal set system_id = null, timeline = null, position = null where seal_id = {seal}",
        _DOES_NOT_FIT,
    ),
    "a seal is taken out": (
        "delete from audit_seal where seal_id = {seal}", "seal {seal} is missing: {next} comes next"
    ),
}  # fmt: skip


@pytest.mark.soak
@pytest.mark.parametrize("tampering", TAMPERING)
async def test_chain_holds_and_breaks_where_somebody_has_changed_it(
    service: Service, database: asyncpg.Connection, cluster: EmbeddedCluster, tampering: str
) -> None:
    """Sealed within seconds; whoever may change the tables is caught by the chain."""
    first = await add_entries(database, new_key(), 10, 20, 30)
    await wait_until_sealed(database, first)
    await wait_until_sealed(database, await add_entries(database, new_key(), 10))
    seal = await seal_of(database, first)
    names = {"entry": first - 1, "seal": seal["seal_id"], "next": seal["seal_id"] + 1}
    names |= {"all": seal["entries"], "fewer": seal["entries"] - 1, "more": seal["entries"] + 1}
    statement, problem = (text.format(**names) for text in TAMPERING[tampering])
    admin = await asyncpg.connect(
        cluster.superuser_dsn(cluster.primary.name), database="atelier", server_settings={"search_path": "atelier"}
    )
    try:
        tried = admin.transaction(isolation="repeatable_read")
        await tried.start()
        report = await verify_audit(admin)
        assert (report.broken, report.entries > 3, report.newest_hash is not None) == ([], True, True)
        assert (await admin.execute(statement)).endswith(" 1")
        broken = (await verify_audit(admin)).broken
        await tried.rollback()
    finally:
        await admin.close()
    assert problem in broken[0]
    # A seal that is gone is the link of the next one, too, and leaves its entries to it.
    assert {line.split()[1] for line in broken} <= {str(names["seal"]), str(names["next"])}


async def add_entries(database: asyncpg.Connection, key: str, *sizes: int) -> int:
    """Adds entries that have two documents of so many bytes each, in one transaction; gives the last one's id."""
    return await database.fetchval(
        "with added as (insert into audit_entry (actor, key_id, command, command_key, target, status, before, after) "
        "select 'till', 1, 'Test', $1, '/', 200, repeat('x', size), repeat('y', size) from unnest($2::int[]) as size "
        "returning entry_id) select max(entry_id) from added",
        key, sizes,
    )  # fmt: skip


async def verify_with(database: asyncpg.Connection, entry_ids: set[int]) -> AuditReport:
    """Looks at the chain as soon as it has these entries too: their ids are not in the order of their transactions."""
    async with asyncio.timeout(10):
        while entry_ids & set((report := await verify_audit(database)).unsealed):
            await asyncio.sleep(0.05)
    return report


@pytest.mark.parametrize(
    ("sizes", "most"), [([750_000] * 6, 3), ([2_500_000, 100, 2_500_000, 100], 2)], ids=["many", "one-beyond-the-cut"]
)
async def test_large_entries_are_sealed_a_few_at_a_time(
    service: Service, database: asyncpg.Connection, sizes: list[int], most: int
) -> None:
    """All of them wait at once, and a seal ends with the entry that reaches four megabytes; all get one in the end."""
    key = new_key()
    await wait_until_sealed(database, await add_entries(database, key, *sizes))
    seals = await database.fetch(
        "select (select min(seal_id) from audit_seal where (last_xid, last_entry_id) >= (xid, entry_id)) as seal_id "
        "from audit_entry where command_key = $1",
        key,
    )
    entries = Counter(row["seal_id"] for row in seals)
    assert (entries[None], entries.total()) == (0, len(sizes))
    assert max(entries.values()) <= most < len(sizes)
    assert (await verify_audit(database)).broken == []


async def test_second_sealer_passes_while_another_has_the_turn(
    service: Service, cluster: EmbeddedCluster, database: asyncpg.Connection
) -> None:
    """It finds nothing to do although entries wait for a seal, and does not wait for the turn."""
    deadline, sealed = Deadline.after(20, time.monotonic), 0
    async with open_gateway(settings_of(cluster), connections=2) as gateway, asyncio.timeout(20):
        while not sealed:  # the service may be quicker
            await add_entries(database, new_key(), 10)
            async with UnitOfWork(gateway, deadline) as first:
                sealed = await seal_entries(first.execute)
                if sealed:
                    unsealed = (await verify_audit(database)).unsealed
                    async with UnitOfWork(gateway, deadline) as second:
                        assert await seal_entries(second.execute) == 0
                    await first.commit()
    assert unsealed
    assert (await verify_with(database, set(unsealed))).broken == []


@pytest.mark.soak
async def test_two_services_seal_every_entry_once_in_one_chain(
    shop: Shop, database: asyncpg.Connection, cluster: EmbeddedCluster
) -> None:
    """Each looks for entries all the time, and neither fails over what the other does."""
    [sku_id] = await shop.stocked(5)
    settings, policy = settings_of(cluster), WritePolicy(seal_interval_s=0.001)
    keys = [new_key() for _ in range(60)]
    with capture_logs() as logs:
        async with open_writes(settings, policy) as one, open_writes(settings, policy) as other:
            for turn in range(0, len(keys), 4):
                orders = [make_order(adjustment((sku_id, 1)), key=key) for key in keys[turn : turn + 4]]
                services = [one, other] * 2
                await asyncio.gather(*(by.submit(order) for by, order in zip(services, orders, strict=True)))
            rows = await database.fetch("select entry_id from audit_entry where command_key = any($1)", keys)
            report = await verify_with(database, {row["entry_id"] for row in rows})
    assert len(rows) == len(keys)
    assert report.broken == []
    assert [line for line in logs if line.get("chore") == "seal-audit"] == []


class SlowReader(asyncpg.Connection):
    """Takes so long over a seal that the server ends the transaction that another session has begun meanwhile."""

    other: asyncpg.Connection

    async def fetchrow(self, *args: Any, **options: Any) -> Any:
        """Reads what lies under a seal; over the first one it takes its time."""
        if not self.other.is_closed():
            await self.other.execute("begin")
            async with asyncio.timeout(20):
                while not self.other.is_closed():
                    await asyncio.sleep(0.01)
        return await super().fetchrow(*args, **options)


async def test_verification_may_take_longer_than_a_transaction(
    service: Service, database: asyncpg.Connection, cluster: EmbeddedCluster
) -> None:
    """A chain grows for years, and the server ends a transaction of this role after half a minute."""
    await wait_until_sealed(database, await add_entries(database, new_key(), 10))
    reader = await asyncpg.connect(role_dsn(cluster, "writer"), connection_class=SlowReader)
    reader.other = await asyncpg.connect(role_dsn(cluster, "writer"))
    try:
        for session in (reader, reader.other):
            await session.execute("set transaction_timeout = '1s'")
        report = await verify_audit(reader)
    finally:
        await reader.close()
    assert reader.other.is_closed()
    assert (report.broken, report.seals > 0) == ([], True)


def run_verify(cluster: EmbeddedCluster) -> "subprocess.CompletedProcess[str]":
    """`atelier audit verify`, as an operator runs it."""
    environ = {key: value for key, value in os.environ.items() if not key.startswith("ATELIER_")}
    command = [sys.executable, "-P", "-m", "atelier.cli.main", "audit", "verify"]
    return subprocess.run(
        command, env=environ | cluster.environment(), capture_output=True, text=True, timeout=60, check=False
    )


async def test_operator_is_told_what_is_sealed_what_is_not_yet_and_what_is_broken(
    shop: Shop, database: asyncpg.Connection, cluster: EmbeddedCluster
) -> None:
    """A transaction that is open holds the sealing up: what it may still precede is named, not passed over."""
    [sku_id] = await shop.stocked(5)
    early, late = new_key(), new_key()
    await shop.adjust(sku_id, -1, Idempotency_Key=early)
    entry = await entry_of(database, early)
    await wait_until_sealed(database, entry["entry_id"])
    admin = await asyncpg.connect(cluster.superuser_dsn(cluster.primary.name), database="atelier")
    try:
        async with admin.transaction():
            await admin.execute("select pg_current_xact_id()")
            await shop.adjust(sku_id, -1, Idempotency_Key=late)
            waiting = await entry_of(database, late)
            told = await asyncio.to_thread(run_verify, cluster)
        assert told.returncode == 0, told.stderr
        assert "sealed: " in told.stdout
        [line] = [line for line in told.stdout.splitlines() if line.startswith("not sealed yet: ")]
        assert str(waiting["entry_id"]) in line
        await wait_until_sealed(database, waiting["entry_id"])
        change = "update atelier.audit_entry set status = $2 where entry_id = $1"
        await admin.execute(change, entry["entry_id"], 500)
        told = await asyncio.to_thread(run_verify, cluster)
        await admin.execute(change, entry["entry_id"], entry["status"])
    finally:
        await admin.close()
    assert (told.returncode, told.stderr.count("broken: ")) == (1, 1), told.stderr
    assert "Traceback" not in told.stderr
