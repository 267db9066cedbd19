"""Every checker on histories that a person can follow: what it must catch, what it must let pass, what it cannot tell."""

# ruff: noqa: E501 - one line a history

import pytest

from loadtest.checkers.registry import CHECKERS
from tests.checkers.notation import history

# fmt: off
INVALID = [
    # read your writes
    ("read your writes", "ann adjusts x -1 v2; ann reads x v1", (1, 2)),
    ("read your writes", "ann creates p v1; ann reads p v0", (1, 2)),
    ("read your writes", "ann adjusts x -1 v2; bob reads x v1; ann reads x v2; ann reads x v1 on pg3", (1, 4)),
    ("read your writes", "ann reads x v4; ann reserves x held:1 r:1; ann reads x v4", (2, 3)),
    ("read your writes", "ann adjusts x -1 v2 and y -1 v7; ann reads y v6", (1, 2)),
    ("read your writes", "ann adjusts x -1 ? as k; ann adjusts x -1 v2 as k again; ann reads x v1", (2, 3)),
    # monotonic reads
    ("monotonic reads", "ann reads x v2; ann reads x v1", (1, 2)),
    ("monotonic reads", "ann reads x v2 on pg2; bob reads x v1 on pg3; ann reads y v1; ann reads x v1 on pg3", (1, 4)),
    ("monotonic reads", "ann reads x v1; ann reads x v0", (1, 2)),
    # monotonic writes
    ("monotonic writes", "ann adjusts x -1 v3; ann adjusts x -1 v2", (1, 2)),
    ("monotonic writes", "ann adjusts x -1 v3; bob adjusts x -1 v4; ann adjusts x +1 v3", (1, 3)),
    # writes follow reads
    ("writes follow reads", "ann reads x v5; ann adjusts y -1 v2; bob reads y v2; bob reads x v4", (1, 2, 3, 4)),
    ("writes follow reads", "ann adjusts x -1 v5; ann adjusts y -1 v2; bob reads y v3; bob reads x v4", (1, 2, 3, 4)),
    # bounded staleness
    ("bounded staleness", "ann adjusts x -1 v2 @1-2; bob reads x v1 bounded:100 @2.5-2.6", (1, 2)),
    ("bounded staleness", "bob reads x v1 bounded:100 lag:200", (1,)),
    ("bounded staleness", "bob reads x v1 bounded:100 unknown", (1,)),
    # linearizability
    ("linearizability", "ann adjusts x -1 v2; bob reads x v1 strong", (1, 2)),
    ("linearizability", "ann reads x v2 strong; bob reads x v1 strong", (1, 2)),
    ("linearizability", "ann adjusts x -1 v2; bob adjusts x -1 v2", (1, 2)),
    ("linearizability", "ann reads x v2 strong; ann reserves x held:1 r:1; bob reads x v2 strong", (2, 3)),
    ("linearizability", "ann adjusts x -1 v2 @1-9; bob reads x v2 strong @2-3; cyd reads x v1 strong @4-5", (2, 3)),
    ("linearizability", "ann reads x v2 =5/0; bob reads x v2 =4/0", (1, 2)),
    ("linearizability", "ann reads x v2 =5/0; bob adjusts x -1 v3 =3/0", (1, 2)),
    ("linearizability", "ann reads x v9 strong; bob adjusts x -1 as k ?; bob adjusts x -1 v8 as k again", (1, 3)),
    # no oversell
    ("no oversell", "ann reads x v2 =1/2", (1,)),
    ("no oversell", "ann adjusts x -3 v2 =-1/0", (1,)),
    ("no oversell", "- creates x +2; ann reserves x held:2 r:1 ttl:60; bob reserves x held:1 r:2 ttl:60", (3,)),
    ("no oversell", "- creates x +1; ann reserves x held:1 r:1 ttl:2; ann confirms x held:-1 -1 r:1; bob reserves x held:1 r:2 ttl:60 @9-10",
     (4,)),
    ("no oversell", "- creates x +1; ann adjusts x -1; bob adjusts x -1", (3,)),
    ("no oversell", "- ledger x +1 initial; - ledger x -2 as k", (2,)),
    # ledger equals stock
    ("ledger equals stock", "- ledger x +5 initial; - ledger x -1 as k; - finally x v2 =5/0", (3,)),
    ("ledger equals stock", "- finally x v2 =5/0", (1,)),
    # exactly once
    ("exactly once", "ann adjusts x -1 as k; - ledger x +5 initial; - ledger x -1 as k; - ledger x -1 as k", (1, 4)),
    ("exactly once", "ann adjusts x -1 as k; - ledger x -1 as k; - ledger x -1 as other", (3,)),
    ("exactly once", "ann adjusts x -1 as k !; - ledger x -1 as k", (1, 2)),
    ("exactly once", "ann adjusts x -1 and y -1 as k ?; - ledger x -1 as k", (1, 2)),
    ("exactly once", "ann adjusts x -1 as k; - ledger x -2 as k", (1, 2)),
    ("exactly once", "- ledger x +5 initial; - ledger x -1 sale", (2,)),
    ("exactly once", "- creates p v1 as c; ann updates p v2 as k; - finally p v4", (3,)),
    ("exactly once", "ann reserves x held:2 r:1 as k; - finally r:1 x held:2 pending; - finally x v3 =9/4", (3,)),
    # no lost acknowledged command
    ("no lost acknowledged command", "ann adjusts x -1 as k; - finally x v1 =5/0", (1,)),
    ("no lost acknowledged command", "ann adjusts x -1 ? as k; ann adjusts x -1 as k; - finally x v1 =5/0", (2,)),
    ("no lost acknowledged command", "ann adjusts x -1 v7 as k; - ledger x -1 as k; - finally x v6 =5/0", (1,)),
    ("no lost acknowledged command", "ann confirms r:1 as k; - finally r:1 released", (1,)),
    ("no lost acknowledged command", "ann updates p v3 as k; - finally p v2", (1,)),
    ("no lost acknowledged command", "- creates p v1 as k; - finally p v0", (1,)),
    # feed complete and ordered
    ("feed complete and ordered", "w opens; w hears x v2; w hears x v2; w closes", (2, 3)),
    ("feed complete and ordered", "w opens; w hears x v3; w hears x v2; w closes", (2, 3)),
    ("feed complete and ordered", "w opens; ann adjusts x -1 v2; w closes", (2,)),
    ("feed complete and ordered", "w opens; ann adjusts x -1 v2; ann adjusts x -1 v3; w hears x v3; w closes", (2,)),
    ("feed complete and ordered", "w opens; ann adjusts x -1 v2; ann adjusts y -1 v5; w hears y v5; w hears x v2; w closes", (2, 3)),
    ("feed complete and ordered", "w opens; z opens; w hears x v1; z hears x v1; w hears y v1; z hears q v1; w closes; z closes", (5, 6)),
    ("feed complete and ordered", "w opens; z opens; w hears x v1; z hears y v1; w closes; z closes", (4,)),
]

