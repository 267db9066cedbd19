"""Load by a compiled generator, `wrk`: as fast as connections answer, or at a fixed rate of arrivals."""

import json
import re
import secrets
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from bench.stand import BenchError, find_tool

# 40 % styles, 35 % product, 20 % related, 5 % list.
MIX = ("/products/ID/styles",) * 8 + ("/products/ID",) * 7 + ("/products/ID/related",) * 4 + ("/products?page=PAGE",)

_HEAD = """
local ffi = require("ffi")
ffi.cdef[[typedef struct {{ long s; long ns; }} moment; int clock_gettime(int clock, moment *now);]]
local moment, schedule, slots, sent = ffi.new("moment"), nil, 0, 0
local function now_ms()
  ffi.C.clock_gettime(1, moment)
  return tonumber(moment.s) * 1000 + tonumber(moment.ns) / 1e6
end
math.randomseed({seed})
"""
# Every request has a moment at which it is due. A connection that is free before waits for it; one that is free only
# after leaves late, and by how much counts as waited: `late` has how many left in time, less than 2 ms late, less than
# 4, 8 and so on. A short list: the generator copies it on a stack of fixed size.
_PACE = """
local every_ms = {every_ms}
late = {{}}
delay = function()
  schedule = schedule or now_ms()
  slots = slots + 1
  local early_ms = schedule + slots * every_ms - now_ms()
  local doublings = early_ms <= -1 and math.floor(math.log(-early_ms) / math.log(2)) + 2 or 1
  late[doublings] = (late[doublings] or 0) + 1
  return early_ms > 0 and math.floor(early_ms) or 0
end
"""
_TELL = """
local threads = {}
setup = function(thread) table.insert(threads, thread) end
done = function()
  for _, thread in ipairs(threads) do
    local late, all = thread:get("late") or {}, 0
    for _, count in pairs(late) do all = all + count end
    local left, doublings = all * 0.99, 0
    while left > 0 do doublings = doublings + 1; left = left - (late[doublings] or 0) end
    io.write("late by " .. (doublings > 1 and 2 ^ (doublings - 1) or 0) .. " ms\\n")
  end
end
"""
# Half of the ids by Zipf (the k-th most wanted is wanted 1/k as often), half evenly over the last tenth.
_READS = """
local paths, headers, by_zipf = {{{paths}}}, {headers}, {by_zipf}
local tokens = {{{tokens}}}
local low, high, logs, walked = {low}, {high}, math.log({high} - {low} + 1), {walked}
local function draw_id()
  if walked then walked = walked + 1; return low + math.floor(walked / #paths) % (high - low + 1) end
  if by_zipf and math.random() < 0.5 then return low + math.floor(math.exp(math.random() * logs)) - 1 end
  return math.random(low, high)
end
request = function()
  local id = draw_id()
  if #tokens > 0 then headers["{token_header}"] = tokens[math.random(#tokens)] end
  local path = paths[walked and walked % #paths + 1 or math.random(#paths)]
  return wrk.format("GET", (path:gsub("ID", id):gsub("PAGE", math.random(1, 1000))), headers)
end
"""
_COMMANDS = """
local draw_sku
{draw}
local headers = {{["Authorization"]="Bearer {key}", ["Content-Type"]="application/json"}}
request = function()
  sent = sent + 1
  headers["Idempotency-Key"] = "{run}-" .. sent
  return wrk.format("POST", "/inventory/adjustments", headers,
    '{{"reason": "bench", "lines": [{{"sku_id": ' .. draw_sku() .. ', "delta": 1}}]}}')
end
"""
_EVENLY = """
local skus = {{{skus}}}
draw_sku = function() return skus[math.random(#skus)] end
"""
# A product as reads draw it, then one of its SKUs. A line of the file has the first of a product and how many follow.
_AS_READ = """
local first, count = {{}}, {{}}
for line in io.lines({path}) do
  local one, all = line:match("(%d+) (%d+)")
  first[#first + 1], count[#count + 1] = tonumber(one), tonumber(all)
end
local logs = math.log(#first)
draw_sku = function()
  local number = math.random() < 0.5 and math.min(#first, math.floor(math.exp(math.random() * logs)))
    or math.random(#first)
  return first[number] + math.random(count[number]) - 1
end
"""
# Products come and go: one is made, then it is deleted, by turns. For one connection.
_CHURN = """
local made
local headers = {{["Authorization"]="Bearer {key}", ["Content-Type"]="application/json"}}
request = function()
  sent = sent + 1
  headers["Idempotency-Key"] = "{run}-" .. sent
  if made then return wrk.format("DELETE", "/products/" .. made, headers) end
  return wrk.format("POST", "/products", headers,
    '{{"name": "bench", "slogan": "", "description": "", "category": "bench", "default_price": "1"}}')
end
response = function(status, headers, body) made = not made and body:match('"id": ?(%d+)') or nil end
"""


@dataclass(frozen=True)
class Load:
    """What the generator saw.

    Attributes:
        per_s: answers a second.
        p50_ms, p99_ms: of the time from sending to the answer.
        errors: answers that were neither 2xx nor 3xx, and connections that broke or timed out.
        late_ms: the 99th percentile of how much later than due requests left, to the next power of two; 0 without a
            fixed rate, or when they left in time.
    """

    per_s: float
    p50_ms: float
    p99_ms: float
    errors: int
    late_ms: float = 0.0


