"""What an answer says: its outcome, its version, its lag. What is not certain is told as not certain."""

import hashlib
from collections.abc import Mapping

from loadtest.history.record import Line
from loadtest.transport import Answer

_UNKNOWN_PROBLEMS = frozenset({"idempotency-in-flight", "outcome-unknown", "primary-unavailable"})
# What a client that does everything right is not told by a service that works.
_REFUSALS_THAT_ARE_ERRORS = frozenset(
    {
        "overloaded",
        "no-replica",
        "too-many-requests",
        "history-lost",
        "idempotency-conflict",
        "invalid-request",
        "unauthorized",
        "forbidden",
    }
)


def classify(answer: Answer) -> str:
    """The outcome of a command: what is not certain is `info`."""
    if answer.is_ok:
        return "ok"
    if answer.status == 0:
        return "fail" if answer.never_sent else "info"
    if answer.problem in _UNKNOWN_PROBLEMS or (answer.status >= 500 and answer.problem != "overloaded"):
        return "info"
    return "refused"


def is_definite(answer: Answer) -> bool:
    """Whether the service did what a service is there for: it did it, or refused for a reason of the shop's."""
    return classify(answer) in ("ok", "refused") and answer.problem not in _REFUSALS_THAT_ARE_ERRORS


def describe_error(answer: Answer) -> str:
    """A short name for what went wrong."""
    if answer.status:
        return answer.problem if answer.problem and answer.status != 500 else f"status {answer.status}"
    return "refused connection" if answer.never_sent else "no answer"


def stock_line(key: str, answer: Answer) -> Line:
    """What a GET of an inventory shows; version 0 when there is nothing."""
    told = answer.json() if answer.is_ok else None
    return tell_line(Line(key), told) if told else Line(key, 0)


def version_of(answer: Answer) -> int:
    """The version in an ETag (`"7"` or `"7-..."`); 0 when there is none."""
    digits = (answer.header("etag") or "").strip('"').partition("-")[0]
    return int(digits) if digits.isascii() and digits.isdigit() and len(digits) < 19 and answer.is_ok else 0


def parse_lag(answer: Answer) -> float | None:
    """`Atelier-Lag-Ms`; None when it is not known."""
    try:
        return float(answer.header("atelier-lag-ms") or "unknown")
    except ValueError:
        return None


def fingerprint(token: str | None) -> str | None:
    """Ten digits that tell tokens apart."""
    return hashlib.blake2b(token.encode(), digest_size=5).hexdigest() if token else None


def tell_line(line: Line, told: Mapping[str, int]) -> Line:
    """A line with the figures that an inventory document tells."""
    return line._replace(version=told["version"], on_hand=told["on_hand"], reserved=told["reserved"])
