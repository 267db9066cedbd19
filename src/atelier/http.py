"""What both sides share over HTTP: strict numbers and queries, token headers in and out, entity tags."""

import hashlib
import re
from collections.abc import Collection, Mapping
from urllib.parse import unquote_plus

from atelier.errors import InvalidTokenError
from atelier.problems import ProblemError
from atelier.token import CausalToken, TokenKeys

LARGEST_ID = 2**63 - 1
TOKEN_HEADER = "Atelier-Token"  # noqa: S105  a header's name
TOKEN_COOKIE = "atelier_token"  # noqa: S105  a cookie's name
SET_TOKEN_COOKIE = f"{TOKEN_COOKIE}={{}}; Path=/; SameSite=Lax; HttpOnly; Max-Age=60"
DROP_TOKEN_COOKIE = f"{TOKEN_COOKIE}=; Path=/; SameSite=Lax; HttpOnly; Max-Age=0"

# int() also takes "1_000", " 1", "+1" and digits of other scripts; an id in an address is none of these.
_DIGITS = re.compile(r"[0-9]{1,19}", re.ASCII)
_VERSION_TAG = re.compile(r'"([0-9]{1,19})(?:-[0-9a-f]{18})?"', re.ASCII)


def parse_number(text: str, field: str, *, low: int, high: int = LARGEST_ID) -> int:
    """Reads a whole number from an address or a header.

    Args:
        text: as the client wrote it.
        field: its name, for the refusal.
        low: the smallest number allowed.
        high: the largest number allowed.

    Raises:
        ProblemError: 400, the text is no such number.
    """
    if _DIGITS.fullmatch(text) and low <= int(text) <= high:
        return int(text)
    raise ProblemError("invalid-request", f"{field} takes a whole number from {low} to {high}", field=field)


def parse_id(text: str, field: str) -> int:
    """Reads an id: a positive 64-bit integer. Raises a ProblemError (400) for anything else."""
    return parse_number(text, field, low=1)


def read_query(query: bytes, names: Collection[str]) -> dict[str, str]:
    """Reads the named parameters of a query; others are ignored, as a client's own business.

    Args:
        query: as it came over the wire, without the question mark.
        names: the parameters that the address knows.

    Returns:
        Those that were sent. What is no UTF-8 becomes a replacement character, which no number or id contains.

    Raises:
        ProblemError: 400, one was sent twice: which of the two was meant?
    """
    found: dict[str, str] = {}
    for part in query.split(b"&") if query else ():
        name, _, value = part.decode("latin-1").partition("=")
        name = unquote_plus(name)
        if name in names:
            if name in found:
                raise ProblemError("invalid-request", f"{name} was sent twice", field=name)
            found[name] = unquote_plus(value)
    return found


def read_cookies(header: str) -> dict[str, str]:
    """Reads a `Cookie` header; what is no name and value in it is left out. Of two with one name the last counts."""
    pairs = (part.partition("=") for part in header.split(";"))
    return {name.strip(): value.strip().strip('"') for name, equals, value in pairs if equals}


def open_token(
    keys: TokenKeys, headers: Mapping[str, str], cookies: Mapping[str, str]
) -> tuple[CausalToken | None, bool]:
    """Reads the causal token of a request; the header wins over the cookie.

    Returns:
        The token (None when there is none, or only an invalid cookie), and whether it came as a cookie.

    Raises:
        InvalidTokenError: the header is malformed or forged. A page never breaks on a cookie.
    """
    header = headers.get(TOKEN_HEADER)
    if header is not None:
        return keys.open(header), False
    cookie = cookies.get(TOKEN_COOKIE)
    if cookie is None:
        return None, False
    try:
        return keys.open(cookie), True
    except InvalidTokenError:
        return None, True


def hash_tag(body: bytes) -> str:
    """A strong entity tag of a body."""
    return f'"{hashlib.blake2b(body, digest_size=12).hexdigest()}"'


def version_tag(version: int) -> str:
    """The strong entity tag that a version is."""
    return f'"{version}"'


def versioned_tag(version: int, body: bytes) -> str:
    """The strong entity tag of a document that shows more than its version covers: `"7-<hash>"`."""
    return f'"{version}-{hashlib.blake2b(body, digest_size=9).hexdigest()}"'


def version_of_tag(tag: str) -> int | None:
    """The version that an entity tag begins with, for `If-Match`; None for a weak tag or one that names no version."""
    match = _VERSION_TAG.fullmatch(tag.strip())
    return int(match[1]) if match else None


def matches(if_none_match: str | None, tag: str) -> bool:
    """Whether `If-None-Match` names an entity tag; compares weakly, as RFC 9110 has it for this header."""
    if if_none_match is None:
        return False
    if if_none_match.strip() == "*":
        return True
    return any(part.strip().removeprefix("W/") == tag for part in if_none_match.split(","))
