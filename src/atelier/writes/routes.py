"""The writing side over HTTP: bytes to command, receipt to answer. No session, no SQL.

Bodies and headers are read by hand (see `atelier.writes.decode`); the framework only finds the route.
"""

import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from http import HTTPStatus
from types import TracebackType
from typing import Any

import msgspec
from litestar import HttpMethod, Request, get, route
from litestar.handlers import HTTPRouteHandler
from litestar.types import ASGIApp, Receive

from atelier.access.rate import RateLimiter
from atelier.access.verify import Actor, KeyVerifier, require
from atelier.alarms import Alarms
from atelier.asgi import RequestHeaders, Sent, describe_body, headers_of, read_body
from atelier.deadline import Deadline
from atelier.errors import AtelierError, DeadlineExceededError, PrimaryUnavailableError
from atelier.http import SET_TOKEN_COOKIE, TOKEN_HEADER
from atelier.problems import MEDIA_TYPE, ProblemError, to_problem
from atelier.telemetry import Exchange
from atelier.token import TokenKeys
from atelier.writes.decode import (
    LARGEST_BODY_BYTES,
    check_key,
    check_media_type,
    decode_body,
    fingerprint,
    parse_if_match,
)
from atelier.writes.endpoints import ENDPOINTS, Endpoint, Parts
from atelier.writes.envelope import Envelope, Receipt
from atelier.writes.idempotency import OWN_PREFIX
from atelier.writes.service import WriteService

# Who sends a body more slowly than this sends none.
_BODY_S = 10.0
# A header that names one thing, twice: which of the two was meant?
_SINGLE = {"authorization": "Authorization", "idempotency-key": "Idempotency-Key"}


class Incoming(msgspec.Struct):
    """A request for a command, as far as whoever found its endpoint has looked at it.

    Attributes:
        scope: of ASGI.
        receive: gives its body.
        path_params: the parts of its address that are ids, as text.
    """

    scope: Any
    receive: Receive
    path_params: Mapping[str, str]


class _Problem(msgspec.Struct):
    """What is of interest in a problem document."""

    type: str


@dataclass(frozen=True, slots=True)
class Writes:
    """What the routes work with."""

    service: WriteService
    verifier: KeyVerifier
    limiter: RateLimiter
    keys: TokenKeys
    new_key: Callable[[], str] = lambda: f"{OWN_PREFIX}{uuid.uuid4()}"
    bodies: Alarms = field(default_factory=Alarms)


def build_handlers(writes: Writes) -> list[HTTPRouteHandler]:
    """The routes of the writing side.

    A list, not a router: the reading side has some of the same addresses, and the framework merges only single
    handlers into an address that has an OPTIONS handler already.
    """
    return [*(_make_handler(writes, endpoint) for endpoint in ENDPOINTS), _make_resolver(writes)]


def _make_handler(writes: Writes, endpoint: Endpoint) -> HTTPRouteHandler:
    path = endpoint.path.replace("}", ":str}")

    @route(
        path,
        http_method=HttpMethod(endpoint.method),
        # The framework wants a handler of a 204 to return nothing; ours always returns the whole answer.
        status_code=200 if endpoint.success == 204 else endpoint.success,
        summary=endpoint.summary,
    )
    async def command(request: Request[Any, Any, Any]) -> ASGIApp:
        return await carry_out(writes, endpoint, Incoming(request.scope, request.receive, request.path_params))

    return command


async def carry_out(writes: Writes, endpoint: Endpoint, request: Incoming) -> Sent:
    """Answers one command, whoever found its endpoint.

    Raises:
        AtelierError: the app makes a problem of it.
    """
    deadline = writes.service.deadline()
    actor, headers = await _admit(writes, headers_of(request.scope), deadline)
    with _Telling(headers):
        require(actor, endpoint.scope)
        order = await _read_order(writes, endpoint, request, actor, deadline)
        receipt = await writes.service.submit(order)
    _note(order.notes, receipt)
    return _answer(writes.keys, receipt, headers)


def _make_resolver(writes: Writes) -> HTTPRouteHandler:
    @get("/commands/{key:str}", summary="What became of a command")
    async def resolve(request: Request[Any, Any, Any]) -> ASGIApp:
        deadline = writes.service.deadline()
        actor, headers = await _admit(writes, headers_of(request.scope), deadline)
        with _Telling(headers):
            key = check_key(request.path_params["key"], required=True)
            writes.service.note_use(actor)
            receipt = await writes.service.resolve(actor.name, key or "", deadline)
        body = msgspec.json.encode({
            "status": receipt.outcome.status,
            "body": msgspec.Raw(receipt.outcome.body) if receipt.outcome.body else None,
        })  # fmt: skip
        return _send(HTTPStatus.OK, headers, writes.keys.seal(receipt.token), body)

    return resolve


