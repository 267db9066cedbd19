"""From orders to receipts: a unit of work per batch, keys, handler, commit; and the only place that tries again."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence

import structlog

from atelier.access.audit import Deed, append_deeds
from atelier.deadline import Deadline
from atelier.errors import AtelierError, DeadlineExceededError, OutcomeUnknownError, OverloadedError
from atelier.problems import ProblemError
from atelier.token import CausalToken
from atelier.writes.commands import Command
from atelier.writes.envelope import Envelope, Receipt
from atelier.writes.failures import CommitLostError, ConflictError, ConnectionLostError, DataRefusedError
from atelier.writes.idempotency import InFlight, Unclaimed, claim_keys, find_outcome, record_outcomes
from atelier.writes.primary import PrimaryGateway
from atelier.writes.unit_of_work import UnitOfWork
from atelier.writes.verdict import Done, Outcome, Refused, Verdict, to_outcome

log = structlog.get_logger(__name__)

Handler = Callable[[Sequence[Envelope], UnitOfWork], Awaitable[list[Verdict]]]
"""Carries out orders in one transaction, which it never commits, and gives a verdict each."""

Result = Receipt | Exception

_LONGEST_JITTER_S = 0.02


class Dispatcher:
    """Carries out batches of orders of one handler."""

    def __init__(
        self, gateway: PrimaryGateway, handlers: Mapping[type[Command], Handler], *, random: Callable[[], float]
    ) -> None:
        """Takes where transactions come from, which handler is for which command, and 0..1 at random for jitter."""
        self._gateway = gateway
        self._handlers = handlers
        self._random = random

    async def carry_out(self, orders: Sequence[Envelope]) -> Sequence[Result]:
        """Carries out a batch whose commands all have one handler.

        Conflicts, lost connections and failovers are tried again until the last deadline of the batch. A commit whose
        answer was lost is settled by the keys: found, it was done; free and not found, it never happened and is done
        now; held, it is waited for.

        Returns:
            A receipt or an error for each, in their order.
        """
        deadline = max((order.deadline for order in orders), key=lambda deadline: deadline.ends_at_s)
        is_settling = False
        while True:
            try:
                results = await self._attempt(orders, deadline, is_settling=is_settling)
                if not is_settling or not any(isinstance(result, InFlight) for result in results):
                    return [_to_result(result) for result in results]
            except CommitLostError:
                is_settling = True
                log.warning("commit_lost", commands=len(orders))
            except ConflictError:
                await asyncio.sleep(self._random() * _LONGEST_JITTER_S)
                continue
            except ConnectionLostError:
                log.warning("primary_lost", commands=len(orders))
            except DataRefusedError as error:
                if len(orders) == 1:
                    return [ProblemError("invalid-request", str(error))]
                return [(await self.carry_out([order]))[0] for order in orders]
            except AtelierError as error:
                return [_unsettled(error, is_settling=is_settling)] * len(orders)
            try:
                await self._gateway.wait_for_another_try(deadline)
            except AtelierError as error:
                return [_unsettled(error, is_settling=is_settling)] * len(orders)

    async def resolve(self, owner: str, key: str, deadline: Deadline) -> Receipt:
        """What became of a command.

        Raises:
            ProblemError: `idempotency-in-flight`, or `not-found` when nothing is recorded.
            AtelierError: the primary could not be asked.
        """

        async def look(deadline: Deadline) -> Receipt:
            async with UnitOfWork(self._gateway, deadline) as uow:
                found = await find_outcome(uow, owner, key)
                if isinstance(found, InFlight):
                    raise found.refusal()
                if found is None:
                    raise ProblemError("not-found", "Nothing is recorded under this key (yet, or any more).")
                return Receipt(found, await self._stand_by(uow), is_replay=True)

        return await self._gateway.try_until(deadline, look)

    async def _attempt(
        self, orders: Sequence[Envelope], deadline: Deadline, *, is_settling: bool
    ) -> Sequence[Result | InFlight]:
        """One transaction for the whole batch."""
        for order in orders:
            order.notes.update(batch=len(orders), attempts=order.notes.get("attempts", 0) + 1)
        async with UnitOfWork(self._gateway, deadline) as uow:
            claims = await claim_keys(uow, orders)
            fresh = [order for order, claim in zip(orders, claims, strict=True) if isinstance(claim, Unclaimed)]
            outcomes = await self._decide(fresh, uow) if fresh else []
            if any(is_kept for _, is_kept in outcomes):
                token = await uow.commit()
            elif any(isinstance(claim, Outcome) for claim in claims):
                token = await self._stand_by(uow)
            else:
                token = await uow.position()
        decided = iter(outcomes)
        return [
            Receipt(next(decided)[0], token, is_replay=False)
            if isinstance(claim, Unclaimed)
            else _replay(claim, token, is_settling=is_settling)
            if isinstance(claim, Outcome)
            else claim
            for claim in claims
        ]

    async def _decide(self, orders: Sequence[Envelope], uow: UnitOfWork) -> list[tuple[Outcome, bool]]:
        """Runs the handler, and writes down what it said of every order whose outcome is kept."""
        verdicts = await self._handlers[type(orders[0].command)](orders, uow)
        outcomes = [to_outcome(verdict, order.path) for order, verdict in zip(orders, verdicts, strict=True)]
        kept = [isinstance(verdict, Done) or verdict.is_kept for verdict in verdicts]
        chosen = [index for index, is_kept in enumerate(kept) if is_kept]
        if chosen:
            record_outcomes(uow, [orders[i] for i in chosen], [outcomes[i] for i in chosen])
            append_deeds(uow.defer, [_to_deed(orders[i], verdicts[i]) for i in chosen])
        return list(zip(outcomes, kept, strict=True))

    async def _stand_by(self, uow: UnitOfWork) -> CausalToken:
        """A token for an outcome that was found.

        With a quorum that row may be a local commit only, so something small is committed first, which waits for the
        standbys.
        """
        if not self._gateway.quorum:
            return await uow.position()
        await uow.wait_for_quorum()
        return await uow.commit()


def _replay(outcome: Outcome, token: CausalToken, *, is_settling: bool) -> Receipt:
    """A stored outcome. While a lost commit is being settled it is this request's own, not an earlier one's."""
    return Receipt(outcome, token, is_replay=not is_settling)


def _to_result(result: Result | InFlight) -> Result:
    return result.refusal() if isinstance(result, InFlight) else result


def _unsettled(error: AtelierError, *, is_settling: bool) -> Exception:
    """What is told when no attempt came through: after a commit was lost nothing less than "unknown" is true."""
    if is_settling:
        return OutcomeUnknownError()
    return OverloadedError() if isinstance(error, DeadlineExceededError) else error


def _to_deed(order: Envelope, verdict: Verdict) -> Deed:
    status = verdict.problem.type.status if isinstance(verdict, Refused) else verdict.status
    before, after = (None, None) if isinstance(verdict, Refused) else (verdict.before, verdict.after)
    return Deed(order.actor, type(order.command).__name__, order.key, order.path, status, before, after)
