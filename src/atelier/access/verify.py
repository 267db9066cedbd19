"""From an `Authorization` header to an actor. Deny by default; the database is asked through an injected function."""

import asyncio
import hmac
import re
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import datetime

import msgspec

from atelier.access.keys import PREFIX_LENGTH, digest
from atelier.deadline import Clock, Deadline
from atelier.errors import DeadlineExceededError
from atelier.problems import ProblemError

_BEARER = re.compile(
    rf"bearer +(?P<text>atl_(?P<prefix>[a-z0-9]{{{PREFIX_LENGTH}}})_[A-Za-z0-9_-]{{43}}) *", re.ASCII | re.IGNORECASE
)

# A revoked key must be refused within a second, replay lag included.
KEY_CACHED_S = 0.4
_LARGEST_CACHE = 10_000

# The statement behind a `Lookup`: both sides run it with a driver of their own.
LOOKUP_SQL = """
select key_id, name, prefix, digest, scopes, expires_at, revoked_at is not null as revoked
  from atelier.api_key where prefix = $1
"""


@dataclass(frozen=True, slots=True)
class KeyRecord:
    """A stored key: its SHA-256 `digest`, its `scopes`, and when it ends (None for never)."""

    key_id: int
    name: str
    prefix: str
    digest: bytes
    scopes: frozenset[str]
    expires_at: datetime | None
    revoked: bool


Lookup = Callable[[str], Awaitable[KeyRecord | None]]
"""Finds a key by its prefix."""


class Actor(msgspec.Struct, frozen=True):
    """Who asks: the owner's `name`, by which key, and with which scopes."""

    name: str
    key_id: int
    prefix: str
    scopes: frozenset[str]

    def may(self, scope: str) -> bool:
        """Whether the key has a scope; `admin` has them all."""
        return scope in self.scopes or "admin" in self.scopes


class KeyVerifier:
    """Tells who a request is from. Remembers what the database said for less than half a second."""

    def __init__(self, lookup: Lookup, *, clock: Clock, now: Callable[[], datetime]) -> None:
        """Takes how to find a key, a monotonic clock in seconds, and the time of day with its zone."""
        self._lookup = lookup
        self._clock = clock
        self._now = now
        self._cached: OrderedDict[str, tuple[float, KeyRecord | None]] = OrderedDict()
        self._asking: dict[str, asyncio.Task[KeyRecord | None]] = {}

    async def verify(self, authorization: str | None, deadline: Deadline | None = None) -> Actor:
        """Checks an `Authorization` header.

        Args:
            authorization: as it was sent; None when it was not.
            deadline: of the request; None where the look-up's own bound is bound enough.

        Raises:
            DeadlineExceededError: the database did not tell in time.
            ProblemError: `unauthorized`: there is none, or no key of that text is valid now. Which of these it is,
                is not told.
        """
        match = _BEARER.fullmatch(authorization or "")
        if match is None:
            raise _unauthorized()
        record = await self._find(match["prefix"], deadline)
        # Compared also when there is no such key, so that the time does not tell.
        expected = record.digest if record else bytes(32)
        if not hmac.compare_digest(digest(match["text"]), expected) or record is None or self._is_over(record):
            raise _unauthorized()
        return Actor(record.name, record.key_id, record.prefix, record.scopes)

    def _is_over(self, record: KeyRecord) -> bool:
        return record.revoked or (record.expires_at is not None and record.expires_at <= self._now())

    async def _find(self, prefix: str, deadline: Deadline | None) -> KeyRecord | None:
        known = self._cached.get(prefix)
        if known is not None and self._clock() < known[0]:
            return known[1]
        task = self._asking.get(prefix)
        if task is None:
            task = self._asking[prefix] = asyncio.create_task(self._ask(prefix))
            task.add_done_callback(_take_note)
        # The look-up is for all who wait, each for as long as it has.
        await asyncio.wait({task}, timeout=None if deadline is None else deadline.remaining_s())
        if not task.done():
            raise DeadlineExceededError
        return task.result()

    async def _ask(self, prefix: str) -> KeyRecord | None:
        """Asks once for all who wait. It counts from when it was asked: the answer may be that old."""
        until_s = self._clock() + KEY_CACHED_S
        try:
            record = await self._lookup(prefix)
        finally:
            del self._asking[prefix]
        self._cached[prefix] = (until_s, record)
        self._cached.move_to_end(prefix)
        while len(self._cached) > _LARGEST_CACHE:
            self._cached.popitem(last=False)
        return record


def require(actor: Actor, scope: str) -> None:
    """Refuses an actor without a scope.

    Raises:
        ProblemError: `forbidden`, naming the scope.
    """
    if not actor.may(scope):
        raise ProblemError("forbidden", f"This key does not have the scope {scope}.", scope=scope)


def _take_note(task: "asyncio.Task[KeyRecord | None]") -> None:
    """The failure of a look-up that nobody waits for any more is nobody's."""
    if not task.cancelled():
        task.exception()


def _unauthorized() -> ProblemError:
    return ProblemError(
        "unauthorized",
        "Send `Authorization: Bearer <api key>` with a valid key.",
        headers={"WWW-Authenticate": 'Bearer realm="atelier"'},
    )
