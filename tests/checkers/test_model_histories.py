"""Histories of a correct model are valid, and each way of breaking one is caught by the right checker."""

import random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from loadtest.checkers.registry import CHECKERS, COUNTED, MEANINGS, check_history, conclude
from loadtest.history.store import MemoryHistory
from loadtest.sabotage.tamper import TAMPERS, NothingToBreakError
from tests.checkers.model import make_history

QUICK = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@QUICK
@given(seed=st.integers(0, 2**32), count=st.integers(1, 120))
def test_histories_of_a_correct_model_are_valid(seed, count):
    """Whatever overlaps, is lost and retried: no checker finds a break."""
    verdicts = check_history(MemoryHistory(make_history(random.Random(seed), count)))
    assert [verdict for verdict in verdicts if verdict.state == "invalid"] == []


def test_long_history_of_a_correct_model_is_valid_in_every_respect():
    """With enough requests no checker is left without something to look at."""
    verdicts = check_history(MemoryHistory(make_history(random.Random(7), 2000)))
    assert conclude(verdicts) == "valid", verdicts
    assert min(verdict.looked_at for verdict in verdicts) > 2


@pytest.mark.parametrize("name", TAMPERS)
@settings(QUICK, max_examples=60)
@given(seed=st.integers(0, 2**32), count=st.integers(40, 120))
def test_tampered_histories_are_caught_by_the_right_checker(name, seed, count):
    """The checker that is there for it says invalid, in words."""
    rng = random.Random(seed)
    ops = make_history(rng, count)
    try:
        broken = TAMPERS[name].apply(ops, rng)
    except NothingToBreakError:
        return
    verdict = CHECKERS[TAMPERS[name].caught_by](MemoryHistory(broken))
    assert verdict.state == "invalid", (name, verdict)
    assert verdict.witness


@pytest.mark.parametrize("name", TAMPERS)
def test_every_tampering_finds_something_to_break(name):
    """The property above is not empty: in a history of some length there is always something to break."""
    rng = random.Random(1)
    TAMPERS[name].apply(make_history(rng, 400), rng)


def test_every_checker_says_what_it_means():
    """The report explains each guarantee, and counts none that is not there."""
    assert set(MEANINGS) == set(CHECKERS)
    assert {name for names in COUNTED.values() for name in names} < set(CHECKERS)


def test_every_checker_that_decides_has_a_tampering():
    """No checker goes without a negative control."""
    assert {tamper.caught_by for tamper in TAMPERS.values()} == set(CHECKERS) - {"long fork"}
