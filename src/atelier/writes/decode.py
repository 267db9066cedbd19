"""From the bytes of a request to checked values, by hand: the framework's own decoding is too trusting. No I/O.

Whatever the bytes are, the outcome is a value or a `ProblemError` that names the field.
"""

import hashlib
import re
from typing import Any, TypeVar

import msgspec

from atelier.http import version_of_tag
from atelier.problems import ProblemError
from atelier.writes.commands import VersionMatch

LARGEST_BODY_BYTES = 1_048_576

_KEY = re.compile(r"[A-Za-z0-9_~:.-]{1,255}", re.ASCII)
_ENTITY_TAG = re.compile(r'(?:W/)?"[\x21\x23-\x7e\x80-\xff]*"')
_AT = re.compile(r" - at `\$(?P<path>.*)`$")
_IN_OBJECT = re.compile(r"(?:unknown|missing required) field `(?P<name>.*?)`")
_CHARSET = re.compile(r"""charset\s*=\s*"?utf-8"?""", re.IGNORECASE)

T = TypeVar("T")


def check_media_type(header: str | None, allowed: frozenset[str]) -> None:
    """Refuses a body whose `Content-Type` is missing, not allowed, or not UTF-8.

    Raises:
        ProblemError: `unsupported-media-type`, with `Accept` naming what is taken.
    """
    if header in allowed:
        return
    media_type, _, parameters = (header or "").partition(";")
    foreign_charset = "charset" in parameters.lower() and not _CHARSET.search(parameters)
    if media_type.strip().lower() in allowed and not foreign_charset:
        return
    taken = ", ".join(sorted(allowed))
    raise ProblemError("unsupported-media-type", f"The body must be {taken}.", headers={"Accept": taken})


def decode_body(raw: bytes, shape: type[T] | None) -> T | None:
    """Decodes a body strictly.

    Args:
        raw: what came over the wire.
        shape: a struct, or an annotated list of them; None for a command without a body. That one takes nothing, or
            `{}`, which some clients cannot leave out.

    Returns:
        The value; None where there is no body.

    Raises:
        ProblemError: `invalid-request`, with the path of the field.
    """
    if shape is None:
        if raw and raw.strip() != b"{}":
            raise ProblemError("invalid-request", "This command takes no body.", field="")
        return None
    try:
        value = msgspec.json.decode(raw, type=shape)
    except msgspec.ValidationError as error:
        raise _refuse_field(str(error)) from error
    except UnicodeDecodeError as error:
        raise ProblemError("invalid-request", "The body is not UTF-8.", field="") from error
    except msgspec.DecodeError as error:
        raise ProblemError("invalid-request", f"The body is not JSON: {error}.", field="") from error
    except RecursionError as error:
        raise ProblemError("invalid-request", "The body is nested too deeply.", field="") from error
    # PostgreSQL stores no NUL. Searched for in the raw text first: almost no body has one.
    if b"\\u0000" in raw:
        refuse_nul(msgspec.to_builtins(value), "")
    return value


def refuse_nul(value: Any, path: str) -> None:
    """Refuses a NUL character in any text of a decoded body; `path` is where we are in it."""
    match value:
        case str() if "\0" in value:
            raise ProblemError("invalid-request", f"{path or 'The text'} contains a NUL character.", field=path)
        case dict():
            for name, part in value.items():
                refuse_nul(part, f"{path}.{name}".lstrip("."))
        case list():
            for index, part in enumerate(value):
                refuse_nul(part, f"{path}[{index}]")


def check_key(text: str | None, *, required: bool) -> str | None:
    """Reads `Idempotency-Key`; None when there is none and none is needed.

    Raises:
        ProblemError: `idempotency-key-missing`, or `invalid-request` when it is malformed.
    """
    if text is None:
        if required:
            raise ProblemError("idempotency-key-missing", "Send Idempotency-Key with every POST.")
        return None
    if not _KEY.fullmatch(text):
        raise ProblemError(
            "invalid-request",
            "Idempotency-Key takes 1 to 255 of A-Z a-z 0-9 - _ ~ : and .",
            field="Idempotency-Key",
        )
    return text


def parse_if_match(text: str | None) -> VersionMatch:
    """Reads `If-Match`: a list of entity tags, or `*`. A weak or foreign tag matches nothing (RFC 9110, strong).

    Raises:
        ProblemError: `invalid-request`: it is no such list.
    """
    if text is None or text.strip() == "*":
        return VersionMatch()
    tags = [tag.strip() for tag in text.split(",")]
    if not all(_ENTITY_TAG.fullmatch(tag) for tag in tags):
        raise ProblemError("invalid-request", 'If-Match takes entity tags like "7", or *', field="If-Match")
    return VersionMatch(tuple(version for tag in tags if (version := version_of_tag(tag)) is not None))


def fingerprint(method: str, path: str, query: str, *, if_match: str | None, body: object) -> bytes:
    """What makes two requests the same: SHA-256 over method, path, query, `If-Match` and the **parsed** body."""
    match = "" if if_match is None else f"={if_match}"
    named = f"{len(method)}:{method}{len(path)}:{path}{len(query)}:{query}{len(match)}:{match}"
    raw = named.encode("utf-8", "surrogateescape")
    return hashlib.sha256(raw if body is None else raw + msgspec.json.encode(body)).digest()


def _refuse_field(message: str) -> ProblemError:
    """From the decoder's message to ours: ``... - at `$.lines[0].delta` `` becomes the field `lines[0].delta`."""
    at = _AT.search(message)
    path = at["path"].lstrip(".") if at else ""
    text = message[: at.start()] if at else message
    if named := _IN_OBJECT.search(text):
        path = f"{path}.{named['name']}".lstrip(".")
    detail = f"{path}: {text}" if path else text
    return ProblemError("invalid-request", detail.replace("`", ""), field=path)
