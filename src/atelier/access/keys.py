"""API keys as the operator handles them: made, listed, revoked. The text of a key is shown once and stored nowhere."""

import hashlib
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

import asyncpg

from atelier.errors import AtelierError

SCOPES = ("catalogue:write", "inventory:write", "admin")

PREFIX_LENGTH = 8
_SECRET_BYTES = 32
_PREFIX_ALPHABET = "abcdefghijkmnpqrstuvwxyz23456789"
_LONGEST_NAME = 100
_TABLE = "atelier.api_key"

_INSERT = f"""
insert into {_TABLE} (name, prefix, digest, scopes, expires_at) values ($1, $2, $3, $4, $5)
"""
_LIST = f"""
select key_id, name, prefix, scopes, created_at, expires_at, revoked_at, last_used_at
  from {_TABLE} order by key_id
"""
_REVOKE = f"""
update {_TABLE} set revoked_at = clock_timestamp()
 where (prefix = $1 or name = $1) and revoked_at is null
returning prefix
"""


class KeyRefusedError(AtelierError):
    """An API key cannot be made or revoked like this."""


@dataclass(frozen=True, slots=True)
class KeySummary:
    """What may be shown of a key.

    Attributes:
        key_id: its number.
        name: the owner; command keys are unique per owner, also over several API keys of one name.
        prefix: the part of its text that tells it from others.
        scopes: what it may do.
        created_at: when it was made.
        expires_at: when it ends by itself; None for never.
        revoked_at: when it was revoked; None while it is valid.
        last_used_at: to the minute, for a command or to ask what became of one; None when never. Reads, which
            replicas answer, are not noted.
    """

    key_id: int
    name: str
    prefix: str
    scopes: tuple[str, ...]
    created_at: datetime
    expires_at: datetime | None
    revoked_at: datetime | None
    last_used_at: datetime | None

    def state_at(self, now: datetime) -> str:
        """`valid`, `expired` or `revoked`."""
        if self.revoked_at is not None:
            return "revoked"
        return "valid" if self.expires_at is None or now < self.expires_at else "expired"


async def create_key(
    connection: asyncpg.Connection, *, name: str, scopes: Sequence[str], expires_at: datetime | None = None
) -> str:
    """Makes an API key: `atl_`, 8 characters to tell it by, `_`, and 256 random bits as 43 base64url characters.

    Args:
        connection: to the primary, as a role that may insert into `api_key`.
        name: the owner, 1 to 100 characters.
        scopes: some of `SCOPES`.
        expires_at: when it ends by itself; None for never.

    Returns:
        The key. Only its SHA-256 is stored.

    Raises:
        KeyRefusedError: the name or a scope is wrong.
    """
    _check(name, scopes)
    prefix = "".join(secrets.choice(_PREFIX_ALPHABET) for _ in range(PREFIX_LENGTH))
    text = f"atl_{prefix}_{secrets.token_urlsafe(_SECRET_BYTES)}"
    await connection.execute(_INSERT, name, prefix, digest(text), sorted(set(scopes)), expires_at)
    return text


async def list_keys(connection: asyncpg.Connection) -> list[KeySummary]:
    """All keys that were ever made, oldest first, also the revoked ones."""
    rows = await connection.fetch(_LIST)
    return [KeySummary(**{**row, "scopes": tuple(row["scopes"])}) for row in rows]


async def revoke_key(connection: asyncpg.Connection, which: str) -> list[str]:
    """Revokes a key by its prefix, or all keys of a name; every process refuses them within a second.

    Returns:
        The prefixes of what was revoked.

    Raises:
        KeyRefusedError: no valid key has that prefix or name.
    """
    rows = await connection.fetch(_REVOKE, which)
    if not rows:
        raise KeyRefusedError(f"no valid key has the prefix or name {which[:_LONGEST_NAME]!r}")
    return [row["prefix"] for row in rows]


def digest(text: str) -> bytes:
    """What is stored of a key. One round of SHA-256 is enough for 256 random bits: there is nothing to guess."""
    return hashlib.sha256(text.encode()).digest()


def _check(name: str, scopes: Sequence[str]) -> None:
    if not 0 < len(name) <= _LONGEST_NAME or not name.isprintable():
        raise KeyRefusedError(f"a key's name has 1 to {_LONGEST_NAME} printable characters")
    if not scopes:
        raise KeyRefusedError(f"a key needs at least one scope of {', '.join(SCOPES)}")
    for scope in scopes:
        if scope not in SCOPES:
            raise KeyRefusedError(f"{scope!r} is no scope; there are {', '.join(SCOPES)}")
