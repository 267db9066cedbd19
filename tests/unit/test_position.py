"""Where an answer stands: how far it may have seen, on which timeline, and whether it came from who was observed."""

import asyncio
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from atelier.lsn import Lsn
from atelier.reads.position import PositionMovedError, check_start, known_timeline, leaves_open, mint, reached_lsn
from atelier.token import CausalToken
from atelier.topology.probe import STILL_S, Probe
from atelier.topology.state import Observation

START = datetime(2026, 1, 1, tzinfo=UTC)
LATER = START + timedelta(microseconds=1)
HERE = 100

STANDBY = Observation(
    observed_at_s=1.0,
    in_recovery=True,
    system_id=7,
    timeline=2,
    started_at=START,
    received_lsn=Lsn(HERE),
    replayed_lsn=Lsn(HERE),
    streaming=True,
)
PRIMARY = replace(STANDBY, in_recovery=False, received_lsn=None, streaming=False)


def row(
    *,
    reached: int = HERE,
    received: int | None = HERE,
    standby: bool = True,
    timeline: int | None = 2,
    started_at: datetime = START,
) -> dict[str, Any]:
    """The position's columns of an answer."""
    return {
        "in_recovery": standby,
        "started_at": started_at,
        "reached_lsn": reached,
        "received_lsn": received,
        "received_timeline": timeline,
    }


@pytest.mark.parametrize(("observed", "standby"), [(STANDBY, True), (PRIMARY, False)])
def test_answer_of_the_observed_start_is_taken(observed: Observation, standby: bool) -> None:
    """Wherever it has gone on to since."""
    check_start(observed, row(standby=standby, reached=HERE + 5))


@pytest.mark.parametrize(
    ("observed", "answer"),
    [
        (STANDBY, row(started_at=LATER)),
        (PRIMARY, row(standby=False, started_at=LATER)),
        (STANDBY, row(standby=False)),
        (PRIMARY, row(standby=True)),
    ],
    ids=["restarted standby", "restarted primary", "promoted", "became a standby"],
)
def test_answer_of_another_start_or_role_is_refused(observed: Observation, answer: dict[str, Any]) -> None:
    """What was observed says nothing about it, however far it has come."""
    with pytest.raises(PositionMovedError):
        check_start(observed, answer)


# What an answer of a standby may have seen. `resting`: no record beyond the replayed position was in replay when the
# standby was observed; it was observed at `replayed`, with `received` received.
BUSY = replace(STANDBY, resting=False)
RESTING = replace(STANDBY, resting=True)
TORN = replace(RESTING, received_lsn=Lsn(HERE + 8))
UNFED = replace(RESTING, received_lsn=None)


@pytest.mark.parametrize(
    ("observed", "answer", "seen"),
    [
        pytest.param(BUSY, row(), HERE, id="all that was received is replayed"),
        pytest.param(BUSY, row(received=HERE + 1), HERE + 1, id="something may be in replay"),
        pytest.param(BUSY, row(received=None), HERE + 1, id="nothing is streamed, and something may be in replay"),
        pytest.param(BUSY, row(received=HERE - 1), HERE + 1, id="replayed from files, and may go on"),
        pytest.param(RESTING, row(received=HERE + 1), HERE + 1, id="rested, and has received more since"),
        pytest.param(RESTING, row(reached=HERE + 5, received=HERE + 9), HERE + 6, id="rested, and has gone on since"),
        pytest.param(RESTING, row(reached=HERE - 5, received=HERE), HERE - 4, id="rested elsewhere"),
        pytest.param(RESTING, row(received=None), HERE, id="rests, and nothing is streamed"),
        pytest.param(RESTING, row(received=HERE - 1), HERE, id="rests on files, behind which it has received less"),
        pytest.param(TORN, row(received=HERE + 8), HERE, id="rests before half a record, and nothing has come since"),
        pytest.param(TORN, row(received=HERE + 9), HERE + 1, id="rested before half a record, and the rest has come"),
        pytest.param(UNFED, row(received=None), HERE, id="has streamed nothing since its start, and rests"),
        pytest.param(UNFED, row(reached=HERE + 5, received=None), HERE + 6, id="rested, and has gone on in its files"),
    ],
)
def test_record_that_may_have_been_in_replay_counts_as_seen(
    observed: Observation, answer: dict[str, Any], seen: int
) -> None:
    """One byte into it; one that was never there does not count, or a failover would seem to have lost it."""
    assert reached_lsn(observed, answer) == Lsn(seen)


