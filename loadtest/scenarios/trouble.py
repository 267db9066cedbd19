"""Scenarios in which something breaks on a timeline, and everything must stay true."""

import time
from collections.abc import Callable

from loadtest.faults.embedded import Embedded, EmbeddedFailedError, Server
from loadtest.faults.tcp_proxy import TcpProxy, Weather
from loadtest.faults.timeline import Fault
from loadtest.scenarios.load import MIXED
from loadtest.scenarios.model import EVERYTHING, Crew, Scenario, Scene
from loadtest.users.shoppers import Checkout, Onlooker
from loadtest.users.staff import CatalogueAdmin, Editor, Refiller, Warehouse

_WRITING = (
    Crew(Warehouse, 10, 2.0),
    Crew(Checkout, 8, 1.0),
    Crew(CatalogueAdmin, 3, 1.0),
    Crew(Onlooker, 8, 3.0),
    Crew(Refiller, 4, 1.0),
    Crew(Editor, 2, 0.5),
)


def lag_replicas(scene: Scene) -> list[Fault]:
    """One replica's replay pauses, then the other's; then one shows everything late, and at last both do."""
    one, other = scene.replicas[:2]
    return [
        _paused(scene, one, 0.08, 0.3),
        _paused(scene, other, 0.38, 0.52),
        _delayed(scene, one, 300, 0.58, 0.94),
        _delayed(scene, other, 1500, 0.76, 0.94),
    ]


def kill_replica(scene: Scene) -> list[Fault]:
    """A replica dies, and is started again."""
    node = scene.replicas[0]
    return [Fault(f"{node} killed", 0.2, 0.6, _act(scene, "kill", node), _act(scene, "start", node))]


def freeze_replica(scene: Scene) -> list[Fault]:
    """A replica hangs, and goes on."""
    node = scene.replicas[-1]
    return [Fault(f"{node} frozen", 0.25, 0.6, _act(scene, "freeze", node), _act(scene, "thaw", node))]


def kill_primary(scene: Scene) -> list[Fault]:
    """The primary dies, for a while there is none, a replica is promoted, and the dead one comes back as a replica."""
    old, new = scene.primary, scene.replicas[0]
    kill, promote, start = _act(scene, "kill", old), _act(scene, "promote", new), _act(scene, "start", old)
    # Should the run be over early, they are mended in this order.
    return [
        Fault(f"{new} promoted", 0.2501, 0.3, lambda: None, promote),
        Fault(f"{old} killed", 0.25, 0.65, kill, start),
    ]


def slow_network(scene: Scene) -> list[Fault]:
    """Every packet takes longer, then much longer."""
    return [
        _weather(scene, "20 ms slower", 0.2, 0.5, Weather(delay_ms=10, jitter_ms=20)),
        _weather(scene, "100 ms slower", 0.6, 0.8, Weather(delay_ms=50, jitter_ms=100)),
    ]


def cut_clients(scene: Scene) -> list[Fault]:
    """Connections break around requests and answers, so that clients do not know what became of a command."""
    return [_weather(scene, "connections cut", 0.15, 0.85, Weather(cut_chance=0.06))]


def kill_server(scene: Scene) -> list[Fault]:
    """A process of the service is killed, twice; its keeper starts another.

    Far apart: a keeper that sees two such ends within seconds takes it for a loop, and gives up.
    """
    kill = _cluster(scene).kill_worker
    return [Fault("service process killed", at, at + 0.1, kill) for at in (0.15, 0.8)]


def restart_servers(scene: Scene) -> list[Fault]:
    """One process of the service after the other is replaced in good order, behind the proxy."""
    return [
        Fault(f"process {turn} replaced", 0.15 + 0.4 * turn, 0.45 + 0.4 * turn, *_replace(scene)) for turn in range(2)
    ]


def change_schema(scene: Scene) -> list[Fault]:
    """Columns come and go in the tables that everybody uses, with the patience that a migration has."""

    def alter(*statements: str) -> Callable[[], None]:
        return lambda: _alter(_cluster(scene), scene.primary, statements)

    return [
        Fault(
            "column on product",
            0.15,
            0.4,
            alter("alter table atelier.product add column lab_note text"),
            alter("alter table atelier.product drop column lab_note"),
        ),
        Fault(
            "column on stock",
            0.5,
            0.75,
            alter("alter table atelier.stock add column lab_note integer not null default 0"),
            alter("alter table atelier.stock drop column lab_note"),
        ),
    ]


