"""The writing side as one thing: opens and closes its connections, queues and background work."""

import random
from collections import OrderedDict
from collections.abc import Callable, Iterable
from contextlib import AsyncExitStack
from datetime import UTC, datetime
from typing import Self

from sqlalchemy import text

from atelier.access.sealer import seal_entries
from atelier.access.verify import LOOKUP_SQL, Actor, KeyRecord
from atelier.deadline import Clock, Deadline
from atelier.settings import Settings
from atelier.telemetry import Observed, Sample
from atelier.topology.monitor import TopologyMonitor
from atelier.writes.background import Background, Chore
from atelier.writes.combine import Combiner, QueueLimits
from atelier.writes.commands import AdjustStock, Command, CreateProduct, ReserveStock
from atelier.writes.dispatch import Dispatcher
from atelier.writes.envelope import Envelope, Receipt
from atelier.writes.gate import Gate
from atelier.writes.handlers import HANDLERS
from atelier.writes.housekeeping import prune_changes, prune_keys, touch_keys
from atelier.writes.inventory import INVENTORY_COMMANDS
from atelier.writes.policy import WritePolicy
from atelier.writes.primary import PrimaryGateway
from atelier.writes.sweeper import sweep
from atelier.writes.unit_of_work import UnitOfWork

# What is asked beside the commands has connections of its own, and few wait for them. A key look-up is a millisecond
# and remembered by who asked; an answer of the resolver may wait for the standbys.
_LOOK_UPS, _RESOLVERS = 1, 2
_LOOK_UPS_WAIT, _RESOLVERS_WAIT = 128, 64
# The sweeper and the housekeeping.
_CHORES = 2
OTHER_CONNECTIONS = 2 * _LOOK_UPS + _RESOLVERS + _CHORES
"""What a process has on the primary beside its lanes."""
_MOST_KNOWN = 10_000

_GAUGES = {
    "atelier_commands_waiting": "Commands that wait for a transaction, by queue.",
    "atelier_commands_per_transaction": "The most commands that one transaction takes now; smaller after slow ones.",
}

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
        connections = policy.lanes + policy.catalogue_lanes + OTHER_CONNECTIONS
        self.gateway = PrimaryGateway(monitor, settings, connections=connections, clock=clock, quorum=policy.quorum)
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
        self._background = Background(self._chores())
        self._used_keys: set[int] = set()
        # Prefixes cost nothing to make up. Those that were found before have a gate that made-up ones cannot fill.
        self._known: OrderedDict[str, None] = OrderedDict()
        self._known_gate = Gate(_LOOK_UPS, waiting=_LOOK_UPS_WAIT)
        self._unknown_gate = Gate(_LOOK_UPS, waiting=_LOOK_UPS_WAIT)
        self._resolver_gate = Gate(_RESOLVERS, waiting=_RESOLVERS_WAIT)
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Self:
        """Opens the queues and starts the background work."""
        async with AsyncExitStack() as stack:
            stack.push_async_callback(self.gateway.close)
            await stack.enter_async_context(self._stock)
            await stack.enter_async_context(self._catalogue)
            await stack.enter_async_context(self._background)
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
        self.note_use(order.actor)
        is_bulk = weigh(order.command) >= self.policy.bulk_weight
        queue = self._stock if type(order.command) in INVENTORY_COMMANDS else self._catalogue
        return await queue.submit(order, order.deadline, is_bulk=is_bulk)

    async def resolve(self, owner: str, key: str, deadline: Deadline) -> Receipt:
        """What became of a command; see `Dispatcher.resolve`.

        Raises:
            OverloadedError: too many ask that now.
        """
        async with self._resolver_gate.enter(deadline):
            return await self.dispatcher.resolve(owner, key, deadline)

    def observe(self) -> Observed:
        """Gauges: how many commands wait, and how many one transaction takes at most now."""

        def sample() -> Iterable[Sample]:
            for name, queue in (("stock", self._stock), ("catalogue", self._catalogue)):
                yield "atelier_commands_waiting", {"queue": name}, queue.waiting
                yield "atelier_commands_per_transaction", {"queue": name}, queue.batch_now

        return Observed(_GAUGES, sample)

    def note_use(self, actor: Actor) -> None:
        """Leaves it to the background work to note that an API key was used."""
        self._used_keys.add(actor.key_id)

    async def look_up_key(self, prefix: str) -> KeyRecord | None:
        """Finds an API key on the primary.

        Raises:
            OverloadedError: too many keys are looked up now.
            PrimaryUnavailableError: the primary could not be asked.
        """

        async def look_up(deadline: Deadline) -> KeyRecord | None:
            async with UnitOfWork(self.gateway, deadline) as uow:
                rows = await uow.execute(_LOOKUP, {"prefix": prefix})
            return KeyRecord(**{**rows[0]._asdict(), "scopes": frozenset(rows[0].scopes)}) if rows else None

        deadline = self.deadline()
        gate = self._known_gate if prefix in self._known else self._unknown_gate
        async with gate.enter(deadline):
            record = await self.gateway.try_until(deadline, look_up)
        self._remember(prefix, is_known=record is not None)
        return record

    def _remember(self, prefix: str, *, is_known: bool) -> None:
        self._known.pop(prefix, None)
        if is_known:
            self._known[prefix] = None
        if len(self._known) > _MOST_KNOWN:
            self._known.popitem(last=False)

    def _chores(self) -> list[Chore]:
        policy = self.policy
        return [
            Chore("sweep", policy.sweep_interval_s, lambda: sweep(self.gateway, self.deadline())),
            Chore("seal-audit", policy.seal_interval_s, self._seal_audit),
            Chore("note-key-use", policy.note_use_interval_s, self._note_key_use),
            Chore(
                "prune-keys",
                policy.prune_interval_s,
                lambda: prune_keys(self.gateway, self.deadline(), kept_s=policy.keys_kept_s),
            ),
            Chore(
                "prune-changes",
                policy.prune_interval_s,
                lambda: prune_changes(self.gateway, self.deadline(), kept_s=policy.changes_kept_s),
            ),
        ]

    async def _seal_audit(self) -> None:
        sealed = 1
        while sealed:
            async with UnitOfWork(self.gateway, self.deadline()) as uow:
                sealed = await seal_entries(uow.execute)
                if sealed:
                    await uow.commit()

    async def _note_key_use(self) -> None:
        used, self._used_keys = self._used_keys, set()
        try:
            await touch_keys(self.gateway, self.deadline(), key_ids=used)
        except BaseException:
            self._used_keys |= used  # for the next round: a failover is no reason to forget them
            raise


def weigh(command: Command) -> int:
    """How much work a command is, in lines."""
    if isinstance(command, AdjustStock | ReserveStock):
        return len(command.body.lines)
    return 1 + len(command.body.styles) if isinstance(command, CreateProduct) else 1


def utc_now() -> datetime:
    """The time of day, with its zone."""
    return datetime.now(UTC)
