r"""What reads through the service cost against the same SQL by pgbench: `python -m bench reads`.

One embedded cluster with two replicas, one service process, everything on (tokens, ETags, metrics, logs), and the load
generator, on one machine, one after the other. Figures of different days differ: only the ratios of one run compare.
Needs `wrk` (Debian's package of that name) on the path, or named by `--wrk`.
"""

import argparse
import asyncio
import http.client
import json
import os
import platform
import re
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import asyncpg
import psutil
from sqlalchemy.engine import URL

from atelier.access.keys import create_key
from atelier.embedded.cluster import EmbeddedCluster
from atelier.embedded.waiting import wait_for
from atelier.migrate import migrate
from atelier.reads.position import POSITION
from atelier.reads.queries import load_statements

# Two styles a product, three photos and six SKUs a style: the shape of the full catalogue.
FILL = """
insert into product (id, name, slogan, description, category, default_price)
select n, 'Product ' || n, 'Slogan of ' || n, repeat('A sentence about it. ', 8), 'Category ' || n % 40, n % 500 + 0.5
from generate_series(1, {products}) as n;
insert into feature (product_id, feature, value)
select n, 'Feature ' || m, 'Value ' || n % 97 from generate_series(1, {products}) as n, generate_series(1, 3) as m;
insert into related (product_id, position, related_product_id)
select n, m, 1 + (n * 7919 + m) % {products} from generate_series(1, {products}) as n, generate_series(1, 4) as m;
insert into style (id, product_id, name, original_price, sale_price, is_default)
select 2 * n + m, n, 'Style ' || m, n % 500 + 0.5, case when n % 3 = 0 then n % 400 end, m = 0
from generate_series(1, {products}) as n, generate_series(0, 1) as m;
insert into photo (style_id, url, thumbnail_url)
select s.id, 'https://images.example/' || s.id || '/' || m, 'https://images.example/' || s.id || '/' || m || '/small'
from style as s, generate_series(1, 3) as m;
insert into sku (id, style_id, size) select 6 * s.id + m, s.id, (array['XS','S','M','L','XL','XXL'])[m + 1]
from style as s, generate_series(0, 5) as m;
insert into stock (sku_id, on_hand) select id, id % 60 from sku;
select setval('product_id_seq', {products}), setval('style_id_seq', (select max(id) from style)),
       setval('sku_id_seq', (select max(id) from sku));
"""

SCRIPT = """
math.randomseed({seed})
local paths = {{{paths}}}
request = function()
  local path = paths[math.random(#paths)]
  return wrk.format("GET", (path:gsub("ID", math.random({low}, {high})):gsub("PAGE", math.random(1, 1000))), {headers})
end
"""
# 40 % styles, 35 % product, 20 % related, 5 % list.
MIX = ["/products/ID/styles"] * 8 + ["/products/ID"] * 7 + ["/products/ID/related"] * 4 + ["/products?page=PAGE"]


@dataclass(frozen=True)
class Bench:
    """What all measurements use."""

    cluster: EmbeddedCluster
    url: str
    key: str
    service_pid: int
    wrk: str
    folder: Path
    products: int
    seconds: int

    @property
    def span(self) -> tuple[int, int]:
        """The ids that are asked for: the last tenth, so that the whole catalogue is not in anybody's first cache."""
        return self.products * 9 // 10 + 1, self.products


@dataclass(frozen=True)
class Load:
    """What wrk saw."""

    per_s: float
    p50_ms: float
    p99_ms: float
    errors: int
    cpu_us: float = 0.0
    """Processor time of the service per request, in microseconds: it also compares where others use the machine."""


def main(arguments: list[str] | None = None) -> int:
    """Measures and prints; 1 when a target is missed, 2 when it cannot measure."""
    parser = argparse.ArgumentParser(prog="bench reads", description=__doc__.splitlines()[0])
    parser.add_argument("--products", type=int, default=100_000)
    parser.add_argument("--seconds", type=int, default=8, help="of each measurement")
    parser.add_argument("--wrk", default="wrk", help="where wrk is")
    options = parser.parse_args(arguments)
    wrk = find_wrk(options.wrk)
    with running_cluster(options.products) as (cluster, folder), running_service(cluster, folder) as (url, key, pid):
        print_machine(cluster)
        missed = measure(Bench(cluster, url, key, pid, wrk, folder, options.products, options.seconds))
    return 1 if missed else 0


def find_wrk(name: str) -> str:
    """Where the load generator is; ends the program with a line when it is not there."""
    found = shutil.which(name)
    if found is None:
        raise SystemExit(f"bench: {name} is not there; install Debian's package wrk")
    return found


