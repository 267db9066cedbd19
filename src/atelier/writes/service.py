"""The writing side as one thing: opens and closes its connections, queues and background work."""

import random
from collections.abc import Callable
from contextlib import AsyncExitStack
from datetime import UTC, datetime
from typing import Self

from sqlalchemy import text

from atelier.access.verify import LOOKUP_SQL, KeyRecord
from atelier.deadline import Clock, Deadline
from atelier.settings import Settings
from atelier.topology.monitor import TopologyMonitor
from atelier.writes.combine import Combiner, QueueLimits
from atelier.writes.commands import AdjustStock, Command, ReserveStock
from atelier.writes.dispatch import Dispatcher, Handler
from atelier.writes.envelope import Envelope, Receipt
from atelier.writes.inventory import INVENTORY_COMMANDS, change_stock
from atelier.writes.policy import WritePolicy
from atelier.writes.primary import PrimaryGateway
from atelier.writes.unit_of_work import UnitOfWork

HANDLERS: dict[type[Command], Handler] = dict.fromkeys(INVENTORY_COMMANDS, change_stock)

# Beside the lanes: the resolver, key look-ups, the sweeper and the housekeeping.
_OTHER_CONNECTIONS = 4

_LOOKUP = text(LOOKUP_SQL.replace("$1", ":prefix"))


class WriteService:
    """Carries out commands. Use it as an async context manager; leaving it finishes what was begun."""

    def __init__(
        self,
        monitor: TopologyMonitor,
        settings: Settings,
        policy: WritePolicy,
        *,
        clock: Clock,
        random: Callable[[], float] = random.random,
    ) -> None:
        """Takes who knows the primary, and the bounds. Does no I/O."""
        self.policy = policy
        self._settings = settings
        self._clock = clock
        connections = policy.lanes + policy.catalogue_lanes + _OTHER_CONNECTIONS
        self.gateway = PrimaryGateway(monitor, settings, connections=connections, quorum=policy.quorum)
        self.dispatcher = Dispatcher(self.gateway, HANDLERS, random=random)
        self._stock: Combiner[Envelope, Receipt] = Combiner(
            self.dispatcher.carry_out,
            QueueLimits(policy.queue_limit, policy.lanes, policy.largest_batch, policy.batch_target_s),
            clock=clock,
        )
        self._catalogue: Combiner[Envelope, Receipt] = Combiner(
            self.dispatcher.carry_out,
            QueueLimits(policy.catalogue_queue_limit, policy.catalogue_lanes, 1, policy.batch_target_s),
            clock=clock,
        )
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Self:
        """Opens the queues and starts the background work."""
        async with AsyncExitStack() as stack:
            stack.push_async_callback(self.gateway.close)
            await stack.enter_async_context(self._stock)
            await stack.enter_async_context(self._catalogue)
            self._stack = stack.pop_all()
        return self

    async def __aexit__(self, *_: object) -> None:
        """Stops taking commands, finishes those that wait, closes the connections."""
        await self._stack.aclose()

    def deadline(self) -> Deadline:
        """When a command that arrives now has to be answered."""
        return Deadline.after(self._settings.timeouts.command_ms / 1000, self._clock)

    async def submit(self, order: Envelope) -> Receipt:
        """Carries out one command, together with others where that is possible.

        Raises:
            AtelierError: it was refused without a verdict: overloaded, no primary, outcome unknown, key in use.
        """
        is_bulk = self.weigh(order.command) >= self.policy.bulk_weight
        queue = self._stock if type(order.command) in INVENTORY_COMMANDS else self._catalogue
        return await queue.submit(order, order.deadline, is_bulk=is_bulk)

    async def resolve(self, owner: str, key: str) -> Receipt:
        """What became of a command; see `Dispatcher.resolve`."""
        return await self.dispatcher.resolve(owner, key, self.deadline())

    async def look_up_key(self, prefix: str) -> KeyRecord | None:
        """Finds an API key on the primary."""
        async with UnitOfWork(self.gateway, self.deadline()) as uow:
            rows = await uow.execute(_LOOKUP, {"prefix": prefix})
        return KeyRecord(**{**rows[0]._asdict(), "scopes": frozenset(rows[0].scopes)}) if rows else None

    @staticmethod
    def weigh(command: Command) -> int:
        """How much work a command is, in lines."""
        return len(command.body.lines) if isinstance(command, AdjustStock | ReserveStock) else 1


def utc_now() -> datetime:
    """The time of day, with its zone."""
    return datetime.now(UTC)
