"""What a storefront can ask for: each resource as a statement, its arguments and the bytes that come of it.

Knows no framework: `routes.py` calls this with parsed values and writes the answer down as HTTP.
"""

from dataclasses import dataclass

from atelier.http import hash_tag, version_tag
from atelier.problems import ProblemError
from atelier.reads.executor import Answer, Ask, ReadExecutor
from atelier.reads.queries import Statement, load_statements


@dataclass(frozen=True, slots=True)
class Document:
    """One finished answer.

    Attributes:
        body: JSON, as PostgreSQL formed it.
        tag: its strong entity tag.
        answer: the node, the token, the timings.
    """

    body: bytes
    tag: str
    answer: Answer


class Storefront:
    """The resources of the reading side."""

    def __init__(self, executor: ReadExecutor) -> None:
        """Takes what runs the statements."""
        self._executor = executor
        self._statements: dict[str, Statement] = load_statements()

    async def page(self, page: int, count: int, campus: str | None, ask: Ask) -> Document:
        """One page of products in id order; past the end it is `[]`. `campus` None is the documented dialect."""
        statement = self._statements["list_documented" if campus is None else "list_live"]
        # Beyond 2**63 there is nothing, and PostgreSQL takes no larger number.
        offset = min((page - 1) * count, 2**63 - 1)
        arguments = (offset, count) if campus is None else (offset, count, campus)
        answer = await self._executor.run(statement, arguments, ask)
        body: bytes = answer.rows[0]["body"]
        return Document(body, hash_tag(body), answer)

    async def product(self, product_id: int, campus: str | None, ask: Ask) -> Document:
        """One product with its features; its tag is its version, so that it fits `If-Match`."""
        name, extra = ("product_documented", ()) if campus is None else ("product_live", (campus,))
        return await self._one(name, product_id, ask, *extra, what="product")

    async def styles(self, product_id: int, *, live: bool, ask: Ask) -> Document:
        """All styles of a product."""
        return await self._one("styles_live" if live else "styles_documented", product_id, ask, what="product")

    async def related(self, product_id: int, ask: Ask) -> Document:
        """The ids of related products, in stored order."""
        return await self._one("related", product_id, ask, what="product")

    async def style(self, style_id: int, ask: Ask) -> Document:
        """One style in the documented form."""
        return await self._one("style", style_id, ask, what="style")

    async def inventory(self, sku_id: int, ask: Ask) -> Document:
        """The stock of one SKU."""
        return await self._one("inventory", sku_id, ask, what="SKU")

    async def _one(self, name: str, asked_id: int, ask: Ask, *extra: object, what: str) -> Document:
        answer = await self._executor.run(self._statements[name], ([asked_id], *extra), ask)
        row = answer.rows[0]
        body: bytes | None = row["body"]
        if body is None:
            raise ProblemError("not-found", f"there is no {what} {asked_id}")
        version = row.get("version")
        return Document(body, hash_tag(body) if version is None else version_tag(version), answer)