def measure(bench: Bench) -> int:
    """Takes all measurements; the number of targets that were missed."""
    run_wrk(bench, MIX, seconds=3)
    raw = {name: run_pgbench(bench, name) for name in ("styles_documented", "product_documented")}
    styles, product = run_wrk(bench, ["/products/ID/styles"]), run_wrk(bench, ["/products/ID"])
    mix = run_wrk(bench, MIX)
    token = read_token(bench)
    tokens = run_wrk(bench, ["/products/ID"], token=token)
    again = run_wrk(bench, ["/products/ID"])
    causal = measure_causal(bench)
    lone = {name: measure_lone(bench, path) for name, path in LONE.items()}
    pages = measure_pages(bench)
    rows = [
        ("pgbench styles, 8 clients, prepared", f"{raw['styles_documented']:,.0f}/s", None, True),
        ("pgbench product, 8 clients, prepared", f"{raw['product_documented']:,.0f}/s", None, True),
        at_least("styles, 32 connections", styles.per_s, raw["styles_documented"], 0.3),
        at_least("product, 32 connections", product.per_s, raw["product_documented"], 0.3),
        ("service's processor time per product read", f"{product.cpu_us:.0f} us", None, True),
        ("service's processor time per styles read", f"{styles.cpu_us:.0f} us", None, True),
        ("mix, 32 connections", f"{mix.per_s:,.0f}/s, {mix.errors} errors", "no error", mix.errors == 0),
        ("mix, 99th percentile", f"{mix.p99_ms:.1f} ms", "< 50 ms", mix.p99_ms < 50),
        at_least("product with a token", tokens.per_s, (product.per_s + again.per_s) / 2, 0.9, of="without"),
        ("causal read right after a write, median", f"{statistics.median(causal):.2f} ms", None, True),
        ("the same, 99th percentile", f"{percentile(causal, 99):.2f} ms", "< 10 ms", percentile(causal, 99) < 10),
        ("lone product, median", f"{lone['product']:.2f} ms", "< 2 ms", lone["product"] < 2),
        ("lone styles, median", f"{lone['styles']:.2f} ms", "< 3 ms", lone["styles"] < 3),
        ("last page against first page", f"{pages:.2f}x", "<= 1.5x", pages <= 1.5),
    ]
    return print_rows(rows)


Row = tuple[str, str, str | None, bool]


def at_least(name: str, per_s: float, base: float, ratio: float, *, of: str = "pgbench") -> Row:
    """A rate as a ratio of another one."""
    return name, f"{per_s:,.0f}/s = {per_s / base:.2f}x {of}", f">= {ratio}x", per_s >= ratio * base


def print_rows(rows: list[Row]) -> int:
    """Prints a table; the number of targets that were missed."""
    for name, value, target, met in rows:
        verdict = "" if target is None else f"{target:>10}  {'met' if met else 'MISSED'}"
        print(f"{name:<42} {value:>32}  {verdict}")
    return sum(not met for *_, met in rows)


def print_machine(cluster: EmbeddedCluster) -> None:
    """The machine and the versions, without which no figure means anything."""
    model = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text(encoding="utf-8"))
    memory = re.search(r"MemTotal:\s*(\d+)", Path("/proc/meminfo").read_text(encoding="utf-8"))
    version = cluster.primary.sql("show server_version")
    print(f"{os.cpu_count()} x {model[1] if model else platform.processor()}, "
          f"{int(memory[1]) // 2**20 if memory else 0} GiB, Linux {platform.release()}, "
          f"Python {platform.python_version()}, PostgreSQL {version}, load {os.getloadavg()[0]:.1f}")  # fmt: skip


# ---------------------------------------------------------------- measurements

LONE = {"product": "/products/{}", "styles": "/products/{}/styles"}


def run_wrk(bench: Bench, paths: list[str], *, seconds: int | None = None, token: str | None = None) -> Load:
    """Loads the service from 32 connections."""
    low, high = bench.span
    headers = f'{{["Atelier-Token"]="{token}"}}' if token else "nil"
    listed = ", ".join(json.dumps(path) for path in paths)
    script = bench.folder / "load.lua"
    script.write_text(SCRIPT.format(seed=5, paths=listed, low=low, high=high, headers=headers), encoding="utf-8")
    command = [bench.wrk, "-t1", "-c32", f"-d{seconds or bench.seconds}s", "--latency", "-s", str(script), bench.url]
    before_s = cpu_seconds(bench.service_pid)
    load = parse_wrk(run_program(command))
    spent_s = cpu_seconds(bench.service_pid) - before_s
    return replace(load, cpu_us=spent_s * 1e6 / max(1, load.per_s * (seconds or bench.seconds)))


