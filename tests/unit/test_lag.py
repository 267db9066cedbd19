"""How far a replica is behind, by the history of where the primary stood; and when its commits have settled."""

from hypothesis import given
from hypothesis import strategies as st

from atelier.lsn import Lsn
from atelier.topology.lag import LagHistory
from atelier.topology.settling import Settling


def test_without_a_sample_the_lag_is_unknown() -> None:
    """Unknown is not zero."""
    assert LagHistory().lag_ms(Lsn(5), 1.0) is None


def test_a_replica_further_back_than_all_samples_has_an_unknown_lag() -> None:
    """The history does not reach back so far."""
    lag = LagHistory()
    lag.add(1.0, Lsn(10))
    assert lag.lag_ms(Lsn(9), 2.0) is None


def test_an_idle_replica_is_as_old_as_the_last_look_at_the_primary() -> None:
    """Nothing happens, and the lag stays small while the primary says so."""
    lag = LagHistory()
    for second in range(100):
        lag.add(float(second), Lsn(10))
    assert lag.lag_ms(Lsn(10), 99.5) == 500


def test_the_lag_grows_with_the_primary_gone() -> None:
    """No sample comes any more, so nothing says that there is nothing newer."""
    lag = LagHistory()
    lag.add(1.0, Lsn(10))
    assert lag.lag_ms(Lsn(10), 31.0) == 30_000


def test_samples_beyond_a_fork_say_nothing() -> None:
    """A position of lost history must not make a replica look younger."""
    lag = LagHistory()
    lag.add(1.0, Lsn(10))
    lag.add(2.0, Lsn(20))
    lag.drop_beyond(Lsn(15))
    assert lag.lag_ms(Lsn(30), 3.0) == 2_000


@given(st.lists(st.tuples(st.floats(0.001, 10), st.integers(0, 50)), min_size=1, max_size=6000), st.data())
def test_the_bound_is_never_too_small(steps: list[tuple[float, int]], data: st.DataObject) -> None:
    """A replica that lacks a commit is at least as old as that commit, however much the history was thinned out."""
    lag, now_s, position = LagHistory(), 0.0, 1
    flushed_at: list[tuple[float, int]] = []
    for pause_s, written in steps * (1 + 3000 // len(steps)):
        now_s, position = now_s + pause_s, position + written
        lag.add(now_s, Lsn(position))
        flushed_at.append((now_s, position))
    _, replayed = data.draw(st.sampled_from(flushed_at))
    # The first look at which the primary had something that the replica lacks: its age is the least that is true.
    missing = [at_s for at_s, flushed in flushed_at if flushed > replayed]
    bound = lag.lag_ms(Lsn(replayed), now_s)
    if missing and bound is not None:
        assert bound >= (now_s - missing[0]) * 1000


def test_an_idle_primary_has_settled_at_once() -> None:
    """No transaction runs, so every commit is visible."""
    assert Settling().note(Lsn(10), frozenset()) == Lsn(10)


def test_a_position_settles_when_the_transactions_of_its_moment_have_ended() -> None:
    """Later transactions do not hold it up, earlier ones do."""
    settling = Settling()
    assert settling.note(Lsn(10), frozenset({1, 2})) is None
    assert settling.note(Lsn(20), frozenset({2, 3})) is None
    assert settling.note(Lsn(30), frozenset({3, 4})) == Lsn(10)
    assert settling.note(Lsn(40), frozenset({4})) == Lsn(20)
    assert settling.note(Lsn(50), frozenset()) == Lsn(50)


@given(st.lists(st.frozensets(st.integers(0, 5), max_size=4), max_size=300))
def test_nothing_settles_before_its_transactions_have_ended(looks: list[frozenset[int]]) -> None:
    """Whatever runs: each id is used once, so an id that comes back in the test counts as still running."""
    settling = Settling()
    for look, running in enumerate(looks):
        settled = settling.note(Lsn(look), running)
        if settled is not None:
            at = settled.bytes
            for xid in looks[at]:
                assert any(xid not in later for later in looks[at : look + 1])


def test_a_long_transaction_neither_fills_memory_nor_is_forgotten() -> None:
    """While it runs nothing settles; when it ends, all before it has, and soon all after it."""
    settling = Settling()
    for position in range(10_000):
        assert settling.note(Lsn(position), frozenset({1})) is None
    assert settling.note(Lsn(10_001), frozenset()) is not None
    assert settling.note(Lsn(10_002), frozenset()) == Lsn(10_002)
