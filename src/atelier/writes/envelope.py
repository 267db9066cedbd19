"""A command on its way: who sent it, under which key, and when it has to be answered."""

from typing import Any

import msgspec

from atelier.access.verify import Actor
from atelier.deadline import Deadline
from atelier.token import CausalToken
from atelier.writes.commands import Command
from atelier.writes.verdict import Outcome


class Envelope(msgspec.Struct, frozen=True):
    """One command to be carried out.

    Attributes:
        command: what to do.
        actor: who asks.
        key: the client's idempotency key, or one of ours where the client sent none: also then a commit whose answer
            was lost can be looked up.
        fingerprint: what makes two requests under one key the same.
        path: what was asked for, for problem documents.
        deadline: when the client has to be answered.
        notes: for the request's log line: how many commands were in the last transaction of this one, and how many
            transactions it took.
    """

    command: Command
    actor: Actor
    key: str
    fingerprint: bytes
    path: str
    deadline: Deadline
    notes: dict[str, Any] = {}


class Receipt(msgspec.Struct, frozen=True):
    """What a client gets.

    Attributes:
        outcome: the answer.
        token: contains the command's effect, and what a refusal was based on.
        is_replay: the answer was given before; this request did nothing.
    """

    outcome: Outcome
    token: CausalToken
    is_replay: bool
