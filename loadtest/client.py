"""One client of the service: carries its token, repeats what had no answer under the same key, records everything.

A session does one thing at a time. It ends, and a new one begins under another name, where the service says that a
failover threw away what the session had seen.
"""

import json
import random
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from loadtest.answers import classify, describe_error, fingerprint, is_definite, parse_lag, stock_line, version_of
from loadtest.clock import Clock
from loadtest.commands import Command, learn
from loadtest.history.record import READ, Line, Op
from loadtest.recorder import Recorder
from loadtest.tally import Board, Tally, read_board, read_tallies
from loadtest.transport import Answer, Request, Transport

_GIVEN_UP = Answer(0, error="given up")


@dataclass(frozen=True, slots=True)
class Consistency:
    """What a read asks for.

    Attributes:
        mode: eventual, bounded, causal or strong.
        max_lag_ms: of a bounded one.
    """

    mode: str = "causal"
    max_lag_ms: int | None = None

    def header(self) -> str:
        """The value of `Atelier-Consistency`."""
        return f"bounded; max-lag-ms={self.max_lag_ms}" if self.mode == "bounded" else self.mode


CAUSAL, EVENTUAL, STRONG = Consistency("causal"), Consistency("eventual"), Consistency("strong")


@dataclass(frozen=True, slots=True)
class Patience:
    """How often and how long a command is repeated while its outcome is unknown."""

    attempts: int = 6
    first_wait_s: float = 0.1
    longest_wait_s: float = 1.0


