"""A node's watch goes on whatever one of its probes meets: one that ended would leave the last state for ever."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime
from itertools import pairwise
from types import TracebackType
from typing import Self

import asyncpg
import pytest

from atelier.deadline import Deadline
from atelier.errors import HistoryLostError
from atelier.lsn import Lsn
from atelier.reads.wait import admit
from atelier.settings import NodeAddress, Settings
from atelier.token import CausalToken, History
from atelier.topology import monitor as monitor_module
from atelier.topology.monitor import TopologyMonitor
from atelier.topology.sources import NodeSource, StaticNodes
from atelier.topology.state import Observation

pytestmark = pytest.mark.anyio

NODE = NodeAddress("pg1", "127.0.0.1", 1)
REPLICA = NodeAddress("pg2", "127.0.0.1", 2)
SETTINGS = Settings(
    nodes=(NODE,), token_keys=(b"k" * 32,), reader_password="", monitor_password="", writer_password=""
)  # fmt: skip


class PrimaryProbe:
    """The probe of a primary that is well."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None

    async def observe(self, asked_at_s: float) -> Observation:
        """Where it stands."""
        return Observation(
            observed_at_s=asked_at_s,
            in_recovery=False,
            system_id=1,
            timeline=1,
            started_at=datetime(2026, 1, 1, tzinfo=UTC),
            received_lsn=None,
            replayed_lsn=Lsn(100),
            streaming=False,
        )

    async def read_history(self, timeline: int) -> History:
        """It has never been promoted."""
        return History(1, timeline)


@pytest.mark.parametrize(
    "failure",
    [
        asyncpg.InternalClientError("cannot switch to state 12; another operation (2) is in progress"),
        ConnectionRefusedError(),
        TimeoutError(),
        RuntimeError("a mistake of ours"),
    ],
    ids=lambda failure: type(failure).__name__,
)
async def test_a_watch_survives_whatever_a_probe_meets(monkeypatch: pytest.MonkeyPatch, failure: Exception) -> None:
    """The driver's own slip when a server ends in the middle of a query, too: the next probe finds the primary."""
    failures = [failure]

    async def open_probe(*_args: object, **_named: object) -> PrimaryProbe:
        if failures:
            raise failures.pop()
        return PrimaryProbe()

    monkeypatch.setattr(monitor_module.Probe, "open", open_probe)
    async with TopologyMonitor(SETTINGS, StaticNodes((NODE,))) as watching:
        found = await watching.wait_until(lambda seen: seen.primary is not None, Deadline.after(10, time.monotonic))
    assert found.primary is not None
    assert not failures


class ListThatBreaks:
    """A source of nodes with a mistake in it: it answers, fails as nobody foresaw, and answers with one node more."""

    def __init__(self) -> None:
        self.asked = 0

    async def nodes(self) -> tuple[NodeAddress, ...]:
        """The nodes, every other time."""
        self.asked += 1
        if self.asked == 2:
            raise RuntimeError("a mistake of ours")
        return (NODE, REPLICA)[: self.asked]


async def test_the_list_of_nodes_is_read_again_after_a_mistake(monkeypatch: pytest.MonkeyPatch) -> None:
    """A task that ended would leave the list as it is for ever, without a word."""
    told: list[str] = []
    monkeypatch.setattr(monitor_module.log, "exception", lambda event, **_: told.append(event))
    source = ListThatBreaks()
    async with watching_probes(monkeypatch, source=source) as (watching, _):
        for _ in range(2):
            asked = source.asked
            watching.relist_soon()
            async with asyncio.timeout(10):
                while source.asked == asked:
                    await asyncio.sleep(0)
        await watching.wait_until(lambda seen: seen.node("pg2") is not None, Deadline.after(10, time.monotonic))
    assert told == ["node_list_broken"]


