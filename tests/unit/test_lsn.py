"""Positions in the write-ahead log."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from atelier.lsn import Lsn

positions = st.integers(0, 2**64 - 1)


@given(positions)
def test_a_position_survives_its_text(position: int) -> None:
    """PostgreSQL's form and back is the same position."""
    assert Lsn.parse(str(Lsn(position))) == Lsn(position)


@given(positions, positions)
def test_positions_order_as_their_bytes(one: int, other: int) -> None:
    """All six comparisons, the difference and the hash follow the number."""
    a, b = Lsn(one), Lsn(other)
    assert (a < b, a <= b, a > b, a >= b, a == b) == (
        one < other,
        one <= other,
        one > other,
        one >= other,
        one == other,
    )
    assert a - b == one - other
    assert hash(a) == hash(Lsn(one))


@pytest.mark.parametrize(
    "text", ["", "0", "/", "0/", "/0", "0/0/0", "g/0", "0x1/0", " 0/0", "0/0 ", "123456789/0", "٣/0"]
)
def test_other_text_is_no_position(text: str) -> None:
    """Nothing but two groups of one to eight hexadecimal digits."""
    with pytest.raises(ValueError, match="not a log position"):
        Lsn.parse(text)


@pytest.mark.parametrize("position", [-1, 2**64])
def test_a_position_has_64_bits(position: int) -> None:
    """Anything beyond is refused."""
    with pytest.raises(ValueError, match="64 bits"):
        Lsn(position)


def test_the_next_position_is_one_byte_further_and_never_beyond_the_last() -> None:
    """The largest position has no next one."""
    assert Lsn(41).next() == Lsn(42)
    assert Lsn(2**64 - 1).next() == Lsn(2**64 - 1)


def test_a_position_cannot_be_changed() -> None:
    """It is a value."""
    with pytest.raises(AttributeError):
        Lsn(1).bytes = 2
