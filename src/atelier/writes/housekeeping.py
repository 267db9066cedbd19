"""Removes what is older than was promised to be kept: command keys and announced changes, in short transactions."""

from sqlalchemy import TextClause, text

from atelier.deadline import Deadline
from atelier.writes.primary import PrimaryGateway
from atelier.writes.unit_of_work import UnitOfWork

_BATCH = 2_000

# One process prunes keys at a time, and one changes. The others pass: two would only wait for each other's rows.
_KEYS_TURN, _CHANGES_TURN = 5, 6
_TAKE_TURN = text("select pg_try_advisory_xact_lock(6386796, cast(:turn as integer)) as is_ours")

_PRUNE_KEYS = text("""
delete from command_key using (
    select owner, key from command_key
     where created_at < (select clock_timestamp()) - make_interval(secs => :kept_s)
     order by created_at limit :batch
) as old
 where command_key.owner = old.owner and command_key.key = old.key
returning 1
""")
# Always from the low end, so that what is left has no hole; readers who are further behind learn it from the floor.
_PRUNE_CHANGES = text("""
with gone as (
    delete from outbox using (
        select position from outbox
         where at < (select clock_timestamp()) - make_interval(secs => :kept_s)
         order by position limit :batch
    ) as old
     where outbox.position = old.position
    returning outbox.position
), raised as (
    update outbox_floor set position = highest
      from (select max(position) as highest from gone) as found where highest > outbox_floor.position
)
select 1 from gone
""")
_TOUCH_KEYS = text("""
update api_key set last_used_at = date_trunc('minute', clock_timestamp())
 where key_id = any(cast(:ids as bigint[]))
   and last_used_at is distinct from date_trunc('minute', clock_timestamp())
""")


async def prune_keys(gateway: PrimaryGateway, deadline: Deadline, *, kept_s: int) -> int:
    """Forgets command keys after `kept_s` seconds; returns how many."""
    return await _prune(gateway, deadline, _KEYS_TURN, _PRUNE_KEYS, kept_s=kept_s)


async def prune_changes(gateway: PrimaryGateway, deadline: Deadline, *, kept_s: int) -> int:
    """Forgets announced changes after `kept_s` seconds; returns how many."""
    return await _prune(gateway, deadline, _CHANGES_TURN, _PRUNE_CHANGES, kept_s=kept_s)


async def touch_keys(gateway: PrimaryGateway, deadline: Deadline, *, key_ids: set[int]) -> None:
    """Notes, to the minute, that API keys were used."""
    if not key_ids:
        return
    async with UnitOfWork(gateway, deadline) as uow:
        await uow.execute(_TOUCH_KEYS, {"ids": sorted(key_ids)})
        await uow.commit()


async def _prune(gateway: PrimaryGateway, deadline: Deadline, turn: int, statement: TextClause, *, kept_s: int) -> int:
    """Runs a deleting statement until it finds less than a batch."""
    pruned = 0
    while True:
        async with UnitOfWork(gateway, deadline) as uow:
            if not (await uow.execute(_TAKE_TURN, {"turn": turn}))[0].is_ours:
                return pruned
            removed = len(await uow.execute(statement, {"kept_s": float(kept_s), "batch": _BATCH}))
            if removed:
                await uow.commit()
        pruned += removed
        if removed < _BATCH:
            return pruned
