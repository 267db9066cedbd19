"""A command's time begins when it arrives: what its key and its body took is gone from it."""

from typing import Any

import pytest

from atelier.access.rate import RateLimiter
from atelier.access.verify import Actor
from atelier.deadline import Deadline
from atelier.errors import DeadlineExceededError, PrimaryUnavailableError
from atelier.token import TokenKeys
from atelier.writes.endpoints import ENDPOINTS
from atelier.writes.routes import Incoming, Writes, carry_out

pytestmark = pytest.mark.anyio

ADJUST = next(endpoint for endpoint in ENDPOINTS if endpoint.path == "/inventory/adjustments")
BUDGET_S, KEY_S, BODY_S = 10.0, 4.0, 3.0


class TakenError(Exception):
    """The order has come as far as the queue."""


class Stage:
    """Everything around one command, on a clock that only moves when something takes its time."""

    def __init__(self, *, is_slow: bool = False) -> None:
        self.now_s = 100.0
        self.is_slow = is_slow
        self.left_s = -1.0

    def deadline(self) -> Deadline:
        return Deadline.after(BUDGET_S, lambda: self.now_s)

    async def submit(self, order: Any) -> Any:
        self.left_s = order.deadline.remaining_s()
        raise TakenError

    async def verify(self, _authorization: str | None, deadline: Deadline) -> Actor:
        self.now_s += KEY_S
        assert deadline.remaining_s() == BUDGET_S - KEY_S
        if self.is_slow:
            raise DeadlineExceededError
        return Actor("till", 1, "abcdefgh", frozenset({"admin"}))

    async def receive(self) -> Any:
        self.now_s += BODY_S
        return {"type": "http.request", "body": b'{"reason": "count", "lines": [{"sku_id": 1, "delta": 1}]}'}

    async def send(self) -> None:
        headers = [(b"content-type", b"application/json"), (b"idempotency-key", b"k")]
        scope = {"type": "http", "method": "POST", "path": ADJUST.path, "query_string": b"", "headers": headers}
        part: Any = self
        writes = Writes(part, part, RateLimiter(None, clock=lambda: self.now_s), TokenKeys((bytes(32),)))
        await carry_out(writes, ADJUST, Incoming(scope, self.receive, {}))


async def test_command_has_what_its_key_and_its_body_have_left_of_its_time() -> None:
    """Or a client whose proxy gives up after that time would wait for nothing."""
    stage = Stage()
    with pytest.raises(TakenError):
        await stage.send()
    assert stage.left_s == BUDGET_S - KEY_S - BODY_S


async def test_key_that_is_not_found_in_time_is_the_primary_s_doing() -> None:
    """Commands are answered by the primary; no replica has to do with it."""
    with pytest.raises(PrimaryUnavailableError):
        await Stage(is_slow=True).send()
