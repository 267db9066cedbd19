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
from litestar import Request, get
from litestar.handlers import HTTPRouteHandler
from litestar.types import Receive, Scope, Send

from atelier.deadline import Clock, Deadline
from atelier.errors import HistoryLostError, InvalidTokenError, NoReplicaError, OverloadedError
from atelier.http import read_query
from atelier.problems import ProblemError
from atelier.reads.tail import Change, ChangeTail
from atelier.reads.wait import admit
from atelier.token import CausalToken, TokenKeys
from atelier.topology.monitor import TopologyMonitor

_ID = re.compile(r"(?P<position>[0-9]{1,18})\.(?P<token>[A-Za-z0-9_-]{1,100})", re.ASCII)
_LOOK_S = 5.0


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
            raise ProblemError("cursor-expired", "Changes behind this event id are no longer kept.")
        return Start(position, token)

    async def follow(self, start: Start) -> AsyncGenerator[bytes, None]:
        """The stream of one subscriber: events, and a comment as a heartbeat where there are none."""
        self._subscribers += 1
        joined_at, position, last_id = self._tail.join(), start.position, self._make_id(start.position, start.token)
        was_live = False
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
                if changes:
                    position, last_id = changes[-1].position, self._make_id(changes[-1].position, changes[-1].token)
                    yield self._write(changes)
                    continue
                was_live = was_live or head is not None
                before_s = self._clock()
                await self._tail.wait(moved, self._limits.heartbeat_s)
                if self._clock() - before_s >= self._limits.heartbeat_s:
                    yield b": heartbeat\n\n"
            yield _end("stopping", last_id)
        except HistoryLostError:
            yield _end("history-lost", last_id)
        finally:
            self._subscribers -= 1
            self._tail.leave()

    @property
    def send_s(self) -> float:
        """How long a subscriber may take nothing."""
        return self._limits.send_s

    async def _read_after(self, position: int) -> list[Change]:
        """What comes next; nothing while no node answers, because the stream goes on when one does."""
        try:
            return await self._tail.read_after(position)
        except NoReplicaError:
            await asyncio.sleep(0.1)
            return []

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

    def __init__(self, chunks: AsyncGenerator[bytes, None], *, send_s: float) -> None:
        """Takes what to send, and how long one send may take."""
        self._chunks = chunks
        self._send_s = send_s

    async def __call__(self, _scope: Scope, receive: Receive, send: Send) -> None:
        """Sends until the stream ends, the client leaves, or takes nothing any more."""
        gone = asyncio.create_task(_wait_until_gone(receive))
        sending = asyncio.create_task(self._send_all(send))
        try:
            await asyncio.wait({gone, sending}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (gone, sending):
                task.cancel()
            await asyncio.gather(gone, sending, return_exceptions=True)

    async def _send_all(self, send: Send) -> None:
        headers = [
            (b"content-type", b"text/event-stream; charset=utf-8"),
            (b"cache-control", b"no-store"),
            (b"x-accel-buffering", b"no"),
        ]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        async with aclosing(self._chunks) as chunks:
            async for chunk in chunks:
                async with asyncio.timeout(self._send_s):
                    await send({"type": "http.response.body", "body": chunk, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})


def build_feed_handler(feed: Feed) -> HTTPRouteHandler:
    """The route of the change feed."""

    @get("/changes", summary="Follow what is committed")
    async def follow_changes(request: Request[Any, Any, Any]) -> EventStream:
        query = read_query(request.scope["query_string"], frozenset({"after"}))
        start = await feed.find_start(request.headers.get("last-event-id") or query.get("after"))
        return EventStream(feed.follow(start), send_s=feed.send_s)

    return follow_changes


async def _wait_until_gone(receive: Callable[[], Awaitable[Any]]) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _end(reason: str, last_id: str) -> bytes:
    """The last event of a stream that the service ends: why, and the id to go on from."""
    data = msgspec.json.encode({"reason": reason, "last_event_id": last_id})
    return b"event: end\ndata: " + data + b"\n\n"
