"""Causal tokens: sealing, merging, and how they stand to a history."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from atelier.errors import InvalidTokenError
from atelier.lsn import Lsn
from atelier.token import CausalToken, History, Standing, TokenKeys

OLD, NEW = bytes(range(32)), bytes(range(32, 64))

tokens = st.builds(
    CausalToken,
    st.integers(0, 2**64 - 1),
    st.integers(1, 2**32 - 1),
    st.integers(0, 2**64 - 1).map(Lsn),
    st.booleans(),
)


@given(tokens)
def test_a_token_survives_the_wire(token: CausalToken) -> None:
    """What was sealed opens as the same token."""
    keys = TokenKeys((NEW,))
    assert keys.open(keys.seal(token)) == token


@given(tokens, tokens)
def test_sealing_tells_every_token_apart(one: CausalToken, other: CausalToken) -> None:
    """Also right after another one, though the last one sealed is remembered."""
    keys = TokenKeys((NEW,))
    assert (keys.seal(one) == keys.seal(other)) == (one == other)


@given(tokens, st.integers(0, 50), st.sampled_from("ABCDabcd0129-_"))
def test_a_changed_token_is_refused(token: CausalToken, place: int, letter: str) -> None:
    """Every character counts; the last one has two spare bits, which may not be set either."""
    keys = TokenKeys((NEW,))
    text = keys.seal(token)
    forged = text[:place] + letter + text[place + 1 :]
    if forged != text:
        with pytest.raises(InvalidTokenError):
            keys.open(forged)


@pytest.mark.parametrize("text", ["", "a", "a" * 50, "a" * 51, "a" * 52, "é" * 51, "=" * 51, " " * 51, "\x00" * 51])
def test_anything_else_is_refused(text: str) -> None:
    """Malformed text of any length ends in the one error."""
    with pytest.raises(InvalidTokenError):
        TokenKeys((NEW,)).open(text)


@given(st.text(max_size=80))
def test_no_text_breaks_the_opening(text: str) -> None:
    """Nobody guesses a token."""
    with pytest.raises(InvalidTokenError):
        TokenKeys((NEW,)).open(text)


def test_keys_rotate_without_losing_a_token() -> None:
    """Both keys open while both are configured; afterwards the old one's tokens are refused."""
    token = CausalToken(7, 1, Lsn(5))
    text = TokenKeys((OLD,)).seal(token)
    assert TokenKeys((NEW, OLD)).open(text) == token
    assert TokenKeys((OLD, NEW)).open(TokenKeys((NEW, OLD)).seal(token)) == token
    with pytest.raises(InvalidTokenError):
        TokenKeys((NEW,)).open(text)


@pytest.mark.parametrize("keys", [(), (b"short",), (NEW, b"short")])
def test_weak_keys_are_refused(keys: tuple[bytes, ...]) -> None:
    """At least one, each of at least 32 bytes."""
    with pytest.raises(ValueError, match="32 bytes"):
        TokenKeys(keys)


def test_merging_takes_the_later_position_and_keeps_the_mark() -> None:
    """A later position of the primary's does not settle what a replica showed."""
    by_replica, by_primary = CausalToken(7, 1, Lsn(5), minted_by_replica=True), CausalToken(7, 1, Lsn(9))
    assert by_replica.merge(by_primary) == CausalToken(7, 1, Lsn(9), minted_by_replica=True)
    assert by_primary.merge(by_primary) == by_primary


@given(tokens, tokens)
def test_merging_does_not_depend_on_the_order(one: CausalToken, other: CausalToken) -> None:
    """Max is commutative; both tokens are of one system."""
    other = CausalToken(one.system_id, other.timeline, other.lsn, other.minted_by_replica)
    assert one.merge(other) == other.merge(one)
    assert one.merge(other).lsn >= max(one.lsn, other.lsn)


HISTORY = History(7, 3, ((1, Lsn(100)), (2, Lsn(200))))


@pytest.mark.parametrize(
    ("system_id", "timeline", "position", "standing"),
    [
        (7, 3, 0, Standing.GOOD),
        (7, 3, 10**6, Standing.GOOD),
        (7, 2, 200, Standing.GOOD),
        (7, 2, 201, Standing.LOST),
        (7, 1, 100, Standing.GOOD),
        (7, 1, 101, Standing.LOST),
        (7, 1, 199, Standing.LOST),
        (7, 4, 1, Standing.UNKNOWN),
        (8, 3, 1, Standing.LOST),
        (8, 4, 1, Standing.LOST),
    ],
)
def test_a_token_is_judged_by_the_forks_of_two_failovers(
    system_id: int, timeline: int, position: int, standing: Standing
) -> None:
    """Good up to the fork of its timeline, lost beyond it, unknown on a newer one, lost in another system."""
    assert HISTORY.judge(CausalToken(system_id, timeline, Lsn(position))) is standing


def test_a_timeline_that_is_no_ancestor_is_lost() -> None:
    """Timeline 2 was left behind whole: 3 came from 1."""
    history = History(7, 3, ((1, Lsn(100)),))
    assert history.judge(CausalToken(7, 2, Lsn(50))) is Standing.LOST