class Session:
    """A client under one name."""

    def __init__(  # noqa: D417 - the rest are what they are named
        self,
        name: str,
        transport: Transport,
        *,
        api_key: str,
        recorder: Recorder,
        clock: Clock,
        rng: random.Random,
        run_id: str,
        patience: Patience | None = None,
        sleep: Callable[[float], None] = time.sleep,
        timed: bool = True,
    ) -> None:
        """Begins without a token.

        Args:
            name: of the session in the history.
            run_id: begins every command key, so that runs of the same seed do not meet under one key.
            timed: its requests count in the figures.
        """
        self._base_name = name
        self.name = name
        self._lives = 1
        self._transport = transport
        self._api_key = api_key
        self._recorder = recorder
        self._clock = clock
        self.rng = rng
        self._patience = patience or Patience()
        self._sleep = sleep
        self._run_id = run_id
        self._timed = timed
        self.token: str | None = None
        self.intended_s: float | None = None
        """When the next request should have been sent; counts for that one alone."""

    # ------------------------------------------------------------ reads

    def get(self, path: str, name: str, consistency: Consistency = CAUSAL) -> Answer:
        """Reads what has no version that the history could use."""
        return self._read(path, name, consistency, lambda _: ())

    def read_stock(self, sku_id: int, consistency: Consistency = CAUSAL) -> Answer:
        """Reads the stock of one SKU."""
        key = f"sku:{sku_id}"
        return self._read(
            f"/inventory/{sku_id}", "/inventory/[id]", consistency, lambda answer: (stock_line(key, answer),)
        )

    def read_product(self, product_id: int, consistency: Consistency = CAUSAL) -> Answer:
        """Reads one product."""
        key = f"product:{product_id}"
        return self._read(
            f"/products/{product_id}", "/products/[id]", consistency, lambda answer: (Line(key, version_of(answer)),)
        )

    def read_styles(self, product_id: int, tallies: Sequence[Tally], consistency: Consistency = CAUSAL) -> Answer:
        """Reads what can be bought of a product, of which `tallies` tell how new that is."""
        path = f"/products/{product_id}/styles"
        return self._read(path, "/products/[id]/styles", consistency, lambda answer: read_tallies(answer, tallies))

    def read_list(self, board: Board, consistency: Consistency = CAUSAL) -> Answer:
        """Reads the page of the list that a board is on, which tells how new that is."""
        return self._read(board.path, "/products", consistency, lambda answer: read_board(answer, board))

    def read_reservation(self, reservation: str, consistency: Consistency = CAUSAL) -> Answer:
        """Reads one reservation: pending is its version 1, settled its version 2."""

        def line(answer: Answer) -> tuple[Line, ...]:
            state = (answer.json() or {}).get("state") if answer.is_ok else None
            version = 0 if state is None else 1 if state == "pending" else 2
            return (Line(f"reservation:{reservation}", version),)

        return self._read(f"/reservations/{reservation}", "/reservations/[id]", consistency, line)

    def _read(
        self, path: str, name: str, consistency: Consistency, lines: Callable[[Answer], tuple[Line, ...]]
    ) -> Answer:
        headers = {"Authorization": f"Bearer {self._api_key}", "Atelier-Consistency": consistency.header()}
        tokened = consistency.mode != "eventual" and self.token is not None
        sent = self.token if tokened else None
        if sent:
            headers["Atelier-Token"] = sent
        invoked_s, intended_s = self._begin()
        answer = self._transport.send(Request("GET", path, name, headers))
        known = answer.is_ok or answer.status == 404
        outcome = "ok" if known else "refused" if answer.status else "fail"
        op = Op(
            0,
            self.name,
            READ,
            invoked_s,
            self._clock(),
            outcome,
            lines(answer) if known else (),
            status=answer.status or None,
            mode=consistency.mode,
            max_lag_ms=consistency.max_lag_ms,
            tokened=tokened,
            node=answer.header("atelier-served-by"),
            lag_ms=parse_lag(answer),
            token_sent=fingerprint(sent),
            token_got=fingerprint(answer.header("atelier-token")),
            intended_s=intended_s,
            problem=answer.problem,
        )
        self._recorder.add(op, error=None if known else describe_error(answer), timed=self._timed)
        self._take_token(answer)
        return answer

    # ------------------------------------------------------------ commands

    def command(self, command: Command) -> Answer:
        """Sends a command; while its outcome is unknown, again under the same key, as often as patience allows."""
        key = f"lab-{self._run_id}-{self.rng.getrandbits(64):016x}"
        wait_s = self._patience.first_wait_s
        for attempt in range(self._patience.attempts):
            answer = self._attempt(command, key)
            if classify(answer) not in ("info", "fail") or attempt == self._patience.attempts - 1:
                break
            self._sleep(wait_s * (0.5 + self.rng.random()))
            wait_s = min(wait_s * 2, self._patience.longest_wait_s)
        return answer

    def _attempt(self, command: Command, key: str) -> Answer:
        headers = {
            "Authorization": f"Bearer {self._api_key}",
            "Content-Type": "application/json",
            "Idempotency-Key": key,
            **command.headers,
        }
        invoked_s, intended_s = self._begin()
        body = json.dumps(command.body).encode() if command.body is not None else b""
        answer = _GIVEN_UP
        try:
            answer = self._transport.send(Request(command.method, command.path, command.name, headers, body))
        finally:
            # Also where the run ends in the middle: a command that may have reached the service is on record.
            self._record_attempt(command, key, answer, invoked_s, intended_s)
        self._take_token(answer)
        return answer

    def _record_attempt(
        self, command: Command, key: str, answer: Answer, invoked_s: float, intended_s: float | None
    ) -> None:
        outcome = classify(answer)
        lines, reservation = learn(command, answer) if outcome == "ok" else (command.lines, command.reservation)
        op = Op(
            0,
            self.name,
            command.kind,
            invoked_s,
            self._clock(),
            outcome,
            lines,
            status=answer.status or None,
            command=key,
            replayed=answer.header("idempotency-replayed") == "true",
            token_got=fingerprint(answer.header("atelier-token")),
            reservation=reservation,
            ttl_s=command.ttl_s,
            intended_s=intended_s,
            problem=answer.problem,
        )
        # A command that the end of the run cut off is no error of the service's.
        error = None if is_definite(answer) or answer is _GIVEN_UP else describe_error(answer)
        self._recorder.add(op, error=error, timed=self._timed)

    def tell_stock(self, lines: Iterable[Line]) -> None:
        """Records the stock that a product was made with: no answer tells it."""
        now_s = self._clock()
        # Nobody can have taken any of it before its ids were known, which is now.
        op = Op(0, self.name, "create", now_s, now_s, lines=tuple(lines))
        self._recorder.add(op, timed=False)

    # ------------------------------------------------------------ its own state

    def _begin(self) -> tuple[float, float | None]:
        now_s = self._clock()
        intended_s, self.intended_s = self.intended_s, None
        return now_s, None if intended_s is None else min(intended_s, now_s)

    def _take_token(self, answer: Answer) -> None:
        token = answer.header("atelier-token")
        if answer.problem == "history-lost":
            self._lives += 1
            self.name = f"{self._base_name}#{self._lives}"
            self.token = token
        elif token:
            self.token = token
