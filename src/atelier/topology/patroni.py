"""Nodes as Patroni lists them. It tells who is there and where; who is the primary is proved by SQL all the same."""

import asyncio
import re
from contextlib import suppress

import msgspec
import structlog

from atelier.errors import NodeError
from atelier.settings import Endpoint, NodeAddress

# A list of nodes is a few hundred bytes a node; whoever sends more is not Patroni.
_MOST_BYTES = 1 << 20
_CLOSE_S = 0.5
_SUCCESS = re.compile(rb"HTTP/1\.[01] 200 ")

log = structlog.get_logger(__name__)


class _Member(msgspec.Struct):
    name: str
    host: str | None = None
    port: int | None = None


class _Cluster(msgspec.Struct):
    members: list[_Member]


class PatroniNodes:
    """Asks one member's REST API for the members of its cluster, and the next one when it does not answer."""

    def __init__(self, members: tuple[Endpoint, ...], *, timeout_ms: int) -> None:
        """Takes where the members' REST APIs listen, and the bound on asking one of them. Does no I/O."""
        self._members = members
        self._timeout_s = timeout_ms / 1000
        self._known: tuple[NodeAddress, ...] = ()

    async def nodes(self) -> tuple[NodeAddress, ...]:
        """The nodes that Patroni knows now, in the order of their names.

        With no member answering, those that it knew last: the databases can be well while Patroni or its store is not.
        Empty when none has answered yet.
        """
        for member in self._members:
            try:
                found = parse_members(await self._ask(member))
            except (OSError, TimeoutError, NodeError) as error:
                log.debug("patroni_silent", member=str(member), reason=str(error) or type(error).__name__)
            else:
                self._prefer(member)
                self._known = found
                return found
        log.warning("patroni_silent", members=len(self._members))
        return self._known

    def _prefer(self, member: Endpoint) -> None:
        """Asks it first the next time, so that a dead member costs its timeout once."""
        self._members = (member, *(other for other in self._members if other != member))

    async def _ask(self, member: Endpoint) -> bytes:
        async with asyncio.timeout(self._timeout_s):
            reader, writer = await asyncio.open_connection(member.host, member.port)
            try:
                writer.write(f"GET /cluster HTTP/1.0\r\nHost: {member}\r\n\r\n".encode())
                return read_body(await _read_all(reader))
            finally:
                writer.close()
                with suppress(OSError, TimeoutError):
                    async with asyncio.timeout(_CLOSE_S):
                        await writer.wait_closed()


async def _read_all(reader: asyncio.StreamReader) -> bytes:
    """Reads until the other side closes, as it does after an answer to HTTP/1.0."""
    answer = bytearray()
    while chunk := await reader.read(1 << 16):
        answer += chunk
        if len(answer) > _MOST_BYTES:
            raise NodeError("the answer is too long")
    return bytes(answer)


def read_body(answer: bytes) -> bytes:
    """Takes the body out of a whole HTTP answer.

    Raises:
        NodeError: it is none, or not one of success.
    """
    head, gap, body = answer.partition(b"\r\n\r\n")
    if not gap or not _SUCCESS.match(head):
        line, _, _ = head.partition(b"\r\n")
        raise NodeError(f"answered {line[:60]!r}")
    return body


def parse_members(body: bytes) -> tuple[NodeAddress, ...]:
    """Reads an answer to `GET /cluster`; a member that has not said yet where it listens is left out.

    Raises:
        NodeError: it has another form, or names no node: a store that lost its content is no reason to forget them.
    """
    try:
        cluster = msgspec.json.decode(body, type=_Cluster)
    except msgspec.MsgspecError as error:
        raise NodeError(f"not an answer of Patroni's: {error}") from error
    found = {m.name: NodeAddress(m.name, m.host, m.port) for m in cluster.members if m.host and m.port}
    if not found:
        raise NodeError("names no node")
    return tuple(found[name] for name in sorted(found))
