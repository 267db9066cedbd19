"""Every setting of the service: one frozen object, built once, from the environment.

A field's default is a decision, and its reason stands beside it. Secrets may come from a file: `NAME_FILE` holds the
path where `NAME` would hold the value.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from atelier.environment import Environment
from atelier.errors import SettingsError

Role = Literal["all", "reads", "writes"]
WhenFull = Literal["refuse", "stalest"]
Strategy = Literal["least-outstanding", "round-robin", "random-two-choices", "latency-ewma"]

_NODE = re.compile(r"(?P<name>[a-z0-9][a-z0-9_-]{0,62})=(?P<host>[^=,\s/]+):(?P<port>\d{1,5})")
_PATRONI = re.compile(r"http://(?P<host>[^=,\s/:]+):(?P<port>\d{1,5})/?", re.ASCII)
_ORIGIN = re.compile(r"https?://[A-Za-z0-9.\[\]:-]{1,255}", re.ASCII)
# Names that the command line reads, not the service.
_OTHERS = frozenset({"ATELIER_DATA_DIR", "ATELIER_PG_BIN", "ATELIER_PG_USER", "ATELIER_MIGRATOR_PASSWORD"})


@dataclass(frozen=True, slots=True)
class NodeAddress:
    """Where one database node listens. What it is (primary or replica) is observed, never configured."""

    name: str
    host: str
    port: int

    def __str__(self) -> str:
        """As it stands in a list of nodes."""
        return f"{self.name}={self.host}:{self.port}"

    def __hash__(self) -> int:
        """By the name alone, which no two nodes share: this is asked several times in every read."""
        return hash(self.name)


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where something else than a database listens."""

    host: str
    port: int

    def __str__(self) -> str:
        """As it stands in a URL."""
        return f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class Timeouts:
    """The bounds on waits, in milliseconds."""

    request_ms: int = 5_000
    """A storefront page that took longer has lost its reader."""
    command_ms: int = 10_000
    """Commands queue on hot rows, so they get longer than reads; still shorter than common proxies' 30 s."""
    connect_ms: int = 1_000
    """On one network a connection takes milliseconds; a hanging node must not take a request with it."""
    statement_ms: int = 1_000
    """The reads take below 10 ms; a slow node is left for a sibling after this."""
    probe_ms: int = 1_000
    """An observation that took longer is too old to route by."""
    notice_ms: int = 0
    """How long a stopping process is not ready, but answers, before it takes no more connections: the time in which a
    proxy notices. 0 where nobody stands in front."""
    drain_ms: int = 10_000
    """How long a stopping process finishes what it has begun."""


@dataclass(frozen=True, slots=True)
class PoolLimits:
    """Connections per process."""

    replica: int = 8
    """Per node. More only queue inside PostgreSQL: 8 busy connections saturate two cores."""
    primary_reads: int = 4
    """Reads that fell back to the primary; they never take the commands' connections."""
    waiting_replica: int = 1_000
    """Reads that wait for a replica's connection; the next ones try another node. At 5,000 a second this is 0.2 s."""
    waiting_primary: int = 32
    """Reads that wait for one of `primary_reads`; the next are refused at once: the primary is the writers'."""
    merged: int = 64
    """The most reads that share one statement: beyond it the time of the statement grows as fast as what it saves."""
    statements: int = 4
    """Statements of one resource that run on one node at a time, all but one of them slow ones."""


@dataclass(frozen=True, slots=True)
class ReadPolicy:
    """How reads are routed when the client asks for nothing else."""

    max_lag_ms: int = 10_000
    """An eventual read takes no replica that is further behind, while a better node can be had."""
    wait_ms: int = 100
    """How long a causal read waits for a replica before it goes to the primary; replay takes 0..3 ms when idle."""
    max_wait_ms: int = 2_000
    """`Atelier-Wait-Ms` is clamped to this."""
    strategy: Strategy = "least-outstanding"
    """It was the fastest of those that the first users compared."""
    cache_control: str = "no-cache"
    """Keep, but revalidate: right for every client."""
    when_primary_full: WhenFull = "refuse"
    """An eventual read that found the primary's cap reached: refused, or answered by the least stale replica, whose
    lag the answer names, with a mark in `Server-Timing`. Refusing is honest by default: the lag limit was chosen by
    somebody."""
    cache_bytes: int = 64 * 1024 * 1024
    """What finished answers may take in the memory of one process; 0 keeps none. This is some 11,000 products with all
    that a page shows of them: the ones that are looked at, of however many there are."""
    weights: tuple[tuple[str, int], ...] = ()
    """Nodes with more or less than an equal share, by name; 1 for all others. Where the nodes are given by value, all
    of these must be among them; elsewhere they may join later, and the log tells who has not."""