@dataclass(frozen=True)
class Reads:
    """What to ask for.

    Attributes:
        paths: drawn from evenly; `ID` and `PAGE` stand for numbers.
        span: the first and the last id.
        headers: sent with every request.
        by_zipf: half of the ids by Zipf, not all evenly.
        tokens: one of them is sent with each request; none where there are none.
        token_header: what it is sent as; under another name than the service's own it costs only its bytes.
        walked: not drawn at all but every path of every id in turn, behind so many; None to draw.
    """

    paths: Sequence[str]
    span: tuple[int, int]
    headers: dict[str, str] = field(default_factory=dict)
    by_zipf: bool = False
    walked: int | None = None
    tokens: Sequence[str] = ()
    token_header: str = "Atelier-Token"  # noqa: S105  a header's name

    def script(self) -> str:
        """For the generator."""
        headers = ", ".join(f"[{json.dumps(name)}]={json.dumps(value)}" for name, value in self.headers.items())
        return _READS.format(
            paths=", ".join(map(json.dumps, self.paths)), low=self.span[0], high=self.span[1],
            headers=f"{{{headers}}}", tokens=", ".join(map(json.dumps, self.tokens)),
            token_header=self.token_header, by_zipf=str(self.by_zipf).lower(),
            walked="nil" if self.walked is None else self.walked,
        )  # fmt: skip


@dataclass(frozen=True)
class Commands:
    """Adjustments by one unit, each with a key of its own.

    Attributes:
        key: the API key.
        skus: drawn from evenly; or a file with a line for each product that is read, of its first SKU and how many
            there are: drawn as reads draw products, half by Zipf, half evenly.
    """

    key: str
    skus: Sequence[int] | Path

    def script(self) -> str:
        """For the generator."""
        if isinstance(self.skus, Path):
            draw = _AS_READ.format(path=json.dumps(str(self.skus)))
        else:
            draw = _EVENLY.format(skus=", ".join(map(str, self.skus)))
        return _COMMANDS.format(key=self.key, run=secrets.token_hex(6), draw=draw)


@dataclass(frozen=True)
class Churn:
    """Products that are made and deleted by turns, over one connection."""

    key: str

    def script(self) -> str:
        """For the generator."""
        return _CHURN.format(key=self.key, run=secrets.token_hex(6))


What = Reads | Commands | Churn


def run_load(
    url: str, what: What, folder: Path, *, seconds: int, connections: int = 32, per_s: float | None = None
) -> Load:
    """Loads a service.

    Args:
        url: its address.
        what: the requests.
        folder: for the script.
        seconds: how long.
        connections: at the same time.
        per_s: the rate of arrivals; None for as fast as the connections get answers.
    """
    process = start_load(url, what, folder, seconds=seconds, connections=connections, per_s=per_s)
    return finish_load(process, seconds=seconds)


def start_load(
    url: str, what: What, folder: Path, *, seconds: int, connections: int, per_s: float | None
) -> "subprocess.Popen[str]":
    """Starts the generator; its report is for `parse_load`."""
    script = folder / f"load-{type(what).__name__.lower()}.lua"  # one of a kind runs at a time
    pace = _PACE.format(every_ms=1000 / per_s) if per_s else ""
    # Another seed each time: with the same one every load would ask for what the one before has just asked for.
    head = _HEAD.format(seed=secrets.randbelow(2**31))
    script.write_text(head + pace + _TELL + what.script(), encoding="utf-8")
    command = [find_tool("wrk", "wrk"), "-t1", f"-c{connections}", f"-d{seconds}s", "--latency", "--timeout", "10s",
               "-s", str(script), url]  # fmt: skip
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish_load(process: "subprocess.Popen[str]", *, seconds: int) -> Load:
    """Waits for the generator's end and reads its report.

    Raises:
        BenchError: it failed, or saw no answer.
    """
    with process:
        said, failed = process.communicate(timeout=seconds + 60)
    if process.returncode:
        raise BenchError(f"wrk: {(failed.strip() or 'failed').splitlines()[-1]}")
    return parse_load(said)


def parse_load(said: str) -> Load:
    """Reads the generator's report."""
    per_s = re.search(r"Requests/sec:\s*([\d.]+)", said)
    quantiles = dict(re.findall(r"(50|99)%\s+([\d.]+(?:us|ms|s|m))", said))
    refused = re.search(r"Non-2xx or 3xx responses: (\d+)", said)
    broken = re.search(r"Socket errors: connect (\d+), read (\d+), write (\d+), timeout (\d+)", said)
    late = [float(number) for number in re.findall(r"late by ([\d.]+) ms", said)]
    if per_s is None or not quantiles:
        raise BenchError(f"wrk tells of no answer: {' '.join(said.split())[-200:]}")
    errors = (int(refused[1]) if refused else 0) + sum(map(int, broken.groups() if broken else ()))
    return Load(float(per_s[1]), _to_ms(quantiles["50"]), _to_ms(quantiles["99"]), errors, max(late, default=0.0))


def _to_ms(text: str) -> float:
    number, unit = re.fullmatch(r"([\d.]+)(us|ms|s|m)", text).groups()  # type: ignore[union-attr]  # as just found
    return float(number) * {"us": 0.001, "ms": 1, "s": 1_000, "m": 60_000}[unit]
