"""One line of a file: what is repaired, what is refused, and why."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from atelier.loading.layout import FEATURES, LAYOUTS, PHOTOS, PRODUCT, RELATED, SKUS, STYLES, Layout
from atelier.loading.rows import RowError, RowParser, clean_lines, encode_row


def parse(layout: Layout, raw: bytes) -> tuple[object, ...]:
    """The values of one row whose columns stand in the layout's order."""
    return RowParser(layout, range(len(layout.columns))).parse(raw)


@pytest.mark.parametrize(
    ("layout", "raw", "values"),
    [
        (PRODUCT, b'1,"Camo","","","Jackets",140', (1, "Camo", "", "", "Jackets", "140")),
        (PRODUCT, b'1,"Camo","","","Jackets", 140', (1, "Camo", "", "", "Jackets", "140")),
        (PRODUCT, b'1,"Camo","","","Jackets",$140.5', (1, "Camo", "", "", "Jackets", "140.5")),
        (PRODUCT, b'1,"Camo","","","Jackets",$ 140', (1, "Camo", "", "", "Jackets", "140")),
        (PRODUCT, b'11,"Air","","","Shoes","default_price": 49', (11, "Air", "", "", "Shoes", "49")),
        (PRODUCT, b'1,"a ""b"", c","\\\\","\xc3\xa9","x",1', (1, 'a "b", c', "\\\\", "é", "x", "1")),
        (PRODUCT, b' 1 ,\t"Camo" , "","","Jackets",140 ', (1, "Camo", "", "", "Jackets", "140")),
        (PHOTOS, b'1,2,"https://a","https://b', (1, 2, "https://a", "https://b")),
        (PHOTOS, b"1,2,null,null", (1, 2, None, None)),
        (FEATURES, b'1,2,"Lens","null"', (1, 2, "Lens", "null")),
        (FEATURES, b"1,2,Lens, null", (1, 2, "Lens", None)),
        (STYLES, b'1,2,"Black",null,40,1', (1, 2, "Black", None, "40", 1)),
        (STYLES, b'1,2,"Black",35.50,40,false', (1, 2, "Black", "35.50", "40", 0)),
        (SKUS, b'007,2,"XS",8', (7, 2, "XS", 8)),
        (SKUS, b"1,2,11,11", (1, 2, "11", 11)),
        (RELATED, b'"1",2,3', (1, 2, 3)),
    ],
)
def test_row_is_read(layout: Layout, raw: bytes, values: tuple[object, ...]) -> None:
    """Clean rows and rows with known faults give their values."""
    assert parse(layout, raw) == values


@pytest.mark.parametrize(
    ("layout", "raw", "reason"),
    [
        (RELATED, b"1,2,0", "related_product_id: out of range (1 to 4611686018427387904)"),
        (RELATED, b"1,2,-3", "related_product_id: negative"),
        (RELATED, b"1,2", "wrong number of fields (2 instead of 3)"),
        (RELATED, b"1,2,3,4", "wrong number of fields (4 instead of 3)"),
        (RELATED, b"x,2,3", "id: not a whole number"),
        (RELATED, "\u0661,2,3".encode(), "id: not a whole number"),
        (RELATED, b"1_0,2,3", "id: not a whole number"),
        (RELATED, b"null,2,3", "id: null is not allowed"),
        (RELATED, b"9" * 5000 + b",2,3", "id: out of range (1 to 4611686018427387904)"),
        (SKUS, b'1,2,"S",-1', "quantity: negative"),
        (SKUS, b'1,2,"S",1.5', "quantity: not a whole number"),
        (SKUS, b'1,2,"S",2147483648', "quantity: out of range (0 to 2147483647)"),
        (SKUS, b'1,2,"S\0",1', "NUL character"),
        (SKUS, b'1,2,"S\xff",1', "not valid text (UTF-8)"),
        (SKUS, b'1,2,"S"x,1', "quote out of place"),
        (SKUS, b'1,2,S"x,1', "quote out of place"),
        (PRODUCT, b'1,"","","","",1', "name: empty"),
        (PRODUCT, b'1,"' + b"x" * 201 + b'","","","",1', "name: too long (over 200 characters)"),
        (PRODUCT, b'1,"a",null,"","",1', "slogan: null is not allowed"),
        (PRODUCT, b'1,"a","","","",1.999', "default_price: not a price"),
        (PRODUCT, b'1,"a","","","",$-5', "default_price: negative"),
        (PRODUCT, b'1,"a","","","","slogan": 5', "quote out of place"),
        (STYLES, b'1,2,"Black",null,40,2', "default_style: neither yes nor no (1 or 0)"),
    ],
)
def test_row_is_refused(layout: Layout, raw: bytes, reason: str) -> None:
    """Each fault that cannot be repaired is refused by name."""
    with pytest.raises(RowError) as refused:
        parse(layout, raw)
    assert str(refused.value) == reason


CSV_LIKE = st.text(st.sampled_from('0123456789.,"\n\r \t$-:nulabé\0'), max_size=60)


@given(st.sampled_from(LAYOUTS), st.one_of(st.binary(max_size=80), CSV_LIKE.map(str.encode)))
def test_no_line_ends_in_anything_but_values_or_a_reason(layout: Layout, raw: bytes) -> None:
    """Whatever stands in a line: it is read or refused, and what is read can be written and read again."""
    try:
        values = parse(layout, raw)
    except RowError:
        return
    line = encode_row(values)
    assert parse(layout, line.removesuffix(b"\n")) == values


QUOTED = st.text(st.characters(exclude_characters='"\n\r\0', exclude_categories=["Cs"]), min_size=1, max_size=20)


@given(st.integers(1, 10**18 - 1), QUOTED, st.integers(0, 10**9 - 1))
def test_clean_lines_mean_the_same_when_read_with_care(row_id: int, size: str, quantity: int) -> None:
    """What goes to PostgreSQL as it stands is what the careful reader would have made of it."""
    line = f'{row_id},1,"{size}",{quantity}'.encode()
    match = clean_lines(SKUS).match(line + b"\n")
    assert match is not None
    assert match.end() == len(line) + 1
    assert parse(SKUS, line) == (row_id, 1, size, quantity)


@given(st.sampled_from(LAYOUTS), CSV_LIKE)
def test_no_line_that_would_be_refused_is_taken_for_clean(layout: Layout, text: str) -> None:
    """The fast way through accepts nothing that the careful one refuses."""
    data = text.encode() + b"\n"
    end = clean_lines(layout).match(data).end()  # type: ignore[union-attr]
    for line in data[:end].split(b"\n")[:-1]:
        parse(layout, line.removesuffix(b"\r"))