def cpu_seconds(pid: int) -> float:
    """Processor time that a process and its children have used."""
    parent = psutil.Process(pid)
    times = [process.cpu_times() for process in (parent, *parent.children(recursive=True))]
    return sum(one.user + one.system for one in times)


def run_program(command: list[str], *, env: dict[str, str] | None = None) -> str:
    """What a program writes; its last words when it fails."""
    said = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120, env=env)
    if said.returncode:
        raise SystemExit(f"bench reads: {command[0]}: {(said.stderr.strip() or 'failed').splitlines()[0]}")
    return said.stdout


def parse_wrk(said: str) -> Load:
    """Reads wrk's report."""
    per_s = re.search(r"Requests/sec:\s*([\d.]+)", said)
    quantiles = dict(re.findall(r"(50|99)%\s+([\d.]+(?:us|ms|s))", said))
    refused = re.search(r"Non-2xx or 3xx responses: (\d+)", said)
    broken = re.search(r"Socket errors: connect (\d+), read (\d+), write (\d+), timeout (\d+)", said)
    errors = (int(refused[1]) if refused else 0) + sum(map(int, broken.groups() if broken else ()))
    return Load(float(per_s[1]) if per_s else 0.0, to_ms(quantiles["50"]), to_ms(quantiles["99"]), errors)


def to_ms(text: str) -> float:
    """Reads a duration as wrk writes it."""
    number, unit = re.fullmatch(r"([\d.]+)(us|ms|s)", text).groups()  # type: ignore[union-attr]
    return float(number) * {"us": 0.001, "ms": 1, "s": 1000}[unit]


def run_pgbench(bench: Bench, name: str) -> float:
    """The statement of the service without its position, on one replica by eight clients: transactions per second."""
    sql = load_statements()[name].sql.replace(POSITION.strip(), "(select true as here) as position")
    # pgbench takes `:null` within a JSON literal for a variable of its own.
    sql = sql.rstrip(";").replace('":null', '": null').replace("$1", "array[:id]")
    low, high = bench.span
    script = bench.folder / "read.pgbench"
    script.write_text(f"\\set id random({low}, {high})\n{sql};\n", encoding="utf-8")
    node = bench.cluster.node("pg2")
    binary = bench.cluster._server.binaries.path("pgbench")  # noqa: SLF001  the cluster's own programs
    password = bench.cluster.environment()["ATELIER_READER_PASSWORD"]
    said = run_program(
        [str(binary), "-n", "-M", "prepared", "-c8", "-j1", f"-T{bench.seconds}", "-f", str(script),
         "-h", "127.0.0.1", "-p", str(node.port), "-U", "reader", "atelier"],
        env={**os.environ, "PGPASSWORD": password},
    )  # fmt: skip
    found = re.search(r"tps = ([\d.]+)", said)
    return float(found[1]) if found else 0.0


def read_token(bench: Bench) -> str:
    """A token of now, as a read gives it."""
    with client(bench) as ask:
        return str(ask("GET", "/products/1")[1]["atelier-token"])


def measure_causal(bench: Bench, times: int = 300) -> list[float]:
    """How long a read takes that sends the token of the write before it, in milliseconds."""
    sku_id, took_ms = 6 * 2 * bench.products, []
    with client(bench) as ask:
        for number in range(times):
            body = json.dumps({"reason": "bench", "lines": [{"sku_id": sku_id, "delta": 1}]})
            headers = {"Authorization": f"Bearer {bench.key}", "Content-Type": "application/json"}
            status, answer, _ = ask(
                "POST", "/inventory/adjustments", body, {**headers, "Idempotency-Key": f"b{number}"}
            )
            assert status == 200, status  # noqa: S101
            began_s = time.perf_counter()
            ask("GET", f"/inventory/{sku_id}", None, {**headers, "Atelier-Token": answer["atelier-token"]})
            took_ms.append((time.perf_counter() - began_s) * 1000)
    return took_ms


def measure_lone(bench: Bench, path: str, times: int = 500) -> float:
    """The median of one request after another with no other load, in milliseconds."""
    low, high = bench.span
    with client(bench) as ask:
        return statistics.median(
            timed(lambda number=number: ask("GET", path.format(low + number * 37 % (high - low))))
            for number in range(times)
        )


def measure_pages(bench: Bench, times: int = 200) -> float:
    """The median of the last page against that of the first."""
    last = bench.products // 5
    with client(bench) as ask:
        return statistics.median(timed(lambda: ask("GET", f"/products?page={last}")) for _ in range(times)) / (
            statistics.median(timed(lambda: ask("GET", "/products?page=1")) for _ in range(times))
        )


