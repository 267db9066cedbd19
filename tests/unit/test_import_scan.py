"""A file as a stream: headers, line ends, unclosed quotes, rows of several lines."""

from io import BytesIO

import pytest
from hypothesis import given
from hypothesis import strategies as st

from atelier.loading import scan
from atelier.loading.layout import LAYOUTS, PHOTOS, PRODUCT, RELATED, SKUS, STYLES, Layout
from atelier.loading.scan import HeaderError, Line, Scanner, Span, read_header


def scan_bytes(layout: Layout, data: bytes) -> list[Span | Line]:
    """Everything that a file of these bytes gives."""
    return list(Scanner(BytesIO(data), layout))


def ids_of(items: list[Span | Line]) -> list[int]:
    """The ids of the good rows, in the order of the file."""
    ids: list[int] = []
    for item in items:
        if isinstance(item, Span):
            ids += [int(line.split(b",")[0]) for line in item.data.splitlines()]
        elif item.values:
            ids.append(int(item.values[0] or 0))
    return ids


def rows_of(items: list[Span | Line]) -> int:
    """How many rows were handed out, good and refused."""
    return sum(item.rows if isinstance(item, Span) else 1 for item in items)


@pytest.mark.parametrize(
    ("layout", "header", "order"),
    [
        (RELATED, b"id,current_product_id,related_product_id", (0, 1, 2)),
        (RELATED, b"id, current_product_id, related_product_id", (0, 1, 2)),
        (STYLES, b"id,styles.productId,name,sale_price,original_price,default_style", (0, 1, 2, 3, 4, 5)),
        (STYLES, b"ID,product_id,Name,salePrice,originalPrice,defaultStyle", (0, 1, 2, 3, 4, 5)),
        (SKUS, b'"id","styleId","size","quantity"', (0, 1, 2, 3)),
        (SKUS, b"quantity,size,styleId,id", (3, 2, 1, 0)),
        (SKUS, b'1,1,"XS",8', None),
        (SKUS, b"what,ever", None),
    ],
)
def test_header_is_recognised(layout: Layout, header: bytes, order: tuple[int, ...] | None) -> None:
    """Names with spaces, other cases, of other exports, in other orders; and rows that are no header."""
    assert read_header(layout, header) == order


@pytest.mark.parametrize("header", [b"id,styleId,size", b"id,styleId,size,quantity,colour", b"id,styleId,size,size"])
def test_header_with_other_columns_ends_the_import(header: bytes) -> None:
    """A column that is missing or unknown would be lost silently."""
    with pytest.raises(HeaderError, match=r"no column|unknown column"):
        scan_bytes(SKUS, header + b'\n1,1,"XS",8\n')


def test_columns_in_another_order_are_put_right() -> None:
    """The values follow the header."""
    (line,) = scan_bytes(SKUS, b'quantity,size,styleId,id\n8,"XS",2,1\n')
    assert isinstance(line, Line)
    assert line.values == (1, 2, "XS", 8)


@pytest.mark.parametrize(
    "data",
    [
        b'id,styleId,size,quantity\n1,1,"XS",8\n2,1,"S",16\n',
        b'1,1,"XS",8\n2,1,"S",16',
        b'\xef\xbb\xbfid,styleId,size,quantity\r\n1,1,"XS",8\r\n2,1,"S",16\r\n',
        b'\n\n  \nid,styleId,size,quantity\n\n1,1,"XS",8\n \r\n2,1,"S",16\n\n\n',
    ],
)
def test_line_ends_blank_lines_and_marks_do_not_matter(data: bytes) -> None:
    """No newline at the end, CRLF, a byte order mark, blank lines, no header."""
    items = scan_bytes(SKUS, data)
    assert ids_of(items) == [1, 2]
    assert rows_of(items) == 2