class Counted(PrimaryProbe):
    """A probe that counts: when each observation of which node began, and how many were under way at once."""

    def __init__(self, address: NodeAddress, seen: "Seen") -> None:
        self._address = address
        self._seen = seen

    async def observe(self, asked_at_s: float) -> Observation:
        """A moment later; the primary has gone on by a byte every time."""
        seen, name = self._seen, self._address.name
        seen.began_s.setdefault(name, []).append(time.monotonic())
        seen.under_way[name] = seen.under_way.get(name, 0) + 1
        seen.most_under_way = max(seen.most_under_way, seen.under_way[name])
        await asyncio.sleep(0.001)
        seen.under_way[name] -= 1
        observation = await super().observe(asked_at_s)
        if self._address == NODE:
            return replace(observation, replayed_lsn=Lsn(100 + seen.count("pg1")))
        return replace(observation, in_recovery=True, streaming=True)


class Seen:
    """What the probes have counted."""

    def __init__(self) -> None:
        self.began_s: dict[str, list[float]] = {}
        self.under_way: dict[str, int] = {}
        self.most_under_way = 0

    def count(self, name: str) -> int:
        """How often a node was probed."""
        return len(self.began_s.get(name, []))


@asynccontextmanager
async def watching_probes(
    monkeypatch: pytest.MonkeyPatch, *, source: NodeSource | None = None
) -> AsyncIterator[tuple[TopologyMonitor, Seen]]:
    """A monitor over a primary and a replica that has seen the primary, and what its probes count."""
    seen = Seen()

    async def open_probe(address: NodeAddress, **_named: object) -> Counted:
        return Counted(address, seen)

    monkeypatch.setattr(monitor_module.Probe, "open", open_probe)
    async with TopologyMonitor(SETTINGS, source or StaticNodes((NODE, REPLICA))) as watching:
        await watching.wait_until(lambda now: now.primary is not None, Deadline.after(10, time.monotonic))
        yield watching, seen


async def test_a_node_is_probed_about_every_100_ms_while_nobody_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Never sooner than that; on time but for a busy machine."""
    async with watching_probes(monkeypatch) as (_, seen):
        first = seen.count("pg1") + 1  # one may still be hurried by the wait for the primary
        async with asyncio.timeout(30):
            while seen.count("pg1") < first + 10:
                await asyncio.sleep(0.01)
        began_s = seen.began_s["pg1"][first:]
    gaps_s = sorted(after - before for before, after in pairwise(began_s))
    assert gaps_s[0] > 0.095
    assert gaps_s[len(gaps_s) // 2] < 0.4


async def test_nodes_are_probed_faster_while_somebody_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever waits for the twentieth look from now does not wait for twenty idle intervals, here of half a minute."""
    monkeypatch.setattr(monitor_module, "IDLE_INTERVAL_S", 30)
    async with watching_probes(monkeypatch) as (watching, seen):
        wanted = seen.count("pg1") + 20

        def has_come(_: object) -> bool:
            return seen.count("pg1") >= wanted

        await watching.wait_until(has_come, Deadline.after(10, time.monotonic))


async def test_a_node_never_has_more_than_one_probe_in_flight(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many wait, suspect it, or both."""
    async with watching_probes(monkeypatch) as (watching, seen):

        async def wait_and_suspect() -> None:
            for _ in range(20):
                watching.suspect("pg1")
                watching.suspect("pg2")
                await watching.wait_for_fresh(Deadline.after(10, time.monotonic))

        await asyncio.gather(*(wait_and_suspect() for _ in range(50)))
        assert seen.count("pg1") >= 20
    assert seen.most_under_way == 1


async def test_tokens_beyond_all_that_is_known_share_one_look_at_the_primary(monkeypatch: pytest.MonkeyPatch) -> None:
    """A hundred of them: each is refused after a look that began after it came, and that is the same one for all."""
    monkeypatch.setattr(monitor_module, "IDLE_INTERVAL_S", 30)
    async with watching_probes(monkeypatch) as (watching, seen):
        async with asyncio.timeout(10):
            while seen.under_way["pg1"]:
                await asyncio.sleep(0)
        before = seen.count("pg1")
        tokens = [CausalToken(1, 1, Lsn(10_000 + number)) for number in range(100)]
        deadline = Deadline.after(10, time.monotonic)
        refused = await asyncio.gather(
            *(admit(watching, token, deadline, beyond=False) for token in tokens), return_exceptions=True
        )
        assert all(isinstance(one, HistoryLostError) for one in refused)
        # One, and the one that was about to begin while its answer was being handed round.
        assert 1 <= seen.count("pg1") - before <= 2
