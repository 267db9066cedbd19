"""What a storefront can ask for: each resource as a statement, its arguments and the bytes that come of it.

Knows no framework: `routes.py` calls this with parsed values and writes the answer down as HTTP.
"""

from collections.abc import Awaitable, Callable
from typing import Any

from atelier.http import hash_tag, version_tag, versioned_tag
from atelier.reads.cache.answers import AnswerCache
from atelier.reads.document import Document
from atelier.reads.executor import Answer, Ask, ReadExecutor
from atelier.reads.pages import link_after, link_pages, offset_of
from atelier.reads.queries import Statement, load_statements

Tagger = Callable[[Any], str]


class Storefront:
    """The resources of the reading side."""

    def __init__(self, executor: ReadExecutor, cache: AnswerCache) -> None:
        """Takes what runs the statements, and what remembers their answers."""
        self._executor = executor
        self._cache = cache
        self._statements: dict[str, Statement] = load_statements()

    async def page(self, page: int, count: int, campus: str | None, *, path: str, ask: Ask) -> Document:
        """One page of products in id order; past the end it is `[]`. `campus` None is the documented dialect."""
        start = offset_of(page, count)
        name, extra = ("list_documented", ()) if campus is None else ("list_live", (campus,))

        async def read() -> Document:
            row, answer = await self._list(name, start, count, ask, *extra)
            links = link_pages(path, page=page, count=count, total=row["total"])
            return Document(row["body"], hash_tag(row["body"]), answer, links=links)

        return await self._cache.fetch((name, start, count, *extra), ask, read)

    async def after(self, product_id: int, count: int, campus: str | None, *, path: str, ask: Ask) -> Document:
        """The products that follow an id, for crawlers."""
        name, extra = ("after_documented", ()) if campus is None else ("after_live", (campus,))
        row, answer = await self._list(name, product_id, count, ask, *extra)
        links = link_after(path, count=count, next_after=row["last_id"] if row["has_more"] else None)
        return Document(row["body"], hash_tag(row["body"]), answer, links=links)

    async def product(self, product_id: int, campus: str | None, ask: Ask) -> Document:
        """One product with its features; its tag is its version, so that it fits `If-Match`."""
        name, extra = ("product_documented", ()) if campus is None else ("product_live", (campus,))
        return await self._of_product(name, product_id, ask, *extra, tag=_tag_version)

    async def styles(self, product_id: int, *, live: bool, ask: Ask) -> Document:
        """All styles of a product."""
        return await self._of_product("styles_live" if live else "styles_documented", product_id, ask)

    async def related(self, product_id: int, ask: Ask) -> Document:
        """The ids of related products, in stored order."""
        return await self._of_product("related", product_id, ask)

    async def style(self, style_id: int, ask: Ask) -> Document:
        """One style in the documented form; its tag begins with the product's version, so that it fits `If-Match`."""
        return await self._one("style", style_id, ask, what="style", tag=_tag_version_and_body)

    async def inventory(self, sku_id: int, ask: Ask) -> Document:
        """The stock of one SKU; its tag is its version."""
        return await self._one("inventory", sku_id, ask, what="SKU", tag=_tag_version)

    async def movements(self, sku_id: int, after: int, count: int, ask: Ask) -> Document:
        """The ledger of one SKU in the present catalogue, behind a movement, oldest first."""
        return await self._one("movements", sku_id, ask, after, count, what="SKU")

    async def reservation(self, reservation_id: int, ask: Ask) -> Document:
        """One reservation."""
        return await self._one("reservation", reservation_id, ask, what="reservation")

    async def _list(self, name: str, start: int, count: int, ask: Ask, *extra: object) -> tuple[Any, Answer]:
        answer = await self._executor.run(self._statements[name], ([start], count, *extra), ask)
        return answer.rows[0], answer

    async def _of_product(
        self, name: str, product_id: int, ask: Ask, *extra: object, tag: Tagger | None = None
    ) -> Document:
        def read() -> Awaitable[Document]:
            return self._one(name, product_id, ask, *extra, what="product", tag=tag)

        return await self._cache.fetch((name, product_id, *extra), ask, read)

    async def _one(
        self, name: str, asked_id: int, ask: Ask, *extra: object, what: str, tag: Tagger | None = None
    ) -> Document:
        answer = await self._executor.run(self._statements[name], ([asked_id], *extra), ask)
        row = answer.rows[0]
        if row["body"] is None:
            return Document(None, "", answer, missing=f"there is no {what} {asked_id}")
        return Document(row["body"], hash_tag(row["body"]) if tag is None else tag(row), answer)


def _tag_version(row: Any) -> str:
    return version_tag(row["version"])


def _tag_version_and_body(row: Any) -> str:
    return versioned_tag(row["version"], row["body"])
