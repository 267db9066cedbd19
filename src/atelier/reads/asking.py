"""From a request's headers to what it asks of a read."""

import re
from collections.abc import Mapping

from atelier.deadline import Clock, Deadline
from atelier.http import open_token, parse_number
from atelier.problems import ProblemError
from atelier.reads.executor import Ask
from atelier.reads.router import Consistency, Policy
from atelier.settings import Settings
from atelier.token import CausalToken, TokenKeys

_BOUNDED = re.compile(r"bounded\s*;\s*max-lag-ms\s*=\s*([0-9]{1,9})", re.ASCII)
_PLAIN: Mapping[str, Consistency] = {"eventual": "eventual", "causal": "causal", "strong": "strong"}
_LARGEST_WAIT_MS = 999_999_999


class Asker:
    """Reads `Atelier-Token`, `Atelier-Consistency` and `Atelier-Wait-Ms`, with the defaults of the settings."""

    def __init__(self, settings: Settings, keys: TokenKeys, *, clock: Clock) -> None:
        """Takes the defaults and the keys that open tokens."""
        self._keys = keys
        self._clock = clock
        reads = settings.reads
        self._strategy = reads.strategy
        self._wait_ms, self._max_wait_ms = reads.wait_ms, reads.max_wait_ms
        self._request_s = settings.timeouts.request_ms / 1000
        self._policies = {word: Policy(level, reads.max_lag_ms, reads.strategy) for word, level in _PLAIN.items()}

    def begin(self) -> Deadline:
        """The deadline of a request that begins now."""
        return Deadline.after(self._request_s, self._clock)

    def read(
        self, headers: Mapping[str, str], cookies: Mapping[str, str], deadline: Deadline | None = None
    ) -> tuple[Ask, bool]:
        """Reads the headers.

        Args:
            headers: of the request.
            cookies: of the request.
            deadline: of the request, where it began before this; None where it begins now.

        Returns:
            What is asked, and whether its token came as a cookie (which may be dropped, but never breaks a page).

        Raises:
            ProblemError, InvalidTokenError: a header is malformed.
        """
        token, by_cookie = open_token(self._keys, headers, cookies)
        consistency, wait_ms = headers.get("Atelier-Consistency"), headers.get("Atelier-Wait-Ms")
        return self.make(token, consistency, wait_ms, deadline), by_cookie

    def make(
        self, token: CausalToken | None, consistency: str | None, wait_ms: str | None, deadline: Deadline | None = None
    ) -> Ask:
        """Makes the ask from a token and the two headers as they were sent; None where they were not."""
        wait = self._wait_ms
        if wait_ms is not None:
            wait = parse_number(wait_ms, "Atelier-Wait-Ms", low=0, high=_LARGEST_WAIT_MS)
        return Ask(
            policy=self._policy(consistency, token),
            token=token,
            wait_s=min(wait, self._max_wait_ms) / 1000,
            deadline=self.begin() if deadline is None else deadline,
        )

    def _policy(self, consistency: str | None, token: CausalToken | None) -> Policy:
        word = consistency.strip() if consistency is not None else "eventual" if token is None else "causal"
        if word in self._policies:
            return self._policies[word]
        if bounded := _BOUNDED.fullmatch(word):
            return Policy("bounded", int(bounded[1]), self._strategy)
        raise ProblemError(
            "invalid-request",
            "Atelier-Consistency takes eventual, bounded; max-lag-ms=N, causal or strong",
            field="Atelier-Consistency",
        )
