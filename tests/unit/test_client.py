"""The client for Python, decided in memory: which token it keeps, how long it tries, and what it says at the end."""

import asyncio
from collections.abc import Awaitable, Callable

import httpx
import pytest

from atelier.client import AtelierClient, BusyError, RefusedError, RetryPolicy
from atelier.errors import HistoryLostError, OutcomeUnknownError
from atelier.lsn import Lsn
from atelier.token import CausalToken, TokenKeys

pytestmark = pytest.mark.anyio

KEYS = TokenKeys((bytes(32),))
Answer = Callable[[httpx.Request], httpx.Response] | Callable[[httpx.Request], Awaitable[httpx.Response]]


def token(position: int, *, timeline: int = 1, system_id: int = 7) -> str:
    """A token as the service seals it."""
    return KEYS.seal(CausalToken(system_id, timeline, Lsn(position)))


def told(position: int, **fields: int) -> httpx.Response:
    """An answer with a token."""
    return httpx.Response(200, headers={"Atelier-Token": token(position, **fields)}, json={})


def problem(name: str, status: int, **headers: str) -> httpx.Response:
    """A refusal."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return httpx.Response(status, headers=named, json={"type": f"/problems/{name}"})


def after_a_lost_answer(later: httpx.Response) -> Answer:
    """A service whose first answer is lost on the way, and whose next ones are these."""
    tries = 0

    def answer(request: httpx.Request) -> httpx.Response:
        nonlocal tries
        tries += 1
        if tries == 1:
            raise httpx.ReadError("lost", request=request)
        return later

    return answer


class Watch:
    """A clock that only pauses move, and what the pauses were."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.pauses_s: list[float] = []

    def read(self) -> float:
        """The time."""
        return self.now_s

    async def sleep(self, pause_s: float) -> None:
        """Lets time pass."""
        self.pauses_s.append(pause_s)
        self.now_s += pause_s


def client_of(answer: Answer, watch: Watch | None = None, *, chance: float = 0.0, **fields: object) -> AtelierClient:
    """A client of a service that is a function."""
    watch = watch or Watch()
    return AtelierClient(
        "http://any",
        transport=httpx.MockTransport(answer),
        clock=watch.read,
        sleep=watch.sleep,
        chance=lambda: chance,
        **fields,
    )


@pytest.mark.parametrize(
    ("of_the_read", "of_the_command", "kept"),
    [
        (token(100), token(200), token(200)),
        (token(300), token(200), token(300)),
        (token(100), token(200, timeline=2), token(200, timeline=2)),
        # The read saw what the failover threw away: its token stays, and the next read is told so.
        (token(300), token(200, timeline=2), token(300)),
        # Another database, or a token that this client cannot read: whoever spoke last.
        (token(100), token(200, system_id=8), token(100)),
        ("of-another-version", token(200), "of-another-version"),
        (token(100), "A" * 51, token(100)),
    ],
)
async def test_slow_read_takes_nothing_back_that_a_command_has_seen(
    of_the_read: str, of_the_command: str, kept: str
) -> None:
    """Its answer is formed before the command, and arrives after it."""
    asked, answered = asyncio.Event(), asyncio.Event()

    async def answer(request: httpx.Request) -> httpx.Response:
        if request.method == "POST":
            return httpx.Response(200, headers={"Atelier-Token": of_the_command}, json={})
        asked.set()
        await answered.wait()
        return httpx.Response(200, headers={"Atelier-Token": of_the_read}, json={})

    async with client_of(answer) as client:
        reading = asyncio.create_task(client.get("/products"))
        await asked.wait()
        await client.post("/products", {})
        answered.set()
        await reading
    assert client.token == kept


async def test_fresh_token_of_a_lost_history_takes_the_place_of_a_later_position() -> None:
    """The lost one named more log than there is now; it would be refused for ever."""

    def answer(_request: httpx.Request) -> httpx.Response:
        fresh = {"Atelier-Token": token(200, timeline=2)}
        return httpx.Response(409, headers=fresh, json={"type": "/problems/history-lost"})

    async with client_of(answer, token=token(300)) as client:
        with pytest.raises(HistoryLostError):
            await client.get("/products")
    assert client.token == token(200, timeline=2)


async def test_one_try_lasts_no_longer_than_it_may() -> None:
    """A first try that is never answered leaves time for a second one."""
    tries: list[str] = []

    async def answer(request: httpx.Request) -> httpx.Response:
        tries.append(request.headers["Idempotency-Key"])
        if len(tries) == 1:
            await asyncio.Event().wait()
        return told(1)

    async with client_of(answer, retry=RetryPolicy(try_s=0.02)) as client:
        async with asyncio.timeout(5):
            assert (await client.post("/products", {})).status_code == 200
    assert len(set(tries)) == 1
    assert len(tries) == 2


async def test_last_try_has_no_more_than_what_is_left_of_the_budget() -> None:
    """Nobody waits twelve seconds for the answer to a request that had less than one."""

    async def answer(_request: httpx.Request) -> httpx.Response:
        await asyncio.Event().wait()
        raise AssertionError

    async with client_of(answer, retry=RetryPolicy(budget_s=0.05)) as client:
        async with asyncio.timeout(5):
            with pytest.raises(OutcomeUnknownError, match="no answer within"):
                await client.get("/products")


