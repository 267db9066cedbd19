"""Where the pages of a list are: offsets, and the `Link` header of RFC 8288. Pure."""

from urllib.parse import quote

LARGEST_OFFSET = 2**63 - 1


def offset_of(page: int, count: int) -> int:
    """How many products lie before a page; beyond the largest number of PostgreSQL there is nothing anyway."""
    return min((page - 1) * count, LARGEST_OFFSET)


def link_pages(path: str, *, page: int, count: int, total: int) -> str:
    """The links of a page by number.

    Args:
        path: of the list.
        page: which one this is; it may lie past the end.
        count: products a page.
        total: products in all, as the same snapshot shows them.

    Returns:
        `first`, `prev` and `next` where they exist, and `last`.
    """
    last = max(1, -(-total // count))
    numbers = {"first": 1, "prev": min(page - 1, last), "next": page + 1 if page < last else 0, "last": last}
    return _join(path, {rel: f"page={number}&count={count}" for rel, number in numbers.items() if number > 0})


def link_after(path: str, *, count: int, next_after: int | None) -> str:
    """The links of a page by cursor: `first`, and `next` unless `next_after` is None."""
    queries = {"first": f"after=0&count={count}"}
    if next_after is not None:
        queries["next"] = f"after={next_after}&count={count}"
    return _join(path, queries)


def _join(path: str, queries: dict[str, str]) -> str:
    address = quote(path, safe="/")
    return ", ".join(f'<{address}?{query}>; rel="{rel}"' for rel, query in queries.items())
