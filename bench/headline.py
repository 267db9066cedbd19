"""The headline: a fixed rate of mixed reads through a proxy while inventory commands run, and how far it goes.

Arrivals are scheduled; what could only leave late counts as waited. Everything is on one machine: the generator, the
proxy, one process for reads, one for commands, three PostgreSQL servers.
"""

import re
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from bench.commands import pick_spread
from bench.load import MIX, Commands, Load, Reads, parse_load, run_load, start_load
from bench.mixed import read_lags_ms
from bench.reads import PRODUCT, RELATED, STYLES, connect
from bench.stand import Running, Stand, find_free_port, find_tool, run_server
from bench.table import Row

READS_PER_S = 8_000
COMMANDS_PER_S = 500
LIMIT_MS = 100
_SECONDS = 60
_STEP_PER_S, _STEP_SECONDS = 1_000, 10
_CONNECTIONS, _COMMAND_CONNECTIONS = 256, 64
# A gibibyte keeps the last tenth of a million products with their styles and related products.
MEMORY = {"ATELIER_CACHE_BYTES": str(2**30)}
_WARM_SECONDS, _MOST_WARM_S = 10, 240

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
    """Reads and commands at the same time."""

    reads: Load
    commands: Load

    @property
    def p99_ms(self) -> float:
        """Of the reads, from when they were due: never less than it was."""
        return self.reads.p99_ms + self.reads.late_ms

    def is_good(self, per_s: float) -> bool:
        """Whether the rate was kept, nothing failed and the limit held."""
        errors = self.reads.errors + self.commands.errors
        return not errors and self.reads.per_s >= 0.98 * per_s and self.p99_ms < LIMIT_MS


def measure(stand: Stand) -> Iterator[Row]:
    """All rows of this subject."""
    with deploy(stand) as (proxy, reads, writes):
        warm_up(stand, proxy)
        before = count_answers(reads)
        main = run_both(stand, proxy, READS_PER_S, COMMANDS_PER_S, seconds=_SECONDS)
        hits, misses = (now - then for now, then in zip(count_answers(reads), before, strict=True))
        lags = ", ".join(f"{lag_ms:.0f} ms" for lag_ms in read_lags_ms(proxy))
        memory = [f"{mib:,.0f}" for mib in (*reads.memory_mib(), *writes.memory_mib())]
        knee, beyond = find_knee(stand, proxy, main)
    yield from [
        Row("reads through the proxy", f"{main.reads.per_s:,.0f}/s", f">= {READS_PER_S:,}/s",
            main.reads.per_s >= 0.99 * READS_PER_S),
        Row("errors", f"{main.reads.errors} of reads, {main.commands.errors} of commands", "none",
            not main.reads.errors + main.commands.errors),
        Row("99th percentile, from when they were due", f"{main.p99_ms:.1f} ms", f"< {LIMIT_MS} ms",
            main.p99_ms < LIMIT_MS),
        Row("median", f"{main.reads.p50_ms:.1f} ms"),
        Row("commands meanwhile", f"{main.commands.per_s:,.0f}/s, p99 {main.commands.p99_ms:.0f} ms",
            f">= {COMMANDS_PER_S}/s", main.commands.per_s >= 0.97 * COMMANDS_PER_S),
        Row("reads answered from memory", f"{100 * hits / max(1.0, hits + misses):.1f} %"),
        Row("lag of the replicas right after", lags),
        Row("memory of the processes, MiB", " + ".join(memory)),
        Row("the knee: the last good rate, with the commands", f"{knee:,}/s"),
        Row("beyond it", beyond),
    ]  # fmt: skip


@contextmanager
def deploy(stand: Stand) -> Iterator[tuple[Running, Running, Running]]:
    """The proxy, a process for reads, one for commands."""
    nginx, port = find_tool("nginx", "nginx"), find_free_port()
    with stand.serve(role="reads", **MEMORY) as reads, stand.serve(role="writes") as writes:
        config = stand.folder / "nginx.conf"
        hosts = {"reads": reads.url.removeprefix("http://"), "writes": writes.url.removeprefix("http://")}
        config.write_text(_NGINX.format(folder=stand.folder, port=port, **hosts), encoding="utf-8")
        with run_server([nginx, "-c", str(config)], {}, port, stand.folder / "nginx.out") as proxy:
            yield proxy, reads, writes


def warm_up(stand: Stand, proxy: Running) -> None:
    """Asks once for everything that will be asked for, so that it is in memory."""
    paths, (low, high) = (PRODUCT, STYLES, RELATED), stand.span
    walked, until_s = 0, time.monotonic() + _MOST_WARM_S
    while walked < len(paths) * (high - low + 1) and time.monotonic() < until_s:
        what = Reads(paths, stand.span, walked=walked)
        load = run_load(proxy.url, what, stand.folder, seconds=_WARM_SECONDS, connections=64)
        walked += int(0.98 * load.per_s * _WARM_SECONDS)
    run_load(proxy.url, Reads(MIX, stand.span, by_zipf=True), stand.folder, seconds=_WARM_SECONDS, connections=64)


def run_both(stand: Stand, proxy: Running, reads_per_s: float, commands_per_s: float, *, seconds: int) -> Both:
    """Reads at a fixed rate, and commands at another one beside them."""
    commands: subprocess.Popen[str] = start_load(
        proxy.url, Commands(stand.key, pick_spread(stand)), stand.folder, seconds=seconds + 2,
        connections=_COMMAND_CONNECTIONS, per_s=commands_per_s,
    )  # fmt: skip
    reads = run_load(
        proxy.url, Reads(MIX, stand.span, by_zipf=True), stand.folder, seconds=seconds, connections=_CONNECTIONS,
        per_s=reads_per_s,
    )  # fmt: skip
    said, _ = commands.communicate(timeout=60)
    return Both(reads, parse_load(said))


def find_knee(stand: Stand, proxy: Running, main: Both) -> tuple[int, str]:
    """Raises the rate until it is no longer kept, or lowers it until it is.

    Returns:
        The highest good rate, 0 for none, and what the lowest that was not good was like.
    """
    good, bad = (READS_PER_S, None) if main.is_good(READS_PER_S) else (0, (READS_PER_S, main))
    step = _STEP_PER_S if good else -_STEP_PER_S
    rate = READS_PER_S + step
    while rate > 0 and not (good and bad):
        both = run_both(stand, proxy, rate, COMMANDS_PER_S, seconds=_STEP_SECONDS)
        if both.is_good(rate):
            good = rate
        else:
            bad = rate, both
        rate += step
    if bad is None:
        return good, ""
    asked, both = bad
    words = f"{asked:,}/s asked: {both.reads.per_s:,.0f}/s, p99 {both.p99_ms:,.0f} ms, {both.reads.errors} errors"
    return good, words


def count_answers(service: Running) -> tuple[float, float]:
    """How many answers came from memory, and how many could not."""
    with connect(service) as send:
        text = send("GET", "/metrics")[2].decode()
    hits, misses = (
        sum(float(value) for value in re.findall(rf"^atelier_cache_{name}_total\S* (\S+)$", text, re.MULTILINE))
        for name in ("hits", "misses")
    )
    return hits, misses