def test_unclosed_quote_does_not_swallow_the_next_line() -> None:
    """Each photo line without its closing quote is one row, and so is the next."""
    data = b'1,1,"a","b\n2,1,"c","d"\n3,1,"e","f\r\n4,1,"g","h'
    items = scan_bytes(PHOTOS, data)
    assert ids_of(items) == [1, 2, 3, 4]
    assert [item.line for item in items] == [1, 2, 3, 4]


def test_line_numbers_count_every_line() -> None:
    """Header, blank and clean lines count, so that a person finds the row."""
    items = scan_bytes(SKUS, b'id,styleId,size,quantity\n1,1,"XS",8\n\n2,1,"S",16\nx,1,"M",1\n')
    assert [(item.line, item.reason) for item in items if isinstance(item, Line)] == [(5, "id: not a whole number")]


def test_row_with_a_quoted_id_may_run_over_several_lines() -> None:
    """What exports write for texts with line ends comes back whole."""
    text = b'"7","Two\nlines","","a\r\n8,""b"",c","x",1\n9,"One","","","",1\n'
    first, second = scan_bytes(PRODUCT, text)
    assert isinstance(first, Line)
    assert first.values == (7, "Two\nlines", "", 'a\r\n8,"b",c', "x", "1")
    assert first.line == 1
    assert second.line == 4


def test_quoted_id_with_an_unclosed_quote_takes_its_own_line_alone() -> None:
    """Trusted quotes that do not close to a row are not trusted."""
    items = scan_bytes(PHOTOS, b'"1",1,"a","b\n"2",1,"c","d"\n3,1,"e","f"\n')
    assert ids_of(items) == [1, 2, 3]


def test_endless_line_is_refused_in_bounded_memory() -> None:
    """A file without line ends is one refused row, whose beginning is kept."""
    data = b'1,1,"' + b"x" * (3 * scan.BLOCK_BYTES) + b'\n2,1,"S",3\n'
    long, short = scan_bytes(SKUS, data)
    assert isinstance(long, Line)
    assert long.reason == f"line too long (over {scan.MAX_ROW_BYTES} bytes)"
    assert len(long.raw) <= scan.MAX_ROW_BYTES
    assert ids_of([short]) == [2]


def test_clean_lines_around_bad_text_are_kept() -> None:
    """Bytes that are no UTF-8 cost their own line only."""
    items = scan_bytes(SKUS, b'1,1,"a",1\n2,1,"\xff",2\n3,1,"\xc3\xa9",3\n')
    assert ids_of(items) == [1, 3]
    assert [item.reason for item in items if isinstance(item, Line) and item.reason] == ["not valid text (UTF-8)"]


ROWS = st.lists(
    st.one_of(
        st.builds(lambda a, b: f'{a},{b},"S",3', st.integers(1, 99), st.integers(1, 9)),
        st.text(st.sampled_from('0123456789,"\r $-nulé'), max_size=30),
    ),
    max_size=30,
)


@given(layout=st.sampled_from(LAYOUTS), rows=ROWS, end=st.booleans(), block_bytes=st.sampled_from([1, 7, 64, 1 << 20]))
def test_every_line_is_one_row_or_blank(layout: Layout, rows: list[str], *, end: bool, block_bytes: int) -> None:
    """Rows in = rows handed out, whatever stands in them and wherever the blocks are cut."""
    header = ",".join(column.name for column in layout.columns)
    # Rows that begin with a quote may hold several lines: they are another test's matter.
    rows = [row for row in rows if not row.lstrip().startswith('"')]
    data = "\n".join([header, *rows]) + ("\n" if end else "")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scan, "BLOCK_BYTES", block_bytes)
        items = scan_bytes(layout, data.encode())
    assert rows_of(items) == sum(bool(row.encode().strip()) for row in rows)


@given(st.binary(max_size=300), st.sampled_from(LAYOUTS))
def test_no_bytes_break_the_scanner(data: bytes, layout: Layout) -> None:
    """Any bytes give rows, reasons or a clear word about the header."""
    try:
        items = scan_bytes(layout, data)
    except HeaderError:
        return
    assert all(isinstance(item, Span) or item.values or item.reason for item in items)
