"""What combined commands are worth against one unit of work per request, and pgbench: `python -m bench commands`.

One embedded cluster with two replicas, durable; one service process; 64 clients; the load generator on the same
machine. pgbench updates one row and nothing else: no HTTP, no key, no ledger, no audit. The subjects take turns, and
the medians of the rounds are compared: only the ratios of one run say anything.
"""

import argparse
import asyncio
import json
import os
import random
import secrets
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

from atelier.embedded.cluster import EmbeddedCluster
from bench.reads import Row, at_least, fill, print_machine, print_rows, run_program, running_service

CLIENTS = 64
HOT = (
    "update atelier.stock set on_hand = on_hand + 1, version = version + 1 where sku_id = 12 and on_hand >= reserved;\n"
)


def main(arguments: list[str] | None = None) -> int:
    """Measures and prints; 1 when a target is missed."""
    parser = argparse.ArgumentParser(prog="bench commands", description=__doc__.splitlines()[0])
    parser.add_argument("--products", type=int, default=10_000)
    parser.add_argument("--seconds", type=int, default=4, help="of each measurement")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args(arguments)
    skus = list(range(12, options.products * 12, 7))
    with (
        durable_cluster(options.products) as (cluster, folder),
        running_service(cluster, folder) as (url, key, _),
        running_baseline(cluster, folder) as baseline,
    ):
        print_machine(cluster)
        bench = Bench(cluster, folder, (url, baseline), key, skus, options.seconds)
        rounds = [measure(bench) for _ in range(options.rounds)]
    rate = {name: statistics.median(one[name] for one in rounds) for name in rounds[0]}
    best = max(rate[f"pgbench {clients}"] for clients in (4, 16, 64))
    rows: list[Row] = [
        *((name, f"{rate[name]:,.0f}/s", None, True) for name in rate),
        at_least("combined, hot", rate["combined hot"], best, 1.2, of="pgbench's best"),
        at_least("combined, hot", rate["combined hot"], rate["pgbench 64"], 2.0, of="pgbench at 64"),
        at_least("combined, hot", rate["combined hot"], rate["single hot"], 10.0, of="single"),
        at_least("combined, spread", rate["combined spread"], rate["single spread"], 5.0, of="single"),
    ]  # fmt: skip
    return 1 if print_rows(rows) else 0


@dataclass(frozen=True)
class Bench:
    """What all measurements use; `urls` are the service's and the baseline's."""

    cluster: EmbeddedCluster
    folder: Path
    urls: tuple[str, str]
    key: str
    skus: Sequence[int]
    seconds: int


def measure(bench: Bench) -> dict[str, float]:
    """One round: every subject once."""
    rates = {f"pgbench {clients}": run_pgbench(bench, clients) for clients in (4, 16, 64)}
    for name, url in zip(("combined", "single"), bench.urls, strict=True):
        rates[f"{name} hot"] = asyncio.run(load(url, bench.key, [12], bench.seconds))
        rates[f"{name} spread"] = asyncio.run(load(url, bench.key, bench.skus, bench.seconds))
    return rates


def run_pgbench(bench: Bench, clients: int) -> float:
    """One conditional update of one row a transaction: transactions per second."""
    cluster, seconds = bench.cluster, bench.seconds
    script = bench.folder / "hot.pgbench"
    script.write_text(HOT, encoding="utf-8")
    binary = cluster._server.binaries.path("pgbench")  # noqa: SLF001  the cluster's own programs
    # The superuser: the service's role may not have so many connections.
    server = urlsplit(cluster.superuser_dsn(cluster.primary.name))
    said = run_program(
        [str(binary), "-n", "-M", "prepared", f"-c{clients}", "-j2", f"-T{seconds}", "-f", str(script),
         "-h", "127.0.0.1", "-p", str(cluster.primary.port), "-U", "postgres", "atelier"],
        env={**os.environ, "PGPASSWORD": unquote(server.password or "")},
    )  # fmt: skip
    return float(said.split("tps = ")[1].split(" ")[0])


