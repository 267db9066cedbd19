"""A node's watch goes on whatever one of its probes meets: one that ended would leave the last state for ever."""

import time
from datetime import UTC, datetime
from types import TracebackType
from typing import Self

import asyncpg
import pytest

from atelier.deadline import Deadline
from atelier.lsn import Lsn
from atelier.settings import NodeAddress, Settings
from atelier.token import History
from atelier.topology import monitor as monitor_module
from atelier.topology.monitor import TopologyMonitor
from atelier.topology.sources import StaticNodes
from atelier.topology.state import Observation

pytestmark = pytest.mark.anyio

NODE = NodeAddress("pg1", "127.0.0.1", 1)


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
    settings = Settings(
        nodes=(NODE,), token_keys=(b"k" * 32,), reader_password="", monitor_password="", writer_password=""
    )
    async with TopologyMonitor(settings, StaticNodes((NODE,))) as watching:
        found = await watching.wait_until(lambda seen: seen.primary is not None, Deadline.after(10, time.monotonic))
    assert found.primary is not None
    assert not failures