@pytest.mark.parametrize(
    ("name", "status"), [("overloaded", 503), ("primary-unavailable", 503), ("too-many-requests", 429)]
)
async def test_service_that_was_busy_throughout_has_done_nothing(name: str, status: int) -> None:
    """Its answers say so, so the outcome is known: refused."""
    async with client_of(lambda _request: problem(name, status, Retry_After="1")) as client:
        with pytest.raises(BusyError) as caught:
            await client.post("/products", {})
    assert isinstance(caught.value, RefusedError)
    assert (caught.value.name, caught.value.status) == (name, status)


@pytest.mark.parametrize("first", [None, 502, "outcome-unknown", "idempotency-in-flight"])
async def test_one_open_try_leaves_the_outcome_open(first: str | int | None) -> None:
    """What a busy service says of later tries does not settle an earlier one."""
    tries = 0

    def answer(request: httpx.Request) -> httpx.Response:
        nonlocal tries
        tries += 1
        if tries > 1:
            return problem("overloaded", 503)
        if first is None:
            raise httpx.ReadError("lost", request=request)
        if isinstance(first, int):
            return httpx.Response(first)
        return problem(first, 409 if first == "idempotency-in-flight" else 503)

    async with client_of(answer) as client:
        with pytest.raises(OutcomeUnknownError, match="its idempotency key is mine"):
            await client.post("/products", {}, key="mine")


LATER_REFUSALS = [
    problem("invalid-request", 400),
    problem("unauthorized", 401),
    problem("forbidden", 403),
    problem("precondition-required", 428),
    problem("history-lost", 409),
    httpx.Response(404, text="no such host"),
    httpx.Response(500),
    httpx.Response(301),
]


@pytest.mark.parametrize("later", LATER_REFUSALS, ids=lambda later: str(later.status_code))
async def test_refusal_that_is_not_stored_does_not_settle_an_earlier_try(later: httpx.Response) -> None:
    """The first answer is lost, and then the key is revoked: what the first try did is not known, nor denied."""
    async with client_of(after_a_lost_answer(later)) as client:
        with pytest.raises(OutcomeUnknownError, match=f"{later.status_code}.*its idempotency key is mine"):
            await client.post("/products", {}, key="mine")


@pytest.mark.parametrize(
    ("name", "status"),
    [
        ("not-found", 404),
        ("insufficient-stock", 409),
        ("precondition-failed", 412),
        # The key stands for another request, so this one was never carried out under it.
        ("idempotency-conflict", 422),
    ],
)
async def test_refusal_that_the_key_stands_for_settles_every_try(name: str, status: int) -> None:
    """It is what became of the first try, too, whose answer was lost."""
    async with client_of(after_a_lost_answer(problem(name, status))) as client:
        with pytest.raises(RefusedError) as caught:
            await client.post("/products", {})
    assert (caught.value.name, caught.value.status) == (name, status)


@pytest.mark.parametrize("status", [301, 307, 400, 401, 403, 422])
async def test_first_answer_that_refuses_says_that_nothing_was_done(status: int) -> None:
    """No earlier try is open, so there is nothing else to be known."""
    async with client_of(lambda _request: httpx.Response(status)) as client:
        with pytest.raises(RefusedError):
            await client.post("/products", {})


async def test_read_is_refused_whatever_became_of_its_first_try() -> None:
    """It does nothing, so nothing is left open."""
    async with client_of(after_a_lost_answer(problem("unauthorized", 401))) as client:
        with pytest.raises(RefusedError):
            await client.get("/inventory/1")


async def test_error_of_the_server_leaves_a_command_open_by_itself() -> None:
    """It is no verdict: what was done before it is not known."""
    async with client_of(lambda _request: httpx.Response(500)) as client:
        with pytest.raises(OutcomeUnknownError, match="its idempotency key is mine"):
            await client.post("/products", {}, key="mine")
        with pytest.raises(RefusedError):
            await client.get("/products")


@pytest.mark.parametrize(("chance", "pause_s"), [(0.0, 1.0), (0.5, 1.25), (1.0, 1.5)])
async def test_client_comes_back_no_sooner_than_it_was_asked_to(chance: float, pause_s: float) -> None:
    """Chance spreads clients behind the time that the service named, not before it."""
    answers = iter([problem("overloaded", 503, Retry_After="1"), told(1)])
    watch = Watch()
    async with client_of(lambda _request: next(answers), watch, chance=chance) as client:
        await client.get("/products")
    assert watch.pauses_s == [pause_s]


async def test_pauses_double_and_chance_takes_up_to_half_of_them() -> None:
    """Where the service named no time."""
    answers = iter([*(problem("overloaded", 503) for _ in range(3)), told(1)])
    watch = Watch()
    retry = RetryPolicy(first_pause_s=1.0, longest_pause_s=2.0)
    async with client_of(lambda _request: next(answers), watch, chance=0.0, retry=retry) as client:
        await client.get("/products")
    assert watch.pauses_s == [0.5, 1.0, 1.0]
