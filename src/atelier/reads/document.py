"""One finished answer, before it becomes HTTP."""

import msgspec

from atelier.reads.executor import Answer


class Document(msgspec.Struct, frozen=True):
    """One finished answer.

    Attributes:
        body: JSON, as PostgreSQL formed it; None when there is no such thing.
        tag: its strong entity tag; empty when there is no such thing.
        answer: the node, the token, the timings.
        missing: what there is not, in words.
        links: the `Link` header; None for no list.
    """

    body: bytes | None
    tag: str
    answer: Answer
    missing: str = ""
    links: str | None = None
