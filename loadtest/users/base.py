"""What all users share: a session over Locust's fast client, and arrivals that do not wait for answers."""

import http
import itertools
import random
from typing import Any, ClassVar

from locust import FastHttpUser
from locust.env import Environment

from loadtest.client import Session
from loadtest.clock import Clock
from loadtest.recorder import Recorder
from loadtest.transport import Answer, Request
from loadtest.world import World

_numbers = itertools.count(1)


class Stage:
    """What a run gives to its users: where they are, and who writes down what they do."""

    def __init__(
        self, world: World, recorder: Recorder, *, clock: Clock, api_key: str, seed: int, run_id: str, prefix: str = ""
    ) -> None:
        """Stores it; `prefix` tells the sessions of several processes apart."""
        self.world = world
        self.recorder = recorder
        self.clock = clock
        self.api_key = api_key
        self.seed = seed
        self.run_id = run_id
        self.prefix = prefix
        self.reservations: list[str] = []
        self.stopping = False


class LocustTransport:
    """Sends through Locust's client, which keeps its closed-loop figures of it."""

    def __init__(self, user: FastHttpUser) -> None:
        """Uses the user's own connection."""
        self._client = user.client

    def send(self, request: Request) -> Answer:
        """See `Transport`."""
        with self._client.request(
            request.method,
            request.path,
            name=request.name,
            data=request.body or None,
            headers=dict(request.headers),
            catch_response=True,
            allow_redirects=False,
        ) as response:
            answer = _read(response)
            if answer.status and answer.status < 500:
                response.success()
            else:
                response.failure(answer.error or answer.problem or str(answer.status))
        return answer


def _read(response: Any) -> Answer:
    status = int(response.status_code or 0)
    if status == 0:
        error = response.error
        # A connection that was refused carried nothing; any other failure may have come after the request.
        return Answer(0, error=type(error).__name__, never_sent=isinstance(error, ConnectionRefusedError))
    headers = {str(name).lower(): str(value) for name, value in response.headers.items()}
    try:
        body = response.content or b""
    except Exception as error:  # noqa: BLE001 - whatever cut the answer in the middle, there is none
        return Answer(0, error=type(error).__name__)
    if status != http.HTTPStatus.NO_CONTENT and len(body) != int(headers.get("content-length", len(body))):
        return Answer(0, error="half an answer")
    return Answer(status, headers, body)


class LabUser(FastHttpUser):
    """A user whose arrivals come at their own times (a Poisson process), however long the answers take.

    A user that is late starts at once, and its latency counts from when it should have started: a stall shows in
    every arrival that it held up, not in one.
    """

    abstract = True
    stage: ClassVar[Stage]
    rate_per_s: ClassVar[float] = 1.0
    connection_timeout = 5.0
    network_timeout = 12.0

    def __init__(self, environment: Environment) -> None:
        """Opens nothing yet."""
        super().__init__(environment)
        number = next(_numbers)
        stage = self.stage
        self.rng = random.Random(f"{stage.seed}/{type(self).__name__}/{number}")
        self.session = self.make_session(f"{stage.prefix}{type(self).__name__.lower()}-{number}")
        self._next_s = 0.0

    def make_session(self, name: str) -> Session:
        """A session over this user's connection."""
        stage = self.stage
        return Session(
            name,
            LocustTransport(self),
            api_key=stage.api_key,
            recorder=stage.recorder,
            clock=stage.clock,
            rng=self.rng,
            run_id=stage.run_id,
        )

    def on_start(self) -> None:
        """Waits for the first arrival."""
        self._next_s = self.stage.clock()
        # As between two errands: who has not come yet when the run ends is not waited for.
        self.wait()

    def wait_time(self) -> float:
        """Seconds until the next arrival; 0 when it is due already."""
        self._next_s += self.rng.expovariate(self.rate_per_s)
        self.session.intended_s = self._next_s
        return max(0.0, self._next_s - self.stage.clock())
