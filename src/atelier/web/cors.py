"""Who may call from a page of another origin: reads by one list, commands by another. Pure.

No credentials ever: the token cookie is for pages of the same origin, others send the header.
"""

from dataclasses import dataclass

SAFE_METHODS = frozenset({"GET", "HEAD"})
COMMAND_METHODS = ("POST", "PUT", "PATCH", "DELETE")

_REQUEST_HEADERS = (
    "Authorization",
    "Content-Type",
    "If-None-Match",
    "Last-Event-ID",
    "Atelier-Token",
    "Atelier-Consistency",
    "Atelier-Wait-Ms",
)
_COMMAND_HEADERS = ("If-Match", "Idempotency-Key")
_ANSWER_HEADERS = (
    "ETag",
    "Link",
    "Retry-After",
    "Server-Timing",
    "Atelier-Token",
    "Atelier-Served-By",
    "Atelier-Lag-Ms",
)
_RECEIPT_HEADERS = ("Location", "Idempotency-Replayed")
_KEPT_S = 600

Headers = list[tuple[bytes, bytes]]


@dataclass(frozen=True, slots=True)
class Origins:
    """Origins that are let in; `*` is all of them."""

    names: frozenset[str]

    def allows(self, origin: str) -> bool:
        """Whether a page of an origin may read the answer."""
        return "*" in self.names or origin in self.names

    def headers(self, origin: str | None) -> Headers:
        """The header that lets an origin in, and what a cache must know of it."""
        if "*" in self.names:
            return [(b"access-control-allow-origin", b"*")]
        if not self.names:
            return []
        vary = [(b"vary", b"Origin")]
        if origin is None or origin not in self.names:
            return vary
        return [(b"access-control-allow-origin", origin.encode("latin-1")), *vary]


class Cors:
    """The rules of one service, the same in every role."""

    def __init__(self, reads: Origins, commands: Origins) -> None:
        """Takes who may read and who may command."""
        self._reads = reads
        self._commands = commands
        self._exposed = {
            True: [(b"access-control-expose-headers", _join(_ANSWER_HEADERS))],
            False: [(b"access-control-expose-headers", _join(_ANSWER_HEADERS + _RECEIPT_HEADERS))],
        }
        self._of_all_reads = [*reads.headers(None), *self._exposed[True]] if "*" in reads.names else None

    def of_answer(self, method: str, origin: str | None) -> Headers:
        """The headers of an answer to a request, refused or not."""
        is_read = method in SAFE_METHODS
        if is_read and self._of_all_reads is not None:
            return self._of_all_reads
        origins = self._reads if is_read else self._commands
        headers = origins.headers(origin)
        if origin is None or not origins.allows(origin):
            return headers
        return [*headers, *self._exposed[is_read]]

    def of_preflight(self, asked_method: str, origin: str) -> Headers:
        """The headers of the answer to a preflight request; none of them lets in who may not."""
        is_read = asked_method in SAFE_METHODS
        origins = self._reads if is_read else self._commands
        vary = (b"vary", b"Access-Control-Request-Method, Access-Control-Request-Headers")
        if not origins.allows(origin):
            return [*origins.headers(origin), vary]
        names = _REQUEST_HEADERS if is_read else _REQUEST_HEADERS + _COMMAND_HEADERS
        methods = ("GET", "HEAD") if is_read else COMMAND_METHODS
        return [
            *origins.headers(origin),
            (b"access-control-allow-methods", _join(methods)),
            (b"access-control-allow-headers", _join(names)),
            (b"access-control-max-age", str(_KEPT_S).encode()),
            vary,
        ]


def _join(names: tuple[str, ...]) -> bytes:
    return ", ".join(names).encode()
