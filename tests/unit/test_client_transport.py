"""What the client makes of a connection that is closed as soon as it is open."""

import httpx
import pytest

from atelier.client import ClientTransport

pytestmark = pytest.mark.anyio


class _GonePeer:
    """Stands for the library's connections."""

    def __init__(self, attribute: str) -> None:
        self._attribute = attribute

    async def handle_async_request(self, _request: object) -> object:
        """Looks for what is not there."""
        return getattr(None, self._attribute)


@pytest.mark.parametrize(("attribute", "expected"), [("getpeername", httpx.ConnectError), ("typo", AttributeError)])
async def test_gone_peer_is_a_lost_connection_and_a_mistake_stays_one(
    attribute: str, expected: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The library below looks at a socket that is None."""
    transport = ClientTransport()
    monkeypatch.setattr(transport, "_pool", _GonePeer(attribute))
    with pytest.raises(expected):
        await transport.handle_async_request(httpx.Request("GET", "http://127.0.0.1:1/"))
