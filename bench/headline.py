"""The headline: a fixed rate of mixed reads through a proxy while inventory commands run, and how far it goes.

Arrivals are scheduled; what could only leave late counts as waited. Everything is on one machine: the generator, the
proxy, one process for reads, one for commands, three PostgreSQL servers. Commands are for SKUs of the very products
that are read, drawn alike.
"""

import shutil
import statistics
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

from bench.load import MIX, Commands, Load, Reads, finish_load, run_load, start_load
from bench.mixed import Memory, count_memory
from bench.processes import GENERATOR, cpu_seconds, memory_mib, subtract
from bench.reads import PRODUCT, RELATED, STYLES
from bench.sampling import Lag, Sampler, tell_lags
from bench.stand import BenchError, Running, Stand, find_free_port, find_tool, run_server
from bench.table import Row, spread

READS_PER_S = 8_000
COMMANDS_PER_S = 500
LIMIT_MS = 100
# A main run is so many times a measurement; the steps of the knee are one each.
_LONG = 15
_FIRST_STEP_PER_S, _STEP_PER_S, _LAST_STEP_PER_S = 2_000, 1_000, 16_000
_CONNECTIONS, _COMMAND_CONNECTIONS = 256, 64
# A gibibyte keeps the last tenth of a million products with their styles and related products.
MEMORY = {"ATELIER_CACHE_BYTES": str(2**30)}
_MOST_WARM_S = 240
_TOP_FRAMES = 15

_NGINX = """
daemon off;
worker_processes 1;
pid {folder}/nginx.pid;
error_log {folder}/nginx.log warn;
events {{ worker_connections 2048; }}
http {{
  access_log off;
  client_body_temp_path {folder}/nginx-body;
  proxy_temp_path {folder}/nginx-proxy;
  fastcgi_temp_path {folder}/nginx-f; uwsgi_temp_path {folder}/nginx-u; scgi_temp_path {folder}/nginx-s;
  keepalive_requests 1000000;
  upstream reads {{ server {reads}; keepalive 256; keepalive_requests 1000000; }}
  upstream writes {{ server {writes}; keepalive 128; keepalive_requests 1000000; }}
  map $request_method $side {{ GET reads; HEAD reads; default writes; }}
  server {{
    listen 127.0.0.1:{port} reuseport backlog=2048;
    location / {{
      proxy_pass http://$side;
      proxy_http_version 1.1;
      proxy_set_header Connection "";
      proxy_set_header Host $host;
    }}
  }}
}}
"""


@dataclass(frozen=True)
class Both:
    """Reads and commands at the same time.

    Attributes:
        reads, commands: what the generators saw.
        lags: of the replicas, sampled meanwhile.
        memory: what the reading process counted meanwhile.
        cpu_s: processor time meanwhile, by process.
        took_s: how long all of it took.
        held_mib: memory at its end, by process.
    """

    reads: Load
    commands: Load
    lags: list[Lag]
    memory: Memory
    cpu_s: Mapping[str, float]
    took_s: float
    held_mib: Mapping[str, float]

    @property
    def p99_ms(self) -> float:
        """Of the reads, from when they were due: never less than it was."""
        return self.reads.p99_ms + self.reads.late_ms

    @property
    def errors(self) -> int:
        """Of reads and commands."""
        return self.reads.errors + self.commands.errors

    def is_good(self, per_s: float) -> bool:
        """Whether the rate was kept, nothing failed and the limit held."""
        return not self.errors and self.reads.per_s >= 0.98 * per_s and self.p99_ms < LIMIT_MS


@dataclass(frozen=True)
class Deployed:
    """What stands behind the proxy."""

    proxy: Running
    reads: Running
    writes: Running

    @property
    def services(self) -> dict[str, Running]:
        """By the names that tables have for them."""
        return {"nginx": self.proxy, "reads": self.reads, "writes": self.writes}


def measure(stand: Stand) -> Iterator[Row]:
    """All rows of this subject."""
    skus = write_skus(stand)
    with deploy(stand) as deployed:
        warm_up(stand, deployed.proxy)
        main: list[Both] = []
        knees: list[int] = []
        steps: dict[int, list[Both]] = {}
        for _ in range(stand.rounds):
            main.append(run_both(stand, deployed, skus, READS_PER_S, seconds=_LONG * stand.seconds))
            knees.append(find_knee(stand, deployed, skus, steps))
        yield from _tell_main(main)
        yield from _tell_cpu(main)
        yield from _tell_memory(main)
        yield from _tell_knee(knees, steps)
        if stand.profiles:
            yield from profile(stand, deployed, skus)


