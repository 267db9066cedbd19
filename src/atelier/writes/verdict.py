"""What a handler says of one command: done, or refused. No I/O."""

from collections.abc import Mapping
from typing import Any

import msgspec

from atelier.problems import ProblemError

# These refusals are outcomes like any other and are kept with the key; all others leave the key free.
_KEPT = frozenset({404, 409, 412})


class Done(msgspec.Struct, frozen=True):
    """A command that worked.

    Attributes:
        status: 200, 201 or 204.
        document: what the answer shows; None for an empty one.
        headers: `ETag`, `Location`.
        before: what was changed, as it was, for the audit; None when there was nothing.
        after: the same as it is now.
    """

    status: int
    document: Any = None
    headers: Mapping[str, str] = {}
    before: Any = None
    after: Any = None


class Refused(msgspec.Struct, frozen=True):
    """A command that changed nothing, and why."""

    problem: ProblemError

    @property
    def is_kept(self) -> bool:
        """Whether the same key gets this answer again."""
        return self.problem.type.status in _KEPT


Verdict = Done | Refused


def refuse(name: str, detail: str, **members: Any) -> Refused:
    """Shorthand for a refusal."""
    return Refused(ProblemError(name, detail, **members))


class Outcome(msgspec.Struct, frozen=True):
    """A verdict as it is stored and sent: status, headers of its own, and the body's bytes."""

    status: int
    headers: Mapping[str, str]
    body: bytes


def to_outcome(verdict: Verdict, instance: str) -> Outcome:
    """Forms the answer to a command; `instance` is the path that was asked for."""
    if isinstance(verdict, Refused):
        return Outcome(verdict.problem.type.status, verdict.problem.headers, verdict.problem.body(instance))
    body = b"" if verdict.document is None else msgspec.json.encode(verdict.document)
    return Outcome(verdict.status, dict(verdict.headers), body)
