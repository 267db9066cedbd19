"""When a node is left alone, by a clock of the test's own."""

from datetime import UTC, datetime

import pytest

from atelier.reads.health import NodeHealth
from atelier.settings import Ejection

START = datetime(2026, 1, 1, tzinfo=UTC)


class FakeClock:
    """Time that passes only on request."""

    now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> FakeClock:
    """Stands still."""
    return FakeClock()


@pytest.fixture
def health(clock: FakeClock) -> NodeHealth:
    """Of a process that has asked node a."""
    made = NodeHealth(Ejection(first_ms=500, longest_ms=4000, slow_ms=100), trial_s=1.0, clock=clock)
    made.begin("a", START)
    return made


def test_a_node_nobody_has_asked_is_in(health: NodeHealth) -> None:
    """Innocent until it fails."""
    assert not health.is_out("b")
    assert health.ejected_until_s("b") is None


def test_a_failure_ejects_for_a_while(health: NodeHealth, clock: FakeClock) -> None:
    """Half a second, no more."""
    assert health.fail("a")
    assert health.is_out("a")
    assert health.ejected_until_s("a") == 100.5
    clock.now_s = 100.51
    assert not health.is_out("a")


def test_failures_of_reads_on_their_way_count_once(health: NodeHealth) -> None:
    """Twenty reads lost by one crash are one failure."""
    assert health.fail("a")
    assert not any(health.fail("a") for _ in range(20))
    assert health.ejected_until_s("a") == 100.5


def test_the_time_doubles_up_to_its_limit(health: NodeHealth, clock: FakeClock) -> None:
    """0.5, 1, 2, 4, 4 seconds."""
    spans = []
    for _ in range(5):
        health.fail("a")
        until_s = health.ejected_until_s("a")
        assert until_s is not None
        spans.append(until_s - clock.now_s)
        clock.now_s = until_s
    assert spans == [0.5, 1, 2, 4, 4]


def test_one_read_at_a_time_tries_an_ejected_node(health: NodeHealth, clock: FakeClock) -> None:
    """While the trial is on its way the others leave the node alone; a trial that never ends is given up."""
    health.fail("a")
    clock.now_s = 100.6
    assert not health.is_out("a")
    health.begin("a", START)
    assert health.is_out("a")
    clock.now_s = 101.7
    assert not health.is_out("a")


def test_a_trial_that_succeeds_brings_the_node_back(health: NodeHealth, clock: FakeClock) -> None:
    """And the next failure begins with the shortest time again."""
    health.fail("a")
    clock.now_s = 101
    health.begin("a", START)
    health.succeed("a", 1)
    assert not health.is_out("a")
    assert health.ejected_until_s("a") is None
    health.fail("a")
    assert health.ejected_until_s("a") == 101.5


def test_a_trial_that_fails_ejects_for_longer(health: NodeHealth, clock: FakeClock) -> None:
    """The doubling goes on."""
    health.fail("a")
    clock.now_s = 101
    health.begin("a", START)
    assert health.fail("a")
    assert health.ejected_until_s("a") == 102


def test_another_server_start_has_done_nothing_wrong(health: NodeHealth) -> None:
    """A restarted server begins anew."""
    health.fail("a")
    health.begin("a", datetime(2026, 1, 2, tzinfo=UTC))
    assert not health.is_out("a")


def test_a_node_much_slower_than_its_sibling_is_ejected(health: NodeHealth) -> None:
    """A single slow answer does nothing; a habit does."""
    health.begin("b", START)
    for _ in range(10):
        health.succeed("b", 2)
        health.succeed("a", 2)
    assert not health.succeed("a", 400)
    assert any(health.succeed("a", 400) for _ in range(10))
    assert health.is_out("a")
    assert not health.is_out("b")


def test_a_node_that_is_slow_on_its_trial_stays_out(health: NodeHealth, clock: FakeClock) -> None:
    """Its good old average does not hide it."""
    health.begin("b", START)
    health.succeed("b", 2)
    health.succeed("a", 2)
    health.fail("a")
    clock.now_s = 101
    health.begin("a", START)
    assert health.succeed("a", 400)
    assert health.is_out("a")


def test_when_all_are_slow_nobody_is_ejected(health: NodeHealth) -> None:
    """Then it is the load, or the question."""
    health.begin("b", START)
    for _ in range(50):
        assert not health.succeed("a", 900)
        assert not health.succeed("b", 700)


def test_every_change_that_others_must_hear_of_at_once_is_counted(health: NodeHealth, clock: FakeClock) -> None:
    """Ejected, on trial, back, started anew; an ordinary answer changes nothing."""

    def changes_by(event: str) -> bool:
        before = health.changes
        {
            "answer": lambda: health.succeed("a", 1),
            "fail": lambda: health.fail("a"),
            "begin": lambda: health.begin("a", START),
            "restart": lambda: health.begin("a", datetime(2026, 1, 2, tzinfo=UTC)),
        }[event]()
        return health.changes > before

    assert not changes_by("begin")
    assert not changes_by("answer")
    assert changes_by("fail")
    clock.now_s = 101
    assert changes_by("begin")
    assert changes_by("answer")
    assert not changes_by("answer")
    assert changes_by("restart")
