"""The audit: who did what to what, appended in the command's own transaction. Sealed later (`atelier.access.sealer`).

The role `writer` may append and read, never change or delete.
"""

from collections.abc import Callable, Sequence
from typing import Any

import msgspec
from sqlalchemy import TextClause, text

from atelier.access.verify import Actor

Defer = Callable[[TextClause, dict[str, Any]], object]
"""Leaves a statement to the end of the command's transaction."""

_APPEND = text("""
insert into audit_entry (actor, key_id, command, command_key, target, status, before, after)
select * from unnest(cast(:actors as text[]), cast(:key_ids as bigint[]), cast(:commands as text[]),
                     cast(:command_keys as text[]), cast(:targets as text[]), cast(:statuses as smallint[]),
                     cast(:befores as text[]), cast(:afters as text[]))
""")


class Deed(msgspec.Struct, frozen=True):
    """One command that was decided.

    Attributes:
        actor: who asked, by which key.
        command: its name.
        command_key: the key that it was sent under.
        target: the address that it was sent to.
        status: what was answered.
        before: what it changed, as it was; None when there was nothing.
        after: the same as it is now.
    """

    actor: Actor
    command: str
    command_key: str
    target: str
    status: int
    before: Any
    after: Any


def append_deeds(defer: Defer, deeds: Sequence[Deed]) -> None:
    """Appends commands to the audit."""
    columns: dict[str, Any] = {
        "actors": [deed.actor.name for deed in deeds],
        "key_ids": [deed.actor.key_id for deed in deeds],
        "commands": [deed.command for deed in deeds],
        "command_keys": [deed.command_key for deed in deeds],
        "targets": [deed.target for deed in deeds],
        "statuses": [deed.status for deed in deeds],
        "befores": [_to_text(deed.before) for deed in deeds],
        "afters": [_to_text(deed.after) for deed in deeds],
    }
    defer(_APPEND, columns)


def _to_text(value: Any) -> str | None:
    return None if value is None else msgspec.json.encode(value).decode()