@dataclass(frozen=True, slots=True)
class Ejection:
    """When a node is taken out of routing for a while; never the last one."""

    first_ms: int = 500
    """Long enough that a restarting server is not asked at every request, short enough to be forgotten."""
    longest_ms: int = 30_000
    """Doubling ends here: a node that is mended is noticed within this."""
    stalled_ms: int = 150
    """A node that has answered nothing for so long while it has something to answer gets nothing more meanwhile."""
    slow_ms: int = 100
    """Answers that take longer on average, and ten times what a sibling takes, count as a failure."""


@dataclass(frozen=True, slots=True)
class CommandPolicy:
    """How commands are combined, how long their keys are kept, and how fast they may come."""

    lanes: int = 2
    """Transactions of inventory commands at the same time: when one stands before a lock, the other goes on."""
    batch: int = 256
    """The most commands in one transaction: more only make the last of them wait for the first. 1 combines nothing."""
    keys_kept_s: int = 86_400
    """How long a command key is remembered: a day covers every retry that a person still means."""
    rate_per_s: int = 0
    """Commands a second of one API key, over all workers. 0: no limit; who shares a service sets one."""
    rate_burst: int = 100
    """Commands of one API key at once, after a pause."""


@dataclass(frozen=True, slots=True)
class WebPolicy:
    """What is true of every answer over HTTP."""

    read_origins: frozenset[str] = frozenset({"*"})
    """Pages of these origins may read; a storefront's data is public, and no credentials are ever let through."""
    command_origins: frozenset[str] = frozenset()
    """Pages of these origins may command: none, because an API key does not belong into a page."""
    operations: Literal["open", "keyed"] = "open"
    """`keyed`: `/cluster` and `/metrics` ask for an API key. Health stays open, it says nothing."""
    logs_requests: bool = True
    """One line a request."""
    log_level: str = "info"
    """The least important level that is written."""


