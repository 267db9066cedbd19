"""A client for Python programs: carries tokens, makes idempotency keys, retries within a budget, settles outcomes.

```python
async with AtelierClient("http://127.0.0.1:8000", api_key=key) as shop:
    held = await shop.post("/reservations", {"ttl_seconds": 300, "lines": [{"sku_id": 37, "quantity": 1}]})
    sold = await shop.post(f"/reservations/{held.json()['reservation_id']}/confirm")
    stock = await shop.get("/inventory/37")  # contains the sale, whichever replica answers
```

Needs httpx, which the extra `client` brings (`pip install '.[client]'`). Nothing of the service is imported but its
tree of errors.
"""

import asyncio
import base64
import random
import secrets
import struct
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

import httpx

from atelier.errors import AtelierError, HistoryLostError, OutcomeUnknownError

_IN_FLIGHT = "idempotency-in-flight"
_HISTORY_LOST = "history-lost"
_TOKEN = "Atelier-Token"  # noqa: S105  a header's name

# Answers after which nothing was done for certain. Any other one, or none, leaves a command's outcome open.
_NOTHING_DONE = frozenset({"overloaded", "too-many-requests", "primary-unavailable", "no-replica"})

# Refusals that are stored under the key like a success, each of these statuses but for a history that was lost.
_STORED = frozenset({httpx.codes.NOT_FOUND, httpx.codes.CONFLICT, httpx.codes.PRECONDITION_FAILED})
# The key holds another request's outcome, and no more than one.
_CONFLICT = "idempotency-conflict"

# How a token begins: version, flags, database system, timeline, position. Read only to tell the later of two.
_LAYOUT = struct.Struct(">BBQIQ")
_VERSION = 1


class ClientTransport(httpx.AsyncHTTPTransport):
    """The library's own, but that every lost connection is an `httpx.TransportError`.

    Of one that the server closes as soon as it is open, the networking library under it looks for a peer that is gone.
    """

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Sends a request."""
        try:
            return await super().handle_async_request(request)
        except AttributeError as error:
            if error.name != "getpeername":
                raise
            raise httpx.ConnectError("the connection was closed as soon as it was open", request=request) from error


class RefusedError(AtelierError):
    """The service refused a request.

    Attributes:
        name: of the problem, such as `insufficient-stock`.
        status: of the answer.
        document: the whole problem document.
    """

    def __init__(self, response: httpx.Response) -> None:
        """Reads the problem document of an answer."""
        self.document: Mapping[str, Any] = _read_problem(response)
        self.name = str(self.document.get("type", "about:blank")).rsplit("/", 1)[-1]
        self.status = response.status_code
        super().__init__(f"{self.name}: {self.document.get('detail', response.reason_phrase)}")


class BusyError(RefusedError):
    """The service had no room for a request, or no primary, each time within the budget; nothing was done."""


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How long and how often a request is tried again.

    Attributes:
        budget_s: for one request, all its tries and pauses together.
        first_pause_s: before the second try; it doubles up to `longest_pause_s`, and half of it is left to chance.
        longest_pause_s: what the service asks for in `Retry-After` counts as far as this; chance adds up to half.
        try_s: for one try; the last one has what is left of the budget.
    """

    budget_s: float = 30.0
    first_pause_s: float = 0.05
    longest_pause_s: float = 2.0
    try_s: float = 12.0