VALID = [
    ("read your writes", "ann adjusts x -1 v2; ann reads x v2; bob reads x v1; ann reads x v3"),
    ("read your writes", "ann adjusts x -1 v2; ann reads x v1 eventual; ann reads x v2"),
    ("read your writes", "ann reserves x held:1 ? as k; ann reads x v4; ann reserves x held:1 r:1 as k again; ann reads x v4; ann adjusts y v2; ann reads y v2"),
    ("read your writes", "ann adjusts x -1 v2 ?; ann adjusts y -1 v4; ann reads x v1; ann reads y v4"),
    ("monotonic reads", "ann reads x v1; bob reads x v2; ann reads x v1; ann reads x v2"),
    ("monotonic reads", "ann reads x v2; ann reads x v1 eventual; ann reads x v2"),
    ("monotonic writes", "ann adjusts x -1 v2; bob adjusts x -1 v3; ann adjusts x -1 v4"),
    ("monotonic writes", "ann adjusts x -1 v2; ann adjusts y -1 v1; ann adjusts x -1 v5; ann adjusts x -1 v2 again"),
    ("writes follow reads", "ann reads x v5; ann adjusts y -1 v2; bob reads y v2; bob reads x v5"),
    ("writes follow reads", "ann reads x v5; ann adjusts y -1 v2; bob reads y v1; bob reads x v4; bob reads y v2; bob reads x v5"),
    ("bounded staleness", "ann adjusts x -1 v2 @1-2; bob reads x v1 bounded:1000 @2.5-2.6"),
    ("bounded staleness", "ann adjusts x -1 v2 @1-2; bob reads x v2 bounded:100 @2.5-2.6 lag:100"),
    ("linearizability", "ann adjusts x -1 v2 @1-4; bob reads x v1 strong @2-3"),
    ("linearizability", "ann adjusts x -1 v2 @1-4; bob reads x v2 strong @2-3; cyd adjusts x -1 v3 @2-5"),
    ("linearizability", "ann adjusts x -1 ? as k; bob adjusts x -1 v3; bob reads x v3 strong; ann adjusts x -1 v2 as k again"),
    ("linearizability", "ann adjusts x -1 v2; bob reads x v1"),
    ("linearizability", "ann reads x v2 =5/0; bob adjusts x -1 v3 =4/0; cyd reads x v3 =4/0; cyd reads x v9 =1/1"),
    ("linearizability", "ann adjusts x -1 v2 as k; bob adjusts x -1 v3; ann adjusts x -1 v2 as k again"),
    ("no oversell", "- creates x +2; ann reserves x held:2 r:1 ttl:60; ann releases r:1; bob reserves x held:1 r:2 ttl:60"),
    ("no oversell", "- creates x +2; ann reserves x held:2 r:1 ttl:1; bob reserves x held:2 r:2 ttl:60 @9-10"),
    ("no oversell", "- creates x +1; ann adjusts x +1 ?; ann reserves x held:2 r:1 ttl:60"),
    ("no oversell", "- creates x +1; ann reserves x held:1 r:1 ttl:60; bob reserves x held:1 !"),
    ("no oversell", "- creates x +1; ann counts x =5/0; ann reserves x held:4 r:1 ttl:60"),
    ("ledger equals stock", "- ledger x +5 initial; - ledger x -1 as k; - finally x v2 =4/0"),
    ("exactly once", "ann adjusts x -1 and y -2 as k; - ledger x -1 as k; - ledger y -2 as k"),
    ("exactly once", "ann adjusts x -1 as k ?; ann adjusts x -1 as k; - ledger x -1 as k"),
    ("exactly once", "ann adjusts x -1 as k ?; ann adjusts x -1 as j !; - ledger x +5 initial"),
    ("exactly once", "- creates p v1 as c; ann updates p v2 as k; ann updates p as j ?; - finally p v3"),
    ("exactly once", "ann reserves x held:2 r:1 as k; bob reserves x held:3 ? as j; - finally r:1 x held:2 pending; - finally x v3 =9/5"),
    ("no lost acknowledged command", "ann adjusts x -1 v2 as k; - ledger x -1 as k; - finally x v2 =4/0"),
    ("no lost acknowledged command", "ann reserves x held:1 r:1 as k; ann confirms r:1 as j; - finally r:1 confirmed"),
    ("no lost acknowledged command", "ann reserves x held:1 r:1 as k; - finally r:1 expired"),
    ("feed complete and ordered", "w opens; ann adjusts x -1 v2; w hears x v2; ann adjusts x -1 v3; w hears x v3; w closes"),
    ("feed complete and ordered", "ann adjusts x -1 v2; w opens; w hears x v2; w closes; ann adjusts x -1 v3"),
    ("feed complete and ordered", "w opens @0-0; ann adjusts x -1 v2 @1-4; bob adjusts x -1 v3 @2-5; w hears x v3 @6-6; w closes @7-7"),
    ("feed complete and ordered", "w opens; w hears x v1; z opens; w hears y v1; z hears y v1; w hears x v2; w closes; z closes"),
    ("feed complete and ordered", "w opens @0-0; ann adjusts x -1 v2 @1-3; bob adjusts y -1 v2 @2-4; w hears y v2; w hears x v2; w closes"),
]