TROUBLE = (
    Scenario(
        "replica-lag",
        "replay is paused and resumed on one replica and the other; then it is delayed",
        _WRITING,
        EVERYTHING,
        faults=lag_replicas,
        needs_cluster=True,
    ),
    Scenario(
        "replica-kill", "a replica is killed and comes back", MIXED, EVERYTHING, faults=kill_replica, needs_cluster=True
    ),
    Scenario(
        "replica-freeze", "a replica hangs and goes on", MIXED, EVERYTHING, faults=freeze_replica, needs_cluster=True
    ),
    Scenario(
        "primary-kill",
        "the primary is killed and a replica promoted; every commit waits for a standby",
        _WRITING,
        EVERYTHING,
        faults=kill_primary,
        quorum=True,
        duration_s=40,
        needs_cluster=True,
    ),
    Scenario(
        "slow-network",
        "a slow network between clients and service",
        MIXED,
        EVERYTHING,
        faults=slow_network,
        proxied=True,
    ),
    Scenario(
        "server-kill",
        "a process of the service is killed under load",
        _WRITING,
        EVERYTHING,
        faults=kill_server,
        needs_cluster=True,
    ),
    Scenario(
        "rolling-restart",
        "two processes of the service are replaced one after the other",
        MIXED,
        EVERYTHING,
        faults=restart_servers,
        proxied=True,
        servers=2,
        needs_cluster=True,
    ),
    Scenario(
        "ddl-under-load",
        "columns are added and dropped under load",
        MIXED,
        EVERYTHING,
        faults=change_schema,
        needs_cluster=True,
    ),
    Scenario(
        "client-cuts", "connections break around the commit", _WRITING, EVERYTHING, faults=cut_clients, proxied=True
    ),
)


def _cluster(scene: Scene) -> Embedded:
    if scene.embedded is None:
        raise EmbeddedFailedError("this needs an embedded cluster")
    return scene.embedded


def _act(scene: Scene, action: str, node: str) -> Callable[[], None]:
    return lambda: _cluster(scene).cluster(action, node)


def _paused(scene: Scene, node: str, begins: float, ends: float) -> Fault:
    return Fault(
        f"{node} paused",
        begins,
        ends,
        lambda: _cluster(scene).pause_replay(node),
        lambda: _cluster(scene).resume_replay(node),
    )


def _delayed(scene: Scene, node: str, delay_ms: int, begins: float, ends: float) -> Fault:
    return Fault(
        f"{node} {delay_ms} ms late",
        begins,
        ends,
        lambda: _cluster(scene).delay_apply(node, delay_ms),
        lambda: _cluster(scene).delay_apply(node, 0),
    )


def _weather(scene: Scene, name: str, begins: float, ends: float, weather: Weather) -> Fault:
    def set_weather(value: Weather) -> Callable[[], None]:
        def change() -> None:
            _proxy(scene).weather = value

        return change

    return Fault(name, begins, ends, set_weather(weather), set_weather(Weather()))


def _proxy(scene: Scene) -> TcpProxy:
    if scene.proxy is None:
        raise EmbeddedFailedError("this needs the proxy")
    return scene.proxy


def _replace(scene: Scene) -> tuple[Callable[[], None], Callable[[], None]]:
    """Takes the oldest process out of the proxy's targets and ends it; then puts a new one in."""

    def take_out() -> None:
        cluster, proxy = _cluster(scene), _proxy(scene)
        oldest: Server = cluster.servers[0]
        proxy.targets = [url for url in proxy.targets if url != oldest.url]
        cluster.end(oldest)

    def put_in() -> None:
        _proxy(scene).targets = [*_proxy(scene).targets, _cluster(scene).serve().url]

    return take_out, put_in


def _alter(cluster: Embedded, primary: str, statements: tuple[str, ...]) -> None:
    """Tries each statement with a short lock_timeout until it gets its lock: nobody queues behind it for long."""
    for statement in statements:
        for attempt in range(20):
            try:
                cluster.sql(primary, f"set lock_timeout = '200ms'; set role owner; {statement}", role="migrator")
                break
            except EmbeddedFailedError as error:
                if "lock timeout" not in str(error) or attempt == 19:
                    raise
                time.sleep(0.2)
