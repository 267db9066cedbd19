"""Offsets and links of pages."""

from atelier.reads.pages import link_after, link_pages, offset_of


def test_a_page_far_beyond_the_largest_number_is_still_an_offset() -> None:
    """PostgreSQL takes 64 bits."""
    assert offset_of(2**63 - 1, 1000) == 2**63 - 1


def test_the_only_page_has_neither_prev_nor_next() -> None:
    """First and last exist always."""
    assert link_pages("/products", page=1, count=5, total=5) == (
        '</products?page=1&count=5>; rel="first", </products?page=1&count=5>; rel="last"'
    )


def test_a_page_in_the_middle_has_all_four() -> None:
    """In one header."""
    links = link_pages("/products", page=2, count=5, total=11)
    assert [part.split("page=")[1][0] + part[-6:] for part in links.split(", ")] == [
        '1first"', '1"prev"', '3"next"', '3"last"'
    ]  # fmt: skip


def test_a_page_past_the_end_leads_back_to_the_last() -> None:
    """`prev` of page 900 of 3 is page 3."""
    assert '</p?page=3&count=5>; rel="prev"' in link_pages("/p", page=900, count=5, total=11)
    assert "next" not in link_pages("/p", page=900, count=5, total=11)


def test_an_empty_list_has_one_page() -> None:
    """An empty one."""
    assert '</p?page=1&count=5>; rel="last"' in link_pages("/p", page=1, count=5, total=0)


def test_the_end_of_a_cursor_has_no_next() -> None:
    """That is how a crawler knows."""
    assert link_after("/p", count=5, next_after=None) == '</p?after=0&count=5>; rel="first"'
    assert link_after("/p", count=5, next_after=17).endswith('</p?after=17&count=5>; rel="next"')