UNKNOWN = [
    ("read your writes", "ann reads x v1"),
    ("read your writes", "ann adjusts x -1 v2 @1-5; ann reads x v1 @2-3"),
    ("monotonic reads", "ann adjusts x -1 v2"),
    ("monotonic writes", "ann adjusts x -1 v2"),
    ("writes follow reads", "ann reads x v1; bob reads x v1"),
    ("bounded staleness", "ann adjusts x -1 v2; ann reads x v2"),
    ("linearizability", "ann reads x v2"),
    ("no oversell", "ann reads x v2"),
    ("ledger equals stock", "ann adjusts x -1 v2 as k; - finally y v2 =0/0"),
    ("exactly once", "ann adjusts x -1 v2 as k"),
    ("no lost acknowledged command", "ann adjusts x -1 v2 as k"),
    ("no lost acknowledged command", "ann reserves x held:1 r:1 as k"),
    ("feed complete and ordered", "ann adjusts x -1 v2"),
    ("feed complete and ordered", "w opens; w hears x v1"),
]
# fmt: on


@pytest.mark.parametrize(("guarantee", "text", "ops"), INVALID, ids=[f"{g}: {t}" for g, t, _ in INVALID])
def test_checker_catches_what_was_planted(guarantee, text, ops):
    """It is invalid, by the operations that a person would name, and says so in words."""
    verdict = CHECKERS[guarantee](history(text))
    assert (verdict.state, verdict.ops) == ("invalid", ops), verdict
    assert len(verdict.witness) > 20


