"""What the loss of the primary costs in each mode: the figures of docs/operations.md. It judges only promises."""

from collections.abc import Callable
from dataclasses import dataclass

import pytest

from tests.e2e.checks import await_streaming, count_effects, count_lost, streaming
from tests.e2e.conftest import Stage
from tests.e2e.patroni import await_other_leader, await_whole
from tests.e2e.stack import HA, PLAIN, Stack, wait_for
from tests.e2e.traffic import CommandLoad, ReadLoad, make_product, traffic

pytestmark = [pytest.mark.timeout(900), pytest.mark.slow]


@dataclass
class Cost:
    """What one loss of the primary cost."""

    acknowledged: int
    lost: int
    gap_s: float
    reader_errors: int
    reads: int
    rejoined_s: float

    def show(self, mode: str) -> None:
        """Prints the row of the table."""
        print(  # noqa: T201
            f"\n| {mode} | {self.lost} of {self.acknowledged} | {self.gap_s:.1f} s | "
            f"{self.reader_errors} of {self.reads} | {self.rejoined_s:.1f} s |"
        )


def lose_primary(stack: Stack, old: str, *, fail_over: Callable[[], str], behind: int) -> Cost:
    """Kills the primary under load and has another one take over; starts the old one again when commands go on.

    Args:
        stack: the deployment.
        old: the primary.
        fail_over: brings about, or waits for, the new primary; gives its name.
        behind: how many commands are acknowledged before the kill that no standby receives.
    """
    _, sku_ids = make_product(stack.port, stack.key)
    with traffic(stack.port, stack.key, sku_ids) as (commands, reads):
        commands.wait_for_more(200)
        if behind:
            stack.break_network(old, "cut", *sorted(streaming(stack, node=old)))
            commands.wait_for_more(behind)
        stack.compose("kill", old)
        new = fail_over()
        commands.wait_for_more(200)
        stack.compose("start", old)
        rejoined_s = wait_for(lambda: old in streaming(stack, node=new), within_s=180, what="the old primary streaming")
        commands.wait_for_more(50)
    return weigh(stack, commands, reads, node=new, rejoined_s=rejoined_s)


def weigh(stack: Stack, commands: CommandLoad, reads: ReadLoad, *, node: str, rejoined_s: float) -> Cost:
    """Counts by the ledger. Whatever the mode: no command has two effects."""
    assert max(count_effects(stack, commands, node=node).values()) == 1
    return Cost(
        acknowledged=len(commands.acknowledged),
        lost=count_lost(stack, commands, node=node),
        gap_s=commands.longest_gap_s,
        reader_errors=len(reads.failures),
        reads=sum(reads.served.values()) + len(reads.failures),
        rejoined_s=rejoined_s,
    )


@pytest.mark.parametrize("behind", [0, 200])
def test_what_a_manual_failover_costs(stage: Stage, behind: int) -> None:
    """Plain asynchronous replication; a person promotes at once, which no person does."""
    stack = stage(PLAIN)
    (old,) = [node for node in ("primary", "replica-1") if stack.sql(node, "select pg_is_in_recovery()") == [["f"]]]
    new = "replica-1" if old == "primary" else "primary"
    await_streaming(stack, new, "replica-2", node=old)

    def promote() -> str:
        stack.exec(new, "node", "promote")
        return new

    lose_primary(stack, old, fail_over=promote, behind=behind).show(f"plain, replicas {behind} commands behind")


@pytest.mark.parametrize("mode", ["off", "quorum"])
def test_what_a_failover_by_patroni_costs(stage: Stage, mode: str) -> None:
    """The same with Patroni deciding; with a quorum nothing acknowledged may be lost."""
    quorum = "1" if mode == "quorum" else "0"
    stack = stage(HA) if mode == "quorum" else stage(HA, ATELIER_SYNCHRONOUS_MODE=mode, ATELIER_QUORUM=quorum)
    old, _ = await_whole(stack)
    cost = lose_primary(stack, old, fail_over=lambda: await_other_leader(stack, old), behind=0)
    cost.show(f"Patroni, synchronous_mode {mode}")
    if mode == "quorum":
        assert cost.lost == 0
        assert cost.reader_errors == 0