@pytest.mark.parametrize("received", [None, HERE - 1, HERE, HERE + 1])
def test_primary_shows_nothing_beyond_what_it_has_flushed(received: int | None) -> None:
    """It has no replay."""
    assert reached_lsn(PRIMARY, row(standby=False, received=received)) == Lsn(HERE)


@pytest.mark.parametrize(
    ("observed", "answer", "timeline"),
    [
        pytest.param(PRIMARY, row(standby=False, timeline=None), 2, id="a primary stays on its own"),
        pytest.param(STANDBY, row(timeline=2), 2, id="it streams as it did"),
        pytest.param(STANDBY, row(timeline=3), 3, id="it streams another one by now"),
        pytest.param(STANDBY, row(timeline=None), 2, id="its receiver is away, and it stands where it stood"),
        pytest.param(STANDBY, row(timeline=None, reached=HERE + 1), None, id="its receiver is away, and it went on"),
        pytest.param(STANDBY, row(timeline=None, reached=HERE - 1), None, id="its receiver is away, and it went back"),
        pytest.param(replace(STANDBY, timeline=None), row(timeline=None), None, id="nobody has ever known"),
    ],
)
def test_timeline_of_an_answer_is_claimed_only_when_known(
    observed: Observation, answer: dict[str, Any], timeline: int | None
) -> None:
    """None: a later look at the node has to tell."""
    assert known_timeline(observed, answer) == timeline


def test_token_of_an_answer_names_its_system_its_timeline_and_who_made_it() -> None:
    """A replica's is marked: it can show what the primary does not show yet."""
    by_replica = mint(BUSY, row(received=HERE + 1), 3)
    assert by_replica == CausalToken(7, 3, Lsn(HERE + 1), minted_by_replica=True)
    assert mint(BUSY, row(received=HERE + 1), 3, Lsn(HERE)) == CausalToken(7, 3, Lsn(HERE), minted_by_replica=True)
    assert mint(PRIMARY, row(standby=False), 2) == CausalToken(7, 2, Lsn(HERE))


@pytest.mark.parametrize(
    ("observed", "answer", "is_open"),
    [
        pytest.param(BUSY, row(received=HERE + 1, timeline=None), True, id="half a record, or one in replay"),
        pytest.param(BUSY, row(received=None, timeline=None), True, id="from files, which may go on"),
        pytest.param(BUSY, row(received=HERE + 1), False, id="it streams: the record is there"),
        pytest.param(BUSY, row(timeline=None), False, id="all that was received is replayed"),
        pytest.param(TORN, row(received=HERE + 8, timeline=None), False, id="seen to rest there before"),
        pytest.param(PRIMARY, row(standby=False, received=None, timeline=None), False, id="a primary"),
    ],
)
def test_a_later_look_decides_only_while_no_receiver_brings_the_rest(
    observed: Observation, answer: dict[str, Any], is_open: bool
) -> None:
    """It costs the read a few milliseconds, so only where the answer alone leaves it open."""
    assert leaves_open(observed, answer) is is_open


class Looks:
    """A connection that answers the probe as told."""

    def __init__(self) -> None:
        self.row: dict[str, Any] = {}

    async def fetchrow(self, _: str) -> dict[str, Any]:
        """The one row that there is."""
        return self.row


