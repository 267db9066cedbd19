"""From what the driver raises to what the caller may do about it. The only place that reads SQLSTATEs.

https://www.postgresql.org/docs/18/errcodes-appendix.html
"""

from asyncpg import InterfaceError, InternalClientError
from sqlalchemy.exc import DBAPIError

from atelier.errors import (
    AtelierError,
    DeadlineExceededError,
    OutcomeUnknownError,
    OverloadedError,
    PrimaryUnavailableError,
)

# Read-only (a demoted primary) and the three ways in which a server ends all sessions: neither driver nor SQLAlchemy
# takes 25006 for a lost connection, so a pool would keep it for ever.
_ENDS_GENERATION = frozenset({"25006", "57P01", "57P02", "57P03", "57P05"})
_TRY_AGAIN = frozenset({"40001", "40P01", "55P03", "0A000"})
_TIMED_OUT = frozenset({"57014", "25P03", "25P04"})
_READ_ONLY = "25006"
# Of a server that cannot work any more, whatever it says in detail: connection, operator intervention (but for the
# codes above), its disk, its insides; and of one that is still, or again, in recovery.
_GONE_CLASSES = frozenset({"08", "57", "58", "XX"})
_NOT_READY = "55000"
# Data, constraints, limits of the server.
_REFUSED_CLASSES = frozenset({"22", "23", "54"})
# It has run out of connections, memory or disk, for now; no command of a batch is to blame for that.
_SHORT_CLASS = "53"


class ConnectionLostError(PrimaryUnavailableError):
    """The connection to the primary was lost before the commit was sent; nothing was done."""


class CommitLostError(OutcomeUnknownError):
    """The connection was lost while the commit was under way."""


class ConflictError(AtelierError):
    """The transaction met another one and was rolled back; it may be tried again."""


class DataRefusedError(AtelierError):
    """The database refused the data; trying again changes nothing."""


_KINDS: tuple[tuple[frozenset[str], type[AtelierError]], ...] = (
    (_ENDS_GENERATION, ConnectionLostError),
    (_TRY_AGAIN, ConflictError),
    (_TIMED_OUT, DeadlineExceededError),
)


def translate(error: BaseException) -> AtelierError | None:
    """What a failure of a statement is to the caller; None for one that is no failure of the database."""
    code = sqlstate(error)
    if code is None:
        return ConnectionLostError() if is_network(error) else None
    if code[:2] in _REFUSED_CLASSES:
        return DataRefusedError(f"the database refused the data ({code})")
    known = next((kind for codes, kind in _KINDS if code in codes), None)
    if known is not None:
        return known()
    if code[:2] == _SHORT_CLASS:
        return OverloadedError("The primary has run out of a resource; nothing was done.")
    return ConnectionLostError() if code[:2] in _GONE_CLASSES or code == _NOT_READY else None


def leaves_commit_open(error: BaseException) -> bool:
    """Whether a COMMIT that failed like this may have worked.

    An answer of the server means that it has not, unless the answer was that the session ends: then it may have been
    waiting for its standbys only.
    """
    code = sqlstate(error)
    if code is None:
        return True
    return code != _READ_ONLY and (code in _ENDS_GENERATION or code.startswith("08") or code == "57014")


def sqlstate(error: BaseException) -> str | None:
    """The SQLSTATE of a failure, however many layers wrapped it; None when the server sent none."""
    for layer in (error, getattr(error, "orig", None), getattr(error, "__cause__", None)):
        code = getattr(layer, "sqlstate", None)
        if isinstance(code, str):
            return code
    return None


def is_network(error: BaseException) -> bool:
    """Whether the connection itself failed."""
    if isinstance(error, DBAPIError):
        return error.connection_invalidated or is_network(error.orig or error.__cause__ or ValueError())
    layers = (error, error.__cause__)
    return any(isinstance(layer, (OSError, InterfaceError, InternalClientError)) for layer in layers)