@pytest.mark.parametrize(("guarantee", "text"), VALID, ids=[f"{g}: {t}" for g, t in VALID])
def test_checker_lets_pass_what_is_right(guarantee, text):
    """It is valid, and the checker had something to look at."""
    verdict = CHECKERS[guarantee](history(text))
    assert verdict.state == "valid", verdict
    assert verdict.looked_at


@pytest.mark.parametrize(("guarantee", "text"), UNKNOWN, ids=[f"{g}: {t}" for g, t in UNKNOWN])
def test_checker_says_unknown_when_the_history_shows_too_little(guarantee, text):
    """A history that could not have shown a break is no proof that there was none."""
    verdict = CHECKERS[guarantee](history(text))
    assert verdict.state == "unknown", verdict
    assert verdict.witness


def test_every_checker_is_planted():
    """No checker is without a history that it must catch, one that it must pass, and one that it cannot tell."""
    decisive = set(CHECKERS) - {"long fork"}
    for cases in (INVALID, VALID, UNKNOWN):
        assert {case[0] for case in cases} == decisive


def test_long_fork_is_reported_and_not_failed():
    """Two observers who disagree are told of; the verdict stays valid."""
    seen = CHECKERS["long fork"](history("ann reads x v2; ann reads y v1; bob reads y v2; bob reads x v1"))
    assert (seen.state, seen.only_reported, seen.ops) == ("valid", True, (4, 2)) or seen.ops == (2, 4)
    assert "without" in seen.witness
    agreed = CHECKERS["long fork"](history("ann reads x v2; ann reads y v1; bob reads y v2; bob reads x v2"))
    assert (agreed.state, agreed.ops) == ("valid", ())


def test_witness_is_the_smallest_of_several():
    """Of two breaks the one with fewer and earlier operations is told, and the other is counted."""
    verdict = CHECKERS["monotonic reads"](history("ann reads x v2; ann reads x v1; bob reads x v5; bob reads x v2"))
    assert (verdict.ops, verdict.also) == ((1, 2), 1)
