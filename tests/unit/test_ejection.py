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


def answer(health: NodeHealth, name: str, took_ms: float = 1, *, waiting_s: float = 0) -> bool:
    """A read that was sent now, or a while ago, ends well; whether that ejected the node."""
    came_at_s = health._clock() + took_ms / 1000
    return health.succeed(name, sent_at_s=health._clock() - waiting_s, came_at_s=came_at_s)


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
    answer(health, "a", 1)
    assert not health.is_out("a")
    assert health.ejected_until_s("a") is None
    health.fail("a")
    assert health.ejected_until_s("a") == 101.5


def test_a_read_sent_before_the_ejection_was_over_brings_nobody_back(health: NodeHealth, clock: FakeClock) -> None:
    """A node that fails every other read: what was on its way succeeds, and the time doubles all the same."""
    health.fail("a")
    clock.now_s = 100.2
    answer(health, "a", waiting_s=0.3)
    assert health.is_out("a")
    clock.now_s = 100.7
    answer(health, "a", waiting_s=0.5)
    assert health.ejected_until_s("a") == 100.5
    health.fail("a")
    assert health.ejected_until_s("a") == 101.7


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
        answer(health, "b", 2)
        answer(health, "a", 2)
    assert not answer(health, "a", 400)
    assert any(answer(health, "a", 400) for _ in range(10))
    assert health.is_out("a")
    assert not health.is_out("b")


def test_a_node_that_is_slow_on_its_trial_stays_out(health: NodeHealth, clock: FakeClock) -> None:
    """Its good old average does not hide it."""
    health.begin("b", START)
    answer(health, "b", 2)
    answer(health, "a", 2)
    health.fail("a")
    clock.now_s = 101
    health.begin("a", START)
    assert answer(health, "a", 400)
    assert health.is_out("a")


def test_the_primary_is_no_measure_for_replicas(health: NodeHealth) -> None:
    """Two replicas that are far away, and a primary next door: each side is as fast as it can be."""
    health.begin("b", START)
    health.begin("p", START, is_replica=False)
    for _ in range(50):
        assert not answer(health, "p", 2)
        assert not answer(health, "a", 120)
        assert not answer(health, "b", 120)
    assert not any(answer(health, "p", 3000) for _ in range(50))


def test_who_has_not_answered_lately_is_no_measure(health: NodeHealth, clock: FakeClock) -> None:
    """A node that died while all were fast says nothing about an hour with more to do; nor does an ejected one."""
    health.begin("b", START)
    answer(health, "b", 2)
    clock.now_s += 3600
    assert not any(answer(health, "a", 400) for _ in range(20))
    answer(health, "b", 2)
    health.fail("b")
    assert not any(answer(health, "a", 400) for _ in range(20))


def test_nodes_that_have_left_are_forgotten(health: NodeHealth) -> None:
    """With what they were ejected for, and as a measure for others."""
    health.begin("b", START)
    health.begin("c", START)
    answer(health, "b", 2)
    health.fail("c")
    health.keep({"a"})
    assert health.ejected_until_s("c") is None
    assert health.ewma_ms("b") == 0
    assert not any(answer(health, "a", 400) for _ in range(20))


def test_a_bad_spell_is_forgotten_by_and_by(health: NodeHealth, clock: FakeClock) -> None:
    """Who chooses by it asks a node again that was slow half a minute ago; then its answer counts, not the spell."""
    for _ in range(20):
        answer(health, "a", 90)
    assert health.ewma_ms("a") == pytest.approx(90)
    clock.now_s += 5
    assert health.ewma_ms("a") == pytest.approx(45, rel=0.05)
    clock.now_s += 25
    assert health.ewma_ms("a") < 2
    answer(health, "a", 2)
    assert health.ewma_ms("a") < 2


def test_when_all_are_slow_nobody_is_ejected(health: NodeHealth) -> None:
    """Then it is the load, or the question."""
    health.begin("b", START)
    for _ in range(50):
        assert not answer(health, "a", 900)
        assert not answer(health, "b", 700)


def test_every_change_that_others_must_hear_of_at_once_is_counted(health: NodeHealth, clock: FakeClock) -> None:
    """Ejected, on trial, back, started anew; an ordinary answer changes nothing."""

    def changes_by(event: str) -> bool:
        before = health.changes
        {
            "answer": lambda: answer(health, "a", 1),
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
