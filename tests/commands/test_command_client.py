"""The client for Python: one effect per command over broken connections, and reads that contain what it wrote."""

import ast
import re
import tomllib
from pathlib import Path
from typing import Any

import httpx
import pytest

import atelier.client as client_module
from atelier.client import AtelierClient, RefusedError, RetryPolicy
from atelier.errors import HistoryLostError, OutcomeUnknownError
from tests.commands.conftest import Shop, new_key
from tests.support import Service

pytestmark = pytest.mark.anyio

IMPATIENT = RetryPolicy(budget_s=0.3, first_pause_s=0.01, longest_pause_s=0.02)


@pytest.mark.soak
async def test_client_reads_what_it_wrote(shop: Shop, service: Service) -> None:
    """Fifty writes, each followed at once by a read: never an older number."""
    [sku_id] = await shop.stocked(0)
    lines = {"reason": "test", "lines": [{"sku_id": sku_id, "delta": 1}]}
    async with AtelierClient(service.url, api_key=service.key) as client:
        for count in range(1, 51):
            await client.post("/inventory/adjustments", lines)
            assert (await client.get(f"/inventory/{sku_id}")).json()["on_hand"] == count


@pytest.mark.soak
async def test_client_applies_a_command_once_over_lost_answers(shop: Shop, service: Service) -> None:
    """Every second answer is lost on the way; the key makes the retries harmless."""

    class Lossy(httpx.AsyncHTTPTransport):
        sent = 0

        async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
            self.sent += 1
            response = await super().handle_async_request(request)
            if self.sent % 2:
                await response.aclose()
                raise httpx.ReadError("lost", request=request)
            return response

    [sku_id] = await shop.stocked(0)
    lines = {"reason": "test", "lines": [{"sku_id": sku_id, "delta": 1}]}
    async with AtelierClient(service.url, api_key=service.key, transport=Lossy()) as client:
        answers = [await client.post("/inventory/adjustments", lines) for _ in range(10)]
        assert (await client.get(f"/inventory/{sku_id}")).json()["on_hand"] == 10
    assert {answer.headers.get("Idempotency-Replayed") for answer in answers} == {"true"}


README = Path(__file__).parents[2] / "README.md"
EXAMPLE = re.compile(r"```python\n(.*?)```", re.DOTALL)


@pytest.mark.parametrize("text", [README.read_text(encoding="utf-8"), client_module.__doc__], ids=["readme", "module"])
async def test_example_works_as_it_is_printed(shop: Shop, service: Service, text: str) -> None:
    """But for the address, the key and the SKU, which are the reader's own."""
    [sku_id] = await shop.stocked(5)
    [example] = EXAMPLE.findall(text)
    # The SKU first: the service's own port may have a 37 in it.
    for printed, own in (("37", str(sku_id)), ("http://127.0.0.1:8000", service.url)):
        assert printed in example
        example = example.replace(printed, own)
    code = compile(example, "example", "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    names: dict[str, Any] = {"key": service.key, "AtelierClient": AtelierClient}
    await eval(code, names)  # noqa: S307  it is our own text
    assert names["sold"].json()["state"] == "confirmed"
    assert names["stock"].json()["on_hand"] == 4


def test_readme_names_the_extra_that_the_client_needs() -> None:
    """What a reader is told to install is there, and brings httpx."""
    [named] = re.findall(r"pip install '\.\[(\w+)\]'", README.read_text(encoding="utf-8"))
    project = tomllib.loads(README.with_name("pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert any(one.startswith("httpx") for one in project["optional-dependencies"][named])


async def test_client_raises_refusals_with_their_document(shop: Shop, service: Service) -> None:
    """A verdict is no reason to try again."""
    [sku_id] = await shop.stocked(1)
    async with AtelierClient(service.url, api_key=service.key) as client:
        with pytest.raises(RefusedError) as caught:
            await client.post("/reservations", {"ttl_seconds": 60, "lines": [{"sku_id": sku_id, "quantity": 2}]})
        assert (caught.value.name, caught.value.status) == ("insufficient-stock", 409)
        assert caught.value.document["lines"][0]["available"] == 1
        key = new_key()
        assert await client.find_outcome(key) is None
        await client.command("PUT", f"/inventory/{sku_id}", {"on_hand": 4}, key=key, if_match='"1"')
        assert (await client.find_outcome(key))["status"] == 200


async def test_client_gives_up_at_its_budget_and_names_the_key() -> None:
    """Nobody listens: the caller learns the key to go on with."""
    refusing = httpx.MockTransport(lambda _request: httpx.Response(503, headers={"Retry-After": "1"}))
    async with AtelierClient("http://nowhere", transport=refusing, retry=IMPATIENT) as client:
        with pytest.raises(OutcomeUnknownError, match="its idempotency key is mine"):
            await client.post("/products", {}, key="mine")


async def test_client_goes_on_with_the_fresh_token_after_a_lost_history() -> None:
    """Told once, loudly; the next read is answered."""

    def answer(request: httpx.Request) -> httpx.Response:
        if request.headers.get("Atelier-Token") == "old":
            return httpx.Response(409, headers={"Atelier-Token": "new"}, json={"type": "/problems/history-lost"})
        return httpx.Response(200, json=[])

    async with AtelierClient("http://any", transport=httpx.MockTransport(answer), token="old") as client:
        with pytest.raises(HistoryLostError):
            await client.get("/products")
        assert client.token == "new"
        assert (await client.get("/products")).status_code == 200