def _tell_main(main: list[Both]) -> Iterator[Row]:
    rates = [both.reads.per_s for both in main]
    errors = sum(both.reads.errors for both in main), sum(both.commands.errors for both in main)
    late = [both.p99_ms for both in main]
    commands = [both.commands.per_s for both in main]
    shares = [100 * both.memory.share for both in main]
    yield from [
        Row("reads through the proxy (0.99 of the rate passes: the generator's clock)",
            f"{spread(rates, '{:,.0f}'.format)}/s", f">= {READS_PER_S:,}/s",
            statistics.median(rates) >= 0.99 * READS_PER_S, settles="headline"),
        Row("errors", f"{errors[0]} of reads, {errors[1]} of commands", "none", not sum(errors), settles="headline"),
        Row("99th percentile, from when they were due", f"{spread(late, '{:,.1f}'.format)} ms", f"< {LIMIT_MS} ms",
            statistics.median(late) < LIMIT_MS, settles="headline"),
        Row("median", f"{spread([both.reads.p50_ms for both in main], '{:.1f}'.format)} ms"),
        Row("commands meanwhile (0.97 of the rate passes)", f"{spread(commands, '{:,.0f}'.format)}/s",
            f">= {COMMANDS_PER_S}/s", statistics.median(commands) >= 0.97 * COMMANDS_PER_S, settles="headline"),
        Row("commands, 99th percentile", f"{spread([both.commands.p99_ms for both in main], '{:,.0f}'.format)} ms"),
        Row("reads answered from memory", f"{spread(shares, '{:.1f}'.format)} %"),
        Row("answers forgotten, by what the commands changed",
            f"{spread([both.memory.changed / both.took_s for both in main], '{:,.0f}'.format)}/s"),
        Row("answers forgotten, to make room",
            f"{spread([both.memory.evicted / both.took_s for both in main], '{:,.0f}'.format)}/s"),
        Row("lag of the replicas, median / p99 / most", tell_lags([lag for both in main for lag in both.lags])),
    ]  # fmt: skip


def _tell_cpu(main: list[Both]) -> Iterator[Row]:
    """Who had the cores, the greatest first."""
    cores = {
        name: statistics.median(both.cpu_s.get(name, 0.0) / both.took_s for both in main) for name in main[0].cpu_s
    }
    for name, used in sorted(cores.items(), key=lambda pair: -pair[1]):
        if used >= 0.005:
            seconds = statistics.median(both.cpu_s.get(name, 0.0) for both in main)
            yield Row(f"processor: {name}", f"{seconds:.1f} s = {used:.2f} of a core")


def _tell_memory(main: list[Both]) -> Iterator[Row]:
    last = main[-1].held_mib
    yield from (Row(f"memory: {name}", f"{mib:,.0f} MiB") for name, mib in last.items())


def _tell_knee(knees: list[int], steps: Mapping[int, Sequence[Both]]) -> Iterator[Row]:
    name = "the knee: the highest rate that was kept, with the commands (p99 below the limit, no error)"
    yield Row(name, f"{spread([float(knee) for knee in knees], '{:,.0f}'.format)}/s")
    for per_s, seen in sorted(steps.items()):
        late = [both.p99_ms for both in seen]
        words = (
            f"{statistics.median(both.reads.per_s for both in seen):,.0f}/s, p99 {spread(late, '{:,.0f}'.format)} ms"
        )
        middle = statistics.median(late)
        yield Row(f"{per_s:,}/s asked, {len(seen)} times", words, figure=middle, at=per_s)


@contextmanager
def deploy(stand: Stand) -> Iterator[Deployed]:
    """The proxy, a process for reads, one for commands."""
    nginx, port = find_tool("nginx", "nginx"), find_free_port()
    with stand.serve(role="reads", **MEMORY) as reads, stand.serve(role="writes") as writes:
        config = stand.folder / "nginx.conf"
        hosts = {"reads": reads.url.removeprefix("http://"), "writes": writes.url.removeprefix("http://")}
        config.write_text(_NGINX.format(folder=stand.folder, port=port, **hosts), encoding="utf-8")
        with run_server([nginx, "-c", str(config)], {}, port, stand.folder / "nginx.out") as proxy:
            yield Deployed(proxy, reads, writes)


def write_skus(stand: Stand) -> Path:
    """A file with the SKUs of the products that are read: a line for each product, its first one and how many."""
    low, high = stand.span
    found = stand.ask(f"""
        select string_agg(first || ' ' || skus, chr(10) order by product_id)
        from (select style.product_id, min(sku.id) as first,
                     case when max(sku.id) - min(sku.id) + 1 = count(*) then count(*) else 1 end as skus
              from style join sku on sku.style_id = style.id
              where style.product_id between {low} and {high} group by style.product_id) as found
    """)  # fmt: skip
    path = stand.folder / "skus.txt"
    path.write_text(f"{found}\n", encoding="utf-8")
    return path


