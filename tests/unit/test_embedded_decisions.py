"""Which node is the primary, and how another one comes to follow it: over every state that may be found."""

import itertools

import pytest

from atelier.embedded.control import is_diverged, newest_timeline, parse_control_data, parse_history
from atelier.embedded.decide import Found, Way, choose_primary, choose_ways
from atelier.embedded.errors import EmbeddedError
from atelier.lsn import Lsn

CONTROL = """pg_control version number:            1800
Database system identifier:           7571234567890123456
Database cluster state:               {state}
Latest checkpoint location:           0/3000080
Latest checkpoint's TimeLineID:       {timeline}
Min recovery ending loc's timeline:   {recovery}
"""

STATES = [
    Found("", has_data=False),
    *(
        Found("", has_data=True, standby=standby, timeline=timeline, torn=torn)
        for standby, timeline, torn in itertools.product((False, True), (1, 2), (False, True))
    ),
]


def name(states: tuple[Found, ...]) -> list[Found]:
    """Gives nodes their names."""
    return [
        Found(f"pg{number}", state.has_data, state.standby, state.timeline, state.shut_down, state.torn)
        for number, state in enumerate(states, start=1)
    ]


@pytest.mark.parametrize("recorded", ["pg1", "pg2", "pg3"])
def test_primary_is_whole_no_standby_and_of_the_newest_timeline(recorded: str) -> None:
    """Over all states of three nodes: never a standby, a torn folder, or one that a promotion left behind."""
    for states in itertools.product(STATES, repeat=3):
        found = name(states)
        able = [node for node in found if node.has_data and not node.standby and not node.torn]
        chosen = choose_primary(found, recorded=recorded)
        assert (chosen is None) == (not able)
        if chosen:
            assert next(node for node in able if node.name == chosen).timeline == max(node.timeline for node in able)


def test_record_decides_between_equals() -> None:
    """Two folders of one timeline, neither a standby's: only the record can tell which one was followed."""
    found = [Found("pg1", has_data=True), Found("pg2", has_data=True)]
    assert choose_primary(found, recorded="pg2") == "pg2"


def test_promoted_node_is_the_primary_though_the_record_is_old() -> None:
    """The command was killed between the promotion and writing it down."""
    found = [Found("pg1", has_data=True, timeline=1), Found("pg2", has_data=True, timeline=2)]
    assert choose_primary(found, recorded="pg1") == "pg2"


@pytest.mark.parametrize(
    ("node", "slot_lost", "ways"),
    [
        (Found("pg2", has_data=True, standby=True), False, (Way.START, Way.REWIND, Way.CLONE)),
        (Found("pg1", has_data=True, standby=False), False, (Way.REWIND, Way.CLONE)),
        (Found("pg2", has_data=False), False, (Way.CLONE,)),
        (Found("pg2", has_data=True, standby=True, torn=True), False, (Way.CLONE,)),
        (Found("pg2", has_data=True, standby=True), True, (Way.CLONE,)),
    ],
    ids=["standby", "former primary", "never cloned", "rewind was interrupted", "slot lost"],
)
def test_cheapest_safe_way_comes_first(node: Found, *, slot_lost: bool, ways: tuple[Way, ...]) -> None:
    """A replica is not cloned again while anything less may do; a former primary is never just started."""
    assert choose_ways(node, slot_lost=slot_lost) == ways


def test_control_data_is_of_the_newer_of_its_two_timelines() -> None:
    """A standby's restart point may be older than the WAL that it has replayed."""
    control = parse_control_data(CONTROL.format(state="in archive recovery", timeline=1, recovery=2))
    assert (control.timeline, control.shut_down, control.checkpoint) == (2, False, Lsn.parse("0/3000080"))


@pytest.mark.parametrize("state", ["shut down", "shut down in recovery"])
def test_both_states_of_order_count_as_shut_down(state: str) -> None:
    """A primary and a standby end in different states."""
    assert parse_control_data(CONTROL.format(state=state, timeline=1, recovery=0)).shut_down


def test_control_data_that_says_nothing_is_refused() -> None:
    """An empty answer is a fault, not a first timeline."""
    with pytest.raises(EmbeddedError):
        parse_control_data("")


def test_newest_history_file_counts_and_nothing_else() -> None:
    """Names in pg_wal: segments, history files, backups, partial files."""
    names = ["000000010000000000000003", "00000002.history", "0000000A.history", "0000000B.history.ready", "summaries"]
    assert newest_timeline(names) == 10
    assert newest_timeline([]) == 1


def test_history_tells_where_each_timeline_was_left() -> None:
    """One line a fork; comments and empty lines are none."""
    text = "1\t0/40006E8\tno recovery target specified\n\n2\t0/60000A0\tno recovery target specified\n"
    assert parse_history(text) == {1: Lsn.parse("0/40006E8"), 2: Lsn.parse("0/60000A0")}


@pytest.mark.parametrize(
    ("timeline", "position", "diverged"),
    [
        (2, "0/9000000", False),
        (1, "0/5000000", False),
        (1, "0/5000001", True),
        (3, "0/1000000", True),
    ],
    ids=["on the primary's timeline", "up to the fork", "one byte beyond it", "a timeline nobody knows"],
)
def test_node_has_diverged_when_it_has_more_than_the_fork(timeline: int, position: str, *, diverged: bool) -> None:
    """A position at the fork itself is common to both histories."""
    history = {1: Lsn.parse("0/5000000")}
    assert is_diverged(timeline, Lsn.parse(position), primary_timeline=2, history=history) is diverged
