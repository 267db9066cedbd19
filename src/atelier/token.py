"""Causal tokens: what a client has seen, as a position in one history of one database system. No I/O.

On the wire a token is base64url without padding of

```
version 1 byte | flags 1 byte | system id 8 bytes | timeline 4 bytes | LSN 8 bytes | HMAC-SHA256, first 16 bytes
```
"""

import base64
import hmac
import struct
from dataclasses import dataclass
from enum import Enum

import msgspec

from atelier.errors import InvalidTokenError
from atelier.lsn import Lsn

_PAYLOAD = struct.Struct(">BBQIQ")
_MAC_BYTES = 16
_VERSION = 1
_BY_REPLICA = 0b1
# Texts of tokens that are kept at hand, read or written: those of as many clients as one process may serve in a while,
# in a few megabytes.
_KEPT = 8192
_TEXT_LENGTH = 51  # base64url of 22 payload and 16 MAC bytes, without padding


class CausalToken(msgspec.Struct, frozen=True):
    """The newest position that a client may have seen.

    Attributes:
        system_id: PostgreSQL's system identifier: positions of different systems never compare.
        timeline: the history that the position lies on; it rises with every promotion.
        lsn: the byte position in that history's log.
        minted_by_replica: a replica can show a commit that a primary under synchronous replication does not show
            yet, so the primary's position alone does not satisfy such a token.
    """

    system_id: int
    timeline: int
    lsn: Lsn
    minted_by_replica: bool = False

    def merge(self, other: "CausalToken") -> "CausalToken":
        """The later of two tokens of one history (the caller has judged both by it).

        The mark stays when either has it: a later position of the primary's does not promise that what a replica
        showed before it is visible on the primary already.
        """
        is_first = (self.lsn.bytes, self.timeline) >= (other.lsn.bytes, other.timeline)
        later, earlier = (self, other) if is_first else (other, self)
        if later.minted_by_replica or not earlier.minted_by_replica:
            return later
        return CausalToken(later.system_id, later.timeline, later.lsn, minted_by_replica=True)


class Standing(Enum):
    """How a token stands to the history that the primary is on."""

    GOOD = "good"
    """It lies on this history: whoever has replayed its position contains what it has seen."""
    LOST = "lost"
    """It lies on another system, or beyond a fork: a failover may have thrown away what it has seen."""
    UNKNOWN = "unknown"
    """It names a timeline that this observer has not heard of yet: look again before judging."""


@dataclass(frozen=True, slots=True)
class History:
    """The history that leads to one timeline of one database system.

    Attributes:
        system_id: the database system.
        timeline: the newest timeline, the primary's.
        forks: for each ancestor of `timeline`, the position where history left it: `((1, Lsn), (2, Lsn), ...)`.
    """

    system_id: int
    timeline: int
    forks: tuple[tuple[int, Lsn], ...] = ()

    def judge(self, token: CausalToken) -> Standing:
        """Tells whether a token's position is part of this history. Does not look at how far the history reaches."""
        if token.system_id != self.system_id:
            return Standing.LOST
        if token.timeline == self.timeline:
            return Standing.GOOD
        if token.timeline > self.timeline:
            return Standing.UNKNOWN
        fork = self.fork_of(token.timeline)
        return Standing.GOOD if fork is not None and token.lsn <= fork else Standing.LOST

    def fork_of(self, timeline: int) -> Lsn | None:
        """Where history left an older timeline; None when that timeline is no ancestor of this one."""
        return next((lsn for ancestor, lsn in self.forks if ancestor == timeline), None)


class TokenKeys:
    """Seals and opens tokens with a shared secret, so that nobody can make the service wait for an invented position.

    The first key seals, all of them open: to rotate, put the new key last everywhere, then first, then drop the old.
    """

    def __init__(self, keys: tuple[bytes, ...]) -> None:
        """Takes the secrets, the sealing one first.

        Raises:
            ValueError: there is none, or one is shorter than 32 bytes.
        """
        if not keys or any(len(key) < 32 for key in keys):
            raise ValueError("token keys: at least one of at least 32 bytes")
        # An HMAC that has taken in its key is copied for half of what a new one costs.
        self._macs = [hmac.new(key, digestmod="sha256") for key in keys]
        self._sealed: dict[CausalToken, str] = {}
        self._opened: dict[str, CausalToken] = {}

    def seal(self, token: CausalToken) -> str:
        """Writes a token as the text that goes to a client."""
        # Answers that follow one another mostly stand at a few positions, and sealing one costs more than looking.
        text = self._sealed.get(token)
        if text is None:
            if len(self._sealed) >= _KEPT:
                self._sealed.clear()
            text = self._sealed[token] = self._write(token)
        return text

    def _write(self, token: CausalToken) -> str:
        flags = _BY_REPLICA if token.minted_by_replica else 0
        payload = _PAYLOAD.pack(_VERSION, flags, token.system_id, token.timeline, token.lsn.bytes)
        return _encode(payload + _sign(self._macs[0], payload))

    def open(self, text: str) -> CausalToken:
        """Reads a token that a client sent.

        Raises:
            InvalidTokenError: it is malformed, or none of the keys made it.
        """
        # A client sends the token of its last write with every read of a page.
        token = self._opened.get(text)
        if token is None:
            token = self._read(text)
            if len(self._opened) >= _KEPT:
                self._opened.clear()
            self._opened[text] = token
        return token

    def _read(self, text: str) -> CausalToken:
        if len(text) != _TEXT_LENGTH or not text.isascii():
            raise InvalidTokenError
        try:
            raw = base64.b64decode(text + "=", altchars=b"-_", validate=True)
        except ValueError as error:
            raise InvalidTokenError from error
        # The last character has two spare bits, and the decoder takes "+/" for "-_": one token has one text.
        if _encode(raw) != text:
            raise InvalidTokenError
        payload, mac = raw[: _PAYLOAD.size], raw[_PAYLOAD.size :]
        if not any(hmac.compare_digest(_sign(keyed, payload), mac) for keyed in self._macs):
            raise InvalidTokenError
        version, flags, system_id, timeline, position_bytes = _PAYLOAD.unpack(payload)
        if version != _VERSION:
            raise InvalidTokenError
        return CausalToken(system_id, timeline, Lsn(position_bytes), bool(flags & _BY_REPLICA))


def _encode(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode("ascii")


def _sign(keyed: hmac.HMAC, payload: bytes) -> bytes:
    signing = keyed.copy()
    signing.update(payload)
    return signing.digest()[:_MAC_BYTES]