def timed(call: Callable[[], object]) -> float:
    """How long a call takes, in milliseconds."""
    began_s = time.perf_counter()
    call()
    return (time.perf_counter() - began_s) * 1000


def percentile(values: list[float], percent: int) -> float:
    """The value that so many percent do not exceed."""
    return sorted(values)[min(len(values) - 1, len(values) * percent // 100)]


Ask = Callable[..., tuple[int, dict[str, str], bytes]]


@contextmanager
def client(bench: Bench) -> Iterator[Ask]:
    """One kept connection to the service."""
    connection = http.client.HTTPConnection(bench.url.removeprefix("http://"), timeout=10)

    def ask(
        method: str, path: str, body: str | None = None, headers: dict[str, str] | None = None
    ) -> tuple[int, dict[str, str], bytes]:
        connection.request(method, path, body, headers or {})
        answer = connection.getresponse()
        content = answer.read()
        return answer.status, {name.lower(): value for name, value in answer.getheaders()}, content

    connection.connect()
    connection.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    try:
        yield ask
    finally:
        connection.close()


# ---------------------------------------------------------------- what is measured


@contextmanager
def running_cluster(products: int) -> Iterator[tuple[EmbeddedCluster, Path]]:
    """A primary and two replicas with a catalogue, in a folder that the servers' user can pass through."""
    folder = Path(tempfile.mkdtemp(prefix="atelier-bench-"))
    folder.chmod(0o711)
    cluster = EmbeddedCluster.create_or_open(folder / "data", 2, extra_settings={"fsync": "off"})
    try:
        cluster.start()
        began_s = time.monotonic()
        asyncio.run(fill(cluster, products))
        print(f"{products:,} products made in {time.monotonic() - began_s:.0f} s")
        yield cluster, folder
    finally:
        for node in cluster.nodes.values():
            node.stop()
        shutil.rmtree(folder)


async def fill(cluster: EmbeddedCluster, products: int) -> None:
    """Migrates, makes the catalogue, and waits until the replicas have it."""
    password = cluster.environment()["ATELIER_MIGRATOR_PASSWORD"]
    where = {"host": "127.0.0.1", "port": cluster.primary.port, "database": "atelier", "password": password}
    url = URL.create("postgresql+asyncpg", username="migrator", **where)  # type: ignore[arg-type]
    await migrate(url, clock=time.monotonic, within_s=60, say=lambda _: None)
    owner = await asyncpg.connect(user="migrator", **where)  # type: ignore[arg-type]
    await owner.execute(FILL.format(products=products))
    await owner.execute("vacuum analyze")
    lsn = str(await owner.fetchval("select pg_current_wal_flush_lsn()::text"))
    await owner.close()
    for name in ("pg2", "pg3"):
        reached = f"select pg_last_wal_replay_lsn() >= '{lsn}'"
        if not wait_for(lambda name=name, reached=reached: cluster.node(name).sql(reached) == "t", timeout_s=300):
            raise SystemExit(f"bench reads: {name} does not come up")


@contextmanager
def running_service(cluster: EmbeddedCluster, folder: Path) -> Iterator[tuple[str, str, int]]:
    """The real service in one process: its address, a key for all, and the process."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environ = {name: value for name, value in os.environ.items() if not name.startswith("ATELIER_")}
    environ |= cluster.environment()
    del environ["ATELIER_MIGRATOR_PASSWORD"]
    command = [sys.executable, "-m", "atelier.cli.main", "serve", "--role=all", f"--port={port}"]
    with (folder / "service.log").open("wb") as log:
        process = subprocess.Popen(command, env=environ, stdout=log, stderr=log)
    try:
        wait_until_ready(port, process)
        yield f"http://127.0.0.1:{port}", asyncio.run(make_key(cluster)), process.pid
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(timeout=30)


def wait_until_ready(port: int, process: "subprocess.Popen[bytes]") -> None:
    """Asks until the service is ready; fails when it ends, or after half a minute."""
    for _ in range(300):
        if process.poll() is not None:
            raise SystemExit("bench reads: the service does not start")
        try:
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=1)
            connection.request("GET", "/health/ready")
            if connection.getresponse().status == 200:
                return
        except OSError:
            pass
        time.sleep(0.1)
    raise SystemExit("bench reads: the service does not become ready")


async def make_key(cluster: EmbeddedCluster) -> str:
    """An API key for all."""
    password = cluster.environment()["ATELIER_WRITER_PASSWORD"]
    connection = await asyncpg.connect(
        host="127.0.0.1", port=cluster.primary.port, user="writer", password=password, database="atelier"
    )
    try:
        return await create_key(connection, name="bench", scopes=("admin",))
    finally:
        await connection.close()


if __name__ == "__main__":
    sys.exit(main())
