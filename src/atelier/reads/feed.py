"""`GET /changes`: the committed changes as server-sent events, to any number of subscribers, each at its own pace.

A subscriber owns a position and nothing else: what it has not taken yet stays in the tail, or in the table, so nobody
makes the service's memory grow. Who cannot keep up is told so, with the id to go on from, and cut.
"""

import asyncio
import re
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

import msgspec
import structlog
from litestar import Request, get
from litestar.handlers import HTTPRouteHandler
from litestar.types import Receive, Scope, Send

from atelier.deadline import Clock, Deadline
from atelier.errors import HistoryLostError, InvalidTokenError, NoReplicaError, OverloadedError
from atelier.http import read_query
from atelier.problems import ProblemError
from atelier.reads.backlog import LIMIT_BYTES, Backlog
from atelier.reads.tail import Change, ChangeTail, expired
from atelier.reads.wait import admit
from atelier.token import CausalToken, Standing, TokenKeys
from atelier.topology.monitor import TopologyMonitor

log = structlog.get_logger(__name__)

_ID = re.compile(r"(?P<position>[0-9]{1,18})\.(?P<token>[A-Za-z0-9_-]{1,100})", re.ASCII)
_LOOK_S = 5.0
# Each subscriber asks again so soon after no node answered; the tail lets one of them ask at a time.
_RETRY_S = 0.2


@dataclass(frozen=True, slots=True)
class FeedLimits:
    """Bounds on a subscription.

    Attributes:
        heartbeat_s: a comment after this long without an event, so that proxies and clients know it is alive.
        send_s: a subscriber that takes nothing for this long is cut.
        behind: a subscriber that has been up to date and is further behind than this is cut.
        subscribers: at the same time in one process.
    """

    heartbeat_s: float = 15.0
    send_s: float = 10.0
    behind: int = 2_000
    subscribers: int = 1_000


@dataclass(frozen=True, slots=True)
class Start:
    """Where a subscription begins: behind `position`; `token` covers it."""

    position: int
    token: CausalToken


class Feed:
    """Serves subscriptions from one tail."""

    def __init__(
        self, tail: ChangeTail, monitor: TopologyMonitor, keys: TokenKeys, *, clock: Clock, limits: FeedLimits
    ) -> None:
        """Takes what follows the outbox, who judges positions, and what seals them."""
        self._tail = tail
        self._monitor = monitor
        self._keys = keys
        self._clock = clock
        self._limits = limits
        self._subscribers = 0

    async def find_start(self, last_event_id: str | None) -> Start:
        """Reads where a client left off; None starts with what is committed from now on.

        Raises:
            ProblemError: 400 for an id that is none of ours, 409 `history-lost`, 410 `cursor-expired`.
            NoReplicaError: no node answers.
            OverloadedError: there are too many subscribers.
        """
        if self._subscribers >= self._limits.subscribers:
            raise OverloadedError("Too many follow the changes already.")
        if last_event_id is None:
            head, _, token = await self._tail.look()
            return Start(head, token)
        match = _ID.fullmatch(last_event_id)
        if match is None:
            raise InvalidTokenError("The event id was not made by this service.")
        token = self._keys.open(match["token"])
        await admit(self._monitor, token, Deadline.after(_LOOK_S, self._clock), beyond=True)
        _, floor, _ = await self._tail.look()
        position = int(match["position"])
        if position < floor:
            raise expired()
        return Start(position, token)

    async def follow(self, start: Start) -> AsyncGenerator[bytes, None]:
        """The stream of one subscriber: events, and a comment as a heartbeat where there are none."""
        self._subscribers += 1
        joined_at, position, token = self._tail.join(), start.position, start.token
        last_id, was_live, told_at_s = self._make_id(position, token), False, self._clock()
        try:
            yield b"retry: 1000\n: follows %s\n\n" % last_id.encode()
            while not self._tail.is_closing:
                self._tail.check(joined_at)
                head = self._tail.head
                if was_live and head is not None and head - position > self._limits.behind:
                    yield _end("too-slow", last_id)
                    return
                moved = self._tail.moved
                changes = await self._read_after(position)
                self._check(token)
                if changes:
                    position, token = changes[-1].position, changes[-1].token
                    last_id = self._make_id(position, token)
                    yield self._write(changes)
                    told_at_s = self._clock()
                    continue
                if changes is not None:
                    was_live = was_live or head is not None
                    await self._tail.wait(moved, told_at_s + self._limits.heartbeat_s - self._clock())
                if self._clock() - told_at_s >= self._limits.heartbeat_s:
                    yield b": heartbeat\n\n"
                    told_at_s = self._clock()
            yield _end("stopping", last_id)
        except HistoryLostError:
            yield _end("history-lost", last_id)
        except ProblemError:
            # Checked where it began, and again with everything read: who catches up slowly can be overtaken.
            yield _end("cursor-expired", last_id)
        finally:
            self._subscribers -= 1
            self._tail.leave()

    @property
    def clock(self) -> Clock:
        """What measures it."""
        return self._clock

    @property
    def send_s(self) -> float:
        """How long a subscriber may take nothing."""
        return self._limits.send_s

    async def _read_after(self, position: int) -> list[Change] | None:
        """What comes next; None, after a pause, when no node answered.

        That is not the same as nothing more: who has not been read to the end is behind through no fault of its own.
        """
        try:
            return await self._tail.read_after(position)
        except NoReplicaError:
            await asyncio.sleep(_RETRY_S)
            return None

    def _check(self, token: CausalToken) -> None:
        """Makes sure that what this subscriber was told last, perhaps by another process, is part of the history.

        After reading on, not before: whatever was read is of a history that is known here by then.

        Raises:
            HistoryLostError: a failover may have thrown it away.
        """
        if self._monitor.snapshot.judge(token) is Standing.LOST:
            raise HistoryLostError

    def _write(self, changes: Sequence[Change]) -> bytes:
        sealed: dict[CausalToken, str] = {}
        return b"".join(self._write_one(change, sealed) for change in changes)

    def _write_one(self, change: Change, sealed: dict[CausalToken, str]) -> bytes:
        token = sealed.get(change.token) or sealed.setdefault(change.token, self._keys.seal(change.token))
        data = msgspec.json.encode({**change.fields, "token": token})
        return f"id: {change.position}.{token}\nevent: {change.topic}\ndata: ".encode() + data + b"\n\n"

    def _make_id(self, position: int, token: CausalToken) -> str:
        return f"{position}.{self._keys.seal(token)}"