@dataclass(frozen=True, slots=True)
class Settings:
    """What one process of the service needs to know."""

    nodes: tuple[NodeAddress, ...]
    """All database nodes, in any order; empty where Patroni tells them."""
    token_keys: tuple[bytes, ...]
    """Secrets that seal causal tokens; the first seals, all open."""
    reader_password: str = field(repr=False)
    """Of the role `reader`: SELECT only, on every node."""
    monitor_password: str = field(repr=False)
    """Of the role `monitor`: positions and timelines, on every node."""
    writer_password: str = field(repr=False)
    """Of the role `writer`; empty in a process that only reads."""
    database: str = "atelier"
    """The database's name on every node."""
    role: Role = "all"
    """Which sides this process serves."""
    host: str = "127.0.0.1"
    """Loopback: who wants more says so."""
    port: int = 8000
    """Where the documentation's examples look."""
    workers: int = 1
    """Two busy workers on two cores that they share with PostgreSQL can be slower than one: measure first."""
    timeouts: Timeouts = Timeouts()
    """Bounds on waits."""
    pools: PoolLimits = PoolLimits()
    """Bounds on connections."""
    reads: ReadPolicy = ReadPolicy()
    """Defaults of routing."""
    ejection: Ejection = Ejection()
    """When a node is left alone."""
    commands: CommandPolicy = CommandPolicy()
    """Combining, keys and rates of commands."""
    web: WebPolicy = WebPolicy()
    """Defaults of HTTP."""
    patroni: tuple[Endpoint, ...] = ()
    """The REST APIs of Patroni's members, any of which tells the nodes. Empty where the nodes are given."""
    quorum: int = 0
    """Standbys that must have a commit before it is answered. 0: the primary alone decides, and its machine can take
    acknowledged commands with it. More: a writer that finds PostgreSQL not set up for it refuses."""
    nodes_file: Path | None = None
    """Read again every few seconds; `nodes` are those to begin with when it makes no sense at that moment. None when
    the nodes do not change."""

    @classmethod
    def from_environment(cls, environ: Mapping[str, str]) -> "Settings":
        """Reads and checks all settings at once.

        Raises:
            SettingsError: one is missing, unknown or wrong; the message names it, on one line.
        """
        source = Environment(environ, others=_OTHERS)
        role: Role = source.choice("ATELIER_ROLE", ("all", "reads", "writes"), "all")
        patroni = source.read("ATELIER_PATRONI", parse_patroni, "")
        settings = cls(
            nodes=() if patroni else source.read("ATELIER_NODES", parse_node_lines, secret=True),
            nodes_file=source.file_of("ATELIER_NODES"),
            patroni=patroni,
            quorum=source.number("ATELIER_QUORUM", 0, 0, 8),
            token_keys=source.read("ATELIER_TOKEN_KEYS", parse_token_keys, secret=True),
            reader_password=source.text("ATELIER_READER_PASSWORD", secret=True),
            monitor_password=source.text("ATELIER_MONITOR_PASSWORD", secret=True),
            writer_password=source.text("ATELIER_WRITER_PASSWORD", "" if role == "reads" else None, secret=True),
            database=source.text("ATELIER_DATABASE", "atelier"),
            role=role,
            host=source.text("ATELIER_HOST", "127.0.0.1"),
            port=source.number("ATELIER_PORT", 8000, 0, 65535),
            workers=source.number("ATELIER_WORKERS", 1, 1, 64),
            timeouts=Timeouts(
                request_ms=source.number("ATELIER_REQUEST_MS", 5_000, 100, 60_000),
                command_ms=source.number("ATELIER_COMMAND_MS", 10_000, 100, 60_000),
                connect_ms=source.number("ATELIER_CONNECT_MS", 1_000, 10, 60_000),
                statement_ms=source.number("ATELIER_STATEMENT_MS", 1_000, 10, 60_000),
                notice_ms=source.number("ATELIER_NOTICE_MS", 0, 0, 60_000),
            ),
            pools=PoolLimits(
                replica=source.number("ATELIER_REPLICA_CONNECTIONS", 8, 1, 200),
                primary_reads=source.number("ATELIER_PRIMARY_READ_CONNECTIONS", 4, 1, 200),
                waiting_replica=source.number("ATELIER_REPLICA_WAITING", 1_000, 1, 100_000),
                waiting_primary=source.number("ATELIER_PRIMARY_READ_WAITING", 32, 0, 100_000),
                merged=source.number("ATELIER_MERGED_READS", 64, 1, 1_000),
                statements=source.number("ATELIER_STATEMENTS", 4, 1, 200),
            ),
            reads=ReadPolicy(
                max_lag_ms=source.number("ATELIER_MAX_LAG_MS", 10_000, 0, 86_400_000),
                wait_ms=source.number("ATELIER_WAIT_MS", 100, 0, 60_000),
                max_wait_ms=source.number("ATELIER_MAX_WAIT_MS", 2_000, 0, 60_000),
                strategy=source.choice(
                    "ATELIER_STRATEGY",
                    ("least-outstanding", "round-robin", "random-two-choices", "latency-ewma"),
                    "least-outstanding",
                ),
                cache_control=source.read("ATELIER_CACHE_CONTROL", parse_cache_control, "no-cache"),
                cache_bytes=source.number("ATELIER_CACHE_BYTES", 64 * 1024 * 1024, 0, 2**40),
                when_primary_full=source.choice("ATELIER_WHEN_PRIMARY_FULL", ("refuse", "stalest"), "refuse"),
                weights=source.read("ATELIER_WEIGHTS", parse_weights, ""),
            ),
            ejection=Ejection(
                first_ms=source.number("ATELIER_EJECTION_MS", 500, 10, 600_000),
                longest_ms=source.number("ATELIER_LONGEST_EJECTION_MS", 30_000, 10, 600_000),
                stalled_ms=source.number("ATELIER_STALLED_MS", 150, 10, 60_000),
                slow_ms=source.number("ATELIER_SLOW_MS", 100, 1, 60_000),
            ),
            commands=CommandPolicy(
                lanes=source.number("ATELIER_COMMAND_LANES", 2, 1, 20),
                batch=source.number("ATELIER_COMMAND_BATCH", 256, 1, 1_000),
                keys_kept_s=source.number("ATELIER_COMMAND_KEYS_KEPT_S", 86_400, 60, 31_536_000),
                rate_per_s=source.number("ATELIER_RATE_PER_S", 0, 0, 1_000_000),
                rate_burst=source.number("ATELIER_RATE_BURST", 100, 1, 1_000_000),
            ),
            web=WebPolicy(
                read_origins=source.read("ATELIER_CORS_ORIGINS", parse_origins, "*"),
                command_origins=source.read("ATELIER_COMMAND_CORS_ORIGINS", parse_origins, ""),
                operations=source.choice("ATELIER_OPERATIONS", ("open", "keyed"), "open"),
                logs_requests=source.choice("ATELIER_REQUEST_LOG", ("on", "off"), "on") == "on",
                log_level=source.choice("ATELIER_LOG_LEVEL", ("debug", "info", "warning", "error"), "info"),
            ),
        )
        source.refuse_unknown()
        if not settings.patroni and settings.nodes_file is None:
            _refuse_strangers(settings)
        return settings


