"""Patroni as the source of the nodes: any member is asked, and what is not an answer changes nothing."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest

from atelier.errors import NodeError, SettingsError
from atelier.settings import Endpoint, NodeAddress, Settings, parse_patroni
from atelier.topology.patroni import PatroniNodes, parse_members, read_body
from atelier.topology.sources import choose_source

pytestmark = pytest.mark.anyio

MEMBERS = [
    {"name": "node-2", "role": "leader", "host": "10.0.0.2", "port": 5432},
    {"name": "node-1", "role": "quorum_standby", "host": "10.0.0.1", "port": 5432, "lag": 0},
    {"name": "node-3", "role": "replica", "state": "creating replica"},
]
NODES = (NodeAddress("node-1", "10.0.0.1", 5432), NodeAddress("node-2", "10.0.0.2", 5432))


def answer(members: list[dict[str, object]], *, status: str = "200 OK") -> bytes:
    """What a member sends."""
    body = json.dumps({"members": members, "scope": "atelier"}).encode()
    return f"HTTP/1.0 {status}\r\nContent-Type: application/json\r\n\r\n".encode() + body


class Member:
    """One REST API: answers, refuses or hangs, and counts how often it was asked."""

    def __init__(self, say: Callable[[], bytes | None]) -> None:
        self._say = say
        self.asked = 0
        self.endpoint = Endpoint("127.0.0.1", 0)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        request = await reader.readuntil(b"\r\n\r\n")
        assert request.startswith(b"GET /cluster HTTP/1.0\r\n")
        self.asked += 1
        said = self._say()
        if said is None:
            await reader.read()  # until the other side gives up
        else:
            writer.write(said)
        writer.close()


@asynccontextmanager
async def members(*says: Callable[[], bytes | None]) -> AsyncIterator[list[Member]]:
    """Runs REST APIs, one for each thing to say."""
    found = [Member(say) for say in says]
    servers = [await asyncio.start_server(member.serve, "127.0.0.1", 0) for member in found]
    for member, server in zip(found, servers, strict=True):
        member.endpoint = Endpoint("127.0.0.1", server.sockets[0].getsockname()[1])
    try:
        yield found
    finally:
        for server in servers:
            server.close()
            await server.wait_closed()


def source(found: list[Member], *, timeout_ms: int = 5_000) -> PatroniNodes:
    """The source over these members."""
    return PatroniNodes(tuple(member.endpoint for member in found), timeout_ms=timeout_ms)


async def test_nodes_are_those_that_a_member_lists_by_name_without_those_that_listen_nowhere_yet() -> None:
    """The order does not change with the leader, and a node that is being made is left out."""
    async with members(lambda: answer(MEMBERS)) as found:
        assert await source(found).nodes() == NODES


async def test_another_member_is_asked_when_one_is_gone_or_has_lost_its_store() -> None:
    """A refused connection and a 503 are passed over, and the one that answered is asked first from then on."""
    async with members(lambda: answer([], status="503 Service Unavailable"), lambda: answer(MEMBERS)) as found:
        gone = Endpoint("127.0.0.1", 1)
        nodes = PatroniNodes((gone, *(member.endpoint for member in found)), timeout_ms=5_000)
        assert await nodes.nodes() == NODES
        assert await nodes.nodes() == NODES
        assert [member.asked for member in found] == [1, 2]


async def test_a_member_that_hangs_costs_one_bounded_wait() -> None:
    """The wait ends by itself; the next member answers."""
    async with members(lambda: None, lambda: answer(MEMBERS)) as found:
        async with asyncio.timeout(5):
            assert await source(found, timeout_ms=100).nodes() == NODES


async def test_with_no_member_answering_the_nodes_are_those_known_last() -> None:
    """The databases can be well while Patroni is not: nothing is forgotten, nothing is raised."""
    said = [answer(MEMBERS), answer([]), b"nonsense", b""]
    async with members(lambda: said.pop(0)) as found:
        nodes = source(found)
        assert [await nodes.nodes() for _ in range(4)] == [NODES] * 4
    assert await nodes.nodes() == NODES


async def test_with_no_member_ever_answering_there_are_no_nodes() -> None:
    """A service may start before Patroni does."""
    assert await PatroniNodes((Endpoint("127.0.0.1", 1),), timeout_ms=1_000).nodes() == ()


@pytest.mark.parametrize(
    "body", [b"", b"[]", b'{"members": 3}', b'{"members": []}', b'{"members":[{"host":"h"}]}', b"\xff"]
)
def test_what_is_no_list_of_members_is_refused(body: bytes) -> None:
    """Also an empty list: a store that lost its content is no reason to forget the nodes."""
    with pytest.raises(NodeError):
        parse_members(body)


@pytest.mark.parametrize("text", [b"", b"HTTP/1.0 200 OK\r\n", b"\r\n\r\n{}", b"HTTP/1.0 404 Not Found\r\n\r\n{}"])
def test_what_is_no_answer_of_success_is_refused(text: bytes) -> None:
    """The body is not looked at."""
    with pytest.raises(NodeError):
        read_body(text)


@pytest.mark.parametrize(
    "text", ["node-1:8008", "https://node-1:8008", "http://node-1", "http://node-1:0", "http://a b:1"]
)
def test_a_member_is_named_by_its_url(text: str) -> None:
    """Anything else is refused with the reason."""
    with pytest.raises(ValueError, match="takes http://host:port"):
        parse_patroni(text)


def test_the_settings_take_patroni_instead_of_nodes() -> None:
    """Without either, what is missing is named."""
    environ = {
        "ATELIER_TOKEN_KEYS": "k1:" + "ab" * 32,
        "ATELIER_READER_PASSWORD": "r",
        "ATELIER_MONITOR_PASSWORD": "m",
        "ATELIER_WRITER_PASSWORD": "w",
    }
    settings = Settings.from_environment({**environ, "ATELIER_PATRONI": "http://a:8008,http://b:8008/"})
    assert settings.patroni == (Endpoint("a", 8008), Endpoint("b", 8008))
    assert settings.nodes == ()
    assert isinstance(choose_source(settings), PatroniNodes)
    with pytest.raises(SettingsError, match="ATELIER_NODES is not set"):
        Settings.from_environment(environ)
