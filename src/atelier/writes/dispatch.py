"""From orders to receipts: a unit of work per batch, keys, handler, commit; and the only place that tries again."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass

import structlog

from atelier.access.audit import Deed, append_deeds
from atelier.deadline import Deadline
from atelier.errors import (
    AtelierError,
    DeadlineExceededError,
    OutcomeUnknownError,
    OverloadedError,
    PrimaryUnavailableError,
)
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


@dataclass(slots=True, eq=False)
class _Case:
    """An order on its way through attempts.

    Attributes:
        order: what to carry out.
        is_lost: its effect was in a commit whose answer was lost. A stored outcome is this request's own then, not an
            earlier one's; and a key that is held is held by that commit, which is waited for.
        result: None until there is one.
    """

    order: Envelope
    is_lost: bool = False
    result: Result | None = None

    def learn(self, claim: Outcome | InFlight | ProblemError, token: CausalToken) -> None:
        """Takes what was found under its key."""
        if isinstance(claim, Outcome):
            self.result = Receipt(claim, token, is_replay=not self.is_lost)
        elif isinstance(claim, ProblemError):
            self.result = claim
        elif not self.is_lost:
            self.result = claim.refusal()

    def told(self) -> Result:
        """The result, which is there by now."""
        if self.result is None:
            raise RuntimeError("an order was left without a result")
        return self.result


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
        answer was lost is settled by the keys of what was in it: found, it was done; free and not found, it never
        happened and is done now; held, it is waited for. What was not in it is answered as ever.

        Returns:
            A receipt or an error for each, in their order.
        """
        cases = [_Case(order) for order in orders]
        await self._settle(cases, is_unsure=False)
        return [case.told() for case in cases]

    async def _settle(self, cases: Sequence["_Case"], *, is_unsure: bool) -> None:
        """Tries until there is a result for each; `is_unsure` when a commit was lost before."""
        deadline = max((case.order.deadline for case in cases), key=lambda deadline: deadline.ends_at_s)
        # What it was that took all the time: others who wait, too, unless the primary was lost meanwhile.
        out_of_time: AtelierError = OverloadedError()
        while True:
            cases = [case for case in cases if case.result is None]
            try:
                await self._attempt(cases, deadline)
                if all(case.result is not None for case in cases):
                    break
            except CommitLostError:
                is_unsure = True
                log.warning("commit_lost", commands=len(cases))
            except ConflictError:
                await asyncio.sleep(self._random() * _LONGEST_JITTER_S)
                continue
            except ConnectionLostError:
                out_of_time = PrimaryUnavailableError()
                log.warning("primary_lost", commands=len(cases))
            except DataRefusedError as error:
                refusal = ProblemError("invalid-request", str(error))
                await self._settle_singly(cases, refusal, is_unsure=is_unsure)
                break
            except AtelierError as error:
                is_late = isinstance(error, DeadlineExceededError)
                _give_up(cases, out_of_time if is_late else error, is_unsure=is_unsure)
                break
            except Exception as error:
                # A slip of ours over one order; the server has taken the transaction back.
                log.exception("batch_broken", commands=len(cases), kind=type(error).__name__)
                await self._settle_singly(cases, OutcomeUnknownError() if is_unsure else error, is_unsure=is_unsure)
                break
            try:
                await self._gateway.wait_for_another_try(deadline)
            except AtelierError as error:
                _give_up(cases, error, is_unsure=is_unsure)
                break

    async def _settle_singly(self, cases: Sequence["_Case"], error: Exception, *, is_unsure: bool) -> None:
        """Tells an order whose fault it is from its neighbours: each in a transaction of its own."""
        if len(cases) == 1:
            cases[0].result = error
            return
        for case in cases:
            await self._settle([case], is_unsure=is_unsure)

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

    async def _attempt(self, cases: Sequence["_Case"], deadline: Deadline) -> None:
        """One transaction for the whole batch; gives a result to each but those whose own lost commit is under way."""
        orders = [case.order for case in cases]
        for order in orders:
            order.notes.update(batch=len(orders), attempts=order.notes.get("attempts", 0) + 1)
        async with UnitOfWork(self._gateway, deadline) as uow:
            claims = await claim_keys(uow, orders)
            fresh = [case for case, claim in zip(cases, claims, strict=True) if isinstance(claim, Unclaimed)]
            outcomes = await self._decide([case.order for case in fresh], uow) if fresh else []
            if any(is_kept for _, is_kept in outcomes):
                try:
                    token = await uow.commit()
                except CommitLostError:
                    for case in fresh:
                        case.is_lost = True
                    raise
            elif any(isinstance(claim, Outcome) for claim in claims):
                token = await self._stand_by(uow)
            else:
                token = await uow.position()
        decided = iter(outcomes)
        for case, claim in zip(cases, claims, strict=True):
            if isinstance(claim, Unclaimed):
                case.result = Receipt(next(decided)[0], token, is_replay=False)
            else:
                case.learn(claim, token)

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


def _give_up(cases: Sequence["_Case"], error: AtelierError, *, is_unsure: bool) -> None:
    """Tells those who have no result yet: after a commit was lost nothing less than "unknown" is true."""
    for case in cases:
        if case.result is None:
            case.result = OutcomeUnknownError() if is_unsure else error


def _to_deed(order: Envelope, verdict: Verdict) -> Deed:
    status = verdict.problem.type.status if isinstance(verdict, Refused) else verdict.status
    before, after = (None, None) if isinstance(verdict, Refused) else (verdict.before, verdict.after)
    return Deed(order.actor, type(order.command).__name__, order.key, order.path, status, before, after)
