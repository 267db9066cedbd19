"""A reader of server-sent events, as small as it can be."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import httpx

from tests.commands.conftest import Shop


@dataclass(frozen=True)
class Event:
    """One event of the stream."""

    id: str
    name: str
    data: dict[str, Any]


class Events:
    """The events of one open stream, one after the other."""

    def __init__(self, response: httpx.Response) -> None:
        self.response = response
        self._lines = response.aiter_lines()

    async def next(self) -> Event:
        """The next event; comments are passed over."""
        fields: dict[str, str] = {}
        async for line in self._lines:
            if line and not line.startswith(":"):
                name, _, value = line.partition(": ")
                fields[name] = value
            elif not line and "data" in fields:
                return Event(fields.get("id", ""), fields["event"], json.loads(fields["data"]))
        raise EOFError

    async def take(self, count: int) -> list[Event]:
        """The next so many events."""
        return [await self.next() for _ in range(count)]


@asynccontextmanager
async def follow(http: httpx.AsyncClient, after: str | None = None) -> AsyncIterator[Events]:
    """Opens the change feed, behind an event."""
    headers = {} if after is None else {"Last-Event-ID": after}
    async with http.stream("GET", "/changes", headers=headers) as response:
        assert response.status_code == 200, await response.aread()
        yield Events(response)


async def change_and_follow(shop: Shop, sku_id: int, times: int) -> list[Event]:
    """Changes a SKU that nobody has changed yet, again and again; gives what was announced of that."""
    async with follow(shop.http) as events:
        for _ in range(times):
            await shop.adjust(sku_id, 1)
        return [await next_about(events, sku_id=sku_id, version=version) for version in range(2, 2 + times)]


async def next_about(events: Events, **wanted: int) -> Event:
    """The next event about something; others may write at the same time.

    A stream begins where its replica stands, so that one that lags tells of what was before: name the version too where
    that would make a difference.
    """
    async with asyncio.timeout(15):
        while True:
            event = await events.next()
            if all(event.data.get(name) == value for name, value in wanted.items()):
                return event