class Client(asyncio.Protocol):
    """One connection that sends the next command when the last one was answered."""

    def __init__(self, key: str, skus: Sequence[int], ends_at_s: float) -> None:
        self.key, self.skus, self.ends_at_s = key, skus, ends_at_s
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.answered, self.received = 0, b""

    # What asyncio calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Connected: the first command goes out."""
        self.transport = transport
        self.send()

    def send(self) -> None:
        """Sends one command, or leaves when the time is over."""
        if time.perf_counter() >= self.ends_at_s:
            self.transport.close()
            return
        line = {"sku_id": random.choice(self.skus), "delta": 1}
        body = json.dumps({"reason": "bench", "lines": [line]}).encode()
        head = (
            f"POST /inventory/adjustments HTTP/1.1\r\nHost: bench\r\nAuthorization: Bearer {self.key}\r\n"
            f"Idempotency-Key: {secrets.token_hex(12)}\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(body)}\r\n\r\n"
        )
        self.transport.write(head.encode() + body)  # type: ignore[attr-defined]

    def data_received(self, data: bytes) -> None:
        """Part of an answer, or all of it."""
        self.received += data
        head, end, body = self.received.partition(b"\r\n\r\n")
        if not end:
            return
        length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
        if len(body) < length:
            return
        if not head.startswith(b"HTTP/1.1 200"):
            self.done.set_exception(SystemExit(f"bench commands: {body[:300].decode()}"))
            self.transport.close()
            return
        self.received = b""
        self.answered += 1
        self.send()

    def connection_lost(self, _error: Exception | None) -> None:
        """Over."""
        if not self.done.done():
            self.done.set_result(None)


async def load(url: str, key: str, skus: Sequence[int], seconds: int) -> float:
    """Sends adjustments from 64 connections: commands per second."""
    host, port = url.removeprefix("http://").split(":")
    began_s, clients = time.perf_counter(), list[Client]()
    for _ in range(CLIENTS):
        make = lambda: Client(key, skus, began_s + seconds)  # noqa: E731
        _, client = await asyncio.get_running_loop().create_connection(make, host, int(port))
        clients.append(client)
    await asyncio.gather(*(client.done for client in clients))
    return sum(client.answered for client in clients) / (time.perf_counter() - began_s)


@contextmanager
def durable_cluster(products: int) -> Iterator[tuple[EmbeddedCluster, Path]]:
    """A primary and two replicas with a catalogue, as `atelier up` makes them: every commit reaches the disk."""
    folder = Path(tempfile.mkdtemp(prefix="atelier-bench-"))
    folder.chmod(0o711)
    cluster = EmbeddedCluster.create_or_open(folder / "data", 2)
    try:
        cluster.start()
        asyncio.run(fill(cluster, products))
        yield cluster, folder
    finally:
        for node in cluster.nodes.values():
            node.stop()
        shutil.rmtree(folder)


@contextmanager
def running_baseline(cluster: EmbeddedCluster, folder: Path) -> Iterator[str]:
    """The server of `bench.baseline`, one process as the service is."""
    port = cluster.primary.port + 5000 if cluster.primary.port < 60000 else cluster.primary.port - 5000
    password = cluster.environment()["ATELIER_WRITER_PASSWORD"]
    environ = {**os.environ, "BASELINE_URL": f"127.0.0.1 {cluster.primary.port} {password}"}
    command = [sys.executable, "-m", "granian", "--interface", "asgi", "--factory", "--loop", "uvloop",
               "--port", str(port), "bench.baseline:create_app"]  # fmt: skip
    with (folder / "baseline.log").open("wb") as log:
        process = subprocess.Popen(command, env=environ, stdout=log, stderr=log)
    try:
        for _ in range(100):
            if b"Started worker" in (folder / "baseline.log").read_bytes():
                break
            time.sleep(0.1)
        time.sleep(1)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(timeout=30)


if __name__ == "__main__":
    sys.exit(main())
