"""The writing side inside the test's own process, and a proxy that cuts its connections at chosen moments."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from atelier.access.verify import Actor
from atelier.deadline import Deadline
from atelier.embedded.cluster import EmbeddedCluster
from atelier.settings import Settings
from atelier.topology.monitor import TopologyMonitor
from atelier.topology.sources import StaticNodes
from atelier.writes.background import Background
from atelier.writes.commands import Adjustment, AdjustmentLine, AdjustStock, Command
from atelier.writes.decode import fingerprint
from atelier.writes.envelope import Envelope
from atelier.writes.policy import WritePolicy
from atelier.writes.primary import PrimaryGateway
from atelier.writes.service import WriteService
from tests.commands.conftest import new_key

ACTOR = Actor("tester", 0, "testtest", frozenset({"admin"}))


def settings_of(cluster: EmbeddedCluster, **environ: str) -> Settings:
    """The settings of a service over a cluster, with some changed."""
    return Settings.from_environment(cluster.environment() | environ)


@asynccontextmanager
async def open_writes(
    settings: Settings, policy: WritePolicy | None = None, *, has_chores: bool = True
) -> AsyncIterator[WriteService]:
    """The writing side of one process; without its chores, every COMMIT is some command's."""
    monitor = TopologyMonitor(settings, StaticNodes(settings.nodes), clock=time.monotonic)
    service = WriteService(monitor, settings, policy or WritePolicy(), clock=time.monotonic)
    if not has_chores:
        service._background = Background([])
    async with monitor, service:
        yield service


@asynccontextmanager
async def open_gateway(settings: Settings, *, connections: int = 1) -> AsyncIterator[PrimaryGateway]:
    """Connections to the primary, without the service around them."""
    async with TopologyMonitor(settings, StaticNodes(settings.nodes), clock=time.monotonic) as monitor:
        gateway = PrimaryGateway(monitor, settings, connections=connections, clock=time.monotonic)
        try:
            yield gateway
        finally:
            await gateway.close()


def make_order(command: Command, *, key: str | None = None, within_s: float = 10.0) -> Envelope:
    """A command on its way, under a key of its own unless one is given."""
    deadline = Deadline.after(within_s, time.monotonic)
    body = getattr(command, "body", None)
    mark = fingerprint("POST", type(command).__name__, "", if_match=None, body=body)
    return Envelope(command, ACTOR, key or new_key(), mark, "/test", deadline)


def adjustment(*lines: tuple[int, int]) -> AdjustStock:
    """A command that changes what is on hand: SKU and delta of each line."""
    return AdjustStock(Adjustment("test", [AdjustmentLine(sku_id, delta) for sku_id, delta in lines]))


@dataclass
class Proxy:
    """Stands between the service and the primary, and sees every message that the service sends.

    Attributes:
        port: where it listens.
        on_commit: called when the service sends a COMMIT: "pass", "cut-before" (the server never sees it),
            "cut-after" (the server commits, the answer is lost) or "hold" (the answer is kept until `release`).
        commits: how many it has seen.
        release: lets held answers pass.
    """

    port: int
    on_commit: Callable[[], str] = lambda: "pass"
    commits: int = 0
    release: asyncio.Event = field(default_factory=asyncio.Event)
    _writers: list[asyncio.StreamWriter] = field(default_factory=list)

    def cut_all(self) -> None:
        """Cuts every connection that is open now."""
        for writer in self._writers:
            abort(writer)
        self._writers.clear()

    def serve(self, target_port: int) -> Callable[[asyncio.StreamReader, asyncio.StreamWriter], object]:
        """Makes the handler of one connection."""

        async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            try:
                upstream_reader, upstream = await asyncio.open_connection("127.0.0.1", target_port)
            except OSError:
                abort(writer)
                return
            self._writers += [writer, upstream]
            gate = asyncio.Event()
            gate.set()
            down = asyncio.create_task(self._pump_down(upstream_reader, writer, gate))
            try:
                await self._pump_up(reader, writer, upstream, gate)
            except (OSError, RuntimeError):
                pass  # an end that was cut meanwhile; uvloop says RuntimeError for a write to a closed one
            finally:
                down.cancel()
                for end in (writer, upstream):
                    abort(end)

        return handle

    async def _pump_up(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        upstream: asyncio.StreamWriter,
        gate: asyncio.Event,
    ) -> None:
        while data := await reader.read(65536):
            if b"COMMIT;" in data:
                self.commits += 1
                verdict = self.on_commit()
                if verdict == "cut-before":
                    return
                if verdict in ("cut-after", "hold"):
                    gate.clear()
                upstream.write(data)
                await upstream.drain()
                if verdict == "cut-after":
                    # The server goes on with what it has received when the client is gone already.
                    await asyncio.sleep(0.1)
                    return
                if verdict == "hold":
                    await self.release.wait()
                    gate.set()
                continue
            upstream.write(data)
            await upstream.drain()

    async def _pump_down(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, gate: asyncio.Event) -> None:
        try:
            while data := await reader.read(65536):
                await gate.wait()
                writer.write(data)
                await writer.drain()
        except (OSError, RuntimeError):
            pass
        finally:
            abort(writer)


def abort(writer: asyncio.StreamWriter) -> None:
    """Cuts a connection, unless it is cut already."""
    if not writer.transport.is_closing():
        writer.transport.abort()


@asynccontextmanager
async def open_proxy(target_port: int) -> AsyncIterator[Proxy]:
    """A proxy in front of a port."""
    proxy = Proxy(0)
    server = await asyncio.start_server(proxy.serve(target_port), "127.0.0.1", 0)
    proxy.port = server.sockets[0].getsockname()[1]
    try:
        yield proxy
    finally:
        proxy.release.set()
        server.close()
        proxy.cut_all()
