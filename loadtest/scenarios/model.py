"""What a scenario is: who comes, how often, what breaks meanwhile, and which guarantees the run must show."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from loadtest.faults.embedded import Embedded
from loadtest.faults.tcp_proxy import TcpProxy
from loadtest.faults.timeline import Fault
from loadtest.world import Shop

READS = ("read your writes", "monotonic reads", "bounded staleness")
WRITES = ("monotonic writes", "writes follow reads", "linearizability")
STOCK = ("no oversell", "ledger equals stock", "exactly once", "no lost acknowledged command")
FEED = ("feed complete and ordered",)
EVERYTHING = (*READS, *WRITES, *STOCK, *FEED, "long fork")


class Scene(Protocol):
    """What faults can reach."""

    embedded: Embedded | None
    proxy: TcpProxy | None
    primary: str
    replicas: Sequence[str]


@dataclass(frozen=True, slots=True)
class Crew:
    """Users of one kind.

    Attributes:
        kind: the class of the users.
        users: how many.
        rate_per_s: arrivals of each.
        options: attributes of the class that are other here.
    """

    kind: type
    users: int
    rate_per_s: float
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Phase:
    """A part of a run whose figures are told apart.

    Attributes:
        label: as the report names it.
        settings: of a process of the service of its own; None for the one that is there.
        rate: by how much all rates are multiplied.
    """

    label: str
    settings: dict[str, str] | None = None
    rate: float = 1.0


def _nothing(_: Scene) -> list[Fault]:
    return []


@dataclass(frozen=True, slots=True)
class Scenario:
    """One scenario.

    Attributes:
        name: on the command line.
        summary: one line.
        crews: who comes.
        checks: the checkers whose verdict decides.
        shop: what is made for it first.
        hot: how many SKUs heavy traffic aims at.
        duration_s: unless the command line says otherwise.
        faults: what breaks; made when everything is up.
        phases: parts one after the other, of equal length; one when empty.
        watchers: followers of the change feed.
        proxied: users go through a TCP proxy of the lab's.
        servers: processes of the service behind that proxy; 0 for the one that is there.
        from_memory: that memory answers is a part of what it shows.
        quorum: the cluster waits for a standby with each commit, so that a failover loses nothing.
        needs_cluster: it breaks nodes, and runs against an embedded cluster only.
        stops_at_knee: phases after the first that breaks the limits are not run.
    """

    name: str
    summary: str
    crews: Sequence[Crew]
    checks: Sequence[str] = EVERYTHING
    shop: Shop = field(default_factory=Shop)
    hot: int = 8
    duration_s: float = 30.0
    faults: Callable[[Scene], list[Fault]] = _nothing
    phases: Sequence[Phase] = ()
    watchers: int = 2
    proxied: bool = False
    servers: int = 0
    from_memory: bool = False
    quorum: bool = False
    needs_cluster: bool = False
    stops_at_knee: bool = False
