"""What the service has answered from memory, as the lab counts it: shown, not shown, or switched off."""

import pytest

from loadtest.checkers.verdict import State
from loadtest.memory import Recall, judge_memory, parse_recall, read_recall, sum_recall
from loadtest.report.summary import tell_memory

METRICS = """
# TYPE atelier_cache_hits counter
atelier_cache_hits_total{statement="styles_documented"} 7.0
atelier_cache_hits_total{statement="related"} 5.0
atelier_cache_hits_created{statement="related"} 1.7e+09
atelier_cache_misses_total{reason="absent"} 3.0
atelier_cache_shared_total{statement="related"} 100.0
"""
HERE, THERE = "http://here", "http://there"


def test_hits_and_looks_are_counted_over_all_statements():
    """What another read has brought is not from memory."""
    assert parse_recall(METRICS) == Recall(12, 15)


def test_run_has_what_was_counted_during_it():
    """By processes that were there before, that came later, and that were started anew meanwhile."""
    before = {HERE: Recall(10, 20)}
    assert sum_recall(before, {HERE: Recall(15, 30), THERE: Recall(1, 2)}, is_on=True) == Recall(6, 12, is_on=True)
    assert sum_recall(before, {HERE: Recall(3, 4)}, is_on=False) == Recall(3, 4)
    assert sum_recall(before, {HERE: Recall(15, 30), THERE: None}, is_on=True) is None


@pytest.mark.parametrize(
    ("recall", "state", "told"),
    [
        (Recall(5, 9), State.VALID, " (5 from memory)"),
        (Recall(0, 9), State.UNKNOWN, " (from memory: not shown)"),
        (Recall(0, 0, is_on=True), State.UNKNOWN, " (from memory: not shown)"),
        (Recall(0, 0), None, ""),
        (None, State.UNKNOWN, ""),
    ],
)
def test_memory_without_a_hit_is_not_shown(recall, state, told):
    """A run proves nothing of what was never asked; where it is switched off, nothing is claimed."""
    verdicts = judge_memory(recall)
    assert [verdict.state for verdict in verdicts] == ([] if state is None else [state])
    assert tell_memory(recall.document() if recall else None) == told


def test_service_that_is_not_there_tells_nothing():
    """Nor one that keeps its metrics to itself."""
    assert read_recall("http://127.0.0.1:9") is None
