"""API keys for the reading side: looked up on a replica, because reads go on when the primary is gone.

A look-up is a read like any other: it shares statements with those that arrive beside it, leaves nodes alone that were
ejected or do not answer, and has a deadline. So no look-up holds up another one.
"""

from atelier.access.verify import LOOKUP_SQL, KeyRecord
from atelier.deadline import Clock, Deadline
from atelier.errors import NoReplicaError, PrimaryUnavailableError
from atelier.reads.executor import Answer, Ask, ReadExecutor
from atelier.reads.position import POSITION
from atelier.reads.queries import Statement
from atelier.reads.router import Consistency, Policy
from atelier.settings import Settings

# A revoked key must be refused within a second: this, then for as long as answers are remembered, and the request.
_MAX_LAG_MS = 400

# Here the ids are prefixes.
_LOOKUP = Statement(
    "api_key",
    f"select asked.id, found.*, position.* from {POSITION} cross join unnest($1::text[]) as asked (id) "
    f"left join lateral ({LOOKUP_SQL.replace('$1', 'asked.id')}) as found on true",
)
_COLUMNS = ("key_id", "name", "prefix", "digest", "expires_at", "revoked")


class KeyLookup:
    """Finds API keys."""

    def __init__(self, settings: Settings, executor: ReadExecutor, *, clock: Clock) -> None:
        """Takes what runs the statement, and the bound on a read. Does no I/O."""
        self._executor = executor
        self._clock = clock
        self._request_s = settings.timeouts.request_ms / 1000
        self._strategy = settings.reads.strategy

    async def find(self, prefix: str) -> KeyRecord | None:
        """Finds a key by its prefix: on a replica that is hardly behind, and where that knows none, on the primary.

        A key that was made a moment ago may not have been replayed yet, and its owner shall not be told that it is
        wrong. With no primary and no replica that is known to be hardly behind, any replica tells.

        Raises:
            NoReplicaError, DeadlineExceededError: no node answers.
        """
        deadline = Deadline.after(self._request_s, self._clock)
        try:
            answer = await self._ask(prefix, "bounded", deadline)
        except NoReplicaError:
            answer = await self._ask(prefix, "eventual", deadline)
        row = answer.rows[0]
        if row["key_id"] is None and answer.observed is not None and answer.observed.in_recovery:
            try:
                row = (await self._ask(prefix, "strong", deadline)).rows[0]
            except PrimaryUnavailableError:
                return None
        if row["key_id"] is None:
            return None
        return KeyRecord(**{name: row[name] for name in _COLUMNS}, scopes=frozenset(row["scopes"]))

    async def _ask(self, prefix: str, consistency: Consistency, deadline: Deadline) -> Answer:
        policy = Policy(consistency, _MAX_LAG_MS, self._strategy)
        return await self._executor.run(_LOOKUP, ([prefix],), Ask(policy, None, 0.0, deadline))