def warm_up(stand: Stand, proxy: Running) -> None:
    """Asks once for everything that will be asked for, so that it is in memory."""
    paths, (low, high) = (PRODUCT, STYLES, RELATED), stand.span
    walked, seconds, until_s = 0, 2 * stand.seconds, time.monotonic() + _MOST_WARM_S
    while walked < len(paths) * (high - low + 1) and time.monotonic() < until_s:
        what = Reads(paths, stand.span, walked=walked)
        load = run_load(proxy.url, what, stand.folder, seconds=seconds, connections=64)
        walked += int(0.98 * load.per_s * seconds)
    run_load(proxy.url, Reads(MIX, stand.span, by_zipf=True), stand.folder, seconds=seconds, connections=64)


def run_both(stand: Stand, deployed: Deployed, skus: Path, reads_per_s: float, *, seconds: int) -> Both:
    """Reads at a fixed rate, and commands at another one beside them."""
    began_s, counted = time.monotonic(), count_memory(deployed.reads)
    used = _look(stand, deployed)
    with Sampler(stand) as sampler:
        commands: subprocess.Popen[str] = start_load(
            deployed.proxy.url, Commands(stand.key, skus), stand.folder, seconds=seconds,
            connections=_COMMAND_CONNECTIONS, per_s=COMMANDS_PER_S,
        )  # fmt: skip
        reads = run_load(
            deployed.proxy.url, Reads(MIX, stand.span, by_zipf=True), stand.folder, seconds=seconds,
            connections=_CONNECTIONS, per_s=reads_per_s,
        )  # fmt: skip
        done = finish_load(commands, seconds=seconds)
    took_s, used = time.monotonic() - began_s, subtract(_look(stand, deployed), used)
    held = {**memory_mib(stand, deployed.services), GENERATOR: sampler.generator_mib}
    return Both(reads, done, sampler.lags, count_memory(deployed.reads).since(counted), used, took_s, held)


def _look(stand: Stand, deployed: Deployed) -> dict[str, float]:
    """Processor time until now: of all processes, and what the machine says of itself."""
    machine = psutil.cpu_times()
    idle, busy = machine.idle + machine.iowait, machine.user + machine.nice + machine.system
    known = {**cpu_seconds(stand, deployed.services), "the bench itself": sum(psutil.Process().cpu_times()[:2])}
    return {
        **known,
        "everybody else, and interrupts": busy + machine.irq + machine.softirq - sum(known.values()),
        "nobody (idle)": idle,
        "other guests of the machine (stolen)": machine.steal,
    }


def find_knee(stand: Stand, deployed: Deployed, skus: Path, steps: dict[int, list[Both]]) -> int:
    """Raises the rate until two in a row are not kept: one may be a mood of the machine. Adds to `steps`.

    Returns:
        The highest that was kept; 0 for none.
    """
    best = worse = 0
    for rate in range(_FIRST_STEP_PER_S, _LAST_STEP_PER_S + 1, _STEP_PER_S):
        both = run_both(stand, deployed, skus, rate, seconds=stand.seconds)
        steps.setdefault(rate, []).append(both)
        best, worse = (rate, 0) if both.is_good(rate) else (best, worse + 1)
        if worse == 2:
            break
    return best


def profile(stand: Stand, deployed: Deployed, skus: Path) -> Iterator[Row]:
    """Where the reading process is, by a sampler of its stacks, during one more run of the same load."""
    tool = shutil.which("py-spy")
    if tool is None:
        raise BenchError("py-spy is not there; install it into the environment, or leave --profile out")
    path, seconds = stand.folder / "profile.txt", 2 * stand.seconds
    worker = deployed.reads.processes()[-1]
    command = [tool, "record", f"--pid={worker.pid}", f"--duration={seconds}", "--rate=200", "--format=raw",
               "--nonblocking", f"--output={path}"]  # fmt: skip
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as looking:
        run_both(stand, deployed, skus, READS_PER_S, seconds=seconds + 2)
        _, said = looking.communicate(timeout=60)
    if looking.returncode:
        raise BenchError(f"py-spy: {(said.strip() or 'failed').splitlines()[-1]}")
    for frame, share in top_frames(path.read_text(encoding="utf-8")):
        yield Row(f"profile: {frame}", f"{100 * share:.1f} % of the samples")


def top_frames(raw: str) -> list[tuple[str, float]]:
    """The innermost frames that were met most, with their share: lines of `outer;inner COUNT`."""
    counts: dict[str, int] = {}
    for line in raw.splitlines():
        stack, _, count = line.rpartition(" ")
        frame = stack.rpartition(";")[2] or "no Python: the HTTP server's own threads"
        counts[frame] = counts.get(frame, 0) + int(count)
    whole = sum(counts.values()) or 1
    most = sorted(counts.items(), key=lambda pair: -pair[1])[:_TOP_FRAMES]
    return [(frame, count / whole) for frame, count in most]
