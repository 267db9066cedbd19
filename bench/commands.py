"""What combined commands are worth against one unit of work per request, and pgbench: `python -m bench commands`.

One embedded cluster with two replicas, durable; one service process; 64 clients; the load generator on the same
machine. pgbench updates one row and nothing else: no HTTP, no key, no ledger, no audit. The subjects take turns, and
the medians of the rounds are compared: only the ratios of one run say anything.
"""

import argparse
import asyncio
import os
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
from bench.reads import (
    Row,
    at_least,
    fill,
    find_wrk,
    parse_wrk,
    print_machine,
    print_rows,
    run_program,
    running_service,
)

CLIENTS = 64
SCRIPT = """
math.randomseed(7)
local skus, sent = {{{skus}}}, 0
local headers = {{["Authorization"]="Bearer {api_key}", ["Content-Type"]="application/json"}}
request = function()
  sent = sent + 1
  headers["Idempotency-Key"] = "{run}-" .. sent
  return wrk.format("POST", "/inventory/adjustments", headers,
    '{{"reason": "bench", "lines": [{{"sku_id": ' .. skus[math.random(#skus)] .. ', "delta": 1}}]}}')
end
"""
HOT = (
    "update atelier.stock set on_hand = on_hand + 1, version = version + 1 where sku_id = 12 and on_hand >= reserved;\n"
)


def main(arguments: list[str] | None = None) -> int:
    """Measures and prints; 1 when a target is missed."""
    parser = argparse.ArgumentParser(prog="bench commands", description=__doc__.splitlines()[0])
    parser.add_argument("--products", type=int, default=10_000)
    parser.add_argument("--seconds", type=int, default=4, help="of each measurement")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--wrk", default="wrk", help="where wrk is")
    options = parser.parse_args(arguments)
    wrk = find_wrk(options.wrk)
    skus = list(range(12, options.products * 12, 7))
    with (
        durable_cluster(options.products) as (cluster, folder),
        running_service(cluster, folder) as (url, key, _),
        running_baseline(cluster, folder) as baseline,
    ):
        print_machine(cluster)
        bench = Bench(cluster, folder, (url, baseline), key, skus, options.seconds, wrk)
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
    wrk: str


def measure(bench: Bench) -> dict[str, float]:
    """One round: every subject once."""
    rates = {f"pgbench {clients}": run_pgbench(bench, clients) for clients in (4, 16, 64)}
    for name, url in zip(("combined", "single"), bench.urls, strict=True):
        rates[f"{name} hot"] = load(bench, url, [12])
        rates[f"{name} spread"] = load(bench, url, bench.skus)
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


def load(bench: Bench, url: str, skus: Sequence[int]) -> float:
    """Sends adjustments of one unit from 64 connections, each with a key of its own: commands per second."""
    script = bench.folder / "commands.lua"
    script.write_text(
        SCRIPT.format(api_key=bench.key, run=secrets.token_hex(6), skus=", ".join(map(str, skus))), encoding="utf-8"
    )
    done = parse_wrk(
        run_program([bench.wrk, "-t1", f"-c{CLIENTS}", f"-d{bench.seconds}s", "--latency", "-s", str(script), url])
    )
    if done.errors:
        raise SystemExit(f"bench commands: {done.errors} commands failed at {url}")
    return done.per_s


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
