"""What the tests ask of a deployment past its service: the ledger, who streams, whom the proxy knows."""

from collections import Counter

from tests.e2e.stack import Stack, wait_for
from tests.e2e.traffic import CommandLoad


def count_effects(stack: Stack, load: CommandLoad, *, node: str = "primary") -> Counter[str]:
    """How many ledger rows each command of a load has, as a database has them."""
    rows = stack.sql(node, f"select command_key from atelier.stock_movement where reason = '{load.run}'")
    return Counter(key for (key,) in rows)


def count_lost(stack: Stack, load: CommandLoad, *, node: str = "primary") -> int:
    """How many acknowledged commands have no effect in a database."""
    effects = count_effects(stack, load, node=node)
    return sum(not effects[command.key] for command in load.acknowledged)


def assert_exactly_once(stack: Stack, load: CommandLoad, *, node: str = "primary") -> None:
    """Every acknowledged command has its one effect, and none has two."""
    effects = count_effects(stack, load, node=node)
    lost = [command.key for command in load.acknowledged if not effects[command.key]]
    assert not lost, f"{len(lost)} acknowledged commands of {len(load.acknowledged)} have no effect"
    assert max(effects.values()) == 1


def streaming(stack: Stack, *, node: str = "primary") -> set[str]:
    """Who streams from a node."""
    return {
        name
        for (name,) in stack.sql(node, "select application_name from pg_stat_replication where state = 'streaming'")
    }


def await_streaming(stack: Stack, *names: str, node: str = "primary", within_s: float = 60) -> float:
    """Waits until just these stream from a node; tells for how long."""
    return wait_for(lambda: streaming(stack, node=node) == set(names), within_s=within_s, what=f"{names} streaming")


def identify_files(stack: Stack, node: str) -> str:
    """Tells a data folder from any later copy of it."""
    return stack.exec(node, "stat", "-c", "%i %W", "/var/lib/postgresql/data/PG_VERSION")


def await_known_reads(stack: Stack, count: int) -> None:
    """Waits until the proxy's balancer spreads requests over so many reading containers."""

    def are_known() -> bool:
        text = stack.exec("proxy", "cat", "/run/nginx/balance.conf")
        return text.partition("upstream reads")[2].partition("upstream writes")[0].count("server ") == count

    wait_for(are_known, within_s=30, what=f"{count} reads in the proxy")