async def _admit(writes: Writes, asked: RequestHeaders, deadline: Deadline) -> tuple[Actor, dict[str, str]]:
    """Who asks, and the headers that tell what is left of the key's rate."""
    for name in asked.doubled & _SINGLE.keys():
        raise ProblemError("invalid-request", f"{_SINGLE[name]} was sent twice.", field=_SINGLE[name])
    try:
        actor = await writes.verifier.verify(asked.get("authorization"), deadline)
    except DeadlineExceededError as error:
        raise PrimaryUnavailableError from error
    return actor, writes.limiter.take(actor.key_id)


class _Telling:
    """A refusal has counted against the rate as well, and tells what is left of it."""

    __slots__ = ("_headers",)

    def __init__(self, headers: Mapping[str, str]) -> None:
        self._headers = headers

    def __enter__(self) -> None:
        """Begins what may be refused."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Adds the headers, where there are any, to a refusal."""
        problem = to_problem(error) if self._headers and isinstance(error, AtelierError) else None
        if problem is not None:
            raise problem.with_headers(self._headers) from error


async def _read_order(
    writes: Writes, endpoint: Endpoint, request: Incoming, actor: Actor, deadline: Deadline
) -> Envelope:
    """Reads a request whole; whatever is wrong with it is found before anything is touched."""
    scope, headers = request.scope, headers_of(request.scope)
    ids = endpoint.read_ids(request.path_params)
    if endpoint.shape is not None:
        check_media_type(headers.get("content-type"), endpoint.media_types)
    key = check_key(headers.get("idempotency-key"), required=endpoint.needs_key)
    if_match = headers.get("if-match")
    if endpoint.needs_if_match and if_match is None:
        raise ProblemError("precondition-required", "Send the version that you saw in If-Match.")
    raw = await read_body(
        scope,
        request.receive,
        most_bytes=LARGEST_BODY_BYTES,
        within_s=min(_BODY_S, deadline.remaining_s()),
        alarms=writes.bodies,
    )
    body = decode_body(raw, endpoint.shape)
    path, query = scope["path"], scope["query_string"].decode("latin-1")
    command = endpoint.make(Parts(ids, body, parse_if_match(if_match)))
    exchange: Exchange | None = scope.get("atelier")
    notes = {} if exchange is None else exchange.notes
    notes["command"] = type(command).__name__
    return Envelope(
        command=command,
        actor=actor,
        key=key or writes.new_key(),
        fingerprint=fingerprint(endpoint.method, path, query, if_match=if_match, body=body),
        path=path,
        deadline=deadline,
        notes=notes,
    )


def _note(notes: dict[str, Any], receipt: Receipt) -> None:
    """Tells the request's log line the verdict, and of a refusal why: the document has it, also where it is stored."""
    outcome = receipt.outcome
    if outcome.status >= 400:
        notes["problem"] = msgspec.json.decode(outcome.body, type=_Problem).type.removeprefix("/problems/")
    verdict = "refused" if outcome.status >= 400 else "done"
    notes["verdict"] = "replayed" if receipt.is_replay else verdict


def _answer(keys: TokenKeys, receipt: Receipt, headers: dict[str, str]) -> Sent:
    outcome = receipt.outcome
    named = {**outcome.headers, **headers}
    if receipt.is_replay:
        named["Idempotency-Replayed"] = "true"
    return _send(outcome.status, named, keys.seal(receipt.token), outcome.body)


def _send(status: int, headers: Mapping[str, str], token: str, body: bytes) -> Sent:
    sent = [*_encode(headers), *_carry(token)]
    if status != HTTPStatus.NO_CONTENT:
        sent += describe_body(MEDIA_TYPE if status >= 400 else "application/json", body)
    return Sent(status, sent, body)


@lru_cache(maxsize=64)
def _carry(token: str) -> list[tuple[bytes, bytes]]:
    """The headers with a token; all answers of a batch have the same."""
    return _encode({TOKEN_HEADER: token, "Set-Cookie": SET_TOKEN_COOKIE.format(token), "Cache-Control": "no-store"})


def _encode(headers: Mapping[str, str]) -> list[tuple[bytes, bytes]]:
    return [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in headers.items()]