def parse_nodes(text: str) -> tuple[NodeAddress, ...]:
    """Reads `name=host:port,...`; raises ValueError with the reason."""
    nodes = tuple(_parse_node(part.strip()) for part in text.split(",") if part.strip())
    if not nodes:
        raise ValueError("names no node")
    if len({node.name for node in nodes}) < len(nodes):
        raise ValueError("names a node twice")
    return nodes


def parse_node_lines(text: str) -> tuple[NodeAddress, ...]:
    """The same, where lines part nodes too; raises ValueError with the reason."""
    return parse_nodes(",".join(text.splitlines()))


def parse_patroni(text: str) -> tuple[Endpoint, ...]:
    """Reads `http://host:port,...`; empty for none. Raises ValueError with the reason."""
    members = []
    for part in filter(None, (part.strip() for part in text.split(","))):
        match = _PATRONI.fullmatch(part)
        if not match or not 0 < int(match["port"]) < 65536:
            raise ValueError(f"takes http://host:port, not {part!r}")
        members.append(Endpoint(match["host"], int(match["port"])))
    return tuple(members)


def parse_weights(text: str) -> tuple[tuple[str, int], ...]:
    """Reads `name=weight,...`, weights from 1 to 1000; raises ValueError with the reason."""
    weights = []
    for part in filter(None, (part.strip() for part in text.split(","))):
        name, _, weight = part.partition("=")
        if not re.fullmatch(r"\d{1,4}", weight, re.ASCII) or not 1 <= int(weight) <= 1000:
            raise ValueError(f"takes name=weight with a weight from 1 to 1000, not {part!r}")
        weights.append((name, int(weight)))
    return tuple(weights)


def parse_origins(text: str) -> frozenset[str]:
    """Reads `*` or `https://host[:port],...`; empty for none. Raises ValueError with the reason."""
    names = frozenset(part.strip() for part in text.split(",") if part.strip())
    for name in names - {"*"}:
        if not _ORIGIN.fullmatch(name):
            raise ValueError(f"takes * or origins such as https://shop.example, not {name!r}")
    return names


def parse_cache_control(text: str) -> str:
    """Reads directives of `Cache-Control`; raises ValueError with the reason."""
    if not re.fullmatch(r"[a-z0-9=, -]{1,200}", text, re.ASCII):
        raise ValueError(f"takes directives such as public, max-age=60, not {text!r}")
    return text


def parse_token_keys(text: str) -> tuple[bytes, ...]:
    """Reads `id:hex,...`, at least 32 bytes each; raises ValueError with the reason, never with the secret."""
    keys = []
    for part in text.split(","):
        _, colon, digits = part.strip().partition(":")
        if not colon or not re.fullmatch(r"(?:[0-9a-fA-F]{2}){32,}", digits):
            raise ValueError("takes id:hex, with at least 64 hexadecimal digits")
        keys.append(bytes.fromhex(digits))
    return tuple(keys)


def _refuse_strangers(settings: Settings) -> None:
    """A misspelt name would leave its node with an equal share, and nobody the wiser."""
    strangers = {name for name, _ in settings.reads.weights} - {node.name for node in settings.nodes}
    if strangers:
        raise SettingsError(f"ATELIER_WEIGHTS names nodes that are not there: {', '.join(sorted(strangers))}")


def _parse_node(text: str) -> NodeAddress:
    match = _NODE.fullmatch(text)
    if not match or not 0 < int(match["port"]) < 65536:
        raise ValueError(f"takes name=host:port, not {text!r}")
    return NodeAddress(match["name"], match["host"], int(match["port"]))
