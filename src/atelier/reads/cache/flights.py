"""One statement for all who miss the same answer at the same time."""

import asyncio
from dataclasses import dataclass, field

from atelier.deadline import Deadline
from atelier.errors import DeadlineExceededError
from atelier.reads.cache.entries import Key
from atelier.reads.cache.source import Source
from atelier.reads.document import Document
from atelier.reads.executor import Ask

# A bound counts from when each reader asks, and a strong read has to begin after that.
_SHARING = frozenset({"eventual", "causal"})


@dataclass(slots=True, eq=False)
class Flight:
    """A read under way whose answer may be kept.

    Attributes:
        key: what is read.
        ask: what its first reader asks of it.
        reach_bytes: a position that all replicas had replayed when it began, so that whichever answers covers it; -1
            when that is not known of any.
        sources: those that told of changes when it began: what they have told since is in `dirty`.
        dirty: those that told of a change of it since it began; its answer may be from before that change.
        waiting: who waits for its answer beside the first reader.
    """

    key: Key
    ask: Ask
    sources: tuple[Source, ...]
    reach_bytes: int = -1
    dirty: set[Source] = field(default_factory=set)
    waiting: "list[asyncio.Future[Document | None]]" = field(default_factory=list)

    def carries(self, ask: Ask) -> bool:
        """Whether whatever answers the first reader answers another one too."""
        mine, other = self.ask.token, ask.token
        if ask.policy != self.ask.policy or ask.wait_s < self.ask.wait_s:
            return False
        if ask.policy.consistency == "eventual":
            return mine is None and other is None
        if ask.policy.consistency != "causal":
            return False
        return other is None or (
            mine is not None
            and (mine.system_id, mine.timeline) == (other.system_id, other.timeline)
            and mine.lsn >= other.lsn
            and mine.minted_by_replica >= other.minted_by_replica
        )

    def may_carry(self, ask: Ask) -> bool:
        """Whether the answer will probably do for another reader, who has to look at it first.

        It is under way to a node that nobody has to wait for, and that has replayed what the other one has seen.
        """
        return {self.ask.policy.consistency, ask.policy.consistency} <= _SHARING and (
            self._reaches(self.ask) and self._reaches(ask)
        )

    def _reaches(self, ask: Ask) -> bool:
        token = ask.token
        return token is None or ask.policy.consistency == "eventual" or token.lsn.bytes <= self.reach_bytes

    async def join(self, deadline: Deadline) -> Document | None:
        """Waits for the answer; None when the first reader got none, whatever the reason.

        Raises:
            DeadlineExceededError: the time is used up.
        """
        future: asyncio.Future[Document | None] = asyncio.get_running_loop().create_future()
        self.waiting.append(future)
        try:
            async with asyncio.timeout(deadline.remaining_s()):
                return await future
        except TimeoutError as error:
            raise DeadlineExceededError from error

    def land(self, document: Document | None) -> None:
        """Answers all who wait."""
        for future in self.waiting:
            if not future.done():
                future.set_result(document)