class EventStream:
    """An endless answer, as plain ASGI: the framework's own streams neither bound a send nor notice a client leave."""

    def __init__(self, chunks: AsyncGenerator[bytes, None], *, send_s: float, clock: Clock) -> None:
        """Takes what to send, and how long a client may take nothing of it."""
        self._chunks = chunks
        self._send_s = send_s
        self._clock = clock

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Sends until the stream ends, the client leaves, or takes nothing any more."""
        client = scope.get("client")
        # The server writes the port as text, others as a number.
        backlog = Backlog((client[0], int(client[1])), clock=self._clock) if client else None
        gone = asyncio.create_task(_wait_until_gone(receive))
        sending = asyncio.create_task(self._send_all(send, backlog))
        try:
            await asyncio.wait({gone, sending}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (gone, sending):
                task.cancel()
            await asyncio.gather(gone, sending, return_exceptions=True)

    async def _send_all(self, send: Send, backlog: Backlog | None) -> None:
        headers = [
            (b"content-type", b"text/event-stream; charset=utf-8"),
            (b"cache-control", b"no-store"),
            (b"x-accel-buffering", b"no"),
        ]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        sent_bytes = 0
        async with aclosing(self._chunks) as chunks:
            async for chunk in chunks:
                async with asyncio.timeout(self._send_s):
                    await send({"type": "http.response.body", "body": chunk, "more_body": True})
                sent_bytes += len(chunk)
                # To look is cheap, to find what to look at is not: most subscribers never get so far.
                if backlog is not None and sent_bytes > LIMIT_BYTES:
                    await self._let_it_take(backlog)
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _let_it_take(self, backlog: Backlog) -> None:
        """Produces nothing more until the client has taken most of what there is; cuts one that takes nothing."""
        try:
            await backlog.wait_until_taken(self._send_s)
        except TimeoutError:
            log.info("feed_subscriber_cut", stalled_s=self._send_s)
            backlog.cut()
            raise


def build_feed_handler(feed: Feed) -> HTTPRouteHandler:
    """The route of the change feed."""

    @get("/changes", summary="Follow what is committed")
    async def follow_changes(request: Request[Any, Any, Any]) -> EventStream:
        query = read_query(request.scope["query_string"], frozenset({"after"}))
        start = await feed.find_start(request.headers.get("last-event-id") or query.get("after"))
        return EventStream(feed.follow(start), send_s=feed.send_s, clock=feed.clock)

    return follow_changes


async def _wait_until_gone(receive: Callable[[], Awaitable[Any]]) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _end(reason: str, last_id: str) -> bytes:
    """The last event of a stream that the service ends: why, and the id to go on from."""
    data = msgspec.json.encode({"reason": reason, "last_event_id": last_id})
    return b"event: end\ndata: " + data + b"\n\n"
