"""Every refusal of the service: RFC 9457 problems, one table of names. Knows no framework.

`/problems/<name>` explains each to a person; the table here is all there is to know about it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from atelier.errors import (
    AtelierError,
    DeadlineExceededError,
    HistoryLostError,
    InvalidTokenError,
    NoReplicaError,
    OutcomeUnknownError,
    OverloadedError,
    PrimaryUnavailableError,
)

MEDIA_TYPE = "application/problem+json"


@dataclass(frozen=True, slots=True)
class ProblemType:
    """One kind of refusal.

    Attributes:
        status: the HTTP status it always has.
        title: the same few words on every occurrence.
        advice: what a client does about it, for the page that explains it.
    """

    status: int
    title: str
    advice: str


TYPES: Mapping[str, ProblemType] = {
    "invalid-request": ProblemType(
        400, "The request is not understood", "Mend the field that `field` names and send it again."
    ),
    "invalid-token": ProblemType(
        400, "The causal token is malformed or forged", "Send a token exactly as it was given, or none."
    ),
    "idempotency-key-missing": ProblemType(
        400, "The command has no idempotency key", "Send `Idempotency-Key` with a value of your own, new per command."
    ),
    "unauthorized": ProblemType(
        401, "An API key is needed", "Send `Authorization: Bearer <api key>` with a key that is valid now."
    ),
    "forbidden": ProblemType(403, "The API key may not do this", "Use a key that has the scope that `scope` names."),
    "not-found": ProblemType(404, "There is no such thing", "Check the address and the ids in it."),
    "method-not-allowed": ProblemType(
        405, "The address does not take this method", "Use one of the methods in the `Allow` header."
    ),
    "idempotency-in-flight": ProblemType(
        409, "The first request with this key is still running", "Ask again after `Retry-After`, with the same key."
    ),
    "insufficient-stock": ProblemType(
        409, "There is not enough stock", "`lines` names each line that failed and what is available. Nothing was done."
    ),
    "stock-reserved": ProblemType(
        409, "Stock of it is reserved", "Confirm or release the reservations first, or wait until they expire."
    ),
    "reservation-expired": ProblemType(
        409, "The reservation has expired", "Its stock was given back. Make a new reservation."
    ),
    "reservation-confirmed": ProblemType(409, "The reservation was confirmed already", "It is sold; nothing was done."),
    "reservation-released": ProblemType(
        409, "The reservation was released already", "Its stock was given back. Make a new reservation."
    ),
    "catalogue-replaced": ProblemType(
        409, "The catalogue was replaced by an import", "Read the new catalogue and begin again."
    ),
    "history-lost": ProblemType(
        409,
        "What this client saw may not have survived a failover",
        "Go on with the fresh `Atelier-Token` of this answer, and ask `/commands/{key}` what became of a command.",
    ),
    "cursor-expired": ProblemType(
        410, "The change feed no longer reaches back that far", "Read the catalogue anew, then follow from now on."
    ),
    "precondition-failed": ProblemType(
        412, "It has changed since you read it", "Read it again, decide again, and send its new ETag in `If-Match`."
    ),
    "payload-too-large": ProblemType(413, "The body is too large", "Send less at once."),
    "unsupported-media-type": ProblemType(
        415, "The body has the wrong media type", "Send `Content-Type: application/json`."
    ),
    "idempotency-conflict": ProblemType(
        422, "Another request was sent with this key before", "Use a new key for every command."
    ),
    "precondition-required": ProblemType(
        428, "The request must say which version it saw", "Send the ETag that you read in `If-Match`."
    ),
    "too-many-requests": ProblemType(429, "This key sends too fast", "Wait for `Retry-After`."),
    "overloaded": ProblemType(
        503, "Too many commands are waiting", "Nothing was done. Send it again after `Retry-After`, with the same key."
    ),
    "no-replica": ProblemType(
        503, "No database node may serve this read now", "Ask again after `Retry-After`, or ask for `eventual`."
    ),
    "primary-unavailable": ProblemType(
        503, "The primary cannot be reached", "Nothing was done. Send it again after `Retry-After`, with the same key."
    ),
    "outcome-unknown": ProblemType(
        503,
        "The commit was sent and its answer was lost",
        "Send it again with the same key: it is applied at most once. Or ask `/commands/{key}`.",
    ),
}


class ProblemError(AtelierError):
    """A request is refused."""

    def __init__(self, name: str, detail: str, *, headers: Mapping[str, str] | None = None, **members: Any) -> None:
        """Makes the refusal.

        Args:
            name: a key of `TYPES`.
            detail: what is wrong with this request, for the person who wrote the client.
            headers: headers of the answer beside the content type, such as `Retry-After`.
            members: further members of the document, such as `field` or `lines`.
        """
        super().__init__(detail)
        self.name = name
        self.type = TYPES[name]
        self.detail = detail
        self.headers = dict(headers or {})
        self.members = members

    def document(self, instance: str) -> dict[str, Any]:
        """The problem as RFC 9457 has it; `instance` is the path that was asked for."""
        return {
            "type": f"/problems/{self.name}",
            "title": self.type.title,
            "status": self.type.status,
            "detail": self.detail,
            "instance": instance,
            **self.members,
        }

    def body(self, instance: str) -> bytes:
        """The document as JSON."""
        return msgspec.json.encode(self.document(instance))

    def with_headers(self, headers: Mapping[str, str]) -> "ProblemError":
        """The same refusal with more headers; where it has one of them already, its own stays."""
        return ProblemError(self.name, self.detail, headers={**headers, **self.headers}, **self.members)


def retry_later(name: str, detail: str, *, after_s: int = 1) -> ProblemError:
    """A refusal that tells when to come back, in the header and in the document."""
    return ProblemError(name, detail, headers={"Retry-After": str(after_s)}, retry_after_s=after_s)


# A refusal that another try may not meet carries `Retry-After`.
_REFUSALS: tuple[tuple[type[AtelierError], str], ...] = (
    (InvalidTokenError, "invalid-token"),
    (HistoryLostError, "history-lost"),
)
_REFUSALS_FOR_NOW: tuple[tuple[type[AtelierError], str], ...] = (
    (NoReplicaError, "no-replica"),
    (DeadlineExceededError, "no-replica"),
    (PrimaryUnavailableError, "primary-unavailable"),
    (OverloadedError, "overloaded"),
    (OutcomeUnknownError, "outcome-unknown"),
)


def to_problem(error: AtelierError) -> ProblemError | None:
    """The refusal that an error of the tree is to a client; None for one that no request can cause."""
    if isinstance(error, ProblemError):
        return error
    for kind, name in _REFUSALS:
        if isinstance(error, kind):
            return ProblemError(name, str(error))
    for kind, name in _REFUSALS_FOR_NOW:
        if isinstance(error, kind):
            return retry_later(name, str(error))
    return None