@dataclass(slots=True)
class AtelierClient:
    """One client of the service. Use it as an async context manager; it is not bound to one task.

    Every answer's token is remembered and sent with the next request, so a read sees what this client wrote, and time
    never goes backwards for it. After a failover that lost something the first request raises `HistoryLostError`
    once; the client goes on with the fresh token of that answer.

    Attributes:
        base_url: of the service.
        api_key: None for a client that only reads what is open.
        retry: how long requests are tried again.
        token: the newest position this client has seen; None before the first answer.
    """

    base_url: str
    api_key: str | None = None
    retry: RetryPolicy = RetryPolicy()
    token: str | None = None
    transport: httpx.AsyncBaseTransport | None = None
    clock: Callable[[], float] = time.monotonic
    chance: Callable[[], float] = random.random
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
    _http: httpx.AsyncClient | None = field(default=None, init=False, repr=False)

    async def __aenter__(self) -> Self:
        """Opens the connections."""
        headers = {} if self.api_key is None else {"Authorization": f"Bearer {self.api_key}"}
        self._http = httpx.AsyncClient(
            base_url=self.base_url,
            headers=headers,
            timeout=None,  # noqa: S113  every try has one of its own, over all of its parts
            transport=self.transport or ClientTransport(),
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Closes the connections."""
        if self._http is not None:
            await self._http.aclose()

    async def get(self, path: str, *, consistency: str | None = None) -> httpx.Response:
        """Reads something, as new as all that this client has seen.

        Args:
            path: with its query.
            consistency: `eventual`, `bounded; max-lag-ms=N`, `causal` or `strong`; None for the service's default.

        Raises:
            RefusedError: the service refused it; `BusyError` when it had no room for it within the budget.
            HistoryLostError: something that this client saw may not have survived a failover.
            OutcomeUnknownError: no answer came within the budget (a read can simply be repeated).
        """
        return await self._send(
            "GET", path, headers={} if consistency is None else {"Atelier-Consistency": consistency}
        )

    async def post(self, path: str, body: Any = None, *, key: str | None = None) -> httpx.Response:
        """Sends a command; see `command`."""
        return await self.command("POST", path, body, key=key)

    async def command(
        self, method: str, path: str, body: Any = None, *, key: str | None = None, if_match: str | None = None
    ) -> httpx.Response:
        """Sends a command, and sends it again under the same key until it is known what became of it.

        Args:
            method: POST, PUT, PATCH or DELETE.
            path: of the resource.
            body: sent as JSON; None for none.
            key: the idempotency key; None makes one. Give your own to go on after a crash of your program.
            if_match: the entity tag that was seen, for a guarded change.

        Returns:
            The answer; it was applied exactly once.

        Raises:
            RefusedError: the service refused it; nothing was done. `BusyError` when it had no room for it.
            OutcomeUnknownError: the budget ended first, or an answer ended the tries that does not tell what became of
                an earlier one (401, because the key was revoked meanwhile). Send it again with the key that the message
                names, or ask `find_outcome` for it.
        """
        key = key or secrets.token_urlsafe(18)
        headers = {"Idempotency-Key": key} | ({} if if_match is None else {"If-Match": if_match})
        try:
            return await self._send(method, path, body, headers=headers)
        except OutcomeUnknownError as error:
            raise OutcomeUnknownError(f"{method} {path}: {error}; its idempotency key is {key}") from error

    async def find_outcome(self, key: str) -> Any:
        """What became of a command: `{"status", "body"}`, or None when nothing is recorded (yet, or any more)."""
        try:
            return (await self.get(f"/commands/{key}")).json()
        except RefusedError as error:
            if error.status == httpx.codes.NOT_FOUND:
                return None
            raise

    async def _send(self, method: str, path: str, body: Any = None, *, headers: Mapping[str, str]) -> httpx.Response:
        """Tries until an answer is one to keep, or the budget is used up."""
        ends_at_s, pause_s = self.clock() + self.retry.budget_s, self.retry.first_pause_s
        is_open = False
        while True:
            sent = self.token if method == "GET" else None
            request = self._build(method, path, body, headers if sent is None else {**headers, _TOKEN: sent})
            response = await self._try(request, within_s=min(self.retry.try_s, ends_at_s - self.clock()))
            if response is not None and not _is_passing(response):
                if method != "GET" and not _settles(response, is_open=is_open):
                    reason = f"the service answered {response.status_code}, which does not tell what became of it"
                    raise OutcomeUnknownError(reason) from RefusedError(response)
                return self._keep(response, sent)
            is_open = is_open or response is None or RefusedError(response).name not in _NOTHING_DONE
            wait_s = self._pause(pause_s, response)
            if self.clock() + wait_s >= ends_at_s:
                raise self._give_up(response, is_open=is_open)
            await self.sleep(wait_s)
            pause_s = min(pause_s * 2, self.retry.longest_pause_s)

    def _build(self, method: str, path: str, body: Any, headers: Mapping[str, str]) -> httpx.Request:
        return self._opened.build_request(method, path, json=body, headers=headers)

    @property
    def _opened(self) -> httpx.AsyncClient:
        if self._http is None:
            raise RuntimeError("the client is not open")
        return self._http

    async def _try(self, request: httpx.Request, *, within_s: float) -> httpx.Response | None:
        """One try; None when no answer came: what became of it, the next one tells."""
        try:
            async with asyncio.timeout(within_s):
                return await self._opened.send(request)
        except (httpx.TransportError, TimeoutError):
            return None

    def _keep(self, response: httpx.Response, sent: str | None) -> httpx.Response:
        """Takes in an answer's token: requests overlap, and an answer may be older than one that came before it."""
        given = response.headers.get(_TOKEN)
        if given is not None:
            # An answer contains the token that was sent, or says that its history is lost and gives another one.
            self.token = given if self.token is None or self.token == sent else _later(self.token, given)
        # Also when it points elsewhere: that is no service of this kind, and nothing was done.
        if not response.is_success:
            refused = RefusedError(response)
            raise HistoryLostError(str(refused)) if refused.name == _HISTORY_LOST else refused
        return response

    def _pause(self, pause_s: float, response: httpx.Response | None) -> float:
        """How long to wait: with some chance in it, so that many clients do not come back together.

        What the service asked for is waited for whole, so there chance only adds.
        """
        pause_s *= 0.5 + self.chance() / 2
        if response is None or not response.headers.get("Retry-After", "").isdigit():
            return pause_s
        asked_s = min(float(response.headers["Retry-After"]), self.retry.longest_pause_s)
        return max(pause_s, asked_s * (1 + self.chance() / 2))

    def _give_up(self, response: httpx.Response | None, *, is_open: bool) -> AtelierError:
        if response is not None and not is_open:
            return BusyError(response)
        reason = "no answer" if response is None else f"the service answered {response.status_code}"
        return OutcomeUnknownError(f"{reason} within {self.retry.budget_s:g} s")


def _later(known: str, given: str) -> str:
    """The later of two tokens; the one that was given last where they cannot be compared.

    A later position on an older timeline is of history that was lost. It is kept, so that the next read is told so.
    """
    known_at, given_at = _read_position(known), _read_position(given)
    if known_at is None or given_at is None or known_at[0] != given_at[0]:
        return given
    return known if known_at > given_at else given


def _read_position(token: str) -> tuple[int, int, int] | None:
    """Database system, position and timeline; None when it is not laid out as here."""
    try:
        version, _, system_id, timeline, position = _LAYOUT.unpack_from(base64.urlsafe_b64decode(token + "=="))
    except (ValueError, struct.error):
        return None
    return (system_id, position, timeline) if version == _VERSION else None


def _is_passing(response: httpx.Response) -> bool:
    """Whether the same request may well be answered otherwise a moment later."""
    if response.status_code in (httpx.codes.TOO_MANY_REQUESTS, httpx.codes.SERVICE_UNAVAILABLE):
        return True
    if response.status_code in (httpx.codes.BAD_GATEWAY, httpx.codes.GATEWAY_TIMEOUT):
        return True
    return response.status_code == httpx.codes.CONFLICT and RefusedError(response).name == _IN_FLIGHT


def _settles(response: httpx.Response, *, is_open: bool) -> bool:
    """Whether it is known after this answer what became of a command.

    What is not stored under the key (400, 401, 403, ...) speaks of its own try alone: an earlier one may have been
    carried out, or may still arrive. An error of the server is open by itself.
    """
    if response.is_success:
        return True
    if not is_open:
        return not response.is_server_error
    refused = RefusedError(response)
    # A page of whatever stands before the service is nobody's outcome.
    is_stored = refused.status in _STORED and "type" in refused.document and refused.name != _HISTORY_LOST
    return is_stored or refused.name == _CONFLICT


def _read_problem(response: httpx.Response) -> Mapping[str, Any]:
    try:
        document = response.json()
    except ValueError:
        return {}
    return document if isinstance(document, dict) else {}