class Standby:
    """A standby as one probe sees it over time."""

    def __init__(self) -> None:
        self._looks = Looks()
        self._probe = Probe(self._looks, 7, START)

    def look(
        self,
        at_s: float = 0.0,
        *,
        replayed: int = HERE,
        received: int | None = HERE,
        waiting: bool = False,
        streaming: bool = False,
        standby: bool = True,
    ) -> Observation:
        """Looks at it."""
        self._looks.row = {
            "in_recovery": standby,
            "replayed_lsn": replayed,
            "received_lsn": received,
            "timeline": 2,
            "streaming": streaming,
            "waiting": waiting,
            "running": None if standby else [],
        }
        return asyncio.run(self._probe.observe(at_s))

    def rests(self, at_s: float = 0.0, **place: Any) -> bool:
        """Looks at it: whether it is seen to rest."""
        return self.look(at_s, **place).resting

    def rested_at_s(
        self, at_s: float, *, replayed: int = HERE, received: int | None = HERE + 8, waiting: bool = True
    ) -> float | None:
        """Looks at it: when it was last certain to rest."""
        return self.look(at_s, replayed=replayed, received=received, waiting=waiting).rested_at_s


def test_rest_is_proved_for_the_look_before_by_a_standby_that_waited_and_has_not_gone_on() -> None:
    """A record that was in replay then would have been replayed before the wait, and show in the position now."""
    standby = Standby()
    assert standby.rested_at_s(1.0) is None
    assert standby.rested_at_s(2.0) == 1.0
    assert standby.rested_at_s(3.0, waiting=False) == 2.0
    assert standby.rested_at_s(4.0) is None
    assert standby.rested_at_s(5.0, replayed=HERE + 1) is None
    assert standby.rested_at_s(6.0, replayed=HERE + 1) == 5.0
    assert standby.rested_at_s(7.0, received=HERE, waiting=False) == 7.0


@pytest.mark.parametrize(
    ("looks", "resting"),
    [
        pytest.param({"streaming": True}, True, id="it has replayed all that it has received"),
        pytest.param({"received": None, "waiting": True}, True, id="no stream, and its replay waits"),
        pytest.param({"received": None}, False, id="no stream, and its replay works"),
        pytest.param({"received": HERE - 1, "waiting": True}, True, id="beyond its stream, and its replay waits"),
        pytest.param({"received": HERE - 1}, False, id="beyond its stream, and its replay works"),
        pytest.param({"received": HERE + 1, "waiting": True}, False, id="something is received, and not yet replayed"),
        pytest.param({"standby": False}, False, id="a primary"),
        pytest.param({"standby": False, "received": None, "waiting": True}, False, id="a primary, whatever it says"),
    ],
)
def test_one_look_tells_rest_only_where_nothing_can_be_in_replay(looks: dict[str, Any], resting: bool) -> None:
    """What is not certain is no rest."""
    assert Standby().rests(**looks) is resting


def test_half_a_record_is_known_by_a_standby_that_stands_still_before_it() -> None:
    """A crashed primary leaves it behind: who has tried for long enough to replay it, and failed, rests."""
    standby = Standby()
    before = {"received": HERE + 8, "waiting": True}
    assert not standby.rests(10.0, **before)
    assert not standby.rests(10.0 + STILL_S - 0.001, **before)
    assert standby.rests(10.0 + STILL_S, **before)
    assert standby.rests(11.0 + STILL_S, **before)


@pytest.mark.parametrize(
    "meanwhile",
    [
        pytest.param({"received": HERE + 9, "waiting": True}, id="more has come"),
        pytest.param({"received": HERE + 8, "replayed": HERE + 1, "waiting": True}, id="it has gone on"),
        pytest.param({"received": HERE + 8, "waiting": False}, id="its replay works"),
        pytest.param({"received": HERE + 8, "waiting": True, "streaming": True}, id="it streams"),
    ],
)
def test_standing_still_is_counted_anew_after_any_move(meanwhile: dict[str, Any]) -> None:
    """Also when the same place is seen again afterwards."""
    standby = Standby()
    before = {"received": HERE + 8, "waiting": True}
    assert not standby.rests(10.0, **before)
    assert not standby.rests(10.0 + STILL_S / 2, **meanwhile)
    assert not standby.rests(10.0 + STILL_S, **before)
    assert standby.rests(10.0 + 2 * STILL_S, **before)
